"""All that a run needs before its first step; what can be refused is refused here, before anything is written."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxnets.data.datasets import load_dataset
from jaxnets.data.pipeline import MOST_BYTES_HELD, Preprocessed, hold_if_small
from jaxnets.data.preprocessing import AsTheyAre, Preprocessing
from jaxnets.data.sources import Dataset, Source
from jaxnets.data.verification import BadImage, verify
from jaxnets.errors import InputError
from jaxnets.models.contract import check_image_sizes, check_variables
from jaxnets.models.features import head_inputs, head_of
from jaxnets.models.initialization import Declaration, declaration
from jaxnets.models.norms import check_norms
from jaxnets.training.batch_norm import with_batch_norm
from jaxnets.training.config import Config
from jaxnets.training.contents import Contents
from jaxnets.training.extraction import FeatureExtractor
from jaxnets.training.feed import TrainingFeed, resized
from jaxnets.training.kept_programs import KeptPrograms
from jaxnets.training.parallel import Parallel
from jaxnets.training.progress import counting
from jaxnets.training.recipe import Recipe
from jaxnets.transfer import HeadOnTrunk, frozen_modules, make_head, scale_by_layer, with_frozen_norms
from jaxnets.weights.origin import Origin


@dataclass(frozen=True)
class Setup:
    """A run's data and network. `network` is the plain one, `model` the same as it is trained on several devices.

    `declared` is what `network` declares, `head_model` what is trained in the epochs of the head alone. `frozen` names
    the modules that are never trained. What the two networks read is made of a batch's images by `inputs`. `rates` are
    the learning rates [steps].
    """

    dataset: Dataset
    bad_images: list[BadImage]
    preprocessing: Preprocessing
    contents: Contents
    feed: TrainingFeed
    test_images: Source | Preprocessed
    network: nn.Module
    declared: Declaration
    model: Any
    head_model: HeadOnTrunk | None
    inputs: Preprocessing
    frozen: frozenset[str]
    num_params: int
    num_trained: int
    steps: int
    rates: np.ndarray
    optimizer: optax.GradientTransformation

    def test_picture(self, index: int) -> np.ndarray:
        """The pixels [S, S, 3] of a test image that the network sees."""
        return self.preprocessing.pixels(self.dataset.test[index].image)

    def kept_steps(self, folder: Path, device: jax.Device, several: bool, held: Collection[str]) -> KeptPrograms:
        """Where the steps are kept that follow from this run, taken several at a time, with the modules `held`."""
        config = replace(self.contents.config, seed=0)
        parts = (config, self.contents.options, self.contents.class_names, len(self.dataset.train))
        model = type(self.model).__name__, sorted(self.frozen), sorted(held)
        return KeptPrograms(folder, f"{parts} {model} {self.inputs} several={several}", device)

    def cache_features(self, variables: Any, parallel: Parallel) -> "Setup":
        """The run on what the frozen trunk makes of the images, once and for all, where a head is trained on it.

        The run as it is where it trains more than a head, where images change from epoch to epoch, or where their
        features would take too much memory.
        """
        recipe, side = self.contents.config.recipe, self.contents.config.recipe.train_image_size(0)
        images = len(self.dataset.train) + len(self.dataset.test)
        if self.contents.config.transfer != "head" or recipe.augments:
            return self
        width = variables["params"][head_of(self.network)]["kernel"].shape[0]
        if images * width * 4 > MOST_BYTES_HELD:
            return self
        stage, size = head_inputs(self.network), recipe.batch_size
        train = FeatureExtractor(self.network, resized(self.preprocessing, side), stage, size, parallel)
        test = FeatureExtractor(self.network, self.preprocessing, stage, size, parallel)
        with counting("computing features", images, quiet=not parallel.is_primary) as (done, _):
            train_images = Preprocessed(*train(variables, self.feed.hold(side), done))
            before = len(train_images)
            test_images = Preprocessed(*test(variables, self.test_images, lambda count: done(before + count)))
        return replace(
            self,
            feed=self.feed.holding(train_images),
            test_images=test_images,
            network=make_head(self.network),
            model=make_head(self.network, parallel.axis_name),
            inputs=AsTheyAre(),
        )


def set_up(config: Config, dataset: Dataset | None, parallel: Parallel, origin: Origin | None = None) -> Setup:
    """`origin` is what goes with the weights that the run starts from.

    Raises InputError for a network, an image size, a data set, a batch size, or another process that will not do.
    """
    recipe, quiet = config.recipe, not parallel.is_primary
    process = (parallel.process_index, parallel.process_count)
    parallel.check_batch_size(recipe.batch_size, recipe.accumulation)
    devices = len(parallel.devices)
    if (recipe.mixup_alpha or recipe.cutmix_alpha) and devices > 1 and recipe.batch_size // devices % 2:
        raise InputError(
            f"batch_size={recipe.batch_size} gives each of {devices} devices an odd number of images, but mixup and "
            f"CutMix take them in pairs; choose a multiple of {2 * devices}"
        )
    if dataset is None:
        dataset = load_dataset(config.dataset, data_dir=config.data_dir, test_share=config.test_share)
    # Not their fingerprints: copies on the machines' own disks may have other times of change.
    parallel.check_agreement(f"{dataset.class_names} {len(dataset.train)} {len(dataset.test)}")
    options = dict(origin.options) if origin else {}
    if "aux_logits" in options and config.transfer in ("partial", "head"):
        options["aux_logits"] = False  # they would help to train what is frozen
    preprocessing = recipe.preprocessing(dataset.mean, dataset.std)
    if origin:
        theirs = origin.preprocessing
        preprocessing = replace(preprocessing, mean=theirs.mean, std=theirs.std, interpolation=theirs.interpolation)
    network = config.create_model(len(dataset.class_names), **options)
    declared = _declaration(network, recipe)
    check_variables(network, declared.shapes, config.arch)
    if recipe.batch_norm != "local" or recipe.precise_batch_norm_images:
        check_norms(network, declared.shapes.get("batch_stats", {}), config.arch)
    params = declared.shapes["params"]
    frozen = frozenset(frozen_modules(network, config.transfer, config.train_from, params))
    with counting("checking images", len(dataset.train) + len(dataset.test), quiet=quiet) as (done, say):
        dataset, bad_images = verify(dataset, config.on_bad_image, done, say, *process, parallel.gather)
    if recipe.batch_size > len(dataset.train):
        raise InputError(
            f"batch_size={recipe.batch_size}, but {config.dataset} has {len(dataset.train)} training images; "
            "choose a smaller --batch-size"
        )
    fingerprints = {"train": dataset.train.fingerprint(), "test": dataset.test.fingerprint()}
    contents = Contents(config, preprocessing, dataset.class_names, fingerprints, options)

    feed = TrainingFeed(dataset.train, preprocessing, recipe, config.seed, *process)
    with counting("decoding training images", len(dataset.train), quiet=quiet) as (done, _):
        feed.hold(recipe.train_image_size(0), done)
    with counting("decoding test images", len(dataset.test), quiet=quiet) as (done, _):
        test_images = hold_if_small(dataset.test, preprocessing, done)
    steps = feed.steps_through(recipe.epochs)
    schedule = recipe.schedule_of(steps, len(dataset.train))
    optimizer = recipe.make_optimizer(schedule)
    if recipe.layer_decay < 1:
        optimizer = optax.chain(optimizer, scale_by_layer(network, recipe.layer_decay))
    model: Any = with_frozen_norms(with_batch_norm(network, recipe.batch_norm, parallel.axis_name), frozen)
    head_model = None
    if config.transfer == "head" or recipe.head_epochs:
        head_model = HeadOnTrunk(network, make_head(network, parallel.axis_name))
    return Setup(
        dataset=dataset,
        bad_images=bad_images,
        preprocessing=preprocessing,
        contents=contents,
        feed=feed,
        test_images=test_images,
        network=network,
        declared=declared,
        model=head_model if config.transfer == "head" else model,
        head_model=head_model,
        inputs=preprocessing,
        frozen=frozen,
        num_params=_size(params),
        num_trained=_size({name: tree for name, tree in params.items() if name not in frozen}),
        steps=steps,
        # All at once: on a GPU a rate would queue up behind the step that runs.
        rates=np.asarray(jax.jit(schedule)(np.arange(steps))),
        optimizer=optimizer,
    )


def _declaration(network: nn.Module, recipe: Recipe) -> Declaration:
    """The network's. Also refuses images that are too small for it, at every size that it will see."""
    check_image_sizes(network, (*recipe.train_image_sizes, recipe.image_size))
    for size in recipe.train_image_sizes:
        declaration(network, size)
    return declaration(network, recipe.image_size)


def _size(params: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
