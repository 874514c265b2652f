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
        """Makes the folder and writes config.json. Raises InputError where it can't, or where anything lies already."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / "config.json").exists():
                raise InputError(f"{path} already holds another run; give another --workdir, or remove it first")
            if any(path.iterdir()):
                raise InputError(f"{path} is not empty; give a --workdir that is, or that does not exist yet")
            with (path / "config.json").open("x", encoding="utf-8") as file:
                file.write(config.to_json())
        except OSError as error:
            raise InputError(f"{path} can't be written ({error.strerror}); give another --workdir") from None
        return cls(path)

    def log(self, split: str, step: int, epoch: int, metrics: Mapping[str, float], **more: float) -> None:
        """Adds a line to metrics.jsonl."""
        line = {"split": split, "step": step, "epoch": epoch, **metrics, **more}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def finish(
        self, result: Mapping[str, Any], test: Split, probabilities: np.ndarray, class_names: Sequence[str]
    ) -> None:
        """Writes predictions.csv [one row a test image], images to look at, and, when all is done, result.json.

        samples/ holds the first test image of each class as class-INDEX.png, mistakes/ the wrong answers that were
        surest, by their index in the test.
        """
        predicted = probabilities.argmax(axis=1)
        surety = probabilities.max(axis=1)
        with (self.path / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
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
        text = json.dumps({**result, "class_names": list(class_names)}, indent=2)
        (self.path / "result.json").write_text(text + "\n", encoding="utf-8")
