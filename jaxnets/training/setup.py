"""All that a run needs before its first step. Invalid input is refused here, before anything is written."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from jaxnets.data.division import is_held_out
from jaxnets.data.pipeline import CACHE_BYTES, Preprocessed, cached_if_small
from jaxnets.data.preprocessing import NoPreprocessing, Preprocessing
from jaxnets.data.sources import Dataset, Source
from jaxnets.data.verification import BadImage, verify
from jaxnets.errors import InputError
from jaxnets.models.contract import check_image_sizes, check_variables
from jaxnets.models.features import head_inputs, head_of
from jaxnets.models.initialization import Declaration, declaration
from jaxnets.models.norms import check_norms
from jaxnets.training.batch_norm import with_batch_norm
from jaxnets.training.class_weights import BALANCED, balanced_weights, read_weights
from jaxnets.training.config import Config
from jaxnets.training.contents import Contents
from jaxnets.training.custom import Custom
from jaxnets.training.evaluation import FeatureExtractor
from jaxnets.training.feed import TrainingFeed, resized
from jaxnets.training.gradients import layers_of
from jaxnets.training.parallel import Parallel
from jaxnets.training.progress import counting
from jaxnets.training.recipe import Recipe
from jaxnets.training.step import train_step
from jaxnets.transfer import HeadOnTrunk, frozen_modules, make_head, scale_by_layer, with_frozen_norms
from jaxnets.weights.origin import Origin


@dataclass(frozen=True)
class Setup:
    """The data and the network of a run.

    `network` is the plain network, `model` the same for training on several devices, and `head_model` what trains in
    the epochs of the head alone. `declared` lists the variables of `network`. `frozen` names the modules that never
    train. `inputs` turns the images of a batch into inputs of the networks. `rates` are the learning rates [steps], or
    None with an optimiser of the user's own. `evaluated` holds the images of val and test.
    """

    dataset: Dataset
    bad_images: list[BadImage]
    preprocessing: Preprocessing
    contents: Contents
    feed: TrainingFeed
    evaluated: dict[str, Source | Preprocessed]
    network: nn.Module
    declared: Declaration
    model: Any
    head_model: HeadOnTrunk | None
    inputs: Preprocessing
    frozen: frozenset[str]
    num_params: int
    num_trained: int
    steps: int
    rates: np.ndarray | None
    optimizer: optax.GradientTransformation
    custom: Custom
    class_weights: np.ndarray | None = None

    def picture(self, index: int) -> np.ndarray:
        """The pixels [S, S, 3] of an image of the part that the run is judged on, as the network sees them."""
        return self.preprocessing.pixels(self.dataset.judged()[index].image)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose gradients are logged, from the first; none if the configuration does not ask."""
        if not self.contents.config.log_gradients:
            return ()
        # Those of a user's own network may not be declared in their order.
        return layers_of((*self.declared.parameters, *flatten_dict(self.declared.shapes["params"])), self.frozen)

    def step_of(self, model: Any, axis_name: str | None, frozen: Collection[str] = ()) -> Callable[..., Any]:
        """The training step of `model`, a function of the state and a batch; `frozen` as in `train_step`."""
        return partial(
            train_step,
            model=model,
            optimizer=self.optimizer,
            preprocessing=self.inputs,
            recipe=self.contents.config.recipe,
            axis_name=axis_name,
            frozen=frozen,
            metrics=self.custom.metrics,
            class_weights=self.class_weights,
            layers=self.layers,
        )

    def cache_features(self, variables: Any, parallel: Parallel) -> "Setup":
        """The run with each image replaced by its features, if it trains the head alone.

        The features are computed once, by the frozen modules. If the run trains more than the head, if images change
        from epoch to epoch, or if the features would need too much memory, the run is returned as it is.
        """
        recipe, side = self.contents.config.recipe, self.contents.config.recipe.train_image_size(0)
        images = _count(self.dataset)
        if self.contents.config.transfer != "head" or recipe.augments:
            return self
        width = variables["params"][head_of(self.network)]["kernel"].shape[0]
        if images * width * 4 > CACHE_BYTES:
            return self
        stage, size = head_inputs(self.network), recipe.batch_size
        train = FeatureExtractor(self.network, resized(self.preprocessing, side), stage, size, parallel)
        judge = FeatureExtractor(self.network, self.preprocessing, stage, size, parallel)
        with counting("computing features", images, quiet=not parallel.is_primary) as (done, _):
            train_images = Preprocessed(*train(variables, self.feed.images(side), done))
            evaluated: dict[str, Source | Preprocessed] = {}
            before = len(train_images)
            for part, source in self.evaluated.items():
                features = judge(variables, source, lambda count, before=before: done(before + count))  # type: ignore[misc]
                evaluated[part] = Preprocessed(*features)
                before += len(source)
        return replace(
            self,
            feed=self.feed.with_images(train_images),
            evaluated=evaluated,
            network=make_head(self.network),
            model=make_head(self.network, parallel.axis_name),
            inputs=NoPreprocessing(),
        )


