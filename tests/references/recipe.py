"""The weights, images and labels of the torchvision references, in NumPy, for both torch and jaxnets.

Uses the legacy RandomState, as NumPy guarantees that its streams never change.
"""

import zlib
from collections.abc import Iterable

import numpy as np

TORCHVISION_MODELS = (
    "alexnet",
    "googlenet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
)
TRAINED_MODELS = ("alexnet", "googlenet", "resnet50", "resnext50_32x4d")
# (image size in pixels, images, classes)
EVALUATION_CASES = ((224, 1, 1000), (97, 2, 13))
# The image size at which GoogLeNet is evaluated with transform_input.
TRANSFORMED_PIXELS = 97
TRAINING_CASE = (97, 4, 13)
STEPS, LEARNING_RATE, MOMENTUM, AUX_WEIGHT = 5, 0.001, 0.9, 0.3

TRANSFER_CASE = (64, 4, 13)
WEIGHT_DECAY = 0.01
# Network, first trained block, decay of the learning rate per block.
TRANSFERS = {
    "partial": ("resnet18", "layer4.0", 1.0),
    "head": ("resnet18", "fc", 1.0),
    "layer_decay": ("resnet18", "conv1", 0.7),
}
# Node of torchvision's torch.fx graph -> stage of jaxnets.
FEATURES = {
    "resnet18": {
        "relu": "conv1",
        "layer1.1.relu_1": "layer1",
        "layer3.0.relu_1": "layer3.0",
        "layer4": "layer4.1",
        "flatten": "pool",
        "fc": "fc",
    },
    "googlenet": {
        "conv1": "conv1",
        "conv3": "conv3",
        "inception3a": "inception3a",
        "inception4d": "inception4d",
        "inception5b": "inception5b",
        "flatten": "pool",
    },
    "alexnet": {
        "features.1": "conv1",
        "features.4": "conv2",
        "features.11": "conv5",
        "classifier.2": "fc1",
        "classifier.5": "fc2",
        "classifier.6": "fc3",
    },
}


def _stream(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))


def random_state_dict(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """Random float64 parameters and statistics with torch's names and shapes."""
    state = {}
    for name, shape in shapes:
        stream, leaf = _stream(f"{name} {shape}"), name.rsplit(".", 1)[-1]
        if leaf == "num_batches_tracked":
            continue
        if leaf == "running_var":
            state[name] = stream.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            state[name] = stream.standard_normal(shape) * (1.6 / np.prod(shape[1:])) ** 0.5
        elif leaf == "weight":
            # GoogLeNet ("conv1.bn.weight") has no residual connections and needs a larger gain to propagate the image.
            low, high = (1.0, 1.8) if name.endswith("bn.weight") else (0.3, 0.9)
            state[name] = stream.uniform(low, high, shape)
        else:
            state[name] = 0.1 * stream.standard_normal(shape)
    return state


def random_images(pixels: int, count: int) -> np.ndarray:
    """Random float64 images [N, H, W, 3]."""
    return _stream(f"images {pixels} {count}").standard_normal((count, pixels, pixels, 3))


def labels(count: int, classes: int) -> np.ndarray:
    return (np.arange(count) * 5 + 3) % classes


def fingerprint(name: str, tensor: np.ndarray) -> np.ndarray:
    """Seven numbers that depend on sign, order and scale: norm, two projections, four entries. In torch's layout."""
    flat = np.asarray(tensor, np.float64).ravel()
    indices = np.arange(flat.size)
    picked = flat[_stream(name).randint(0, flat.size, 4)]
    return np.array([np.linalg.norm(flat), flat @ np.cos(indices), flat @ np.cos(0.7 * indices), *picked])
