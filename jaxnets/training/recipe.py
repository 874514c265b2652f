"""What a training recipe consists of, and what each of its settings may be."""

from dataclasses import MISSING, dataclass, field, fields
from itertools import pairwise
from typing import Any

import optax

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Channels
from jaxnets.errors import InputError
from jaxnets.training.losses import LOSSES
from jaxnets.training.optimizers import OPTIMIZERS, make_optimizer
from jaxnets.training.schedules import SCHEDULES, Schedule, make_schedule

BATCH_NORMS = ("local", "synchronised", "frozen")
_INFINITY = float("inf")


def _setting(
    help: str,
    default: Any = MISSING,
    *,
    least: float = 0,
    most: float = _INFINITY,
    of: tuple[str, ...] = (),
    only_with: tuple[str, tuple[str, ...]] | None = None,
) -> Any:
    """A field with what it means, and the numbers from `least` to `most`, or the names, that it may be.

    `only_with` names another field, and the values of it without which this one has no effect.
    """
    metadata = {"help": help, "least": least, "most": most, "of": of, "only_with": only_with}
    return field(default=default, metadata=metadata)


_MOMENTUM = ("optimizer", ("momentum", "nesterov", "adam", "adamw", "lars", "lamb", "muon"))
# lars and lamb have a place of their own for it.
_DECOUPLING = ("optimizer", ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "muon"))
_DECAYING = ("schedule", ("step", "multi_step", "exponential"))
_ENDING = ("schedule", ("linear", "cosine", "polynomial"))