def set_up(
    config: Config,
    dataset: Dataset | None,
    parallel: Parallel,
    origin: Origin | None = None,
    custom: Custom | None = None,
    *,
    quiet: bool = False,
) -> Setup:
    """Reads the data set, creates the network and the optimiser, and checks that they fit each other.

    `origin` describes the weights that the run starts from; a `quiet` run says nothing. Raises InputError for a
    network, an image size, a data set or a batch size that cannot train, and if another process has other data.
    """
    recipe, custom, quiet = config.recipe, custom or Custom(), quiet or not parallel.is_primary
    process = (parallel.process_index, parallel.process_count)
    _check_batch_size(recipe, parallel)
    if dataset is None:
        dataset = config.load_dataset()
    _check_judged(dataset, recipe)
    parallel.check_agreement(f"{dataset.class_names} {[len(source) for source in dataset.parts.values()]}")
    preprocessing = _preprocessing(recipe, dataset, origin)
    class_weights = _class_weights(recipe, dataset.class_names)
    options = _options(config, origin)
    network = config.create_model(len(dataset.class_names), custom.model, **options)
    declared = _declaration(network, recipe)
    check_variables(network, declared.shapes, config.arch)
    if recipe.batch_norm != "local" or recipe.precise_batch_norm_images:
        check_norms(network, declared.shapes.get("batch_stats", {}), config.arch)
    params = declared.shapes["params"]
    frozen = frozenset(frozen_modules(network, config.transfer, config.train_from, params))
    trained = {name: tree for name, tree in params.items() if name not in frozen}
    with counting("checking images", _count(dataset), quiet=quiet) as (done, say):
        for line in (*dataset.warnings, dataset.summary()):
            say(line)
        dataset, bad_images = verify(dataset, config.on_bad_image, done, say, *process, parallel.gather)
    if recipe.class_weights == BALANCED:
        class_weights = balanced_weights(dataset.images_by_class("train"))
    if recipe.batch_size > len(dataset.train):
        fewer = ", or hold out fewer images" if any(is_held_out(dataset, part) for part in dataset.parts) else ""
        others = [f"{len(source)} {part}" for part, source in dataset.parts.items() if part != "train"]
        raise InputError(
            f"batch_size={recipe.batch_size}, but {config.dataset} has {len(dataset.train)} training images, beside "
            f"{' and '.join(others)} images; choose a smaller --batch-size{fewer}"
        )
    # Only process 0 compares and stores them.
    fingerprints = parallel.broadcast(
        parallel.on_primary(lambda: {part: source.fingerprint() for part, source in dataset.parts.items()})
    )
    contents = Contents(
        config,
        preprocessing,
        dataset.class_names,
        fingerprints,
        options,
        custom.describe(trained),
        None if class_weights is None else class_weights.tolist(),
    )

    feed = TrainingFeed(dataset.train, preprocessing, recipe, config.seed, *process, dataset.labels["train"])
    with counting("decoding training images", len(dataset.train), quiet=quiet) as (done, _):
        feed.images(recipe.train_image_size(0), done)
    evaluated: dict[str, Source | Preprocessed] = {}
    if dataset.val is not None:
        with counting("decoding val images", len(dataset.val), quiet=quiet) as (done, _):
            evaluated["val"] = cached_if_small(dataset.val, preprocessing, done)
    if dataset.test is not None:
        evaluated["test"] = dataset.test  # read once, at the end
    steps = feed.steps_through(recipe.epochs)
    optimizer, rates = _optimizer(recipe, network, custom, steps, len(dataset.train))
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
        evaluated=evaluated,
        network=network,
        declared=declared,
        model=head_model if config.transfer == "head" else model,
        head_model=head_model,
        inputs=preprocessing,
        frozen=frozen,
        num_params=_size(params),
        num_trained=_size(trained),
        steps=steps,
        rates=rates,
        optimizer=optimizer,
        custom=custom,
        class_weights=class_weights,
    )


