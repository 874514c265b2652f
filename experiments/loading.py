"""What the arguments of a command name, loaded: networks with their weights, and images."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from jaxnets.data.folder import named_images
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Source
from jaxnets.data.verification import BadImage, judge, usable
from jaxnets.errors import InputError, first_line
from jaxnets.inference import fold
from jaxnets.pretrained import Pretrained, load_pretrained
from jaxnets.training.checkpoint import load_classifier
from jaxnets.training.config import Config
from jaxnets.training.contents import TrainedClassifier
from jaxnets.training.progress import counting
from jaxnets.weights.runs import origin_in, read_contents, without_checkpoint

# For fewer, folding a network takes longer than it saves.
_FEW_IMAGES = 32


def weights_of(arguments: argparse.Namespace) -> tuple[str, Pretrained]:
    """The network's name, and itself with its weights."""
    check_weights(arguments)
    if arguments.arch is not None:
        return arguments.arch, load_pretrained(arguments.arch, arguments.weights, weights_key=arguments.weights_key)
    arguments.workdir = arguments.paths[0]
    run = classifier_of(arguments)
    return run.config.arch, Pretrained(run.model, run.variables, run.preprocessing, run.class_names)


def fastest_weights_of(arguments: argparse.Namespace, images: int) -> tuple[str, Pretrained]:
    """The network's name, and itself with its weights in the form that is fastest for a number of images."""
    name, classifier = weights_of(arguments)
    if images < _FEW_IMAGES:
        return name, classifier
    folded = fold(classifier.model, classifier.variables)
    return name, classifier._replace(model=folded.model, variables=folded.variables)


def check_weights(arguments: argparse.Namespace) -> None:
    """Raises InputError unless the arguments name a run, or a network and its weights."""
    if arguments.arch is not None:
        return
    if arguments.weights_key is not None:
        raise InputError(f"--weights-key {arguments.weights_key} needs --arch and --weights with a torch checkpoint")
    if arguments.weights != "DEFAULT":
        raise InputError(f"--weights {arguments.weights} needs the network they are for, as --arch")
    if not arguments.paths:
        raise InputError("give the folder of a run, or a network as --arch")


class RunBefore(NamedTuple):
    """What a run's checkpoint says of it, read without its weights."""

    config: Config
    preprocessing: Preprocessing
    fingerprints: dict[str, str]


def run_of(workdir: Path) -> RunBefore:
    """The configuration of a run, and how it reads images. Raises InputError if it has no checkpoint."""
    contents = read_contents(workdir)
    if contents is None:
        raise without_checkpoint(workdir)
    try:
        config = Config.from_dict(contents["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{workdir}: its checkpoint is from another version ({first_line(error)})") from None
    return RunBefore(config, origin_in(contents).preprocessing, contents["fingerprints"])


def images_of(arguments: argparse.Namespace) -> Source:
    """The images that are named beside the weights. Bad ones are left out, and named, if that is asked for."""
    if arguments.batch_size < 1:
        raise InputError(f"--batch-size {arguments.batch_size}; expected at least 1")
    paths = arguments.paths if arguments.arch is not None else arguments.paths[1:]
    if not paths:
        raise InputError("no images; name image files, or folders of them")
    images: Source = named_images(paths)
    if arguments.on_bad_image != "skip":
        check_there(paths)
    if arguments.on_bad_image != "error":
        count = len(images)
        with counting("checking images", count) as (done, say):
            images, bad, _ = usable(images, 1, done)
            if arguments.on_bad_image == "strict":
                judge(bad, count, "strict", say)
            for image in bad:
                say(f"{'damaged, but used' if image.used else 'left out'}: {image.where}: {image.reason}")
        _check_any(images, bad)
    return images


def check_there(paths: Sequence[Path]) -> None:
    """Raises InputError for a path of images that does not exist."""
    for path in paths:
        if not os.path.exists(path):
            raise InputError(f"{path}: no such file or folder; name image files, or folders of them")


def classifier_of(arguments: argparse.Namespace) -> TrainedClassifier:
    """The classifier of the run that the arguments name."""
    prepare_for(arguments.workdir)
    return load_classifier(arguments.workdir, arguments.checkpoint)


def prepare_for(workdir: Path) -> None:
    """Allows 64-bit types where the run was trained in them."""
    config = workdir / "config.json"
    if os.path.exists(config) and Config.read(config).dtype == "float64":
        jax.config.update("jax_enable_x64", True)


def readable(source: Source, num_classes: int, done: Callable[[int], None], say: Callable[[str], None]) -> Source:
    """The source without the images that can't be read, which are named. Raises InputError if none is left."""
    images, bad, _ = usable(source, num_classes, done)
    for image in bad:
        if not image.used:
            say(f"left out: {image.where}: {image.reason}")
    _check_any(images, bad)
    return images


def _check_any(images: Source, bad: Sequence[BadImage]) -> None:
    if not len(images):
        raise InputError(f"none of {len(bad)} images can be read; the first is {bad[0].where} ({bad[0].reason})")
