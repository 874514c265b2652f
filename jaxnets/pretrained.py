"""A network with trained weights: published ones, those of a file, or those of a run."""

from collections.abc import Callable, Iterator, Mapping
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
from jaxnets.models.options import model_with
from jaxnets.models.registry import create_model, family_of
from jaxnets.weights.catalogue import list_weights, published, same_classes
from jaxnets.weights.download import fetch, say
from jaxnets.weights.file_origin import FileOrigin, file_origin, not_a_tensor, numbered, published_origin
from jaxnets.weights.network_tensors import NetworkTensors, fault_of
from jaxnets.weights.origin import Origin
from jaxnets.weights.runs import origin_in, read_contents, read_run, without_checkpoint
from jaxnets.weights.tensor_file import TensorFile, open_tensors
from jaxnets.weights.torchvision import check_fits, from_torchvision, tensor_name, tensor_paths

Variables = Mapping[str, Any]


class Pretrained(NamedTuple):
    """A network with weights. `preprocess(image)` is its input; `categories` are the class names in order."""

    model: nn.Module
    variables: dict[str, Any]
    preprocess: Preprocessing
    categories: tuple[str, ...]


class Weights(NamedTuple):
    """Open weights of a network: the tensors that it takes, their origin, and where they come from.

    `are_named` says whether the class names are known, not assumed. `choice` says which of several sets was read, and
    `assumed` what preprocessing a file gets that does not say its own.
    """

    tensors: NetworkTensors
    origin: Origin
    source: str
    are_named: bool
    choice: str | None
    assumed: str | None = None


def load_pretrained(
    name: str,
    weights: str | Path = "DEFAULT",
    *,
    num_classes: int | None = None,
    dtype: DTypeLike = jnp.float32,
    weights_key: str | None = None,
) -> Pretrained:
    """The network `name` with weights, their preprocessing and their class names.

    `name` is one of `list_models` or "package.module:factory". `weights` is a published name ("IMAGENET1K_V1",
    "IMAGENET1K_V2", "DEFAULT" for the better one), which is downloaded once, or a path: a .pth, .pt or .safetensors
    file, or the workdir of a run. A file without metadata is recognised by its checksum if it was published; otherwise
    it gets ImageNet's preprocessing at the network's usual size (224 px, or 32 px for CIFAR's networks), as a line on
    standard error says, and ImageNet's class names if it has 1000 classes.
    Of a torch checkpoint with a moving average of the weights, the average is read, and a line on standard error says
    so; `weights_key` names the entry to read instead, such as "model".
    Another `num_classes` than that of the weights gives the network a new head. `dtype` is what it computes in.
    Raises InputError for weights that are missing, damaged, not finite, or do not fit the network.
    """
    if num_classes is not None and num_classes < 1:
        raise InputError(f"num_classes={num_classes}; a network needs at least 1 class")
    loaded = _load(name, weights, dtype, weights_key)
    if loaded.choice:
        say(f"{loaded.source}: {loaded.choice}")
    if loaded.assumed:
        say(f"{loaded.source}: {loaded.assumed}")
    model, origin = loaded.model, loaded.origin
    if num_classes is None or num_classes == len(origin.class_names):
        return Pretrained(model, loaded.variables, origin.preprocessing, origin.class_names)
    model = model.clone(num_classes=num_classes)
    variables = with_new_head(model, loaded.variables, jax.random.key(0), origin.preprocessing.crop_size)
    return Pretrained(model, variables, origin.preprocessing, numbered(num_classes))


def describe(name: str, weights: str | Path, weights_key: str | None = None) -> Origin:
    """The origin of weights, without reading them; published ones are downloaded."""
    path = _path_of(name, weights)
    if path is not None and path.is_dir():
        return _run_origin(name, path, weights_key)
    with open_weights(name, weights, weights_key) as opened:
        return opened.origin


