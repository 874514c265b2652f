"""The catalogue of the weights that torchvision publishes for twelve of the networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError

LICENCE = "BSD-3-Clause (torchvision); trained on ImageNet, whose terms allow non-commercial research only"


@dataclass(frozen=True)
class PublishedWeights:
    """A published file of weights and its metadata.

    `sha256_prefix` is the start of the file's hexadecimal SHA-256. `megabytes` counts 1024 * 1024 bytes, as torchvision
    does. `top1` and `top5` are the percentages on ImageNet's validation images with this `preprocessing`. `recipe` is a
    link to the training recipe. `transform_input` is GoogLeNet's option.
    """

    arch: str
    name: str
    url: str
    sha256_prefix: str
    megabytes: float
    preprocessing: Preprocessing
    top1: float
    top5: float
    recipe: str
    licence: str = LICENCE
    transform_input: bool = False

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[1]


_V1, _V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"
_REFERENCES = "https://github.com/pytorch/vision/tree/main/references/classification#"
_ALEXNET, _GOOGLENET = f"{_REFERENCES}alexnet-and-vgg", f"{_REFERENCES}googlenet"
_RESNET, _RESNEXT = f"{_REFERENCES}resnet", f"{_REFERENCES}resnext"
_WIDE = "https://github.com/pytorch/vision/pull/912#issue-445437439"
_64X4D = "https://github.com/pytorch/vision/pull/5935"
_RESNET50_V2 = "https://github.com/pytorch/vision/issues/3995#issuecomment-1013906621"
_NEW = "https://github.com/pytorch/vision/issues/3995#new-recipe"
_FIXRES = "https://github.com/pytorch/vision/issues/3995#new-recipe-with-fixres"

# torchvision 0.29.1: file, megabytes, resized short side in pixels, top-1, top-5, recipe. The wide networks' V1 weights
# are float16. The last entry of a network is torchvision's DEFAULT.
_TABLE = {
    ("alexnet", _V1): ("alexnet-owt-7be5be79.pth", 233.087, 256, 56.522, 79.066, _ALEXNET),
    ("googlenet", _V1): ("googlenet-1378be20.pth", 49.731, 256, 69.778, 89.530, _GOOGLENET),
    ("resnet18", _V1): ("resnet18-f37072fd.pth", 44.661, 256, 69.758, 89.078, _RESNET),
    ("resnet34", _V1): ("resnet34-b627a593.pth", 83.275, 256, 73.314, 91.420, _RESNET),
    ("resnet50", _V1): ("resnet50-0676ba61.pth", 97.781, 256, 76.130, 92.862, _RESNET),
    ("resnet50", _V2): ("resnet50-11ad3fa6.pth", 97.790, 232, 80.858, 95.434, _RESNET50_V2),
    ("resnet101", _V1): ("resnet101-63fe2227.pth", 170.511, 256, 77.374, 93.546, _RESNET),
    ("resnet101", _V2): ("resnet101-cd907fc2.pth", 170.530, 232, 81.886, 95.780, _NEW),
    ("resnet152", _V1): ("resnet152-394f9c45.pth", 230.434, 256, 78.312, 94.046, _RESNET),
    ("resnet152", _V2): ("resnet152-f82ba261.pth", 230.474, 232, 82.284, 96.002, _NEW),
    ("wide_resnet50_2", _V1): ("wide_resnet50_2-95faca4d.pth", 131.820, 256, 78.468, 94.086, _WIDE),
    ("wide_resnet50_2", _V2): ("wide_resnet50_2-9ba9bcbe.pth", 263.124, 232, 81.602, 95.758, _FIXRES),
    ("wide_resnet101_2", _V1): ("wide_resnet101_2-32ee1156.pth", 242.896, 256, 78.848, 94.284, _WIDE),
    ("wide_resnet101_2", _V2): ("wide_resnet101_2-d733dc28.pth", 484.747, 232, 82.510, 96.020, _NEW),
    ("resnext50_32x4d", _V1): ("resnext50_32x4d-7cdf4587.pth", 95.789, 256, 77.618, 93.698, _RESNEXT),
    ("resnext50_32x4d", _V2): ("resnext50_32x4d-1a0047aa.pth", 95.833, 232, 81.198, 95.340, _NEW),
    ("resnext101_32x8d", _V1): ("resnext101_32x8d-8ba56ff5.pth", 339.586, 256, 79.312, 94.526, _RESNEXT),
    ("resnext101_32x8d", _V2): ("resnext101_32x8d-110c445d.pth", 339.673, 232, 82.834, 96.228, _FIXRES),
    ("resnext101_64x4d", _V1): ("resnext101_64x4d-173b62eb.pth", 319.318, 232, 83.246, 96.454, _64X4D),
}


def _weights(
    arch: str, name: str, file: str, megabytes: float, resize_size: int, top1: float, top5: float, recipe: str
) -> PublishedWeights:
    return PublishedWeights(
        arch,
        name,
        f"https://download.pytorch.org/models/{file}",
        # torch's file names end in the prefix of the checksum.
        file.removesuffix(".pth").rsplit("-", 1)[1],
        megabytes,
        Preprocessing(crop_size=224, resize_size=resize_size),
        top1,
        top5,
        recipe,
        transform_input=arch == "googlenet",
    )


_PUBLISHED = tuple(_weights(arch, name, *row) for (arch, name), row in _TABLE.items())


def list_weights(arch: str) -> list[str]:
    """The names of a network's published weights, without DEFAULT; [] if there are none."""
    return [weights.name for weights in _PUBLISHED if weights.arch == arch]


