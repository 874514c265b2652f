"""The sections on how well a run's answers are right."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnets.evaluation import calibration, confusion_matrix, share_interval
from jaxnets.report import figures
from jaxnets.report.heat_maps import heat_map_of, mistakes_of
from jaxnets.report.page import box, escape, gallery, paragraph, percent, plot, section, table
from jaxnets.report.run_files import Answers, RunFiles

_MANY_CLASSES = 20
_MOST_CONFUSIONS = 20
_MOST_TYPICAL = 24


def accuracy_text(run: RunFiles) -> str:
    """The accuracy with its 95 % interval, such as "97.8 % (96.1 to 98.9)"; "not judged" without a result."""
    accuracy = run.number("accuracy")
    if accuracy is None:
        return "not judged"
    if run.answers is None:
        return percent(accuracy)
    right = run.answers.right
    low, high = share_interval(int(right.sum()), len(right))
    return f"{percent(accuracy)} ({100 * low:.1f} to {100 * high:.1f})"


def judgement(run: RunFiles, answers: Answers, *, no_maps: str | None) -> list[str]:
    """Classes, confusions, calibration, mistakes and typical images. `no_maps` says why there are no heat maps."""
    return [
        _classes(run),
        _confusion(answers, run.class_names, run.part),
        _calibration(answers, run.part),
        _mistakes(run, answers, no_maps),
        _typical(run),
    ]


def calibration_error(answers: Answers) -> float:
    """The expected calibration error."""
    return float(calibration(answers.confidence, answers.right).expected_error)


def _classes(run: RunFiles) -> str:
    per_class: list[dict[str, Any]] = run.number("per_class")
    many = len(per_class) > _MANY_CLASSES
    if many:
        per_class = sorted(per_class, key=lambda row: row["f1"])
    columns = ("precision", "recall", "f1")
    rows = [(row["class"], *(float(row[name]) for name in columns), int(row["support"])) for row in per_class]
    mean = ("unweighted mean", *(float(run.number(f"macro_{name}")) for name in columns))
    rows.insert(0, (*mean, int(run.number("images"))))
    head = ("class", "precision", "recall", "F1", "images")
    return section(
        "Classes",
        paragraph("The classes with the lowest F1 come first.") if many else "",
        table(head, rows, "precision, recall and F1 of each class"),
    )


def _confusion(answers: Answers, names: Sequence[str], part: str) -> str:
    size = len(names)
    counts = confusion_matrix(answers.labels, answers.predicted, size)
    wrong = counts * (1 - np.eye(size, dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    places = [np.unravel_index(place, counts.shape) for place in order if wrong.flat[place]]
    pairs = table(
        ("class", "predicted as", "images", "of the class"),
        [(names[i], names[j], int(wrong[i, j]), float(wrong[i, j] / counts[i].sum())) for i, j in places],
        "the most frequent confusions",
    )
    if size <= _MANY_CLASSES:
        matrix = paragraph(f"Rows are the classes of the {part} images, columns the predictions.") + _matrix(
            counts, names
        )
    else:
        matrix = plot(
            figures.confusion_image(counts),
            "Share of the images of a class (row) by prediction (column), in the order of classes.json.",
            "single",
        )
    return section("Confusions", matrix, f"<h3>Most frequent confusions</h3>{pairs}" if places else "")


def _matrix(counts: np.ndarray, names: Sequence[str]) -> str:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    style = ' class="long"' if max(map(len, names)) > 3 else ""
    head = "".join(f'<th scope="col"{style}><span>{escape(name)}</span></th>' for name in names)
    lines = []
    for name, row, row_shares in zip(names, counts, shares, strict=True):
        cells = "".join(
            f'<td style="--v:{share:.2f}"{" class=dark" if share > 0.5 else ""}>{count or ""}</td>'
            for count, share in zip(row, row_shares, strict=True)
        )
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return box(
        f'<table class="matrix"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>',
        "confusion matrix",
        "whole",
    )


def _calibration(answers: Answers, part: str) -> str:
    bins = calibration(answers.confidence, answers.right)
    sure, right = float(answers.confidence.mean()), float(answers.right.mean())
    verdict = (
        "as sure as it is right" if abs(sure - right) < 0.01 else "too sure" if sure > right else "not sure enough"
    )
    drawing = figures.reliability(bins.confidence, bins.accuracy, bins.counts, bins.expected_error)
    return section(
        "Calibration",
        paragraph(
            f"The mean probability of the predictions is {percent(sure)}, and {percent(right)} of them are right: the "
            f"network is {verdict} on the {part} images. The expected calibration error is "
            f"{percent(bins.expected_error)}."
        ),
        plot(
            drawing,
            f"Accuracy by probability of the prediction, in {len(bins.counts)} ranges; {part} images in each.",
            "single",
        ),
    )


def _mistakes(run: RunFiles, answers: Answers, no_maps: str | None) -> str:
    if answers.right.all():
        return section("Worst mistakes", paragraph(f"None: every {run.part} image was classified correctly."))
    pictures, mapped = [], False
    for row, file in mistakes_of(run).items():
        files = [one for one in (file, heat_map_of(file)) if one.exists()]
        mapped = mapped or len(files) > 1
        own, guess = (run.class_names[of[row]] for of in (answers.labels, answers.predicted))
        pictures.append((files, f"{own}, predicted {guess} ({percent(answers.confidence[row])})"))
    text = "The surest wrong answers, with the probability of the prediction."
    if mapped:
        text += " The heat maps (Grad-CAM) show where the network saw the class that it predicted."
    elif no_maps:
        text += f" There are no heat maps: {no_maps}."
    else:
        text += f" To see where the network looked, draw heat maps: jaxnets report {run.path}"
    return section("Worst mistakes", paragraph(text), gallery(pictures))


def _typical(run: RunFiles) -> str:
    files = []
    for label, name in enumerate(run.class_names):
        for place in ("", "-2"):
            file = run.path / "samples" / f"class-{label}{place}.png"
            if file.exists():
                files.append(((file,), name))
    if not files:
        return ""
    old = "judged_on" not in (run.result or {})
    if old:
        title, text = "Images of each class", f"The first {run.part} image of a class."
    else:
        title, text = "Most typical images", "The surest right answers of a class."
    if len(files) > _MOST_TYPICAL:
        text += f" These are {_MOST_TYPICAL} of {len(files)} images in {run.path / 'samples'}."
    return section(title, paragraph(text), gallery(files[:_MOST_TYPICAL]))
