"""Classify images: python -m experiments.predict WORKDIR IMAGE..."""

import argparse
from pathlib import Path

import numpy as np

from experiments.command import add_classifier, classifier_of, run
from jaxnets.data.folder import FolderSource
from jaxnets.training.evaluation import Evaluator
from jaxnets.training.progress import counting

_TOP = 5


def main() -> None:
    """Prints the five likeliest classes of each image, with their probabilities."""
    parser = argparse.ArgumentParser(prog="python -m experiments.predict", description=main.__doc__)
    add_classifier(parser)
    parser.add_argument("images", type=Path, nargs="+", metavar="image", help="image file of any size")
    arguments = parser.parse_args()
    classifier = classifier_of(arguments)
    images = FolderSource(Path(), [(str(path), 0) for path in arguments.images])
    evaluate = Evaluator(classifier.model, classifier.preprocessing, min(len(images), 32))
    with counting("predicting", len(images)) as (done, _):
        probabilities = evaluate(classifier.variables, images, done).probabilities
    for path, shares in zip(arguments.images, probabilities, strict=True):
        print(path)
        for index in np.argsort(-shares, kind="stable")[:_TOP]:
            print(f"  {shares[index]:7.2%}  {classifier.class_names[index]}")


if __name__ == "__main__":
    run(main)
