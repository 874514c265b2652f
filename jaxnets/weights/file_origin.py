"""The origin of weights in a file: what the file says about itself, or what its checksum and its shapes show."""

import json
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError
from jaxnets.models.contract import anatomy, auxiliary_heads_of
from jaxnets.models.registry import create_model, family_of, list_models
from jaxnets.weights.catalogue import PublishedWeights, by_checksum, imagenet_classes
from jaxnets.weights.download import sha256_of
from jaxnets.weights.origin import Origin
from jaxnets.weights.pickle_values import kind_of, shown
from jaxnets.weights.tensor_file import TensorFile
from jaxnets.weights.torchvision import tensor_name

_BUILT_IN = frozenset(list_models())
# The side of CIFAR's images in pixels.
_CIFAR_SIDE = 32
# Networks of timm 1.0.31 that have every name and shape of a network here, but compute something else.
_LOOK_ALIKES = {"resnetaa50": "resnet50", "resnetblur50": "resnet50", "resnetblur18": "resnet18"}
# What convert_weights writes into the metadata of a safetensors file.
_OURS = ("preprocessing", "class_names", "options")
# Whether the class names in the metadata are assumed, as the converted file had none.
ASSUMED_NAMES = "class_names_assumed"
# Files of weights that have a config.json beside them on the Hugging Face hub.
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_MAX_CONFIG = 1 << 20


def published_origin(record: PublishedWeights) -> Origin:
    """The origin of published weights."""
    # As in torchvision: published auxiliary heads are left out, as they were never trained.
    options = {"transform_input": record.transform_input, "aux_logits": False} if record.arch == "googlenet" else {}
    return Origin(record.preprocessing, imagenet_classes(), options)


class FileOrigin(NamedTuple):
    """The origin of a file's weights; whether their class names are known, not assumed; and what else is assumed."""

    origin: Origin
    are_named: bool
    assumed: str | None = None


def file_origin(name: str, tensors: TensorFile) -> FileOrigin:
    """The origin of a file's weights for the network `name`.

    Raises InputError for a file that says that it holds weights of another network.
    """
    ours = "arch" in tensors.metadata and all(key in tensors.metadata for key in _OURS)
    if ours and tensors.metadata["arch"] != name:
        raise InputError(f"{tensors.path} holds weights of {tensors.metadata['arch']}, not of {name}")
    _check_architecture(name, tensors)
    count = _count_classes(name, tensors)
    if ours:
        origin = _origin_in(tensors)
        if len(origin.class_names) != count:
            raise InputError(f"{tensors.path} names {len(origin.class_names)} classes, but its head has {count}")
        return FileOrigin(origin, tensors.metadata.get(ASSUMED_NAMES) != "true")
    if record := by_checksum(sha256_of(tensors.path)):
        if record.arch != name:
            raise InputError(f"{tensors.path} holds the published weights of {record.arch}, not of {name}")
        return FileOrigin(published_origin(record), True)
    heads = tuple(f"{head}." for head in auxiliary_heads_of(create_model(name)))
    options = {"aux_logits": any(key.startswith(heads) for key in tensors)} if heads else {}
    preprocessing = _usual_preprocessing(name)
    assumed = (
        f"it does not say its preprocessing: images are resized to {preprocessing.resize_size} px, cropped to "
        f"{preprocessing.crop_size} px and normalised as ImageNet's"
    )
    class_names = imagenet_classes() if count == 1000 else numbered(count)
    return FileOrigin(Origin(preprocessing, class_names, options), False, assumed)


def _usual_preprocessing(name: str) -> Preprocessing:
    """That of ImageNet, at the side that the network is made for: the only one it takes, CIFAR's 32 px, or 224 px."""
    side = anatomy(create_model(name)).image_size or (_CIFAR_SIDE if family_of(name) == "cifar" else None)
    return Preprocessing(224, 256) if side is None else Preprocessing(side, side)


def numbered(count: int) -> tuple[str, ...]:
    """Names for classes that have none."""
    return tuple(str(index) for index in range(count))


def _check_architecture(name: str, tensors: TensorFile) -> None:
    """Refuses weights of another network, if the file, or the config.json of timm beside it, names that network."""
    named = [(tensors.path, name) for name in tensors.about.architectures]
    for path, said in [*named, *_beside(tensors)]:
        short = said.lower().rpartition("/")[2].rpartition(":")[2].partition(".")[0]
        if _LOOK_ALIKES.get(short) == name:
            raise InputError(
                f"{path} says that {tensors.path.name} holds weights of {shown(said)}, which computes something else "
                f"than {name} with tensors of the same names and shapes; expected weights of {name}"
            )
        if short in _BUILT_IN and name in _BUILT_IN and short != name:
            raise InputError(f"{path} says that {tensors.path.name} holds weights of {shown(said)}, not of {name}")


def _beside(tensors: TensorFile) -> list[tuple[Path, str]]:
    """The config.json of a folder of the hub, and the network that it names."""
    path = tensors.path.parent / "config.json"
    if tensors.path.name not in _HUB_FILES:
        return []
    with suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= _MAX_CONFIG:
            config = json.loads(path.read_bytes())
            if isinstance(config, dict) and isinstance(config.get("architecture"), str):
                return [(path, config["architecture"])]
    return []


def _origin_in(tensors: TensorFile) -> Origin:
    """The origin in the metadata of a file that experiments.convert wrote."""
    try:
        return Origin.from_dict({key: json.loads(tensors.metadata[key]) for key in _OURS})
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
        raise InputError(f"{tensors.path}: what it says about itself is damaged ({error}); convert it again") from None


def _count_classes(name: str, tensors: TensorFile) -> int:
    kernel = tensor_name(name, anatomy(create_model(name)).head, "kernel")
    if kernel in tensors.about.others:
        raise InputError(not_a_tensor(tensors, kernel))
    if kernel not in tensors.specs or len(tensors.specs[kernel].shape) != 2:
        raise InputError(f"{tensors.path} has no tensor {kernel} [classes, C]; are these weights of {name}?")
    return tensors.specs[kernel].shape[0]


def not_a_tensor(tensors: TensorFile, name: str) -> str:
    """Why an entry of the file cannot be a tensor of the network."""
    kind = kind_of(tensors.about.others[name])
    return f"{tensors.path} has an entry {shown(name)} ({kind}); expected a plain tensor of floating-point numbers"
