"""Classify images: python -m experiments.predict (WORKDIR | --arch NAME) IMAGE..."""

import sys
from pathlib import Path

from experiments.arguments import add_tta, add_weights, parser_of
from experiments.command import run
from experiments.loading import fastest_weights_of, images_of
from experiments.output import check_output, replacing
from jaxnets.errors import InputError
from jaxnets.prediction import FORMATS, predict, write_predictions
from jaxnets.training.progress import counting


def main() -> None:
    """Prints the most probable classes of images, by a run or by other weights."""
    parser = parser_of("predict", main.__doc__)
    add_weights(parser, images=True)
    parser.add_argument("--topk", type=int, default=5, metavar="N", help="classes for each image (default: 5)")
    parser.add_argument("--format", choices=FORMATS, help="output format (default: by the name of --output, or text)")
    parser.add_argument("--output", type=Path, help="output file, such as predictions.csv (default: the terminal)")
    add_tta(parser)
    parser.add_argument(
        "--probabilities", action="store_true", help="write the probabilities of all classes too (CSV and JSON)"
    )
    arguments = parser.parse_args()
    output: Path | None = arguments.output
    format = arguments.format or (output.suffix.removeprefix(".") if output else "text")
    if format not in FORMATS:
        raise InputError(f"--output {output}: unknown format; name the file .csv or .json, or give --format")
    check_output(output)
    if arguments.probabilities and format == "text":
        raise InputError("--probabilities is for CSV and JSON; give --format csv or --format json")
    if arguments.topk < 1:
        raise InputError(f"--topk {arguments.topk}; expected at least 1 class")
    images = images_of(arguments)
    _, classifier = fastest_weights_of(arguments, len(images))
    with counting("predicting", len(images)) as (done, _):
        predictions = predict(
            classifier,
            images,
            top=arguments.topk,
            batch_size=arguments.batch_size,
            tta=arguments.tta,
            probabilities=arguments.probabilities,
            done=done,
        )
        every_class = classifier.categories if arguments.probabilities else ()
        if output is None:
            write_predictions(predictions, sys.stdout, format, every_class=every_class)
            return
        with (
            replacing(output) as new,
            new.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            write_predictions(predictions, file, format, every_class=every_class)


if __name__ == "__main__":
    run(main)