def starting_variables(
    model: Any,
    name: str,
    weights: str | Path,
    class_names: tuple[str, ...],
    key: jax.Array,
    *,
    weights_key: str | None = None,
    say: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Variables for `model`, a network `name`, to start training from: those of `weights`.

    The head is kept if the weights have the same classes, or as many classes and no names. Otherwise it is new.
    Auxiliary heads that the model leaves out are left out. `say` gets lines about the weights and the head.
    """
    loaded = _load(name, weights, model.dtype, weights_key)
    say(f"starting from {loaded.source}" + (f": {loaded.choice}" if loaded.choice else ""))
    modules = anatomy(model).modules(auxiliary=option_of(model, "aux_logits", True))
    variables = {
        collection: {module: tree for module, tree in trees.items() if module in modules}
        for collection, trees in loaded.variables.items()
    }
    theirs = loaded.origin.class_names
    if not loaded.are_named and len(theirs) == len(class_names):
        say(
            f"the head is kept: weights and data have {len(theirs)} classes each, and the weights do not name theirs; "
            "if they are others, name them (convert --class-names) to get a new head"
        )
        return variables
    if same_classes(theirs, class_names):
        say(f"the head is kept: the weights have the same {len(theirs)} classes")
        return variables
    say(f"the head is new: {_difference(theirs, class_names)}")
    return with_new_head(model, variables, key, loaded.origin.preprocessing.crop_size)


def _difference(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    if len(theirs) != len(ours):
        return f"the weights have {len(theirs)} classes, the data {len(ours)}"
    if set(theirs) == set(ours):
        return f"the weights have the same {len(ours)} classes in another order"
    index = next(index for index, name in enumerate(theirs) if name != ours[index])
    return f"class {index} is {theirs[index]!r} for the weights, and {ours[index]!r} in the data"


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
def open_weights(
    name: str, weights: str | Path, weights_key: str | None = None, dtype: DTypeLike | None = None
) -> Iterator[Weights]:
    """Opens published weights, or those of a file; `dtype` is the type to read tensors as, by default their own.

    Raises InputError, before a tensor is read, if they do not fit the network.
    """
    path = _path_of(name, weights)
    record = published(name, str(weights)) if path is None else None
    head = tensor_name(name, anatomy(create_model(name)).head, "kernel")
    with open_tensors(fetch(record) if record else Path(weights).expanduser(), weights_key, head) as tensors:
        known = FileOrigin(published_origin(record), True) if record else file_origin(name, tensors)
        origin = known.origin
        _, like = shapes_of(name, len(origin.class_names), origin.options, image_size=origin.preprocessing.crop_size)
        paths = tensor_paths(name, like)
        if unread := next((key for key in paths if key in tensors.about.others), None):
            raise InputError(not_a_tensor(tensors, unread))
        used = _used_names(name, tensors, origin)
        try:
            check_fits(name, {key: tensors.specs[key].shape for key in used}, like)
        except InputError as error:
            raise InputError(f"{tensors.path}: {error}") from None
        variances = {key for key, path in paths.items() if path[0] == "batch_stats" and path[-1] == "var"}
        source = record.url if record else tensors.path.name
        read = NetworkTensors(tensors, used, paths, variances, dtype)
        yield Weights(read, origin, source, known.are_named, tensors.about.choice, known.assumed)


def _used_names(name: str, tensors: TensorFile, origin: Origin) -> list[str]:
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
    model = model_with(name, options, num_classes=num_classes, dtype=dtype)
    side = traced_side(model) if image_size is None else image_size
    return model, declaration(model, side).shapes


class _Loaded(NamedTuple):
    model: Any
    variables: dict[str, Any]
    origin: Origin
    source: str
    are_named: bool
    choice: str | None
    assumed: str | None = None


def _load(name: str, weights: str | Path, dtype: DTypeLike, weights_key: str | None) -> _Loaded:
    path = _path_of(name, weights)
    if path is not None and path.is_dir():
        _run_origin(name, path, weights_key)
        run = read_run(path)
        model = run.model.clone(dtype=create_model(name, dtype=dtype).dtype)
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, param_dtype(dtype)), run.variables)
        for leaf_path, leaf in flatten_dict(variables).items():
            if fault_of(np.asarray(leaf)):
                raise InputError(f"{path}: {'/'.join(leaf_path)} has values beyond the range of {leaf.dtype}")
        return _Loaded(model, variables, run.origin, f"the run {path}", True, None)
    with open_weights(name, weights, weights_key, param_dtype(dtype)) as opened:
        origin = opened.origin
        side = origin.preprocessing.crop_size
        model, like = shapes_of(name, len(origin.class_names), origin.options, dtype, image_size=side)
        variables = from_torchvision(name, opened.tensors, like, partial(_put, dtype=param_dtype(dtype)))
    return _Loaded(model, variables, origin, opened.source, opened.are_named, opened.choice, opened.assumed)


def _put(array: np.ndarray, dtype: DTypeLike) -> jax.Array:
    """The array on the device. The CPU takes memory aligned to 64 bytes without a copy."""
    size = array.size * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    aligned = memory[begin : begin + size].view(dtype).reshape(array.shape)
    aligned[...] = array
    return jax.device_put(aligned)


def _path_of(name: str, weights: str | Path) -> Path | None:
    """The file or folder that `weights` names; None for published weights."""
    family_of(name)  # raises for an unknown network
    names = list_weights(name)
    if isinstance(weights, str) and weights in ("DEFAULT", *names):
        return None
    path = Path(weights).expanduser()
    if not path.exists():
        published_ones = f"; give a file, a run, or one of the weights published: {', '.join(names)}, DEFAULT"
        none = f", and no weights are published for {name}; give a file or a run"
        raise InputError(f"weights={str(weights)!r}: there is no such file or run{published_ones if names else none}")
    return path


def _run_origin(name: str, workdir: Path, weights_key: str | None) -> Origin:
    if weights_key is not None:
        raise InputError(f"weights_key={weights_key} (--weights-key) is of a torch checkpoint; {workdir} is a run")
    contents = read_contents(workdir)
    if contents is None:
        raise without_checkpoint(workdir)
    if contents["config"]["arch"] != name:
        raise InputError(f"{workdir} is a run of {contents['config']['arch']}, not of {name}")
    return origin_in(contents)
