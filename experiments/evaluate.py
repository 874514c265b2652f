"""Evaluate a classifier: python -m experiments.evaluate (WORKDIR | --arch NAME --weights W)."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.command import add_folders, add_weights, classifier_of, parser_of, run, weights_of
from jaxnets.data.datasets import load_dataset
from jaxnets.data.part_names import SPLITS
from jaxnets.data.sources import Dataset
from jaxnets.data.verification import ON_BAD_IMAGE, judge, usable
from jaxnets.errors import InputError
from jaxnets.pretrained import Pretrained
from jaxnets.training.config import Config
from jaxnets.training.contents import check_classes
from jaxnets.training.evaluation import Evaluator
from jaxnets.training.metrics import TOP5, all_metrics, class_metrics
from jaxnets.training.parallel import Parallel
from jaxnets.training.progress import counting
from jaxnets.weights.catalogue import same_classes


def main() -> None:
    """Evaluates a run, or other weights, on a part of a data set, by default that of the run."""
    parser = parser_of("evaluate", main.__doc__)
    add_weights(parser)
    parser.add_argument("--dataset", help="folder, or name of a data set (default: the one that the run trained on)")
    parser.add_argument("--data-dir", help="where TFDS keeps its data sets (default: that of the run)")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help="evaluate on this part of the data set (default: test, or val if there is no test part)",
    )
    add_folders(parser)
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images at a time (default: that of the run, or 32)"
    )
    parser.add_argument(
        "--on-bad-image",
        choices=ON_BAD_IMAGE,
        help="stop at an image that can't be read, skip it, or stop at any damage (default: as the run)",
    )
    arguments = parser.parse_args()
    if len(arguments.paths) > (arguments.arch is None):
        raise InputError(f"unexpected {arguments.paths[-1]}; give the folder of one run, or --arch and --weights")
    trained = config = None
    if arguments.arch is None and arguments.paths:
        arguments.workdir = arguments.paths[0]
        trained = classifier_of(arguments)
        config = trained.config
        classifier = Pretrained(trained.model, trained.variables, trained.preprocessing, trained.class_names)
    else:
        if arguments.arch is not None and arguments.dataset is None:
            raise InputError(f"--arch {arguments.arch} needs a data set to evaluate on; give --dataset")
        _, classifier = weights_of(arguments)
    batch_size = arguments.batch_size or (config.recipe.batch_size if config else 32)
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size}; expected at least 1")
    dataset = dataset_of(arguments, config)
    if not same_classes(classifier.categories, dataset.class_names):
        check_classes(classifier.categories, dataset.class_names)
    part = arguments.split or dataset.judged_on
    source = dataset.judged(part)
    with counting("checking images", len(source)) as (done, say):
        for line in (*dataset.warnings, f"{len(source):,} {part} images ({dataset.origins[part]})"):
            say(line)
        test, bad, _ = usable(source, len(dataset.class_names), done)
        on_bad_image = arguments.on_bad_image or (config.on_bad_image if config else "error")
        # As in training, the limit is a share of all images.
        judge(bad, sum(map(len, {id(one): one for one in dataset.parts.values()}.values())), on_bad_image, say)
        expected = trained.fingerprints.get(part) if trained else None
        if expected is not None and test.fingerprint() != expected:
            say(
                f"warning: these are not the {part} images of the run: some were added, removed, renamed or changed "
                "since, and some may have been trained on (runs of earlier versions get this warning always)"
            )
    parallel = Parallel.choose()
    evaluate = Evaluator(classifier.model, classifier.preprocess, batch_size, parallel, metrics=all_metrics(None))
    with counting("evaluating", len(test)) as (done, _):
        result = evaluate(parallel.replicate(classifier.variables), test, done)
    if not np.isfinite(result.probabilities).all():
        raise InputError("the network's outputs are not finite; give other weights")
    count = round(result.metrics["count"])
    right = round(result.metrics["accuracy"] * count)
    print(
        f"{part} accuracy {result.metrics['accuracy']:.2%} ({right} of {count} images), "
        f"{part} loss {result.metrics['loss']:.4f}"
    )
    classes = class_metrics(result.labels, result.predicted, classifier.categories)
    print(
        f"top-5 accuracy {result.metrics[TOP5]:.2%}, macro precision {classes['macro_precision']:.2%}, "
        f"macro recall {classes['macro_recall']:.2%}, macro F1 {classes['macro_f1']:.2%}"
    )
    width = max(len("class"), *(len(name) for name in classifier.categories))
    print(f"{'class':{width}}  precision   recall       F1  images")
    for row in classes["per_class"]:
        numbers = f"{row['precision']:9.2%}  {row['recall']:7.2%}  {row['f1']:7.2%}  {row['support']:6}"
        print(f"{row['class']:{width}}  {numbers}")


def dataset_of(arguments: argparse.Namespace, config: Config | None) -> Dataset:
    """The data set that is asked for, or else that of the run with the configuration `config`."""
    folders = {f"{part}_folder": getattr(arguments, f"{part}_folder") for part in ("train", "val", "test")}
    if config is None:
        return load_dataset(arguments.dataset or "", data_dir=arguments.data_dir, **folders, only_test=True)
    before = {name: getattr(config, name) for name in folders}
    if arguments.dataset is not None:  # another data set may have other parts, elsewhere
        before = {name: _if_there(Path(arguments.dataset).expanduser(), folder) for name, folder in before.items()}
        config = replace(config, dataset=arguments.dataset, fold=None, group_by=None)
    folders = {name: folder or before[name] for name, folder in folders.items()}
    return replace(config, data_dir=arguments.data_dir or config.data_dir, **folders).load_dataset(only_test=True)


def _if_there(root: Path, folder: str | None) -> str | None:
    return folder if folder is not None and (root / folder).is_dir() else None


if __name__ == "__main__":
    run(main)
