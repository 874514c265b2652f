"""A network with weights that others trained: published, from a file, or from a run."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError
from jaxnets.models.features import head_of
from jaxnets.models.initialization import declaration
from jaxnets.models.layers import param_dtype
from jaxnets.models.registry import create_model, family_of
from jaxnets.weights.catalogue import PublishedWeights, by_checksum, imagenet_classes, list_weights, published
from jaxnets.weights.download import fetch, sha256_of
from jaxnets.weights.tensor_file import TensorFile, open_tensors
from jaxnets.weights.torchvision import check_fits, from_torchvision, tensor_name

Variables = Mapping[str, Any]


class Pretrained(NamedTuple):
    """`preprocess(image)` is what the network reads of an image [S, S, 3]; `categories` name the classes in order."""

    model: nn.Module
    variables: dict[str, Any]
    preprocess: Preprocessing
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """What goes with weights. `options` are those of the network."""

    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    options: dict[str, bool]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Origin":
        """The value of which `dataclasses.asdict`, or JSON of that, is given."""
        preprocessing = Preprocessing.from_dict(values["preprocessing"])
        return cls(preprocessing, tuple(values["class_names"]), dict(values["options"]))


def load_pretrained(
    name: str, weights: str | Path = "DEFAULT", *, num_classes: int | None = None, dtype: DTypeLike = jnp.float32
) -> Pretrained:
    """The network `name` with weights, and all that goes with them.

    `weights` is a published name ("IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT" for the better one), which is downloaded
    once, or a path: of torch's .pth or .pt, of .safetensors, or the workdir of a run. A file that does not say what
    goes with it is recognised by its checksum if it was published, and else gets the defaults of the network: its own
    preprocessing on ImageNet, whose classes are taken where there are 1000.
    Another `num_classes` than theirs gives the network a new head. `dtype` is what it computes in.
    Raises InputError for weights that can't be had, that are damaged, or that do not fit the network.
    """
    if num_classes is not None and num_classes < 1:
        raise InputError(f"num_classes={num_classes}; a network needs at least 1 class")
    model, variables, origin = _load(name, weights, dtype)
    if num_classes is None or num_classes == len(origin.class_names):
        return Pretrained(model, variables, origin.preprocessing, origin.class_names)
    model = model.clone(num_classes=num_classes)
    variables = with_new_head(model, variables, jax.random.key(0))
    return Pretrained(model, variables, origin.preprocessing, _numbered(num_classes))


def describe(name: str, weights: str | Path) -> Origin:
    """What goes with weights, which are not read (but published ones are downloaded, so that they are there later)."""
    path = _path_of(name, weights)
    if path is not None and path.is_dir():
        return _run_origin(name, path)
    with open_weights(name, weights) as (_, origin, _):
        return origin


def starting_variables(
    model: Any, name: str, weights: str | Path, class_names: tuple[str, ...], key: jax.Array
) -> dict[str, Any]:
    """Variables for `model`, a network `name`, to start training from: those of `weights`.

    The head is a new one unless they were trained on the same classes. Auxiliary heads that the model leaves out are
    left out.
    """
    _, variables, origin = _load(name, weights, model.dtype)
    modules = {module for names in model.stages.values() for module in names}
    if not getattr(model, "aux_logits", True):
        modules -= {"aux1", "aux2"}
    variables = {kind: {k: tree for k, tree in of.items() if k in modules} for kind, of in variables.items()}
    return variables if origin.class_names == class_names else with_new_head(model, variables, key)


def with_new_head(model: Any, variables: Variables, key: jax.Array) -> dict[str, Any]:
    """The variables, but fresh ones of the classifier and of those of auxiliary heads, for the model's classes."""
    classifiers = {("params", head_of(model))} | {("params", aux, "fc2") for aux in ("aux1", "aux2")}
    kept = {path: leaf for path, leaf in flatten_dict(dict(variables)).items() if path[:-1] not in classifiers}
    groups = {path[1] for path in kept}

    @jax.jit
    def fresh(key: jax.Array) -> dict[Any, jax.Array]:
        side = _side(model)
        leaves = flatten_dict(model.init(key, jnp.zeros((1, side, side, 3)), train=False))
        return {path: leaf for path, leaf in leaves.items() if path[:-1] in classifiers}

    new = {path: leaf for path, leaf in fresh(key).items() if path[1] == head_of(model) or path[1] in groups}
    return unflatten_dict(kept | new)


@contextmanager
def open_weights(name: str, weights: str | Path) -> Iterator[tuple[TensorFile, Origin, str]]:
    """The tensors of published weights or of a file, what goes with them, and where they come from.

    Raises InputError, before a tensor is read, where they do not fit the network.
    """
    path = _path_of(name, weights)
    record = published(name, str(weights)) if path is None else None
    with open_tensors(fetch(record) if record else Path(weights).expanduser()) as tensors:
        origin = _published_origin(record) if record else _file_origin(name, tensors)
        _, like = shapes_of(name, len(origin.class_names), origin.options)
        try:
            check_fits(name, {used: tensors.specs[used].shape for used in used_names(tensors, origin)}, like)
        except InputError as error:
            raise InputError(f"{tensors.path}: {error}") from None
        yield tensors, origin, record.url if record else tensors.path.name


