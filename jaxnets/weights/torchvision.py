"""torchvision's state dicts <-> variables, tensor by tensor, for the networks that torchvision has.

Module names here are torchvision's, with "_" for "." before a number, but for those in `_NAMES`.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxnets.errors import InputError
from jaxnets.models.registry import family_of

Variables = Mapping[str, Any]
Path = tuple[str, ...]

# Our module name -> torchvision's, for each family where the two differ by more than "layer1_0" -> "layer1.0".
_NAMES: dict[str, dict[str, str]] = {
    "alexnet": {
        "conv1": "features.0",
        "conv2": "features.3",
        "conv3": "features.6",
        "conv4": "features.8",
        "conv5": "features.10",
        "fc1": "classifier.1",
        "fc2": "classifier.4",
        "fc3": "classifier.6",
    },
    "googlenet": {},
    "resnet": {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"},
}
_NAMES["resnext"] = _NAMES["resnet"]

# Dense layers that read a flattened map, and that map's pixels a side: torch flattens it as [C, H, W], we as [H, W, C].
_FLATTENED: dict[str, dict[Path, int]] = {
    "alexnet": {("fc1",): 6},
    "googlenet": {("aux1", "fc1"): 4, ("aux2", "fc1"): 4},
}

# The names that torchvision shares; the papers' own variants of the same families are not among them.
NETWORKS = (
    "alexnet",
    "googlenet",
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
)

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def from_torchvision(arch: str, state_dict: Mapping[str, np.ndarray], like: Variables) -> dict[str, Any]:
    """Variables of the network `arch`, shaped as in `like`, from torchvision's tensors as arrays; dtypes are kept.

    `like` may hold shapes only (`jax.eval_shape` of `model.init`). Raises InputError, naming the tensors, where one is
    missing, left over or of another shape. `num_batches_tracked` has no counterpart and is passed over.
    """
    left = {key for key in state_dict if not key.endswith("num_batches_tracked")}
    variables: dict[Path, np.ndarray] = {}
    missing = []
    for path, leaf in flatten_dict(dict(like)).items():
        key = _key(arch, path)
        if key not in state_dict:
            missing.append(key)
            continue
        left.discard(key)
        array, expected = np.asarray(state_dict[key]), _torch_shape(path, leaf.shape)
        if array.shape != expected:
            raise InputError(f"{key} has shape {array.shape}; {arch} expects {expected}")
        variables[path] = _to_linen(arch, path, array)
    if missing or left:
        raise InputError(f"the state dict does not fit {arch}: missing {sorted(missing)}, left over {sorted(left)}")
    return unflatten_dict(variables)


def to_torchvision(arch: str, variables: Variables) -> dict[str, np.ndarray]:
    """torchvision's names and layouts for variables (or gradients shaped like them) of the network `arch`."""
    arrays = flatten_dict(jax.device_get(dict(variables)))
    return {_key(arch, path): _to_torch(arch, path, array) for path, array in arrays.items()}


def _key(arch: str, path: Path) -> str:
    if arch not in NETWORKS:
        raise InputError(f"torchvision has no network like {arch}; it has {', '.join(NETWORKS)}")
    _, *modules, leaf = path
    names = [_NAMES[family_of(arch)].get(module, re.sub(r"_(\d+)$", r".\1", module)) for module in modules]
    return ".".join([*names, _LEAVES[leaf]])


def _torch_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return shape
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def _to_linen(arch: str, path: Path, array: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return array
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    side = _FLATTENED.get(family_of(arch), {}).get(path[1:-1])
    if side is not None:
        array = array.reshape(array.shape[0], -1, side, side).transpose(0, 2, 3, 1).reshape(array.shape)
    return array.T


def _to_torch(arch: str, path: Path, array: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    array = array.T
    side = _FLATTENED.get(family_of(arch), {}).get(path[1:-1])
    if side is not None:
        array = array.reshape(array.shape[0], side, side, -1).transpose(0, 3, 1, 2).reshape(array.shape)
    return array
