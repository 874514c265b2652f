"""Classify images: python -m experiments.predict (WORKDIR | --arch NAME) IMAGE..."""

import argparse
import sys
from pathlib import Path

from experiments.command import add_weights, images_of, program, run, weights_of
from jaxnets.errors import InputError
from jaxnets.prediction import FORMATS, predict, write_predictions
from jaxnets.training.progress import counting


def main() -> None:
    """Gives the likeliest classes of each image, with their probabilities, by a run or by published weights."""
    parser = argparse.ArgumentParser(prog=program("predict"), description=main.__doc__)
    add_weights(parser, images=True)
    parser.add_argument("--topk", type=int, default=5, metavar="N", help="classes an image (default: 5)")
    parser.add_argument("--format", choices=FORMATS, help="of the answers (default: by the name of --output, or text)")
    parser.add_argument("--output", type=Path, help="file for the answers, such as answers.csv (default: the terminal)")
    arguments = parser.parse_args()
    output: Path | None = arguments.output
    format = arguments.format or (output.suffix.removeprefix(".") if output else "text")
    if format not in FORMATS:
        raise InputError(f"--output {output} has no format of its own; name it .csv or .json, or give --format")
    if output is not None and output.exists():
        raise InputError(f"--output {output} exists already; give another name, or remove it")
    images = images_of(arguments)
    _, classifier = weights_of(arguments)
    with counting("predicting", len(images)) as (done, _):
        answers = predict(classifier, images, top=arguments.topk, batch_size=arguments.batch_size, done=done)
        if output is None:
            write_predictions(answers, sys.stdout, format)
            return
        new = output.with_name(f"{output.name}.new")
        with new.open("w", encoding="utf-8", newline="") as file:
            write_predictions(answers, file, format)
        new.replace(output)


if __name__ == "__main__":
    run(main)
