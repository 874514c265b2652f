"""What a run is about to do, in a few lines."""

from dataclasses import fields
from pathlib import Path

from jaxnets.data.sources import Dataset
from jaxnets.errors import InputError
from jaxnets.models.registry import family_of
from jaxnets.training.parallel import Parallel
from jaxnets.training.recipe import Recipe
from jaxnets.training.recipes import RECIPES, recipe_for
from jaxnets.training.setup import Setup

# Classes that are listed one by one.
_LISTED = 10
_NAMED_SETTINGS = 8
# More images in the largest class than in the smallest, as a factor, get a warning.
_SKEW = 3.0


def start_lines(run: Setup, parallel: Parallel, workdir: Path) -> list[str]:
    """The data by class, the network, the recipe, the optimiser, the length, the run's folder, and warnings.

    `Dataset.summary` has the names of the classes.
    """
    config, dataset = run.contents.config, run.dataset
    recipe = config.recipe
    length = f"{_count(recipe.epochs, 'epoch')}, {_count(run.steps, 'step')} of {_count(recipe.batch_size, 'image')}"
    rows = {
        "data": f"{config.dataset}, {len(dataset.class_names):,} classes",
        **_images(dataset),
        "network": _network(run),
        "image size": _sizes(recipe),
        "recipe": _recipe(run),
        "optimizer": _optimizer(run),
        "length": length,
        "device": f"{len(parallel.devices)} {parallel.devices[0].device_kind} by {parallel.kind}",
        "writes to": str(workdir),
    }
    skew = [] if recipe.class_weights or recipe.sampler == "balanced" else skew_warnings(dataset)
    lines = (f"{name:12}{text}" for name, text in rows.items())
    return [*lines, *config.division.unused(dataset), *config.warnings(), *skew]


def skew_warnings(dataset: Dataset) -> list[str]:
    """A warning if the largest class has more than three times the training images of the smallest."""
    counts = dataset.images_by_class("train")
    if counts.min() == 0 or counts.max() <= _SKEW * counts.min():
        return []
    most, fewest = int(counts.argmax()), int(counts.argmin())
    return [
        f"warning: class {dataset.class_names[most]!r} has {counts[most]:,} training images, "
        f"{dataset.class_names[fewest]!r} only {counts[fewest]:,}; give small classes more weight with --class-weights "
        "balanced or --sampler balanced"
    ]


def _images(dataset: Dataset) -> dict[str, str]:
    """A row a part: the number of images, and those of each class, or of the smallest and the largest class."""
    rows = {}
    for part, source in dataset.parts.items():
        row = _count(len(source), "image")
        counts = dataset.images_by_class(part).tolist()
        if len(counts) <= _LISTED:
            row += ": " + ", ".join(
                f"{name!r} {count:,}" for name, count in zip(dataset.class_names, counts, strict=True)
            )
        else:
            fewest, most = min(counts), max(counts)
            of = [dataset.class_names[counts.index(count)] for count in (fewest, most)]
            row += f": {fewest:,} ({of[0]!r}) to {most:,} ({of[1]!r}) in a class"
        rows[part] = row
    return rows


def _network(run: Setup) -> str:
    config = run.contents.config
    trained = f", {run.num_trained:,} of them trained (transfer={config.transfer})" if run.frozen else ""
    changed = {**run.contents.options, **config.network_options}
    options = "".join(f", {name}={value}" for name, value in changed.items())
    start = f", from {config.weights}" if config.weights else ""
    return f"{config.arch}{options}: {run.num_params:,} parameters{trained}{start}"


def _sizes(recipe: Recipe) -> str:
    sizes = recipe.train_image_sizes
    training = f", training images {', '.join(map(str, sizes))}" if sizes else ""
    return f"{recipe.image_size} x {recipe.image_size} pixels{training}"


def _recipe(run: Setup) -> str:
    """The nearest recipe, and the settings in which the run differs from it."""
    config, arch = run.contents.config, run.contents.config.arch
    try:
        family_of(arch)
    except InputError:  # the name of a network that was given to train()
        arch = "resnet50"
    differences: dict[str | None, list[str]] = {}
    for name in (None, *RECIPES):
        other = recipe_for(arch, run.dataset, name)
        differences[name] = [
            f"{setting.name}={value}"
            for setting in fields(other)
            if (value := getattr(config.recipe, setting.name)) != getattr(other, setting.name)
        ]
    name, changed = min(differences.items(), key=lambda of: len(of[1]))
    more = f" and {len(changed) - _NAMED_SETTINGS} more" if len(changed) > _NAMED_SETTINGS else ""
    settings = f" with {', '.join(changed[:_NAMED_SETTINGS])}{more}" if changed else ""
    return (name or f"the default of {arch}") + settings


def _optimizer(run: Setup) -> str:
    recipe = run.contents.config.recipe
    if run.rates is None:
        return "given to train()"
    warm_up = f" after {recipe.warmup_epochs:g} epochs of warm-up" if recipe.warmup_epochs else ""
    decay = f", weight decay {recipe.weight_decay:g}" if recipe.weight_decay else ""
    return f"{recipe.optimizer}, learning rate {recipe.learning_rate:g}, schedule {recipe.schedule}{warm_up}{decay}"


def _count(number: int, of: str) -> str:
    return f"{number:,} {of}{'s' * (number != 1)}"
