"""torchvision's state dicts <-> variables, tensor by tensor; other networks get names in the same style.

Module names here are torchvision's, with "_" for "." before a number, except for those in `_NAMES`. Tensors that would
get the same name, as in a module with both a kernel and a scale, keep their linen names.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
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
_NAMES["resnext"] = _NAMES["cifar"] = _NAMES["resnet"]

# Dense layers that read a flattened map, and that map's pixels a side: torch flattens it as [C, H, W], we as [H, W, C].
_FLATTENED: dict[str, dict[Path, int]] = {
    "alexnet": {("fc1",): 6},
    "googlenet": {("aux1", "fc1"): 4, ("aux2", "fc1"): 4},
}

_MOST_NAMED = 12
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def from_torchvision(
    arch: str,
    state_dict: Mapping[str, np.ndarray],
    like: Variables,
    put: Callable[[np.ndarray], Any] = np.ascontiguousarray,
) -> dict[str, Any]:
    """Variables of the network `arch`, shaped as in `like`, from torchvision's tensors as arrays; dtypes are kept.

    `like` may hold shapes only (`jax.eval_shape` of `model.init`). Each tensor is read once, and `put` converts it
    before the next one is read. Raises InputError, naming the tensors, if one is missing, left over or of another
    shape.
    """
    variables: dict[Path, Any] = {}
    leaves = flatten_dict(dict(like))
    for path, key in _names(arch, state_dict, leaves).items():
        array = np.asarray(state_dict[key])
        _check_shape(arch, key, array.shape, _torch_shape(path, leaves[path].shape))
        variables[path] = put(_to_linen(arch, path, array))
    return unflatten_dict(variables)


def check_fits(arch: str, shapes: Mapping[str, tuple[int, ...]], like: Variables) -> None:
    """Raises InputError as `from_torchvision` does, from the tensors' shapes alone."""
    leaves = flatten_dict(dict(like))
    for path, key in _names(arch, shapes, leaves).items():
        _check_shape(arch, key, shapes[key], _torch_shape(path, leaves[path].shape))


def tensor_paths(arch: str, like: Variables) -> dict[str, Path]:
    """The names of all tensors of the network `arch`, each with its path among the variables."""
    return {key: path for path, key in _keys(arch, flatten_dict(dict(like))).items()}


def to_torchvision(arch: str, variables: Variables) -> dict[str, np.ndarray]:
    """torchvision's names and layouts for variables (or gradients shaped like them) of the network `arch`."""
    arrays = flatten_dict(jax.device_get(dict(variables)))
    return {key: _to_torch(arch, path, arrays[path]) for path, key in _keys(arch, arrays).items()}


def tensor_name(arch: str, *path: str) -> str:
    """torchvision's name for a parameter of the network `arch`, as in tensor_name("alexnet", "fc3", "bias")."""
    return _key(arch, ("params", *path))


def _names(arch: str, tensors: Collection[str], leaves: Mapping[Path, Any]) -> dict[Path, str]:
    """The name of each leaf. Raises InputError for missing tensors, and for others but torch's counters of batches."""
    names = _keys(arch, leaves)
    expected, present = set(names.values()), {key for key in tensors if not key.endswith("num_batches_tracked")}
    if expected != present:
        raise InputError(
            f"the state dict does not fit {arch}: missing {_listed(expected - present)}, left over "
            f"{_listed(present - expected)}"
        )
    return names


def _listed(names: set[str]) -> str:
    shown = sorted(names)[:_MOST_NAMED]
    return f"{shown}" + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _check_shape(arch: str, key: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise InputError(f"{key} has shape {shape}; {arch} expects {expected}")


def _keys(arch: str, paths: Collection[Path]) -> dict[Path, str]:
    """A name of its own for each path."""
    keys = {path: _key(arch, path) for path in paths}
    uses = Counter(keys.values())
    return {path: key if uses[key] == 1 else ".".join(path) for path, key in keys.items()}


def _key(arch: str, path: Path) -> str:
    _, *modules, leaf = path
    names = [_NAMES[family_of(arch)].get(module, re.sub(r"_(\d+)$", r".\1", module)) for module in modules]
    return ".".join([*names, _LEAVES.get(leaf, leaf)])


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
