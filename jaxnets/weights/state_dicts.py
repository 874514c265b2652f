"""Finds the state dict in a checkpoint of torch, and what the checkpoint says about itself."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jaxnets.errors import InputError
from jaxnets.weights.pickle_values import Namespace, Tensor, kind_of, shown

# Keys of the weights in checkpoints, and of their moving averages.
_PLAIN = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights", "module")
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema", "swa_model")
# Libraries that save the average as "state_dict", and the weights of the last step under this key. A second key
# tells their checkpoints from others.
_SWAPPED = {
    "current_model_state": "averaging_state",  # Lightning's WeightAveraging and EMAWeightAveraging
    "ema_state_dict": "message_hub",  # MMEngine's EMAHook
}
_AVERAGING = frozenset(("ema", "swa", "averaged", "average"))
# What torch's AveragedModel and MMEngine's add to the names of the network.
_COUNTERS = ("n_averaged", "steps")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")


class StateDict(NamedTuple):
    """The tensors under `key` (None: the file is the state dict), and the entries beside them that are no tensors.

    `other_key` is that of the plain weights if these are a moving average, or of the average if they are plain.
    `unread` is that of a moving average that is in another form.
    """

    tensors: dict[str, Tensor]
    others: dict[str, Any]
    key: str | None
    is_average: bool
    other_key: str | None
    unread: str | None = None


def find_state_dict(value: Any, key: str | None = None) -> StateDict:
    """The weights of a checkpoint: those under `key`, else the moving average if there is one, else the plain ones.

    torchvision's references and timm evaluate the average too. Raises InputError, without the file's name, if there are
    no weights.
    """
    if not isinstance(value, dict):
        raise InputError(f"contains a {kind_of(value)}; expected a dictionary of tensors, as state_dict() returns it")
    has_tensors = _tensor_check()
    is_bare = bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())
    if key is not None:
        if not has_tensors(value.get(key)):
            keys = [name for name, entry in value.items() if type(name) is str and has_tensors(entry)]
            hint = f"the keys {', '.join(map(shown, keys[:12]))}" if keys else "one state dict, without a key"
            raise InputError(f"has no weights under the key {shown(key)}; it has {hint}")
        return _state_dict(value[key], key, *_other(value, key, has_tensors))
    plain, average = _keys(value, has_tensors)
    taken = average or plain
    if is_bare or taken is None:
        if not is_bare and not any(isinstance(tensor, Tensor) for tensor in value.values()):
            raise InputError(_without_tensors(value))
        return _state_dict(value, None, False, None)
    found = _state_dict(value[taken], taken, taken == average, plain if taken == average else None)
    unread = (
        None if found.is_average else next((key for key, entry in value.items() if _may_be_average(key, entry)), None)
    )
    return found._replace(unread=unread)


def architectures_named(value: Any) -> list[str]:
    """The names of networks in a checkpoint: its `arch`, and the argument `model` or `arch` of its training script."""
    if not isinstance(value, dict):
        return []
    sources: list[tuple[Any, tuple[str, ...]]] = [(value, ("arch", "architecture"))]
    for key in ("args", "hyper_parameters", "config"):
        arguments = value.get(key)
        arguments = arguments.values if isinstance(arguments, Namespace) else arguments
        sources.append((arguments, ("model", "arch", "architecture", "model_name")))
    return [
        source[key]
        for source, keys in sources
        if isinstance(source, dict)
        for key in keys
        if type(source.get(key)) is str
    ]


def without_prefix(names: Iterable[str]) -> Callable[[str], str]:
    """A function that removes the prefixes that wrappers, such as DataParallel, have added to all of the names.

    MMPretrain's "backbone." and "head." are removed together.
    """
    names = list(names)
    # All names share the prefixes that the smallest and the largest name share. Each name is sliced once, as it may
    # have millions of prefixes.
    first, last, end = min(names), max(names), 0
    while prefix := next((p for p in _PREFIXES if first.startswith(p, end) and last.startswith(p, end)), None):
        end += len(prefix)
    start = first[:end]
    parts = ("backbone.", "head.")
    if {part for part in parts if any(name.startswith(part, end) for name in names)} == set(parts):
        shorter = {name[end:].partition(".")[2] for name in names if name.startswith(parts, end)}
        if len(shorter) == len(names):
            return lambda name: name[end:].partition(".")[2] if name.startswith(start) else name
    return lambda name: name[end:] if name.startswith(start) else name


def _keys(value: Mapping[Any, Any], has_tensors: Callable[[Any], bool]) -> tuple[str | None, str | None]:
    """The keys of the plain weights and of their average."""
    plain = next((key for key in _PLAIN if has_tensors(value.get(key))), None)
    for current, marker in _SWAPPED.items():
        if plain == "state_dict" and marker in value and has_tensors(value.get(current)):
            return current, plain
    averages = (key for key in _AVERAGES if has_tensors(value.get(key)))
    return plain, next((key for key in averages if plain is None or _same_names(value[key], value[plain])), None)


def _same_names(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    """Whether two dicts have tensors of the same names, but for prefixes and counters of wrappers."""
    names = []
    for tensors in (one, other):
        given = [name for name, tensor in tensors.items() if isinstance(tensor, Tensor) and type(name) is str]
        given = [name for name in given if name not in _COUNTERS]
        short = without_prefix(given) if given else str
        names.append({short(name) for name in given})
    return names[0] == names[1]


def _may_be_average(key: Any, entry: Any) -> bool:
    """Whether an entry of a checkpoint is, by its name, a moving average rather than a setting of one."""
    is_setting = entry is None or isinstance(entry, bool | int | float | str)
    return type(key) is str and not is_setting and not _AVERAGING.isdisjoint(re.split(r"[_.\-]", key.lower()))


def _other(value: Mapping[Any, Any], key: str, has_tensors: Callable[[Any], bool]) -> tuple[bool, str | None]:
    """Whether `key` is that of the average, and the key of the other weights."""
    plain, average = _keys(value, has_tensors)
    return key == average, {average: plain, plain: average}.get(key)


def _state_dict(value: Mapping[Any, Any], key: str | None, is_average: bool, other_key: str | None) -> StateDict:
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    for name, tensor in value.items():
        if type(name) is str:
            (tensors if isinstance(tensor, Tensor) else others)[name] = tensor
        elif isinstance(tensor, Tensor):
            raise InputError(f"has a tensor whose name is of type {kind_of(name)}; expected text")
    counters = [name for name in _COUNTERS if name in tensors and tensors[name].size == ()]
    if counters and all(name.startswith("module.") or name in counters for name in tensors):
        is_average = True
        tensors = {name: tensor for name, tensor in tensors.items() if name not in counters}
    return StateDict(tensors, others, key, is_average, other_key)


def _tensor_check() -> Callable[[Any], bool]:
    """A function that says whether a value is a dict with tensors. It looks once at a dict that occurs many times."""
    seen: dict[int, bool] = {}

    def check(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        if id(value) not in seen:
            seen[id(value)] = any(isinstance(tensor, Tensor) for tensor in value.values())
        return seen[id(value)]

    return check


def _without_tensors(value: Mapping[Any, Any]) -> str:
    """Why a checkpoint has no weights: what stands in their place."""
    key = next((key for key in (*_AVERAGES, *_PLAIN) if value.get(key) is not None), None)
    entries = value if key is None else value[key]
    what = key or "the file", entries
    if isinstance(entries, dict) and entries:
        name, entry = next(iter(entries.items()))
        what = shown(name) if type(name) is str else kind_of(name), entry
    found = f"entry {what[0]}: {kind_of(what[1])}" if what[1] is not value else "it is empty"
    return f"has no tensors ({found}); expected a state dict, or one under a key such as {', '.join(_PLAIN[:3])}"
