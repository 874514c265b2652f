"""All that a run needs before its first step; what can be refused is refused here, before anything is written."""

import math
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnets.data.datasets import load_dataset
from jaxnets.data.pipeline import Preprocessed, hold_if_small
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Dataset, Source
from jaxnets.data.verification import BadImage, verify
from jaxnets.errors import InputError
from jaxnets.training.batch_norm import with_batch_norm
from jaxnets.training.config import Config
from jaxnets.training.contents import Contents
from jaxnets.training.feed import TrainingFeed
from jaxnets.training.parallel import Parallel
from jaxnets.training.progress import counting
from jaxnets.training.recipe import Recipe


@dataclass(frozen=True)
class Setup:
    """A run's data and network. `network` is the plain one, `model` the same as it is trained on several devices.

    `rates` are the learning rates [steps].
    """

    dataset: Dataset
    bad_images: list[BadImage]
    preprocessing: Preprocessing
    contents: Contents
    feed: TrainingFeed
    test_images: Source | Preprocessed
    network: nn.Module
    model: nn.Module
    num_params: int
    steps: int
    rates: np.ndarray
    optimizer: optax.GradientTransformation

    def test_picture(self, index: int) -> np.ndarray:
        """The pixels [S, S, 3] of a test image that the network sees."""
        if isinstance(self.test_images, Preprocessed):
            return self.test_images.images[index]
        return self.preprocessing(self.test_images[index].image)


def set_up(config: Config, dataset: Dataset | None, parallel: Parallel) -> Setup:
    """Raises InputError for a network, an image size, a data set, a batch size, or another process that will not do."""
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
    preprocessing = recipe.preprocessing(dataset.mean, dataset.std)
    network = config.create_model(len(dataset.class_names))
    if getattr(network, "norm", None) is None and (recipe.batch_norm != "local" or recipe.precise_batch_norm_images):
        raise InputError(
            f"{config.arch} has no batch normalisation; leave out --batch-norm and --precise-batch-norm-images"
        )
    num_params = _count_parameters(network, recipe)
    with counting("checking images", len(dataset.train) + len(dataset.test), quiet=quiet) as (done, say):
        dataset, bad_images = verify(dataset, config.on_bad_image, done, say, *process, parallel.gather)
    if recipe.batch_size > len(dataset.train):
        raise InputError(
            f"batch_size={recipe.batch_size}, but {config.dataset} has {len(dataset.train)} training images; "
            "choose a smaller --batch-size"
        )
    fingerprints = {"train": dataset.train.fingerprint(), "test": dataset.test.fingerprint()}
    contents = Contents(config, preprocessing, dataset.class_names, fingerprints)

    feed = TrainingFeed(dataset.train, preprocessing, recipe, config.seed, *process)
    with counting("decoding training images", len(dataset.train), quiet=quiet) as (done, _):
        feed.hold(recipe.train_image_size(0), done)
    with counting("decoding test images", len(dataset.test), quiet=quiet) as (done, _):
        test_images = hold_if_small(dataset.test, preprocessing, done)
    steps = feed.steps_through(recipe.epochs)
    schedule = recipe.schedule_of(steps, len(dataset.train))
    return Setup(
        dataset=dataset,
        bad_images=bad_images,
        preprocessing=preprocessing,
        contents=contents,
        feed=feed,
        test_images=test_images,
        network=network,
        model=with_batch_norm(network, recipe.batch_norm, parallel.axis_name),
        num_params=num_params,
        steps=steps,
        # All at once: on a GPU a rate would queue up behind the step that runs.
        rates=np.asarray(jax.jit(schedule)(np.arange(steps))),
        optimizer=recipe.make_optimizer(schedule),
    )


def _count_parameters(network: nn.Module, recipe: Recipe) -> int:
    """Also refuses images that are too small for the network, at every size that it will see."""
    for size in (recipe.image_size, *recipe.train_image_sizes):
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        shapes = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), images)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