def used_names(tensors: TensorFile, origin: Origin) -> list[str]:
    """The tensors that the network takes: all but a published GoogLeNet's auxiliary heads, which were never trained."""
    return [name for name in tensors if origin.options.get("aux_logits", True) or not name.startswith("aux")]


def shapes_of(name: str, num_classes: int, options: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> Any:
    """The network of so many classes, and its variables as shapes."""
    model = create_model(name, num_classes=num_classes, dtype=dtype, **options)
    return model, declaration(model, _side(model)).shapes


def _load(name: str, weights: str | Path, dtype: DTypeLike) -> tuple[Any, dict[str, Any], Origin]:
    path = _path_of(name, weights)
    if path is not None and path.is_dir():
        from jaxnets.training.checkpoint import load_classifier  # imports optax, which most who load weights do without

        origin, run = _run_origin(name, path), load_classifier(path)
        model = run.model.clone(dtype=create_model(name, dtype=dtype).dtype)
        return model, jax.tree.map(lambda leaf: jnp.asarray(leaf, param_dtype(dtype)), run.variables), origin
    with open_weights(name, weights) as (tensors, origin, _):
        model, like = shapes_of(name, len(origin.class_names), origin.options, dtype)
        given = _Some(tensors, used_names(tensors, origin))
        variables = from_torchvision(name, given, like, partial(_put, dtype=param_dtype(dtype)))
    return model, variables, origin


def _put(array: np.ndarray, dtype: DTypeLike) -> jax.Array:
    """The array on the device. The CPU takes memory that begins at a multiple of 64 bytes as it is, without a copy."""
    size = array.size * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    aligned = memory[begin : begin + size].view(dtype).reshape(array.shape)
    aligned[...] = array
    return jax.device_put(aligned)


class _Some(Mapping[str, np.ndarray]):
    """Some of the tensors of a file."""

    def __init__(self, tensors: TensorFile, names: list[str]) -> None:
        self._tensors = tensors
        self._names = names

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _path_of(name: str, weights: str | Path) -> Path | None:
    """The file or folder that `weights` means; None for published ones."""
    names = list_weights(name) if family_of(name) else []
    if isinstance(weights, str) and weights in ("DEFAULT", *names):
        return None
    path = Path(weights).expanduser()
    if not path.exists():
        there = f"{', '.join(names)}, DEFAULT" if names else "none"
        raise InputError(
            f"weights={str(weights)!r} are no file, no run's workdir, and not published for {name}; published: {there}"
        )
    return path


def _published_origin(record: PublishedWeights) -> Origin:
    # As in torchvision: published auxiliary heads are left out, as they were never trained.
    options = {"transform_input": record.transform_input, "aux_logits": False} if record.arch == "googlenet" else {}
    return Origin(record.preprocessing, imagenet_classes(), options)


def _run_origin(name: str, workdir: Path) -> Origin:
    from jaxnets.training.checkpoint import saved_contents  # imports optax, which most who load weights do without

    contents = saved_contents(workdir)
    if contents is None:
        raise InputError(f"{workdir} holds no checkpoint that can be read; give the workdir of experiments.train")
    if contents["config"]["arch"] != name:
        raise InputError(f"{workdir} is a run of {contents['config']['arch']}, not of {name}")
    return Origin.from_dict(contents)


def _file_origin(name: str, tensors: TensorFile) -> Origin:
    count = _count_classes(name, tensors)
    if "arch" in tensors.metadata:
        origin = _origin_in(name, tensors)
        if len(origin.class_names) != count:
            raise InputError(f"{tensors.path} names {len(origin.class_names)} classes, but its head has {count}")
        return origin
    if record := by_checksum(sha256_of(tensors.path)):
        if record.arch != name:
            raise InputError(f"{tensors.path} holds the published weights of {record.arch}, not of {name}")
        return _published_origin(record)
    options = {}
    if family_of(name) == "googlenet":
        options["aux_logits"] = any(key.startswith("aux1.") for key in tensors)
    return Origin(Preprocessing(224, 256), imagenet_classes() if count == 1000 else _numbered(count), options)


def _origin_in(name: str, tensors: TensorFile) -> Origin:
    """What a file of experiments.convert says about itself."""
    metadata = tensors.metadata
    if metadata["arch"] != name:
        raise InputError(f"{tensors.path} holds weights of {metadata['arch']}, not of {name}")
    try:
        return Origin.from_dict({key: json.loads(metadata[key]) for key in ("preprocessing", "class_names", "options")})
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
        raise InputError(f"{tensors.path}: what it says about itself is damaged ({error}); convert it again") from None


def _count_classes(name: str, tensors: TensorFile) -> int:
    bias = tensor_name(name, head_of(create_model(name)), "bias")
    if bias not in tensors.specs or len(tensors.specs[bias].shape) != 1:
        raise InputError(f"{tensors.path} has no tensor {bias} [classes]; are these weights of {name}?")
    return tensors.specs[bias].shape[0]


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(str(index) for index in range(count))


def _side(model: Any) -> int:
    """Pixels of images that the network can take."""
    return max(64, int(model.smallest_image))
