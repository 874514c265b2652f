"""The files of a run."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxnets.data.sources import Split
from jaxnets.errors import InputError
from jaxnets.training.config import Config

_MOST_MISTAKES = 24


@dataclass(frozen=True)
class Workdir:
    """config.json, metrics.jsonl, result.json, predictions.csv and a few test images; checkpoints have their owner."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: Config) -> "Workdir":
        """Makes the folder and writes config.json. Raises InputError where it can't, or where a run lies already."""
        if (path / "config.json").exists() or (path / "checkpoints").exists():
            raise InputError(f"{path} already holds another run; give another --workdir, or remove it first")
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "config.json").write_text(config.to_json())
        except OSError as error:
            raise InputError(f"{path} can't be written ({error.strerror}); give another --workdir") from None
        return cls(path)

    def log(self, split: str, step: int, epoch: int, metrics: Mapping[str, float], **more: float) -> None:
        """Adds a line to metrics.jsonl."""
        line = {"split": split, "step": step, "epoch": epoch, **metrics, **more}
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def finish(
        self, result: Mapping[str, Any], test: Split, probabilities: np.ndarray, class_names: Sequence[str]
    ) -> None:
        """Writes result.json, predictions.csv [one row a test image], and images to look at.

        samples/ holds the first test image of each class as class-INDEX.png, mistakes/ the wrong answers that were
        surest, by their index in the test.
        """
        (self.path / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        predicted = probabilities.argmax(axis=1)
        surety = probabilities.max(axis=1)
        with (self.path / "predictions.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("index", "class", "predicted", "probability"))
            for index, (label, guess, share) in enumerate(zip(test.labels, predicted, surety, strict=True)):
                rows.writerow((index, class_names[label], class_names[guess], f"{share:.6f}"))
        _, firsts = np.unique(test.labels, return_index=True)
        wrong = np.flatnonzero(predicted != test.labels)
        surest = wrong[np.argsort(-surety[wrong], kind="stable")][:_MOST_MISTAKES]
        for folder, indices in (("samples", firsts), ("mistakes", surest)):
            (self.path / folder).mkdir()
            for index in indices:
                name = f"class-{test.labels[index]}" if folder == "samples" else str(index)
                Image.fromarray(test.images[index]).save(self.path / folder / f"{name}.png")
