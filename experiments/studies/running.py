"""Runs studies: one progress display, results and figures in a folder, and the page."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from experiments.studies.data import study_data
from experiments.studies.lab import Lab, Programs
from experiments.studies.page import INDEX, write_index
from experiments.studies.study import Measured, Study, Table
from jaxnets import __version__
from jaxnets.report import check_replaceable
from jaxnets.training.progress import clock

_SECONDS_A_LINE = 30
_USUAL_SEEDS = 3


def run_studies(
    studies: Sequence[Study], folder: Path, *, full: bool = False, seeds: int = 3, dataset: str | None = None
) -> list[dict[str, Any]]:
    """Runs studies with the seeds 0 to `seeds` - 1, writes their results, figures and page, and returns the results.

    A study whose measurements are in the folder, of the same settings and data, is not measured again.
    """
    check_replaceable(folder / INDEX)
    with _Progress([study.seconds * _share(study, seeds) for study in studies]) as progress:
        results = [_run(study, folder / study.name, full, seeds, dataset, progress) for study in studies]
    write_index(folder)
    return results


def _run(
    study: Study, place: Path, full: bool, seeds: int, dataset: str | None, progress: "_Progress"
) -> dict[str, Any]:
    settings = study.full if full else study.quick
    data = study_data(dataset, harder=study.harder)
    place.mkdir(parents=True, exist_ok=True)
    # Measurements of other versions, settings or images are in other files.
    fingerprints = [source.fingerprint() for source in data.parts.values()]
    digest = sha256(repr((__version__, jax.__version__, settings, fingerprints)).encode()).hexdigest()[:8]
    programs, measured, seconds = Programs(), [], 0.0
    for seed in range(1 if study.exact else seeds):
        progress.begin(f"{study.name}, seed {seed}")
        lab = Lab(data, seed, place / f"seed-{seed}-{digest}.json", programs, progress.note)
        started = time.perf_counter()
        measured.append(lab.kept("measured", partial(study.measure, lab, settings)))
        seconds += lab.kept("seconds", partial(_since, started))
        progress.advance(study.seconds / (1 if study.exact else _USUAL_SEEDS))
    command = _command(study, full, seeds, dataset)
    result = _result(study, measured, settings, data.name, command, seconds)
    _write(study, measured, result, place)
    for verdict in result["verdicts"]:
        progress.say(f"{study.name}: {verdict['verdict']}: {verdict['text']}")
    return result


def _since(started: float) -> float:
    return time.perf_counter() - started


def _command(study: Study, full: bool, seeds: int, dataset: str | None) -> str:
    options = " --full" * full + (f" --dataset {dataset}" if dataset else "")
    return f"jaxnets study {study.name}{options}" + (f" --seeds {seeds}" if seeds != _USUAL_SEEDS else "")


def _share(study: Study, seeds: int) -> float:
    return 1 if study.exact else seeds / _USUAL_SEEDS


def _result(
    study: Study, measured: Sequence[Measured], settings: Any, dataset: str, command: str, seconds: float
) -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "study": study.name,
        "title": study.title,
        "why": study.why,
        "source": study.source,
        "command": command,
        "verdicts": [verdict.to_dict() for verdict in study.judge(measured)],
        "settings": asdict(settings),
        "seeds": len(measured),
        "exact": study.exact,
        "dataset": dataset,
        "device": device.device_kind,
        "seconds": seconds,
        "jax": jax.__version__,
        "jaxnets": __version__,
    }


def _write(study: Study, measured: Sequence[Measured], result: dict[str, Any], place: Path) -> None:
    """Writes result.json and the figures, as PNG and as SVG."""
    from jaxnets.report.figures import svg_of

    figures: list[dict[str, Any]] = []
    for drawing in study.draw(measured):
        if isinstance(drawing, Table):
            figures.append(asdict(drawing))
            continue
        drawing.figure.savefig(place / f"{drawing.name}.png", dpi=160)
        (place / f"{drawing.name}.svg").write_text(svg_of(drawing.figure, drawing.alt), encoding="utf-8")
        figures.append({"name": drawing.name, "alt": drawing.alt, "caption": drawing.caption})
    text = json.dumps(result | {"figures": figures}, indent=2, ensure_ascii=False)
    (place / "result.json").write_text(text + "\n", encoding="utf-8")


class _Progress:
    """A bar over the expected seconds of all studies, with the time left; without a terminal, lines."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self._live = sys.stderr.isatty()
        self._total, self._done = sum(seconds), 0.0
        self._bar = tqdm(
            total=self._total,
            disable=not self._live,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {postfix}",
        )
        self._started = self._said = time.perf_counter()
        self._task = ""

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def begin(self, task: str) -> None:
        """Names what is measured now."""
        self._task = task
        self._bar.set_postfix_str(f"{task}, {self._left()}")

    def note(self, text: str) -> None:
        """Says how far a measurement is: at once on a terminal, otherwise twice a minute."""
        self._bar.set_postfix_str(f"{self._task}, {text}, {self._left()}")
        if not self._live and time.perf_counter() - self._said > _SECONDS_A_LINE:
            self.say(f"{self._task}, {text}, {self._left()}")

    def advance(self, seconds: float) -> None:
        """Counts what a finished measurement was expected to take."""
        self._done += seconds
        self._bar.update(seconds)
        if not self._live:
            self.say(f"{self._task} is measured, {self._left()}")

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        self._said = time.perf_counter()
        self._bar.write(line, file=sys.stderr)

    def _left(self) -> str:
        spent = time.perf_counter() - self._started
        pace = spent / self._done if self._done else 1.0
        return f"about {clock(pace * (self._total - self._done))} left"
