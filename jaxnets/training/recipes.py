"""How a network is trained: the defaults of each family, and what a command line may change of them."""

from dataclasses import dataclass, fields, replace

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Channels
from jaxnets.errors import InputError
from jaxnets.models.registry import family_of
from jaxnets.training.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class Recipe:
    """The choices of a training run. `learning_rate` is the peak of a linear warm-up and a cosine decay to zero.

    Evaluation crops `crop_pct` of the short side at the centre. Training does the same, or takes a random crop of at
    least `min_crop_area` where that is above 0; then it shifts by up to `shift` of the side, mirrors with probability
    `flip`, jitters colours by up to `color_jitter`, erases with probability `random_erasing`, and mixes neighbours by
    Beta(alpha, alpha) where `mixup_alpha` or `cutmix_alpha` is above 0. `aux_weight` counts each auxiliary head's loss.
    """

    image_size: int
    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.1
    crop_pct: float = 1.0
    shift: float = 0.0
    min_crop_area: float = 0.0
    flip: float = 0.0
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    aux_weight: float = 0.3

    def __post_init__(self) -> None:
        for name, smallest in (("image_size", 1), ("epochs", 1), ("batch_size", 1)):
            if getattr(self, name) < smallest:
                raise InputError(f"{name}={getattr(self, name)}; expected a whole number of at least {smallest}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not 0 <= value < float("inf"):
                raise InputError(f"{field.name}={value}; expected a finite number of at least 0")
        for name in ("label_smoothing", "crop_pct", "shift", "min_crop_area", "flip", "random_erasing"):
            if getattr(self, name) > 1:
                raise InputError(f"{name}={getattr(self, name)}; expected a share from 0 to 1")
        if self.crop_pct < 0.1:
            raise InputError(f"crop_pct={self.crop_pct}; expected a share from 0.1 to 1, such as 0.875")
        if self.learning_rate == 0:
            raise InputError("learning_rate=0 trains nothing; expected a number above 0")
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"unknown optimizer {self.optimizer!r}; expected one of {', '.join(OPTIMIZERS)}")

    def preprocessing(self, mean: Channels, std: Channels) -> Preprocessing:
        """What evaluation does with an image before the network sees it."""
        return Preprocessing(self.image_size, round(self.image_size / self.crop_pct), mean, std)


# Quick and good on the embedded data set on two CPU cores.
_DIGITS = Recipe(
    image_size=48, epochs=10, batch_size=32, optimizer="adam", learning_rate=1e-3, weight_decay=0.0, shift=0.1
)
_ON_DIGITS: dict[str, Recipe] = {
    "alexnet": replace(_DIGITS, image_size=64, epochs=12, batch_size=64, learning_rate=3e-4),
    "googlenet": replace(_DIGITS, image_size=64, epochs=8),
    "resnet": _DIGITS,
    "resnext": _DIGITS,
    "cifar": replace(_DIGITS, image_size=16, epochs=15),
}
# On photos: the crops, the mirroring and the test crop that the ImageNet results of these papers rest on.
_PHOTOS = replace(_DIGITS, image_size=224, epochs=30, crop_pct=0.875, shift=0.0, min_crop_area=0.08, flip=0.5)
_ON_PHOTOS: dict[str, Recipe] = {
    "alexnet": replace(_PHOTOS, batch_size=64, learning_rate=3e-4),
    "googlenet": _PHOTOS,
    "resnet": _PHOTOS,
    "resnext": _PHOTOS,
    # He et al. 2015, section 4.2: 4 pixels of 32 either way.
    "cifar": replace(_PHOTOS, image_size=32, crop_pct=1.0, shift=0.125, min_crop_area=0.0),
}


def default_recipe(arch: str, dataset: str = "digits") -> Recipe:
    """What a run of `arch` on `dataset` starts from; raises InputError for an unknown network."""
    return (_ON_DIGITS if dataset == "digits" else _ON_PHOTOS)[family_of(arch)]
