"""Writes published_weights.json: torchvision's metadata of its published weights. Downloads nothing.

Needs torch and torchvision (made with 2.14.1 and 0.29.1):  python -m tests.references.make_published_weights
"""

import hashlib
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torchvision.models import WeightsEnum, get_model, get_model_weights

from tests.references.recipe import TORCHVISION_MODELS


def transforms_input(entry: WeightsEnum, arch: str) -> bool:
    """Whether torchvision's network for these weights transforms its input."""
    with (
        torch.device("meta"),
        patch.object(WeightsEnum, "get_state_dict"),
        patch.object(torch.nn.Module, "load_state_dict"),
    ):
        return getattr(get_model(arch, weights=entry), "transform_input", False)


def described(arch: str, entry: WeightsEnum) -> dict[str, Any]:
    preset, meta = entry.transforms(), entry.meta
    accuracy = meta["_metrics"]["ImageNet-1K"]
    return {
        "arch": arch,
        "name": entry.name,
        "url": entry.url,
        "megabytes": meta["_file_size"],
        "crop_size": preset.crop_size,
        "resize_size": preset.resize_size,
        "mean": preset.mean,
        "std": preset.std,
        "interpolation": preset.interpolation.value,
        "antialias": preset.antialias,
        "top1": accuracy["acc@1"],
        "top5": accuracy["acc@5"],
        "recipe": meta["recipe"],
        "transform_input": transforms_input(entry, arch),
        "num_params": meta["num_params"],
    }


def main() -> None:
    enums = {arch: get_model_weights(arch) for arch in TORCHVISION_MODELS}
    (classes,) = {tuple(entry.meta["categories"]) for weights in enums.values() for entry in weights}
    contents = {
        "published": [described(arch, entry) for arch, weights in enums.items() for entry in weights],
        "defaults": {arch: weights.DEFAULT.name for arch, weights in enums.items()},
        "classes_sha256": hashlib.sha256("\n".join(classes).encode()).hexdigest(),
    }
    Path(__file__).with_name("published_weights.json").write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
