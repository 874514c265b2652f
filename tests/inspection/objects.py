"""A task whose answer has a known place: an object pasted somewhere on noise, and small networks trained on it."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

import jaxnets
from jaxnets.models.alexnet import AlexNet
from jaxnets.models.googlenet import GoogLeNet
from jaxnets.models.initialization import initial_variables
from jaxnets.models.resnet import BasicBlock, Bottleneck, ResNet

# Three objects, and none: without it, a network may know the last object by the lack of the others.
CLASSES, NOTHING = 4, 3
_SIDE = 64
_small = partial(ResNet, stage_sizes=(1, 1, 1), num_classes=CLASSES, num_filters=16, stem="imagenet")


@dataclass(frozen=True)
class Family:
    """A network, the stage of its maps, and its training: image side [pixels], steps, steps of warm-up, peak rate."""

    model: Any
    stage: str
    side: int = _SIDE
    steps: int = 100
    warmup: int = 0
    rate: float = 2e-3


FAMILIES = {
    # The last convolution's map of 127 pixels has 7x7. With He's initialisation and no warm-up, AlexNet recognised 80
    # to 93 % of the objects, and its maps hardly agreed with occlusion.
    "alexnet": Family(
        AlexNet(num_classes=CLASSES, hidden_features=64, dropout_rate=0.0),
        "conv5",
        side=127,
        steps=120,
        warmup=10,
        rate=5e-4,
    ),
    # At 64 pixels Grad-CAM leaves a quarter of the maps empty.
    "googlenet": Family(
        GoogLeNet(num_classes=CLASSES, aux_logits=False, dropout_rate=0.0), "inception4a", side=112, steps=120
    ),
    "resnet": Family(_small(block=BasicBlock), "layer2"),
    "resnext": Family(_small(block=Bottleneck, groups=4, width_per_group=16), "layer2"),
}


@dataclass(frozen=True)
class Objects:
    """Normalised images [N, side, side, 3], labels [N], and the boxes [N, 3] of the objects: top, left, size."""

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray

    def masks(self) -> np.ndarray:
        """Whether a pixel is in the box of the object, [N, side, side]."""
        rows, columns = np.indices(self.images.shape[1:3])
        top, left, size = (self.boxes[:, i, None, None] for i in range(3))
        return (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)


def objects(count: int, seed: int, side: int = _SIDE) -> Objects:
    """A disc, a cross or horizontal stripes of a random colour at a random place on noise, a quarter of the side."""
    generator = np.random.default_rng(seed)
    size = side // 4
    rows, columns = np.indices((size, size)) - (size - 1) / 2
    shapes = np.stack(
        [
            rows**2 + columns**2 <= (size / 2) ** 2,
            (abs(rows) < 2) | (abs(columns) < 2),
            np.floor(rows / 2) % 2 == 0,
            rows > side,
        ]
    )
    images = generator.normal(0, 0.25, (count, side, side, 3)).astype(np.float32)
    labels = generator.integers(0, CLASSES, count)
    corners = generator.integers(0, side - size + 1, (count, 2))
    colours = generator.choice([-2.0, 2.0], (count, 3))
    for image, label, (top, left), colour in zip(images, labels, corners, colours, strict=True):
        image[top : top + size, left : left + size][shapes[label]] += colour
    return Objects(images, labels, np.column_stack([corners, np.full(count, size)]))


def trained(family: Family, batch: int = 32, seed: int = 0) -> Any:
    """The variables of a network after its steps of Adam on objects."""
    model, side, steps = family.model, family.side, family.steps
    variables = initial_variables(model, jax.random.key(seed), image_size=side)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0, family.rate, family.warmup, steps))

    @jax.jit
    def step(variables: Any, state: Any, images: Any, labels: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, updates = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updates

        gradient, updates = jax.grad(loss, has_aux=True)(variables["params"])
        change, state = optimizer.update(gradient, state)
        return {**variables, **updates, "params": optax.apply_updates(variables["params"], change)}, state

    state = optimizer.init(variables["params"])
    first = objects(batch, seed=0, side=side)
    step = jaxnets.compile(step, variables, state, first.images, first.labels)
    for number in range(steps):
        data = objects(batch, seed=1000 * (seed + 1) + number, side=side)
        variables, state = step(variables, state, data.images, data.labels)
    return variables
