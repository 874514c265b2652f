"""Several runs on one page."""

import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from jaxnets.errors import InputError
from jaxnets.evaluation import mcnemar
from jaxnets.report import figures
from jaxnets.report.judgement import accuracy_text, calibration_error
from jaxnets.report.page import escape, paragraph, percent, plot, section, table, write_page
from jaxnets.report.run_files import RunFiles
from jaxnets.report.settings import differences
from jaxnets.report.single import axis_of, curve_of

_MOST_CLASSES = 15
_ABOUT_THE_TEST = (
    "McNemar's exact test compares the images that only one of two runs classifies rightly. p is the probability of a "
    "difference at least as large as this if both runs are equally good. It does not account for the number of pairs, "
    "nor for what another seed would change."
)


def write_comparison(workdirs: Sequence[Path], output: Path) -> Path:
    """Writes one page on two or more runs and returns its path; InputError if a folder holds no run."""
    if len({path.resolve() for path in workdirs}) < len(workdirs):
        raise InputError("a run is given twice; give each run once")
    runs = [RunFiles.read(workdir) for workdir in workdirs]
    names = _names(workdirs)
    heading = f"<header><h1>{len(runs)} runs</h1>{paragraph(', '.join(map(str, workdirs)), 'soft')}</header>"
    sections = [heading, _results(runs, names), _curves(runs, names), _settings(runs, names)]
    sections += [_tests(runs, names), _classes(runs, names)]
    return write_page(output, f"{len(runs)} runs: {', '.join(names)}", sections)


def _names(workdirs: Sequence[Path]) -> list[str]:
    """The paths without the folders that all of them are in."""
    paths = [str(path.resolve()) for path in workdirs]
    shared = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, shared) for path in paths]


def _legend(names: Sequence[str]) -> str:
    items = "".join(f"<li>{figures.swatch(place)}{escape(name)}</li>" for place, name in enumerate(names))
    return f'<ul class="legend">{items}</ul>'


def _results(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    columns = ("run", "judged on", "accuracy (95 % interval)", "macro F1", "calibration error")
    head = (*columns, "network", "data", "epochs", "s in total")
    rows: list[tuple[object, ...]] = []
    for run, name in zip(runs, names, strict=True):
        data = Path(run.config["dataset"]).name
        if run.result is None:
            done = f"{max(run.ends.values(), default=0)} of {run.config['recipe']['epochs']}"
            rows.append((name, "not finished", "", "", "", run.config["arch"], data, done, ""))
            continue
        error = "" if run.answers is None else percent(calibration_error(run.answers))
        judged = f"{run.number('images'):,} {run.part} images"
        numbers = (accuracy_text(run), percent(run.number("macro_f1")), error)
        seconds = f"{run.result['seconds']:,.0f}"
        rows.append((name, judged, *numbers, run.config["arch"], data, str(run.result["epochs"]), seconds))
    return section("Results", table(head, rows, "results of the runs"))


def _curves(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    # A run that has not finished an epoch is left out, unless none has.
    axis = "epoch" if any(run.ends for run in runs) else "step"
    drawings = []
    evaluated = " or ".join(dict.fromkeys(run.evaluated for run in runs))
    for title, split, metric in (
        (f"{evaluated} accuracy", None, "accuracy"),
        (f"{evaluated} loss", None, "loss"),
        ("train loss", "train", "loss"),
        ("learning rate", "train", "learning_rate"),
    ):
        lines = []
        for place, (run, name) in enumerate(zip(runs, names, strict=True)):
            x, y = curve_of(run, split or run.evaluated, metric)
            if x and axis_of(run) == axis:
                lines.append(figures.Curve(name, x, y, place, split is None))
        if lines:
            drawings.append(plot(figures.curves(title, lines, axis, legend=False)))
    if not drawings:
        return section("Learning", paragraph("Nothing is logged yet."))
    return section("Learning", _legend(names), f'<div class="plots wide">{"".join(drawings)}</div>')


def _settings(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    rows = differences([run.config for run in runs])
    if not rows:
        return section("Settings", paragraph("All settings are the same."))
    return section(
        "Settings",
        paragraph("These differ; all others are the same."),
        table(("setting", *names), rows, "settings that differ"),
    )


def _tests(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    rows: list[tuple[object, ...]] = []
    refused = []
    unjudged = [name for run, name in zip(runs, names, strict=True) if run.answers is None]
    if unjudged:
        refused.append(f"Not compared, as they have no predictions.csv: {', '.join(unjudged)}.")
    for (one, first), (other, second) in combinations(zip(runs, names, strict=True), 2):
        if one.answers is None or other.answers is None:
            continue
        if reason := _differ(one, other):
            refused.append(f"{first} and {second} are not compared: {reason}.")
            continue
        place = {name: row for row, name in enumerate(other.answers.images)}
        own, theirs = one.answers.right, other.answers.right[[place[name] for name in one.answers.images]]
        *alone, p = mcnemar(own, theirs)
        difference = f"{100 * (own.mean() - theirs.mean()):+.1f} points"
        shown = f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"
        rows.append((f"{first} and {second}", difference, *alone, shown, "yes" if p < 0.05 else "no"))
    head = ("runs", "difference of accuracy", "only first right", "only second right", "p", "p < 0.05")
    tested = [paragraph(_ABOUT_THE_TEST), table(head, rows, "paired tests of the accuracies")] if rows else []
    return section("Is the difference more than chance?", *tested, *map(paragraph, refused))


def _differ(one: RunFiles, other: RunFiles) -> str | None:
    """Why two runs can't be compared image by image; None if they can."""
    if one.part != other.part:
        return f"one was judged on {one.part}, the other on {other.part}"
    first, second = _classes_of_images(one), _classes_of_images(other)
    if first.keys() != second.keys():
        same, all_of_them = len(first.keys() & second.keys()), len(first.keys() | second.keys())
        return f"they were judged on different images ({same:,} of {all_of_them:,} are the same)"
    if any(len(run.answers.images) > len(first) for run in (one, other) if run.answers):
        return "two of their images have the same name"
    if first != second:
        return "their images have the same names, but other classes"
    return None


def _classes_of_images(run: RunFiles) -> dict[str, str]:
    answers = run.answers
    if answers is None:
        return {}
    return {name: run.class_names[label] for name, label in zip(answers.images, answers.labels, strict=True)}


def _classes(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    judged = [(run, name) for run, name in zip(runs, names, strict=True) if run.answers is not None]
    if len(judged) < 2:
        return ""
    title, first = "Classes where they differ most", judged[0][0]
    if any(_differ(first, run) for run, _ in judged[1:]):
        return section(title, paragraph("The runs were judged on different images, so this is not compared."))
    recalls = np.array([[row["recall"] for row in run.number("per_class")] for run, _ in judged])
    spread = recalls.max(axis=0) - recalls.min(axis=0)
    order = [i for i in np.argsort(-spread, kind="stable")[:_MOST_CLASSES] if spread[i] > 0]
    if not order:
        return section(title, paragraph("The recall of each class is the same in all runs."))
    support = [row["support"] for row in first.number("per_class")]
    rows = [(first.class_names[i], *map(float, recalls[:, i]), support[i]) for i in order]
    head = ("class", *(f"recall, {name}" for _, name in judged), "images")
    return section(title, table(head, rows, "classes where the runs differ most"))
