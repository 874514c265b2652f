"""A network with trained weights: published ones, those of a file, or those of a run."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from jaxnets.models.contract import anatomy, auxiliary_heads_of, option_of, traced_side
from jaxnets.models.initialization import declaration
from jaxnets.models.layers import param_dtype
from jaxnets.models.registry import create_model, family_of
from jaxnets.weights.catalogue import PublishedWeights, by_checksum, imagenet_classes, list_weights, published
from jaxnets.weights.download import fetch, sha256_of
from jaxnets.weights.origin import Origin
from jaxnets.weights.runs import read_contents, read_run
from jaxnets.weights.tensor_file import TensorFile, open_tensors
from jaxnets.weights.torchvision import check_fits, from_torchvision, tensor_name

Variables = Mapping[str, Any]


class Pretrained(NamedTuple):
    """A network with weights. `preprocess(image)` is its input; `categories` are the class names in order."""

    model: nn.Module
    variables: dict[str, Any]
    preprocess: Preprocessing
    categories: tuple[str, ...]


def load_pretrained(
    name: str, weights: str | Path = "DEFAULT", *, num_classes: int | None = None, dtype: DTypeLike = jnp.float32
) -> Pretrained:
    """The network `name` with weights, their preprocessing and their class names.

    `name` is one of `list_models` or "package.module:factory". `weights` is a published name ("IMAGENET1K_V1",
    "IMAGENET1K_V2", "DEFAULT" for the better one), which is downloaded once, or a path: a .pth, .pt or .safetensors
    file, or the workdir of a run. A file without metadata is recognised by its checksum if it was published; otherwise
    it gets ImageNet's preprocessing, and ImageNet's class names if it has 1000 classes.
    Another `num_classes` than that of the weights gives the network a new head. `dtype` is what it computes in.
    Raises InputError for weights that are missing, damaged, or do not fit the network.
    """
    if num_classes is not None and num_classes < 1:
        raise InputError(f"num_classes={num_classes}; a network needs at least 1 class")
    model, variables, origin = _load(name, weights, dtype)
    if num_classes is None or num_classes == len(origin.class_names):
        return Pretrained(model, variables, origin.preprocessing, origin.class_names)
    model = model.clone(num_classes=num_classes)
    variables = with_new_head(model, variables, jax.random.key(0), origin.preprocessing.crop_size)
    return Pretrained(model, variables, origin.preprocessing, _numbered(num_classes))


def describe(name: str, weights: str | Path) -> Origin:
    """The origin of weights, without reading them; published ones are downloaded."""
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
    modules = anatomy(model).modules(auxiliary=option_of(model, "aux_logits", True))
    variables = {kind: {k: tree for k, tree in of.items() if k in modules} for kind, of in variables.items()}
    if origin.class_names == class_names:
        return variables
    return with_new_head(model, variables, key, origin.preprocessing.crop_size)


def with_new_head(model: Any, variables: Variables, key: jax.Array, image_size: int) -> dict[str, Any]:
    """The variables with a fresh head, and fresh classifiers of auxiliary heads, for the model's classes.

    `image_size` is an image side in pixels that the network takes.
    """
    parts = anatomy(model)
    classifiers = {(parts.head,), *parts.auxiliary_heads.items()}

    def is_new(path: tuple[str, ...]) -> bool:
        return path[1:2] in classifiers or path[1:3] in classifiers

    kept = {path: leaf for path, leaf in flatten_dict(dict(variables)).items() if not is_new(path)}
    modules = {path[1] for path in kept} | {parts.head}

    @jax.jit
    def fresh(key: jax.Array) -> dict[Any, jax.Array]:
        images = jnp.zeros((1, image_size, image_size, 3))
        leaves = flatten_dict(model.init(key, images, train=False))
        return {path: leaf for path, leaf in leaves.items() if is_new(path) and path[1] in modules}

    return unflatten_dict(kept | fresh(key))


@contextmanager
def open_weights(name: str, weights: str | Path) -> Iterator[tuple[TensorFile, Origin, str]]:
    """The tensors of published weights or of a file, their origin, and where they come from.

    Raises InputError, before a tensor is read, if they do not fit the network.
    """
    path = _path_of(name, weights)
    record = published(name, str(weights)) if path is None else None
    with open_tensors(fetch(record) if record else Path(weights).expanduser()) as tensors:
        origin = _published_origin(record) if record else _file_origin(name, tensors)
        _, like = shapes_of(name, len(origin.class_names), origin.options, image_size=origin.preprocessing.crop_size)
        try:
            check_fits(name, {used: tensors.specs[used].shape for used in used_names(name, tensors, origin)}, like)
        except InputError as error:
            raise InputError(f"{tensors.path}: {error}") from None
        yield tensors, origin, record.url if record else tensors.path.name


def used_names(name: str, tensors: TensorFile, origin: Origin) -> list[str]:
    """The tensors that the network takes: all but those of auxiliary heads that its options leave out."""
    if origin.options.get("aux_logits", True):
        return list(tensors)
    heads = tuple(f"{head}." for head in auxiliary_heads_of(create_model(name)))
    return [tensor for tensor in tensors if not tensor.startswith(heads)]


def shapes_of(
    name: str,
    num_classes: int,
    options: Mapping[str, Any],
    dtype: DTypeLike = jnp.float32,
    *,
    image_size: int | None = None,
) -> Any:
    """The network with `num_classes`, and its variables as shapes; `image_size` matters to networks that flatten."""
    model = create_model(name, num_classes=num_classes, dtype=dtype, **options)
    side = traced_side(model) if image_size is None else image_size
    return model, declaration(model, side).shapes


def _load(name: str, weights: str | Path, dtype: DTypeLike) -> tuple[Any, dict[str, Any], Origin]:
    path = _path_of(name, weights)
    if path is not None and path.is_dir():
        _run_origin(name, path)
        run = read_run(path)
        model = run.model.clone(dtype=create_model(name, dtype=dtype).dtype)
        return model, jax.tree.map(lambda leaf: jnp.asarray(leaf, param_dtype(dtype)), run.variables), run.origin
    with open_weights(name, weights) as (tensors, origin, _):
        side = origin.preprocessing.crop_size
        model, like = shapes_of(name, len(origin.class_names), origin.options, dtype, image_size=side)
        used = _Some(tensors, used_names(name, tensors, origin))
        variables = from_torchvision(name, used, like, partial(_put, dtype=param_dtype(dtype)))
    return model, variables, origin


def _put(array: np.ndarray, dtype: DTypeLike) -> jax.Array:
    """The array on the device. The CPU takes memory aligned to 64 bytes without a copy."""
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
    """The file or folder that `weights` names; None for published weights."""
    family_of(name)  # raises for an unknown network
    names = list_weights(name)
    if isinstance(weights, str) and weights in ("DEFAULT", *names):
        return None
    path = Path(weights).expanduser()
    if not path.exists():
        there = f"{', '.join(names)}, DEFAULT" if names else "none"
        raise InputError(
            f"weights={str(weights)!r}: there is no such file or run; for {name}, weights published: {there}; "
            "give one of these"
        )
    return path


def _published_origin(record: PublishedWeights) -> Origin:
    # As in torchvision: published auxiliary heads are left out, as they were never trained.
    options = {"transform_input": record.transform_input, "aux_logits": False} if record.arch == "googlenet" else {}
    return Origin(record.preprocessing, imagenet_classes(), options)


def _run_origin(name: str, workdir: Path) -> Origin:
    contents = read_contents(workdir)
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
    heads = tuple(f"{head}." for head in auxiliary_heads_of(create_model(name)))
    options = {"aux_logits": any(key.startswith(heads) for key in tensors)} if heads else {}
    return Origin(Preprocessing(224, 256), imagenet_classes() if count == 1000 else _numbered(count), options)


def _origin_in(name: str, tensors: TensorFile) -> Origin:
    """The origin in the metadata of a file that experiments.convert wrote."""
    metadata = tensors.metadata
    if metadata["arch"] != name:
        raise InputError(f"{tensors.path} holds weights of {metadata['arch']}, not of {name}")
    try:
        return Origin.from_dict({key: json.loads(metadata[key]) for key in ("preprocessing", "class_names", "options")})
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
        raise InputError(f"{tensors.path}: what it says about itself is damaged ({error}); convert it again") from None


def _count_classes(name: str, tensors: TensorFile) -> int:
    kernel = tensor_name(name, anatomy(create_model(name)).head, "kernel")
    if kernel not in tensors.specs or len(tensors.specs[kernel].shape) != 2:
        raise InputError(f"{tensors.path} has no tensor {kernel} [classes, C]; are these weights of {name}?")
    return tensors.specs[kernel].shape[0]


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(str(index) for index in range(count))
