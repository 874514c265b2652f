"""Compares three ways of transfer learning with training from scratch: python -m experiments.studies.transfer.

The claim: with ten images per class and the same number of steps, a network pretrained on other classes reaches a
higher accuracy, whether all of it, its later half or only a new head is trained.
"""

import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.arguments import parser_of
from experiments.command import run
from jaxnets.data.datasets import digits
from jaxnets.data.division import Division
from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.errors import InputError
from jaxnets.training.config import Config
from jaxnets.training.loop import train
from jaxnets.training.recipe import Recipe
from jaxnets.training.recipes import recipe_for

WAYS = ("scratch", "full", "partial", "head")
KNOWN, NEW = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
IMAGES_PER_CLASS = 10
# Adam's learning rates: for each way, the best of several from 1e-3 to 1e-1 on seeds 0 and 1.
RATES = {"scratch": 3e-3, "full": 3e-3, "partial": 1e-2, "head": 3e-2}


def digits_of(classes: tuple[int, ...], images_per_class: int | None = None, seed: int = 0) -> Dataset:
    """The images of some digits: all, or `images_per_class` for training, drawn with `seed`."""
    dataset = digits(Division(val_share=0))
    random = np.random.default_rng(seed)

    def subset(source: Any, limit: int | None) -> ArraySource:
        indices = [random.permutation(np.flatnonzero(source.labels == digit))[:limit] for digit in classes]
        labels = np.repeat(np.arange(len(classes)), [len(of_class) for of_class in indices])
        return ArraySource(source.images[np.concatenate(indices)], labels)

    names = tuple(str(digit) for digit in classes)
    train, test = subset(dataset.train, images_per_class), subset(dataset.test, None)
    # Without val images: the last network counts, and training has all images.
    return Dataset("digits", names, train, test, dataset.mean, dataset.std)


def accuracies(arch: str, steps: int, seed: int, folder: Path) -> dict[str, float]:
    """The test accuracy on the new classes for each way."""
    trunk_recipe = recipe_for(arch, "digits")
    trunk = folder / f"trunk-{seed}"
    train(Config(arch, trunk_recipe, seed=seed), trunk, digits_of(KNOWN))
    few = digits_of(NEW, IMAGES_PER_CLASS, seed)
    recipe: Recipe = replace(
        trunk_recipe, batch_size=len(few.train), epochs=steps, weight_decay=0.0, warmup_epochs=0.0, label_smoothing=0.0
    )
    results = {}
    for way in WAYS:
        config = Config(arch, replace(recipe, learning_rate=RATES[way]), seed=seed)
        if way != "scratch":
            config = replace(config, weights=str(trunk), transfer=way)
        results[way] = train(config, folder / f"{way}-{seed}", few)["test_accuracy"]
    return results


def draw(results: dict[str, list[float]], title: str, path: Path) -> None:
    """Draws a figure with a point for each seed's accuracy, and lines for the means."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for position, way in enumerate(WAYS):
        values = [100 * value for value in results[way]]
        offsets = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
        axes.plot(position + np.array(offsets), values, "o", color=f"C{position}", alpha=0.7)
        axes.hlines(statistics.mean(values), position - 0.3, position + 0.3, color=f"C{position}", linewidth=2)
    axes.set_xticks(range(len(WAYS)), ["from scratch", *WAYS[1:]])
    axes.set_ylabel("test accuracy, %")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Pretrains a network on the digits 0 to 4. Then trains on ten images of each digit from 5 to 9, in three ways of
    transfer and from scratch.
    """
    parser = parser_of("studies.transfer", main.__doc__)
    parser.add_argument("--arch", default="resnet20_cifar", help="network (default: resnet20_cifar)")
    parser.add_argument("--steps", type=int, default=10, help="steps on the new classes (default: 10)")
    parser.add_argument("--seeds", type=int, default=5, help="number of runs, each with another seed (default: 5)")
    parser.add_argument("--figure", type=Path, help="file for a figure, such as transfer.png")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.steps < 1:
        raise InputError(f"--seeds {arguments.seeds} --steps {arguments.steps}; expected at least 1 of each")
    results: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for way, accuracy in accuracies(arguments.arch, arguments.steps, seed, Path(folder)).items():
                results[way].append(accuracy)
    title = f"{arguments.arch}, digits 5 to 9, {IMAGES_PER_CLASS} images per class, {arguments.steps} steps"
    if arguments.figure is not None:
        draw(results, title, arguments.figure)
    if arguments.json:
        print(json.dumps({"arch": arguments.arch, "steps": arguments.steps, "test_accuracy": results}))
        return
    print(title)
    for way, values in results.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        listed = ", ".join(f"{value:.1%}" for value in values)
        print(f"  {way:10}{statistics.mean(values):7.1%} ± {spread:.1%}   ({listed})")


if __name__ == "__main__":
    run(main)
