"""Repeat a run's test: python -m experiments.evaluate WORKDIR."""

import argparse
from pathlib import Path

from experiments.command import run
from jaxnets.data.sources import load_dataset
from jaxnets.training.checkpoint import load_classifier
from jaxnets.training.evaluation import Evaluator


def main() -> None:
    """Evaluates the run's latest checkpoint on the test images of the data set that it was trained on."""
    parser = argparse.ArgumentParser(prog="python -m experiments.evaluate", description=main.__doc__)
    parser.add_argument("workdir", type=Path, help="folder of a run of experiments.train")
    classifier = load_classifier(parser.parse_args().workdir)
    config = classifier.config
    split = load_dataset(config.dataset).test.preprocessed(classifier.preprocessing)
    evaluate = Evaluator(classifier.model, classifier.preprocessing, config.recipe.batch_size)
    _, metrics = evaluate(classifier.variables, split)
    count = round(metrics["count"])
    right = round(metrics["accuracy"] * count)
    print(f"test accuracy {metrics['accuracy']:.2%} ({right} of {count} images), test loss {metrics['loss']:.4f}")


if __name__ == "__main__":
    run(main)
