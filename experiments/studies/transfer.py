"""The three ways of transfer learning against training from scratch: python -m experiments.studies.transfer.

The claim: on ten images a class, a network that knows other classes already learns more in the same steps, whether all
of it is trained, its later half, or a new head alone.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command import program, run
from jaxnets.data.datasets import digits
from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.errors import InputError
from jaxnets.training.config import Config
from jaxnets.training.loop import train
from jaxnets.training.recipe import Recipe
from jaxnets.training.recipes import recipe_for

WAYS = ("scratch", "full", "partial", "head")
KNOWN, NEW = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
IMAGES_A_CLASS = 10
# Of Adam: each the best of a few, from 1e-3 to 1e-1, on seeds 0 and 1. The less is trained, the larger it may be.
RATES = {"scratch": 3e-3, "full": 3e-3, "partial": 1e-2, "head": 3e-2}


def digits_of(classes: tuple[int, ...], images_a_class: int | None = None, seed: int = 0) -> Dataset:
    """Some of the digits: all their images, or so many of each class to train on, drawn by `seed`."""
    whole = digits()
    random = np.random.default_rng(seed)

    def part(source: Any, most: int | None) -> ArraySource:
        chosen = [random.permutation(np.flatnonzero(source.labels == digit))[:most] for digit in classes]
        labels = np.repeat(np.arange(len(classes)), [len(indices) for indices in chosen])
        return ArraySource(source.images[np.concatenate(chosen)], labels)

    names = tuple(str(digit) for digit in classes)
    return Dataset("digits", names, part(whole.train, images_a_class), part(whole.test, None), whole.mean, whole.std)


def accuracies(arch: str, steps: int, seed: int, folder: Path) -> dict[str, float]:
    """Test accuracy on the new classes, each way."""
    trunk_recipe = recipe_for(arch, "digits")
    trunk = folder / f"trunk-{seed}"
    train(Config(arch, trunk_recipe, seed=seed), trunk, digits_of(KNOWN))
    few = digits_of(NEW, IMAGES_A_CLASS, seed)
    recipe: Recipe = replace(
        trunk_recipe, batch_size=len(few.train), epochs=steps, weight_decay=0.0, warmup_epochs=0.0, label_smoothing=0.0
    )
    found = {}
    for way in WAYS:
        config = Config(arch, replace(recipe, learning_rate=RATES[way]), seed=seed)
        if way != "scratch":
            config = replace(config, weights=str(trunk), transfer=way)
        found[way] = train(config, folder / f"{way}-{seed}", few)["test_accuracy"]
    return found


def draw(results: dict[str, list[float]], title: str, path: Path) -> None:
    """Every seed's accuracy as a point, and their means as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for place, way in enumerate(WAYS):
        values = [100 * value for value in results[way]]
        offsets = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
        axes.plot(place + np.array(offsets), values, "o", color=f"C{place}", alpha=0.7)
        axes.hlines(statistics.mean(values), place - 0.3, place + 0.3, color=f"C{place}", linewidth=2)
    axes.set_xticks(range(len(WAYS)), ["from scratch", *WAYS[1:]])
    axes.set_ylabel("test accuracy, %")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Trains a trunk on the digits 0 to 4, then on ten images each of 5 to 9 in three ways and from scratch."""
    parser = argparse.ArgumentParser(prog=program("studies.transfer"), description=main.__doc__)
    parser.add_argument("--arch", default="resnet20_cifar", help="network (default: resnet20_cifar)")
    parser.add_argument("--steps", type=int, default=10, help="steps on the new classes (default: 10)")
    parser.add_argument("--seeds", type=int, default=5, help="how many times (default: 5)")
    parser.add_argument("--figure", type=Path, help="file for a figure, such as transfer.png")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.steps < 1:
        raise InputError("--seeds and --steps are at least 1")
    results: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for way, accuracy in accuracies(arguments.arch, arguments.steps, seed, Path(folder)).items():
                results[way].append(accuracy)
    title = f"{arguments.arch}, digits 5 to 9, {IMAGES_A_CLASS} images a class, {arguments.steps} steps"
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
