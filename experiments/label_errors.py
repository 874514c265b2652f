"""Likely label errors: python -m experiments.label_errors RUN [--split train|val|test] [--output FILE.csv|.html]."""

from pathlib import Path

import numpy as np

from experiments.command import add_classifier, classifier_of, parser_of, run
from experiments.listing import check_output, readable, write_page, write_rows
from jaxnets.data.division import PARTS
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
    check_output(arguments.output)
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
    rows = [_row(part, source, labels, names, errors, int(index)) for index in errors.order]
    print(f"{errors.likely.sum()} of {len(source)} {part} images probably have a wrong label")
    _print(rows[: min(_PRINTED, int(errors.likely.sum()))])
    hardest = _hardest(errors)
    print("the hardest of the others, by their loss:")
    by_index = dict(zip(errors.order.tolist(), rows, strict=True))
    _print([by_index[index] for index in hardest[: _PRINTED // 2]])
    if arguments.output is None:
        return
    if arguments.output.suffix.lower() == ".csv":
        write_rows(arguments.output, COLUMNS, rows)
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


def _row(
    part: str, source: Source, labels: np.ndarray, names: tuple[str, ...], errors: LabelErrors, index: int
) -> tuple[object, ...]:
    return (
        part,
        index,
        source.where(index),
        names[labels[index]],
        names[errors.suggested[index]],
        "yes" if errors.likely[index] else "no",
        f"{errors.self_confidence[index]:.6f}",
        f"{errors.margin[index]:.6f}",
        f"{errors.loss[index]:.4f}",
    )


def _print(rows: list[tuple[object, ...]]) -> None:
    for _, _, image, label, suggested, _, probability, _, loss in rows:
        print(f"  {image}: labelled {label} ({float(str(probability)):.1%}), looks like {suggested}, loss {loss}")


def _page(
    title: str, source: Source, rows: list[tuple[object, ...]], errors: LabelErrors, hardest: list[tuple[object, ...]]
) -> str:
    def card(row: tuple[object, ...]) -> Card:
        _, index, image, label, suggested, _, probability, _, loss = row
        bold = f"{label}, rather {suggested}?" if label != suggested else f"{label}"
        share = f"probability of {label}: {float(str(probability)):.1%}, loss {loss}"
        return Card([(source, int(str(index)))], [bold, share, str(image)])

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
