"""The files of a run."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxnets.data.sources import Dataset
from jaxnets.data.verification import BadImage, write_bad_images
from jaxnets.errors import InputError
from jaxnets.training.config import Config
from jaxnets.training.evaluation import Evaluation

_MOST_MISTAKES = 24
_MOST_SAMPLES = 100


def check_unused(path: Path) -> None:
    """Raises InputError where a run can't be written, or where anything lies already; writes nothing."""
    try:
        if (path / "config.json").exists():
            raise InputError(f"{path} already holds another run; give another --workdir, or remove it first")
        if path.exists() and any(path.iterdir()):
            raise InputError(f"{path} is not empty; give a --workdir that is, or that does not exist yet")
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} can't be written ({error.strerror}); give another --workdir")


@dataclass(frozen=True)
class Workdir:
    """The files of a run: its configuration and classes, metrics, result, predictions and a few test images.

    Checkpoints and the report have their own owners.
    """

    path: Path

    @classmethod
    def create(
        cls, path: Path, config: Config, class_names: Sequence[str], bad_images: Sequence[BadImage]
    ) -> "Workdir":
        """Makes the folder and writes config.json, classes.json (the names in the order of their indices), and, where
        images were left out, bad-images.csv. Raises InputError as `check_unused` does.
        """
        check_unused(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with (path / "config.json").open("x", encoding="utf-8") as file:
                file.write(config.to_json())
            (path / "classes.json").write_text(json.dumps(list(class_names), indent=2) + "\n", encoding="utf-8")
            if bad_images:
                write_bad_images(path, bad_images)
        except OSError as error:
            raise _unwritable(path, error) from None
        return cls(path)

    def log(self, split: str, step: int, epoch: int, metrics: Mapping[str, float], **more: float) -> None:
        """Adds a line to metrics.jsonl."""
        line = {"split": split, "step": step, "epoch": epoch, **metrics, **more}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def finish(
        self, result: Mapping[str, Any], dataset: Dataset, test: Evaluation, picture: Callable[[int], np.ndarray]
    ) -> None:
        """Writes predictions.csv [one row a test image], result.json, and images to look at.

        samples/ holds the first test image of each class as class-INDEX.png, mistakes/ the wrong answers that were
        surest, by their index in the test; `picture` gives the pixels [S, S, 3] that the network saw.
        """
        names, labels = dataset.class_names, test.labels
        predicted = test.probabilities.argmax(axis=1)
        surety = test.probabilities.max(axis=1)
        rows = [
            (index, dataset.test.where(index), names[label], names[guess], f"{share:.6f}")
            for index, (label, guess, share) in enumerate(zip(labels, predicted, surety, strict=True))
        ]
        _write_csv(self.path / "predictions.csv", ("index", "image", "class", "predicted", "probability"), rows)
        text = json.dumps({**result, "class_names": list(names)}, indent=2)
        (self.path / "result.json").write_text(text + "\n", encoding="utf-8")
        _, firsts = np.unique(labels, return_index=True)
        wrong = np.flatnonzero(predicted != labels)
        surest = wrong[np.argsort(-surety[wrong], kind="stable")][:_MOST_MISTAKES]
        for folder, indices in (("samples", firsts[:_MOST_SAMPLES]), ("mistakes", surest)):
            (self.path / folder).mkdir()
            for index in indices:
                name = f"class-{labels[index]}" if folder == "samples" else str(index)
                Image.fromarray(picture(int(index))).save(self.path / folder / f"{name}.png")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
