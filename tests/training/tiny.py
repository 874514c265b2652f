"""A network, images and steps that are quick to compile, for the tests of training."""

from functools import cache, partial
from pathlib import PurePath
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.data.pipeline import Batch
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.models.layers import BatchNorm, Conv, Dense, Dropout
from jaxnets.training.recipe import Recipe
from jaxnets.training.state import TrainState
from jaxnets.training.step import train_step

PREPROCESSING = Preprocessing(8, 8, (0.3, 0.4, 0.5), (0.4, 0.3, 0.2))
# Nothing but gradient descent.
PLAIN = Recipe(
    image_size=8,
    epochs=4,
    batch_size=8,
    optimizer="sgd",
    learning_rate=1.0,
    weight_decay=0.0,
    label_smoothing=0.0,
    schedule="constant",
    warmup_epochs=0.0,
)


class Tiny(nn.Module):
    """Normalised images, one normalised convolution, the mean over the image, dropout, one dense layer."""

    num_classes: int = 3
    dropout_rate: float = 0.0
    norm: Any = BatchNorm
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        norm = partial(self.norm or _nothing, train=train, axis_name=self.axis_name, dtype=self.dtype)
        x = norm(name="bn0")(images)
        x = nn.relu(norm(name="bn1")(Conv(4, 3, padding=1, dtype=self.dtype, name="conv1")(x)))
        x = Dropout(self.dropout_rate, train=train, axis_name=self.axis_name)(x.mean((1, 2)))
        return Dense(self.num_classes, dtype=self.dtype, name="fc")(x)


def _nothing(**_: Any) -> Any:
    return lambda inputs: inputs


def make_batch(count: int = 8, seed: int = 0, size: int = 8) -> Batch:
    images = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    return Batch(images, np.arange(count, dtype=np.int32) % 3, np.ones(count, bool))


def normalised(images: np.ndarray) -> np.ndarray:
    """What the network sees of images from 0 to 255, in float64."""
    return (images / 255 - PREPROCESSING.mean) / PREPROCESSING.std


def make_variables(model: nn.Module, size: int = 8) -> dict[str, Any]:
    """As from `model.init`, but drawn by numpy, which has nothing to compile."""
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, size, size, 3)))
    random = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> jax.Array:
        positive = PurePath(jax.tree_util.keystr(path, simple=True, separator="/")).name in ("scale", "var")
        return jnp.asarray(random.uniform(0.5, 1.5, leaf.shape) if positive else random.normal(0, 0.4, leaf.shape))

    filled = jax.tree_util.tree_map_with_path(draw, shapes)
    return {"params": filled["params"], "batch_stats": filled.get("batch_stats", {})}


def make_state(recipe: Recipe, variables: dict[str, Any]) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.key(0)),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer_of(recipe).init(variables["params"]),
        ema=variables if recipe.ema_decay else {},
        skipped=jnp.zeros((), jnp.int32),
    )


def optimizer_of(recipe: Recipe) -> Any:
    """Where each epoch is one step."""
    return recipe.make_optimizer(recipe.schedule_of(recipe.epochs, recipe.batch_size))


def step_of(recipe: Recipe, model: Any, axis_name: str | None = None) -> Any:
    return partial(
        train_step,
        model=model,
        optimizer=optimizer_of(recipe),
        preprocessing=PREPROCESSING,
        recipe=recipe,
        axis_name=axis_name,
    )


@cache
def compiled_step(recipe: Recipe, model: Any) -> Any:
    return jax.jit(step_of(recipe, model))


def greys(count: int) -> ArraySource:
    """Dark and light images, which any network tells apart."""
    labels = np.arange(count) % 2
    noise = np.random.default_rng(count).integers(0, 60, (count, 8, 8))
    return ArraySource((noise + 190 * labels[:, None, None]).astype(np.uint8), labels)


GREYS = Dataset("greys", ("dark", "light"), greys(32), greys(13), (0.5,) * 3, (0.4,) * 3, val=greys(11))
