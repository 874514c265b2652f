"""Evaluate a classifier: python -m experiments.evaluate (WORKDIR | --arch NAME --weights W)."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from experiments.arguments import add_folders, add_tta, add_weights, parser_of
from experiments.command import run
from experiments.loading import check_weights, fastest_weights_of, run_of
from experiments.output import check_new_folder_of
from jaxnets.data.datasets import load_dataset
from jaxnets.data.part_names import PARTS
from jaxnets.data.sources import Dataset, Relabelled
from jaxnets.data.verification import ON_BAD_IMAGE, judge, usable
from jaxnets.errors import InputError
from jaxnets.evaluation import all_scores, mean_interval
from jaxnets.report.scores import check_new_folder, scores_text, write_scores
from jaxnets.training.config import Config
from jaxnets.training.contents import check_classes
from jaxnets.training.evaluation import Evaluator
from jaxnets.training.losses import cross_entropy, smoothed_targets
from jaxnets.training.parallel import Parallel
from jaxnets.training.progress import counting
from jaxnets.training.run_data import load_data_of, warn_of_other_images
from jaxnets.training.views import views_of
from jaxnets.weights.catalogue import labels_by_name, same_classes


def main() -> None:
    """Evaluates a run, or other weights, on a part of a data set, by default that of the run."""
    parser = parser_of("evaluate", main.__doc__)
    add_weights(parser)
    parser.add_argument("--dataset", help="folder, or name of a data set (default: the one that the run trained on)")
    parser.add_argument("--data-dir", help="where TFDS keeps its data sets (default: that of the run)")
    parser.add_argument(
        "--split",
        choices=PARTS,
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
    add_tta(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object with all numbers")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="new or empty folder for JSON, CSV files and figures"
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="write the probabilities of all classes to predictions.csv too"
    )
    arguments = parser.parse_args()
    if arguments.output is not None:
        check_new_folder(arguments.output)
        check_new_folder_of(arguments.output)
    elif arguments.probabilities:
        raise InputError("--probabilities go to predictions.csv; give a folder for it as --output")
    if len(arguments.paths) > (arguments.arch is None):
        raise InputError(f"unexpected {arguments.paths[-1]}; give the folder of one run, or --arch and --weights")
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise InputError(f"--batch-size {arguments.batch_size}; expected at least 1")
    if arguments.arch is not None and arguments.dataset is None:
        raise InputError(f"--arch {arguments.arch} needs a data set to evaluate on; give --dataset")
    check_weights(arguments)
    # The data set comes first: its mistakes are known before the weights are read.
    before = None if arguments.arch is not None else run_of(arguments.paths[0])
    config = None if before is None else before.config
    dataset = dataset_of(arguments, config)
    part = arguments.split or dataset.judged_on
    source = dataset.judged(part)
    if before is not None:
        views_of(before.preprocessing, arguments.tta)
    arch, classifier = fastest_weights_of(arguments, len(source))
    views_of(classifier.preprocess, arguments.tta)
    batch_size = arguments.batch_size or (config.recipe.batch_size if config else 32)
    new_labels = labels_of(classifier.categories, dataset.class_names)
    with counting("checking images", len(source)) as (done, say):
        for line in (*dataset.warnings, f"{len(source):,} {part} images ({dataset.origins.get(part, dataset.name)})"):
            say(line)
        if new_labels is not None:
            say(
                f"the {len(new_labels)} classes of the data set are among the {len(classifier.categories)} of the "
                "network, which answers with any of its classes; the others don't count in macro averages"
            )
        test, bad, _ = usable(source, len(dataset.class_names), done)
        on_bad_image = arguments.on_bad_image or (config.on_bad_image if config else "error")
        # As in training, the limit is a share of all images.
        judge(bad, sum(map(len, {id(one): one for one in dataset.parts.values()}.values())), on_bad_image, say)
        if before is not None:
            warn_of_other_images(before.fingerprints, part, test, say)
    counted = None
    if new_labels is not None:
        test, counted = Relabelled(test, new_labels), np.isin(np.arange(len(classifier.categories)), new_labels)
    parallel = Parallel.choose()
    evaluate = Evaluator(
        classifier.model,
        classifier.preprocess,
        batch_size,
        parallel,
        metrics={"squared_loss": squared_loss},
        tta=arguments.tta,
    )
    with counting("evaluating", len(test)) as (done, _):
        result = evaluate(parallel.replicate(classifier.variables), test, done)
    if not np.isfinite(result.probabilities).all():
        raise InputError("the network's outputs are not finite; give other weights")
    scores = {
        "arch": arch,
        "dataset": dataset.name,
        "part": part,
        "tta": arguments.tta,
        "class_names": list(classifier.categories),
        "absent_classes": 0 if counted is None else int((~counted).sum()),
        "loss": result.metrics["loss"],
        **all_scores(result.probabilities, result.labels, classifier.categories, counted),
    }
    variance = max(result.metrics["squared_loss"] - scores["loss"] ** 2, 0.0)
    low, high = mean_interval(scores["loss"], math.sqrt(variance), scores["images"])
    scores["intervals"]["loss"] = [max(low, 0.0), high]
    if arguments.output is not None:
        write_scores(
            arguments.output, scores, test, classifier.categories, result, probabilities=arguments.probabilities
        )
    print(json.dumps(scores) if arguments.json else scores_text(scores))


def squared_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The square of each image's loss [N], which the loss's interval needs; logits [N, K], labels [N]."""
    return cross_entropy(logits, smoothed_targets(labels, logits.shape[-1])) ** 2


def labels_of(categories: Sequence[str], class_names: Sequence[str]) -> np.ndarray | None:
    """The network's label [C] of each class of a data set, by its name or WordNet id; None if the classes are the same.

    Raises InputError if a class is not among the network's.
    """
    if same_classes(categories, class_names):
        return None
    labels = labels_by_name(categories)
    if not labels.keys() >= set(class_names):
        check_classes(categories, class_names)
    return np.array([labels[name] for name in class_names])


def dataset_of(arguments: argparse.Namespace, config: Config | None) -> Dataset:
    """The data set that is asked for, or else that of the run with the configuration `config`."""
    folders = {f"{part}_folder": getattr(arguments, f"{part}_folder") for part in PARTS}
    only_test = arguments.split != "train"
    if config is None:
        return load_dataset(arguments.dataset or "", data_dir=arguments.data_dir, **folders, only_test=only_test)
    before = {name: getattr(config, name) for name in folders}
    if arguments.dataset is not None:  # another data set may have other parts, elsewhere
        before = {name: _if_there(Path(arguments.dataset).expanduser(), folder) for name, folder in before.items()}
        config = replace(config, dataset=arguments.dataset, fold=None, group_by=None)
    folders = {name: folder or before[name] for name, folder in folders.items()}
    config = replace(config, data_dir=arguments.data_dir or config.data_dir, **folders)
    load = load_data_of if arguments.dataset is None else Config.load_dataset
    return load(config, only_test=only_test)


def _if_there(root: Path, folder: str | None) -> str | None:
    return folder if folder is not None and (root / folder).is_dir() else None


if __name__ == "__main__":
    run(main)
