"""Writes transfer.npz: torch's training with frozen layers and layer-wise learning rates, and its feature maps.

Needs torch and torchvision (made with 2.14.1 and 0.29.1):  python -m tests.references.make_transfer
"""

from pathlib import Path

import numpy as np
import torch
from torchvision.models.feature_extraction import create_feature_extractor

from tests.references import recipe
from tests.references.make_torchvision import build, images_of
from tests.references.recipe import FEATURES, TRANSFERS


def transferred(arch: str, first: str, decay: float) -> dict[str, np.ndarray]:
    """The weights after a few training steps of the block `first` and all later ones. Earlier blocks are frozen."""
    pixels, count, classes = recipe.TRANSFER_CASE
    model = build(arch, classes).train()
    names, blocks = zip(*blocks_of(model), strict=True)
    trained = blocks[names.index(first) :]
    for block in blocks:
        if block not in trained:
            block.requires_grad_(False).eval()
    groups = [
        {"params": list(block.parameters()), "lr": recipe.LEARNING_RATE * decay**distance}
        for distance, block in enumerate(reversed(blocks))
        if block in trained
    ]
    optimizer = torch.optim.SGD(groups, momentum=recipe.MOMENTUM, weight_decay=recipe.WEIGHT_DECAY)
    images, labels = images_of(pixels, count), torch.from_numpy(recipe.labels(count, classes))
    for _ in range(recipe.STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    results = {"loss": loss.detach().numpy()}
    for name, tensor in model.state_dict().items():
        if "num_batches" not in name:
            results[f"after/{name}"] = recipe.fingerprint(name, tensor.numpy())
    return results


def blocks_of(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """The blocks with separate learning rates: the stem, each residual block, the classifier."""
    stem = torch.nn.ModuleList([model.conv1, model.bn1])
    rest = [
        (f"{stage}.{name}", block)
        for stage in ("layer1", "layer2", "layer3", "layer4")
        for name, block in getattr(model, stage).named_children()
    ]
    return [("conv1", stem), *rest, ("fc", model.fc)]


def features(arch: str) -> dict[str, np.ndarray]:
    pixels, count, classes = recipe.TRANSFER_CASE
    nodes = recipe.FEATURES[arch]
    extractor = create_feature_extractor(build(arch, classes).eval(), list(nodes))
    with torch.no_grad():
        outputs = extractor(images_of(pixels, count))
    return {nodes[node]: recipe.fingerprint(nodes[node], channels_last(tensor)) for node, tensor in outputs.items()}


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.numpy()
    return tensor.transpose(0, 2, 3, 1) if tensor.ndim == 4 else tensor.reshape(len(tensor), -1)


def main() -> None:
    results = {}
    for name, case in TRANSFERS.items():
        results |= {f"{name}/{key}": value for key, value in transferred(*case).items()}
    for arch in FEATURES:
        results |= {f"features/{arch}/{stage}": value for stage, value in features(arch).items()}
    np.savez_compressed(Path(__file__).with_name("transfer.npz"), **results)


if __name__ == "__main__":
    main()