def published(arch: str, name: str = "DEFAULT") -> PublishedWeights:
    """The published weights `name` of a network; DEFAULT is the best. Raises InputError if there are none."""
    of_arch = [weights for weights in _PUBLISHED if weights.arch == arch]
    if not of_arch:
        archs = ", ".join(dict.fromkeys(weights.arch for weights in _PUBLISHED))
        raise InputError(f"no weights are published for {arch}; expected one of {archs}, or a file or a run as weights")
    if name == "DEFAULT":
        return of_arch[-1]
    for weights in of_arch:
        if weights.name == name:
            return weights
    raise InputError(f"no weights {name!r} are published for {arch}; expected {', '.join(list_weights(arch))}, DEFAULT")


def by_checksum(sha256: str) -> PublishedWeights | None:
    """The published weights whose file has this hexadecimal SHA-256, or None."""
    return next((weights for weights in _PUBLISHED if sha256.lower().startswith(weights.sha256_prefix)), None)


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1000 classes (ILSVRC 2012) in the order of the published weights' outputs.

    Source: `_IMAGENET_CATEGORIES` of torchvision 0.29.1 (BSD-3-Clause).
    """
    return _lines("imagenet_classes.txt")


@cache
def imagenet_ids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1000 classes, such as n01440764, in the order of `imagenet_classes`.

    ImageNet's folders have these names. Source: `imagenet_synsets.txt` of timm 1.0.31.
    """
    return _lines("imagenet_wordnet_ids.txt")


def _lines(file: str) -> tuple[str, ...]:
    return tuple(files(__package__).joinpath(file).read_text(encoding="utf-8").splitlines())


def same_classes(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether class names are the same in the same order; ImageNet's names are the same as its WordNet ids."""
    return tuple(one) == tuple(other) or (is_imagenet(one) and is_imagenet(other))


def is_imagenet(class_names: Sequence[str]) -> bool:
    """Whether these are ImageNet's 1000 classes in the order of the published weights, as names or as WordNet ids."""
    return tuple(class_names) in (imagenet_classes(), imagenet_ids())


def labels_by_name(class_names: Sequence[str]) -> dict[str, int]:
    """The label of each class name; of ImageNet's 1000 classes, by their names and by their WordNet ids."""
    ways = (imagenet_classes(), imagenet_ids()) if is_imagenet(class_names) else (class_names,)
    return {name: label for names in ways for label, name in enumerate(names)}
