"""How a network is trained: the defaults of each family, and what a command line may change of them."""

from dataclasses import dataclass, fields, replace

from jaxnets.errors import InputError
from jaxnets.models.registry import family_of
from jaxnets.training.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class Recipe:
    """The choices of a training run. `learning_rate` is the peak of a linear warm-up and a cosine decay to zero.

    `shift` is the largest random shift of a training image, as a share of its side; `aux_weight` counts each
    auxiliary head's loss.
    """

    image_size: int
    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.1
    shift: float = 0.0
    aux_weight: float = 0.3

    def __post_init__(self) -> None:
        for name, smallest in (("image_size", 1), ("epochs", 1), ("batch_size", 1)):
            if getattr(self, name) < smallest:
                raise InputError(f"{name}={getattr(self, name)}; expected a whole number of at least {smallest}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not 0 <= value < float("inf"):
                raise InputError(f"{field.name}={value}; expected a finite number of at least 0")
        if self.learning_rate == 0:
            raise InputError("learning_rate=0 trains nothing; expected a number above 0")
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"unknown optimizer {self.optimizer!r}; expected one of {', '.join(OPTIMIZERS)}")


# Quick and good on the embedded data set on two CPU cores.
_RESNET = Recipe(
    image_size=48, epochs=10, batch_size=32, optimizer="adam", learning_rate=1e-3, weight_decay=0.0, shift=0.1
)
_DEFAULTS: dict[str, Recipe] = {
    "alexnet": replace(_RESNET, image_size=64, epochs=12, batch_size=64, learning_rate=3e-4),
    "googlenet": replace(_RESNET, image_size=64, epochs=8),
    "resnet": _RESNET,
    "resnext": _RESNET,
    "cifar": replace(_RESNET, image_size=16, epochs=15),
}


def default_recipe(arch: str) -> Recipe:
    """The recipe that `experiments.train --arch ARCH` starts from; InputError for an unknown network."""
    return _DEFAULTS[family_of(arch)]