def _count(dataset: Dataset) -> int:
    return sum(map(len, dataset.parts.values()))


def _check_judged(dataset: Dataset, recipe: Recipe) -> None:
    if dataset.val is None and dataset.test is None:
        raise InputError(
            f"{dataset.name} has neither val nor test images to judge the network on; give another --val-share or "
            "--test-share than 0"
        )
    if dataset.val is None and recipe.patience_epochs:
        raise InputError(
            f"patience_epochs={recipe.patience_epochs} needs val images, of which {dataset.name} has none; give "
            "another --val-share than 0"
        )


def _class_weights(recipe: Recipe, class_names: tuple[str, ...]) -> np.ndarray | None:
    """The weights [K] in the file that the recipe names."""
    if recipe.class_weights in (None, BALANCED):
        return None
    return read_weights(recipe.class_weights, class_names)


def _check_batch_size(recipe: Recipe, parallel: Parallel) -> None:
    parallel.check_batch_size(recipe.batch_size, recipe.accumulation)
    devices = len(parallel.devices)
    if (recipe.mixup_alpha or recipe.cutmix_alpha) and devices > 1 and recipe.batch_size // devices % 2:
        raise InputError(
            f"batch_size={recipe.batch_size} gives each of {devices} devices an odd number of images, but mixup and "
            f"CutMix need pairs; choose a multiple of {2 * devices}"
        )


def _preprocessing(recipe: Recipe, dataset: Dataset, origin: Origin | None) -> Preprocessing:
    """Sizes come from the recipe; mean, deviation and interpolation from the weights, or without weights the data."""
    if origin is None:
        return recipe.preprocessing(dataset.mean, dataset.std)
    like = origin.preprocessing
    return recipe.preprocessing(like.mean, like.std, like.interpolation)


def _options(config: Config, origin: Origin | None) -> dict[str, Any]:
    """The options of the network that come with the weights."""
    options = dict(origin.options) if origin else {}
    if "aux_logits" in options and config.transfer in ("partial", "head"):
        options["aux_logits"] = False  # auxiliary heads help to train modules that are frozen here
    return options


def _optimizer(
    recipe: Recipe, network: Any, custom: Custom, steps: int, train_images: int
) -> tuple[optax.GradientTransformation, np.ndarray | None]:
    """The optimiser and, if they are known, its learning rates [steps]."""
    optimizer, rates = custom.optimizer, None
    if optimizer is None:
        schedule = recipe.schedule_of(steps, train_images)
        optimizer = recipe.make_optimizer(schedule)
        # All at once: on a GPU each rate would queue up behind the step that runs.
        rates = np.asarray(jax.jit(schedule)(np.arange(steps)))
    if recipe.layer_decay < 1:
        optimizer = optax.chain(optimizer, scale_by_layer(network, recipe.layer_decay))
    return optimizer, rates


def _declaration(network: nn.Module, recipe: Recipe) -> Declaration:
    """The variables of the network. Raises InputError if it cannot take the images of any epoch."""
    check_image_sizes(network, (*recipe.train_image_sizes, recipe.image_size))
    for size in recipe.train_image_sizes:
        declaration(network, size)
    return declaration(network, recipe.image_size)


def _size(params: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
