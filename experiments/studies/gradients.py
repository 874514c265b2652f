"""Gradients: back-propagation by hand, and what the gradients of all images and of a batch point to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies import backpropagation as network
from experiments.studies.backpropagation import Weights, initial_weights
from experiments.studies.data import arrays, labels_of, subset
from experiments.studies.gradients_figures import draw
from experiments.studies.lab import Lab
from experiments.studies.study import Claim, Measured, Study

_DRAWS = 200
_GRID = 31


@dataclass(frozen=True)
class Settings:
    """The network's hidden units, its images, and the steps of gradient descent with all of them and with a batch.

    `sizes` are those of the batches whose gradients are compared with that of all images, at `points` places of a run.
    """

    hidden: int
    images: int
    batch_size: int
    steps: int
    rate: float = 0.3
    sizes: tuple[int, ...] = (1, 4, 16, 64, 256)
    points: int = 13


@dataclass(frozen=True)
class Descent:
    """Gradient descent on images [N, D] with targets [N, K]."""

    start: Weights
    inputs: np.ndarray
    targets: np.ndarray

    def loss(self, flat: np.ndarray) -> float:
        """The loss of all images with the weights [P]."""
        return float(network.loss(self.start.shaped(flat), self.inputs, self.targets))

    def gradient(self, flat: np.ndarray, batch: Any = slice(None)) -> np.ndarray:
        """The gradient [P] of a batch, or of all images."""
        return network.gradient(self.start.shaped(flat), self.inputs[batch], self.targets[batch]).flat

    def path(self, rate: float, batches: Sequence[Any]) -> np.ndarray:
        """The weights [steps + 1, P] before and after each step."""
        path = [self.start.flat]
        for batch in batches:
            path.append(path[-1] - rate * self.gradient(path[-1], batch))
        return np.array(path)


def measure(lab: Lab, settings: Settings) -> dict[str, Any]:
    """The three ways to a gradient in a small network; gradients and paths of descent in a larger one."""
    data = subset(lab.dataset, lab.seed, settings.images, val=False)
    pixels, labels = arrays(data.train)[0] / 255.0, labels_of(data.train)
    random = np.random.default_rng(lab.seed)
    inputs, targets = pixels.reshape(len(pixels), -1), np.eye(len(data.class_names))[labels]
    small = _small(inputs, labels, random)
    lab.note("descent")
    descent = Descent(initial_weights(random, inputs.shape[1], settings.hidden, targets.shape[1]), inputs, targets)
    batches = [random.choice(len(inputs), settings.batch_size, replace=False) for _ in range(settings.steps)]
    whole = descent.path(settings.rate, [slice(None)] * settings.steps)
    batched = descent.path(settings.rate, batches)
    places = np.linspace(0, settings.steps, settings.points).round().astype(int).tolist()
    return {
        "small": small,
        "places": places,
        "sizes": list(settings.sizes),
        "losses": {"whole": descent.loss(whole[-1]), "batched": descent.loss(batched[-1])},
        "directions": [_direction(descent, whole, place) for place in places[:-1]],
        "agreement": [
            [float(cosines(products, size, random).mean()) for size in settings.sizes]
            for products in (_products(descent, whole[place]) for place in places)
        ],
        "opposed": [float((_products(descent, batched[place]).mean(axis=1) < 0).mean()) for place in places],
        "plane": _plane(descent, whole, batched),
    }


def _small(inputs: np.ndarray, labels: np.ndarray, random: np.random.Generator) -> dict[str, Any]:
    """A network that tells class 0 from class 1 by the two pixels in which they differ most: its signals, errors and
    gradient for one image, and how far three ways to the gradients of ten images are apart.
    """
    difference = inputs[labels == 0].mean(axis=0) - inputs[labels == 1].mean(axis=0)
    chosen = np.concatenate([np.flatnonzero(labels == label)[:5] for label in (0, 1)])
    pixels = inputs[chosen][:, [difference.argmax(), difference.argmin()]]
    targets = np.eye(2)[labels[chosen]]
    # Short numbers, to check by hand.
    weights = Weights(*(array.round(1) for array in initial_weights(random, 2, 2, 2)))
    slopes_by_jax = jax.jit(jax.grad(network.loss))
    by_jax = by_differences = 0.0
    for image, target in zip(pixels[:, None], targets[:, None], strict=True):
        own = network.gradient(weights, image, target).flat
        with jax.enable_x64(True):
            other = slopes_by_jax(Weights(*map(jnp.asarray, weights)), jnp.asarray(image), jnp.asarray(target)).flat
        by_jax = max(by_jax, _distance(own, other))
        by_differences = max(by_differences, _distance(own, network.differences(weights, image, target)))
    drawn = [pixels.min(axis=1).argmax()]  # a pixel of 0 has no gradient to show
    image, target = pixels[drawn].round(2), targets[drawn]
    hidden, logits = network.forward(weights, image)
    errors = network.backward(weights, hidden, logits, target)
    return {
        "by_jax": by_jax,
        "by_differences": by_differences,
        "weights": [array.tolist() for array in weights],
        "gradient": [array.tolist() for array in network.gradient(weights, image, target)],
        "signals": [image[0].tolist(), hidden[0].tolist(), network.softmax(logits)[0].tolist()],
        "errors": [one[0].tolist() for one in errors],
        "target": target[0].tolist(),
    }


def _distance(own: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(own - other).max() / np.abs(own).max())


def _direction(descent: Descent, path: np.ndarray, place: int) -> dict[str, float]:
    """What a small step against the gradient of all images does, and how far it points to the end of the path.

    `kept` is the decrease of the loss as a share of that which the gradient predicts, for a step that should lower the
    loss by a ten-thousandth.
    """
    weights = path[place]
    before, slopes = descent.loss(weights), descent.gradient(weights)
    predicted, ahead = 1e-4 * before, path[-1] - weights
    after = descent.loss(weights - predicted / (slopes @ slopes) * slopes)
    cosine = -slopes @ ahead / np.sqrt((slopes @ slopes) * (ahead @ ahead))
    return {"kept": (before - after) / predicted, "cosine": float(cosine)}


def _products(descent: Descent, weights: np.ndarray) -> np.ndarray:
    return network.products(descent.start.shaped(weights), descent.inputs, descent.targets)


def cosines(products: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """The cosines of the gradients of random batches with that of all images, from the products [N, N]."""
    batches = np.zeros((_DRAWS, len(products)))
    batches[:, :size] = 1 / size
    batches = random.permuted(batches, axis=1)
    squares = ((batches @ products) * batches).sum(axis=1) * products.mean()
    cosines: np.ndarray = batches @ products.mean(axis=1) / np.sqrt(np.maximum(squares, 1e-300))
    return cosines


def _plane(descent: Descent, whole: np.ndarray, batched: np.ndarray) -> dict[str, Any]:
    """Both paths in the plane of their first two principal directions, and the loss of all images in that plane."""
    both = np.concatenate([whole, batched])
    middle = both.mean(axis=0)
    _, scales, directions = np.linalg.svd(both - middle, full_matrices=False)
    axes = directions[:2]
    paths = {name: (path - middle) @ axes.T for name, path in (("whole", whole), ("batched", batched))}
    corners = np.concatenate(list(paths.values()))
    margins = 0.15 * np.ptp(corners, axis=0)
    x, y = np.linspace(corners.min(axis=0) - margins, corners.max(axis=0) + margins, _GRID).T
    return {
        "paths": {name: path.T.tolist() for name, path in paths.items()},
        "x": x.tolist(),
        "y": y.tolist(),
        "losses": [[descent.loss(middle + a * axes[0] + b * axes[1]) for a in x] for b in y],
        "share": float((scales[:2] ** 2).sum() / (scales**2).sum()),
    }


def _middle(measured: Measured, place: int) -> float:
    of_sizes = measured["agreement"][place]
    return float(of_sizes[len(of_sizes) // 2])


STUDY = Study(
    name="gradients",
    title="Gradients: errors backward, and the direction downhill",
    why="Back-propagation is the chain rule: each weight's derivative is the signal that enters it times the error "
    "behind it, so one pass forward and one backward give all of them. The gradient of all images is the direction of "
    "steepest ascent where the weights are now; it knows nothing of the optimum, and its opposite points there only "
    "along a straight valley. A batch's gradient belongs to another loss, which equals that of all images on average; "
    "as training goes on, images ask for different changes, and small batches agree less.",
    source="Rumelhart, Hinton & Williams 1986 (Nature 323); the course's notes on back-propagation and batches",
    claims=(
        Claim(
            "backpropagation",
            "Signals go forward and errors go backward; together they give the gradient.",
            "largest difference of the gradient by hand from jax.grad and from central differences, relative to the "
            "gradient's largest entry, in float64",
            lambda one: max(one["small"]["by_jax"], one["small"]["by_differences"]),
            below=1e-7,
        ),
        Claim(
            "descent",
            "A small step against the gradient of all images lowers their loss.",
            "decrease of the loss as a share of that which the gradient predicts, the smallest along a run",
            lambda one: min(place["kept"] for place in one["directions"]),
            above=0.9,
        ),
        Claim(
            "optimum",
            "The downhill direction of all images points to the optimum.",
            "cosine of the downhill direction with that to the last weights, which stand for the optimum; the smallest",
            lambda one: min(place["cosine"] for place in one["directions"]),
            above=0.9,
        ),
        Claim(
            "own-optimum",
            "The gradient of a batch is for that batch: a step for one image may raise the loss of all.",
            "share of the images whose own step would raise the loss of all, the mean along a descent with batches",
            lambda one: float(np.mean(one["opposed"])),
            above=0.1,
        ),
        Claim(
            "larger-batches",
            "The gradient of a batch agrees roughly with that of all images, the better the larger the batch.",
            "mean cosine for the largest batch minus that for one image, the smallest along a descent with all images",
            lambda one: min(of_sizes[-1] - of_sizes[0] for of_sizes in one["agreement"]),
            above=0.2,
        ),
        Claim(
            "late-batches",
            "As training goes on, batch gradients agree less with that of all images.",
            "mean cosine for the middle size of batches, at the start of a descent with all images minus at its end",
            lambda one: _middle(one, 0) - _middle(one, -1),
            above=0.1,
        ),
    ),
    measure=measure,
    draw=draw,
    quick=Settings(hidden=32, images=512, batch_size=16, steps=400),
    full=Settings(hidden=64, images=4096, batch_size=16, steps=1000),
    seconds=11,
)
