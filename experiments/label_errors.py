"""Likely label errors: python -m experiments.label_errors RUN [--split train|val|test] [--output FILE.csv|.html]."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.arguments import add_classifier, parser_of
from experiments.command import run
from experiments.loading import classifier_of, readable
from experiments.output import LISTS, check_output, write_page, write_rows
from jaxnets.data.part_names import PARTS
from jaxnets.data.sources import Source
from jaxnets.errors import InputError
from jaxnets.inspection.label_errors import LabelErrors, find_label_errors
from jaxnets.inspection.linear_probe import FOLDS, out_of_sample
from jaxnets.inspection.sheet import Card, contact_sheet
from jaxnets.models.features import head_inputs
from jaxnets.training.contents import TrainedClassifier
from jaxnets.training.evaluation import Evaluator, FeatureExtractor
from jaxnets.training.progress import counting
from jaxnets.training.run_data import load_data_of, warn_of_other_images

_PRINTED, _DRAWN, _HARDEST = 20, 100, 20
COLUMNS = ("part", "index", "image", "class", "suggested", "likely_error", "class_probability", "margin", "loss")


class _Row(NamedTuple):
    """An image, by its index in the part, and what `LabelErrors` says of it."""

    place: int
    image: str
    label: str
    suggested: str
    likely: bool
    probability: float
    margin: float
    loss: float


def main() -> None:
    """Lists images of a run's data set whose label is probably wrong, and the hardest images.

    It is confident learning (Northcutt et al. 2021). The network judges images of val and test. It has learned
    the training images: these are judged by linear classifiers on its features, each by one that has not learned it.
    """
    parser = parser_of("label_errors", main.__doc__)
    add_classifier(parser)
    parser.add_argument("--split", choices=PARTS, default="train", help="which images to judge (default: train)")
    parser.add_argument("--batch-size", type=int, default=128, help="images computed at once (default: 128)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write all images to a .csv file, or the first 100 to an .html page"
    )
    arguments = parser.parse_args()
    check_output(arguments.output, LISTS)
    if arguments.batch_size < 1:
        raise InputError(f"--batch-size {arguments.batch_size}; expected at least 1")
    trained = classifier_of(arguments)
    dataset = load_data_of(trained.config)
    trained.check_classes(dataset.class_names)
    part, names = arguments.split, trained.class_names
    source = dataset.judged(part)
    with counting("checking images", len(source)) as (done, say):
        source = readable(source, len(names), done, say)
        warn_of_other_images(trained.fingerprints, part, source, say)
    size = min(arguments.batch_size, len(source))
    judge = _by_linear_classifiers if part == "train" else _by_network
    probabilities, labels = judge(trained, source, size)
    errors = find_label_errors(probabilities, labels)
    rows = [_row(source, labels, names, errors, index) for index in errors.order.tolist()]
    print(f"{errors.likely.sum()} of {len(source)} {part} images probably have a wrong label")
    _print(rows[: min(_PRINTED, int(errors.likely.sum()))])
    hardest = _hardest(errors)
    print("the hardest of the others, by their loss:")
    by_index = {row.place: row for row in rows}
    _print([by_index[index] for index in hardest[: _PRINTED // 2]])
    if arguments.output is None:
        return
    if arguments.output.suffix.lower() == ".csv":
        write_rows(arguments.output, COLUMNS, (_cells(part, row) for row in rows))
    else:
        title = f"Likely label errors: {part} images of {dataset.name}"
        write_page(arguments.output, _page(title, source, rows, errors, [by_index[index] for index in hardest]))
    print(f"written to {arguments.output}")


def _by_linear_classifiers(trained: TrainedClassifier, source: Source, size: int) -> tuple[np.ndarray, np.ndarray]:
    extract = FeatureExtractor(trained.model, trained.preprocessing, head_inputs(trained.model), size)
    with counting("computing features", len(source)) as (done, _):
        features, labels = extract(trained.variables, source, done)
    with counting("training linear classifiers", FOLDS) as (done, _):
        return out_of_sample(features, labels, len(trained.class_names), done=done), labels


def _by_network(trained: TrainedClassifier, source: Source, size: int) -> tuple[np.ndarray, np.ndarray]:
    evaluate = Evaluator(trained.model, trained.preprocessing, size)
    with counting("evaluating", len(source)) as (done, _):
        result = evaluate(trained.variables, source, done)
    return result.probabilities, result.labels


def _hardest(errors: LabelErrors) -> list[int]:
    """The images with the highest losses that are not likely errors."""
    order = np.argsort(-errors.loss, kind="stable")
    return order[~errors.likely[order]][:_HARDEST].tolist()


def _row(source: Source, labels: np.ndarray, names: tuple[str, ...], errors: LabelErrors, index: int) -> _Row:
    return _Row(
        index,
        source.where(index),
        names[labels[index]],
        names[errors.suggested[index]],
        bool(errors.likely[index]),
        float(errors.self_confidence[index]),
        float(errors.margin[index]),
        float(errors.loss[index]),
    )


def _cells(part: str, row: _Row) -> tuple[object, ...]:
    likely = "yes" if row.likely else "no"
    numbers = f"{row.probability:.6f}", f"{row.margin:.6f}", f"{row.loss:.4f}"
    return part, row.place, row.image, row.label, row.suggested, likely, *numbers


def _print(rows: list[_Row]) -> None:
    for row in rows:
        print(
            f"  {row.image}: labelled {row.label} ({row.probability:.1%}), looks like {row.suggested}, "
            f"loss {row.loss:.4f}"
        )


def _page(title: str, source: Source, rows: list[_Row], errors: LabelErrors, hardest: list[_Row]) -> str:
    def card(row: _Row) -> Card:
        bold = f"{row.label}, rather {row.suggested}?" if row.label != row.suggested else row.label
        share = f"probability of {row.label}: {row.probability:.1%}, loss {row.loss:.4f}"
        return Card([(source, row.place)], [bold, share, row.image])

    count = int(errors.likely.sum())
    lead = (
        f"{count} of {len(source)} images probably have a wrong label, by confident learning (Northcutt et al. 2021)"
        f"{f'; the first {_DRAWN} are shown' if count > _DRAWN else ''}. Look at each before you change its label."
    )
    likely = [card(row) for row in rows[: min(_DRAWN, count)]]
    return contact_sheet(
        title, lead, [("Likely errors", likely), ("The hardest others", [card(row) for row in hardest])]
    )


if __name__ == "__main__":
    run(main)
