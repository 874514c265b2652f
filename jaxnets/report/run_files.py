"""The files of a run, finished or not, as a report reads them."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxnets.errors import InputError


@dataclass(frozen=True)
class Answers:
    """The rows of predictions.csv: names of images, and for each [N] its index in its part, label and prediction.

    `confidence` [N] is the probability of the prediction.
    """

    images: tuple[str, ...]
    indices: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Which images are classified rightly [N]."""
        return self.labels == self.predicted


@dataclass(frozen=True)
class RunFiles:
    """What the files of a run hold. `result` and `answers` are None until it is finished.

    `part` is the part of the data that the answers are of.
    """

    path: Path
    config: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]
    class_names: tuple[str, ...]
    result: dict[str, Any] | None
    answers: Answers | None

    @classmethod
    def read(cls, workdir: Path) -> "RunFiles":
        """Reads a run; raises InputError if the folder holds none, or a damaged one."""
        try:
            config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
            result, names = _json(workdir / "result.json"), _json(workdir / "classes.json")
            names = tuple(result["class_names"] if result else names or ())
            answers = _answers(workdir / "predictions.csv", names) if result else None
            return cls(workdir, config, _lines(workdir / "metrics.jsonl"), names, result, answers)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{workdir} holds no run; give a folder that jaxnets train wrote") from None
        except OSError as error:
            raise InputError(f"{error.filename} can't be read ({error.strerror}); check the permissions") from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{workdir} holds a damaged run ({error}); train it again in another workdir") from None

    @property
    def title(self) -> str:
        """The network and the data set."""
        return f"{self.config['arch']} on {Path(self.config['dataset']).name}"

    @property
    def part(self) -> str:
        """The part of the data that the run was judged on; "test" in runs of earlier versions."""
        return (self.result or {}).get("judged_on", "test")

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that evaluate the network after an epoch."""
        val = [line for line in self.metrics if line["split"] == "val"]
        return val or [line for line in self.metrics if line["split"] == "test"]

    @property
    def ends(self) -> dict[int, int]:
        """The finished epochs by their last step."""
        last = {line["epoch"]: line["step"] for line in self.metrics if line["split"] == "train"}
        # The last epoch may be unfinished.
        ends = {step: epoch for epoch, step in last.items() if epoch < max(last)}
        return ends | {line["step"]: line["epoch"] for line in self.epochs}

    @property
    def evaluated(self) -> str:
        """The part that was evaluated after each epoch: "val", or "test" in runs of earlier versions."""
        return self.epochs[0]["split"] if self.epochs else "val"

    def number(self, name: str) -> Any:
        """A number of the result, such as "accuracy", for `part`; None if there is none."""
        return (self.result or {}).get(f"{self.part}_{name}")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _lines(path: Path) -> tuple[dict[str, Any], ...]:
    if not path.exists():
        return ()
    # The last line of a run that was killed may be cut short.
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return tuple(json.loads(line) for line in lines if line.endswith("\n"))


def _answers(path: Path, names: tuple[str, ...]) -> Answers | None:
    if not path.exists():
        return None
    # Names of files may have bytes that are not UTF-8.
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.reader(file)
        columns = {name: place for place, name in enumerate(next(reader))}
        index, image, own, guess, share = (
            columns[name] for name in ("index", "image", "class", "predicted", "probability")
        )
        rows, number = list(reader), {name: label for label, name in enumerate(names)}
    return Answers(
        tuple(row[image] for row in rows),
        np.array([int(row[index]) for row in rows], int),
        np.array([number[row[own]] for row in rows], int),
        np.array([number[row[guess]] for row in rows], int),
        np.array([float(row[share]) for row in rows], float),
    )