@dataclass(frozen=True)
class Recipe:
    """The choices of a training run. Anything that is counted in epochs need not be whole."""

    image_size: int = _setting("pixels a side of the images that the network is tested on", least=1)
    epochs: int = _setting("passes through the training images", least=1)
    batch_size: int = _setting("images a step, over all devices", least=1)
    optimizer: str = _setting("how gradients become updates", of=OPTIMIZERS)
    learning_rate: float = _setting("peak of the learning rate", least=1e-12)
    weight_decay: float = _setting("weight decay of the kernels")

    momentum: float = _setting(
        "momentum, or the first beta of adam and its kin", 0.9, most=0.99999, only_with=_MOMENTUM
    )
    decoupled_weight_decay: bool = _setting(
        "decay weights beside the update, not through the gradient", False, only_with=_DECOUPLING
    )
    decay_norms_and_biases: bool = _setting("decay these too, not the kernels alone", False)
    clip_norm: float = _setting("largest global norm of the gradients; 0: any", 0.0)
    accumulation: int = _setting("parts that a step's batch is computed in, to save memory", 1, least=1)
    loss: str = _setting("what is minimised", "cross_entropy", of=LOSSES)
    label_smoothing: float = _setting("share of the targets that is spread over all classes", 0.1, most=1)
    target_threshold: float = _setting(
        "binary_cross_entropy counts targets above it as 1, the others as 0; 0: takes them as they are",
        0.0,
        most=1,
        only_with=("loss", ("binary_cross_entropy",)),
    )
    aux_weight: float = _setting("weight of each auxiliary head's loss", 0.3)

    schedule: str = _setting("how the learning rate goes on after the warm-up", "cosine", of=SCHEDULES)
    warmup_epochs: float = _setting("epochs of linear warm-up, at most a fifth of all; one_cycle: of its rise", 1.0)
    decay_epochs: tuple[float, ...] = _setting(
        "epochs at which multi_step decays, or the one period of step and exponential", (), only_with=_DECAYING
    )
    decay_factor: float = _setting(
        "what step, multi_step and exponential multiply the learning rate by", 0.1, most=1, only_with=_DECAYING
    )
    end_share: float = _setting(
        "share of the peak at which linear, cosine and polynomial end", 0.0, most=1, only_with=_ENDING
    )
    power: float = _setting("of polynomial", 1.0, only_with=("schedule", ("polynomial",)))

    train_image_sizes: tuple[int, ...] = _setting(
        "pixels a side of the training images, each for as many epochs; none: image_size", (), least=1
    )
    crop_pct: float = _setting("share of the short side that evaluation crops at the centre", 1.0, least=0.1, most=1)
    min_crop_area: float = _setting(
        "smallest share of an image that a random crop keeps; 0: no random crops", 0.0, most=1
    )
    shift: float = _setting("largest random shift, as a share of the side", 0.0, most=1)
    flip: float = _setting("probability of mirroring an image left to right", 0.0, most=1)
    color_jitter: float = _setting("how far brightness, contrast and saturation may change, such as 0.4", 0.0)
    trivial_augment: bool = _setting("one random operation of random strength on each image", False)
    random_erasing: float = _setting("probability of erasing a rectangle", 0.0, most=1)
    mixup_alpha: float = _setting("mix images by mixup, in shares from Beta(alpha, alpha)", 0.0)
    cutmix_alpha: float = _setting("mix images by CutMix, in shares from Beta(alpha, alpha)", 0.0)
    repeats: int = _setting("times that an image comes in a row, each time augmented otherwise", 1, least=1)

    head_epochs: int = _setting("epochs in which the head alone is trained, before all is", 0)
    layer_decay: float = _setting(
        "what the learning rate is multiplied by for each block further from the head", 1.0, least=1e-6, most=1
    )

    dropout_rate: float | None = _setting("of the network's dropout; none: the network's own", None, most=0.999)
    stochastic_depth_rate: float = _setting("probability of skipping the last block, falling to 0", 0.0, most=0.999)
    zero_init_residual: bool = _setting("let each residual branch start as zero", False)
    batch_norm: str = _setting("statistics of a replica, of all replicas, or those of before", "local", of=BATCH_NORMS)
    precise_batch_norm_images: int = _setting(
        "training images over which the running statistics are found anew before each test; 0: none", 0
    )
    ema_decay: float = _setting(
        "test a moving average of weights and statistics that keeps this share a step", 0.0, most=0.999999
    )
    remat: bool = _setting("compute activations again in the backward pass, to save memory", False)
    patience_epochs: int = _setting("stop after so many epochs without a better test accuracy; 0: never", 0)

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, rule = getattr(self, setting.name), setting.metadata
            if rule["of"] and value not in rule["of"]:
                raise InputError(f"unknown {setting.name} {value!r}; expected one of {', '.join(rule['of'])}")
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and not (
                    rule["least"] <= number <= rule["most"] and number < _INFINITY
                ):
                    limit = "" if rule["most"] == _INFINITY else f" and at most {rule['most']}"
                    raise InputError(f"{setting.name}={number}; expected a number of at least {rule['least']}{limit}")
        if self.batch_size % self.accumulation:
            raise InputError(f"batch_size={self.batch_size} can't be split into accumulation={self.accumulation} parts")
        if self.batch_norm == "frozen" and self.precise_batch_norm_images:
            raise InputError("batch_norm=frozen keeps the statistics that precise_batch_norm_images would replace")
        if len(self.train_image_sizes) > self.epochs:
            raise InputError(f"{len(self.train_image_sizes)} train_image_sizes, but epochs={self.epochs}; give fewer")

        increasing = all(a < b for a, b in pairwise((0.0, *self.decay_epochs)))
        if self.schedule in ("step", "exponential") and (len(self.decay_epochs) != 1 or not increasing):
            raise InputError(f"decay_epochs={self.decay_epochs}; schedule={self.schedule} needs one period, such as 30")
        if self.schedule == "multi_step" and not (self.decay_epochs and increasing):
            raise InputError(
                f"decay_epochs={self.decay_epochs}; schedule=multi_step needs increasing ones, such as 30 60 80"
            )

    def warnings(self) -> list[str]:
        """What is allowed, but hardly meant: settings without effect, and a learning rate that never decays."""
        found = []
        for setting in fields(self):
            value, only_with = getattr(self, setting.name), setting.metadata["only_with"]
            if only_with and value != setting.default and getattr(self, only_with[0]) not in only_with[1]:
                other, values = only_with
                found.append(
                    f"warning: {setting.name}={value} has no effect with {other}={getattr(self, other)}, only with "
                    + ", ".join(values)
                )
        if self.schedule in ("step", "multi_step") and self.decay_epochs[0] >= self.epochs:
            found.append(
                f"warning: the learning rate never decays: decay_epochs={self.decay_epochs} is beyond "
                f"epochs={self.epochs}; give others by --decay-epochs"
            )
        if max(self.train_image_sizes, default=0) > self.image_size:
            found.append(
                f"warning: training images have train_image_sizes={self.train_image_sizes}, more than those of the "
                f"test, image_size={self.image_size}; give others by --train-image-sizes"
            )
        return found

    @property
    def augments(self) -> bool:
        """Whether an image may look different each time that it is trained on."""
        chances = (self.min_crop_area, self.shift, self.flip, self.color_jitter, self.random_erasing)
        return (
            any(chances)
            or self.trivial_augment
            or self.mixup_alpha > 0
            or self.cutmix_alpha > 0
            or len(set(self.train_image_sizes)) > 1
        )

    def preprocessing(self, mean: Channels, std: Channels) -> Preprocessing:
        """What evaluation does with an image before the network sees it."""
        return Preprocessing(self.image_size, round(self.image_size / self.crop_pct), mean, std)

    def schedule_of(self, steps: int, train_images: int) -> Schedule:
        """The learning rate of each of so many steps through so many images."""
        steps_an_epoch = train_images / self.batch_size
        return make_schedule(
            self.schedule,
            peak=self.learning_rate,
            steps=steps,
            warmup_steps=round(self.warmup_epochs * steps_an_epoch),
            decay_steps=tuple(max(1, round(epochs * steps_an_epoch)) for epochs in self.decay_epochs),
            decay_factor=self.decay_factor,
            end_share=self.end_share,
            power=self.power,
        )

    def make_optimizer(self, schedule: Schedule) -> optax.GradientTransformation:
        """What turns gradients into updates."""
        return make_optimizer(
            self.optimizer,
            schedule,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            decoupled_weight_decay=self.decoupled_weight_decay,
            decay_norms_and_biases=self.decay_norms_and_biases,
            clip_norm=self.clip_norm,
        )

    def train_image_size(self, epoch: int) -> int:
        """Pixels a side of the training images of an epoch (from 0)."""
        sizes = self.train_image_sizes or (self.image_size,)
        return sizes[epoch * len(sizes) // self.epochs]
