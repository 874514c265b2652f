"""Repeat a run's test: python -m experiments.evaluate WORKDIR."""

import argparse

from experiments.command import add_classifier, classifier_of, program, run
from jaxnets.data.datasets import load_dataset
from jaxnets.data.verification import judge, usable
from jaxnets.training.evaluation import Evaluator
from jaxnets.training.parallel import Parallel
from jaxnets.training.progress import counting


def main() -> None:
    """Evaluates the run's latest checkpoint on the test images of the data set that it was trained on."""
    parser = argparse.ArgumentParser(prog=program("evaluate"), description=main.__doc__)
    classifier = classifier_of(add_classifier(parser).parse_args())
    config = classifier.config
    dataset = load_dataset(config.dataset, data_dir=config.data_dir, test_share=config.test_share)
    classifier.check_classes(dataset.class_names)
    with counting("checking images", len(dataset.test)) as (done, say):
        test, bad, _ = usable(dataset.test, len(dataset.class_names), done)
        judge(bad, len(dataset.train) + len(dataset.test), config.on_bad_image, say)
    parallel = Parallel.choose()
    evaluate = Evaluator(classifier.model, classifier.preprocessing, config.recipe.batch_size, parallel)
    with counting("evaluating", len(test)) as (done, _):
        metrics = evaluate(parallel.replicate(classifier.variables), test, done).metrics
    count = round(metrics["count"])
    right = round(metrics["accuracy"] * count)
    print(f"test accuracy {metrics['accuracy']:.2%} ({right} of {count} images), test loss {metrics['loss']:.4f}")


if __name__ == "__main__":
    run(main)
