"""The files of a run."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from jaxnets.data.sources import Dataset
from jaxnets.data.verification import BadImage, write_bad_images
from jaxnets.errors import InputError
from jaxnets.training.config import Config
from jaxnets.training.evaluation import Evaluation
from jaxnets.training.exclusive import LOCK, Exclusive
from jaxnets.training.predictions_file import write_predictions_file
from jaxnets.weights.folder_path import check_path

_MAX_MISTAKES = 24
_MAX_SAMPLES = 100


@dataclass(frozen=True)
class Workdir:
    """The files of a run: configuration, classes, result, predictions and a few images. A context manager.

    Other modules write the checkpoints, the metrics and the report. Until the end of the context no other run can use
    the folder.
    """

    path: Path
    _lock: Exclusive
    _created: tuple[Path, ...]

    @classmethod
    def prepare(cls, path: Path, config: Config, *, resume: bool = False) -> "Workdir":
        """Takes the folder of a new run, or with `resume` that of a run to continue.

        Raises InputError if another run is using the folder, if it can't be written, holds other files or another run,
        or if the run to continue began with other settings.
        """
        try:
            check_path(path.resolve())
            if path.is_file():
                raise InputError(f"{path} is a file; give a new or an empty folder as --workdir")
            missing = tuple(folder for folder in (path, *path.parents) if not folder.exists())
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from None
        workdir = cls(path, Exclusive(path), missing)
        try:
            workdir._check(config, resume=resume)
        except BaseException:
            workdir.release()
            raise
        return workdir

    def _check(self, config: Config, *, resume: bool) -> None:
        path = self.path
        try:
            if (path / "config.json").exists():
                if not resume:
                    raise InputError(
                        f"{path} already holds a run; continue it with --resume (in Python: resume=True), or give "
                        "another --workdir"
                    )
                config.check_resumes(Config.read(path / "config.json"))
            elif any(file.name not in ("config.new", LOCK) for file in path.iterdir()):
                raise InputError(f"{path} is not empty; give an empty or a new folder as --workdir")
        except OSError as error:
            raise _unwritable(path, error) from None

    def release(self) -> None:
        """Lets other runs use the folder. If nothing was written, it is left as it was before."""
        unused = not (self.path / "config.json").exists()
        self._lock.release(remove=unused)
        if unused:
            for folder in self._created:
                with suppress(OSError):  # another run may be using it by now
                    folder.rmdir()

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def begin(self, config: Config, class_names: Sequence[str], bad_images: Sequence[BadImage]) -> None:
        """Writes config.json, classes.json (the names in order), and bad-images.csv if images were left out."""
        try:
            _write(self.path / "config.json", config.to_json())
            if (self.path / "classes.json").exists():
                return
            _write(self.path / "classes.json", json.dumps(list(class_names), indent=2) + "\n")
            if bad_images:
                write_bad_images(self.path, bad_images)
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def result(self) -> dict[str, Any] | None:
        """The result of a finished run; None if it has none."""
        path = self.path / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def finish(
        self, result: Mapping[str, Any], dataset: Dataset, evaluation: Evaluation, picture: Callable[[int], np.ndarray]
    ) -> None:
        """Writes predictions.csv (one row an image), some images, and last result.json.

        The images are those of the part that the run is judged on. samples/ holds the most confident right answers of
        each class as class-INDEX.png and class-INDEX-2.png; mistakes/ holds the most confident wrong answers, by index
        in the part. `picture(index)` returns the pixels [S, S, 3] that the network saw.
        """
        names, labels, part = dataset.class_names, evaluation.labels, dataset.judged_on
        predicted, confidence = evaluation.predicted, evaluation.confidence
        write_predictions_file(self.path / "predictions.csv", part, dataset.judged(), names, evaluation)
        surest = np.argsort(-confidence, kind="stable")
        wrong = surest[predicted[surest] != labels[surest]]
        pictures = {f"mistakes/{index}.png": index for index in wrong[:_MAX_MISTAKES]}
        for label in range(min(len(names), _MAX_SAMPLES)):
            right = surest[(labels[surest] == label) & (predicted[surest] == label)]
            for place, index in enumerate(right[: min(2, _MAX_SAMPLES // len(names) or 1)]):
                pictures[f"samples/class-{label}{'-2' if place else ''}.png"] = index
        for folder in ("samples", "mistakes"):
            (self.path / folder).mkdir(exist_ok=True)
        for file, index in pictures.items():
            Image.fromarray(picture(int(index))).save(self.path / file)
        _write(self.path / "result.json", json.dumps(result, indent=2) + "\n")


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} can't be written ({error.strerror}); give another --workdir")


def _write(path: Path, text: str) -> None:
    """Writes the whole file or nothing, even if the process is killed."""
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
