"""What a training recipe consists of, and what each of its settings may be."""

from dataclasses import dataclass, replace
from itertools import pairwise

import optax

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Channels
from jaxnets.errors import InputError
from jaxnets.training.augmentations import AugmentationSettings, augments
from jaxnets.training.losses import LOSSES
from jaxnets.training.optimizers import OPTIMIZERS, make_optimizer
from jaxnets.training.schedules import SCHEDULES, Schedule, make_schedule
from jaxnets.training.settings import check_settings, setting, unused_settings

BATCH_NORMS = ("local", "synchronised", "frozen")
_MOMENTUM = ("optimizer", ("momentum", "nesterov", "adam", "adamw", "lars", "lamb", "muon"))
# lars and lamb have a place of their own for it.
_DECOUPLING = ("optimizer", ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "muon"))
_DECAYING = ("schedule", ("step", "multi_step", "exponential"))
_ENDING = ("schedule", ("linear", "cosine", "polynomial"))


@dataclass(frozen=True)
class Recipe(AugmentationSettings):
    """The choices of a training run. Anything that is counted in epochs need not be whole."""

    image_size: int = setting("pixels a side of the images that the network is tested on", least=1)
    epochs: int = setting("passes through the training images", least=1)
    batch_size: int = setting("images a step, over all devices", least=1)
    optimizer: str = setting("how gradients become updates", of=OPTIMIZERS)
    learning_rate: float = setting("peak of the learning rate", least=1e-12)
    weight_decay: float = setting("weight decay of the kernels")

    momentum: float = setting("momentum, or the first beta of adam and its kin", 0.9, most=0.99999, only_with=_MOMENTUM)
    decoupled_weight_decay: bool = setting(
        "decay weights beside the update, not through the gradient", False, only_with=_DECOUPLING
    )
    decay_norms_and_biases: bool = setting("decay these too, not the kernels alone", False)
    clip_norm: float = setting("largest global norm of the gradients; 0: any", 0.0)
    accumulation: int = setting("parts that a step's batch is computed in, to save memory", 1, least=1)
    loss: str = setting("what is minimised", "cross_entropy", of=LOSSES)
    label_smoothing: float = setting("share of the targets that is spread over all classes", 0.1, most=1)
    target_threshold: float = setting(
        "binary_cross_entropy counts targets above it as 1, the others as 0; 0: takes them as they are",
        0.0,
        most=1,
        only_with=("loss", ("binary_cross_entropy",)),
    )
    aux_weight: float = setting("weight of each auxiliary head's loss", 0.3)

    schedule: str = setting("how the learning rate goes on after the warm-up", "cosine", of=SCHEDULES)
    warmup_epochs: float = setting("epochs of linear warm-up, at most a fifth of all; one_cycle: of its rise", 1.0)
    decay_epochs: tuple[float, ...] = setting(
        "epochs at which multi_step decays, or the one period of step and exponential", (), only_with=_DECAYING
    )
    decay_factor: float = setting(
        "what step, multi_step and exponential multiply the learning rate by", 0.1, most=1, only_with=_DECAYING
    )
    end_share: float = setting(
        "share of the peak at which linear, cosine and polynomial end", 0.0, most=1, only_with=_ENDING
    )
    power: float = setting("of polynomial", 1.0, only_with=("schedule", ("polynomial",)))

    train_image_sizes: tuple[int, ...] = setting(
        "pixels a side of the training images, each for as many epochs; none: image_size", (), least=1
    )
    crop_pct: float = setting("share of the short side that evaluation crops at the centre", 1.0, least=0.1, most=1)
    repeats: int = setting("times that an image comes in a row, each time augmented otherwise", 1, least=1)

    head_epochs: int = setting("epochs in which the head alone is trained, before all is", 0)
    layer_decay: float = setting(
        "what the learning rate is multiplied by for each block further from the head", 1.0, least=1e-6, most=1
    )

    dropout_rate: float | None = setting("of the network's dropout; none: the network's own", None, most=0.999)
    stochastic_depth_rate: float = setting("probability of skipping the last block, falling to 0", 0.0, most=0.999)
    zero_init_residual: bool = setting("let each residual branch start as zero", False)
    batch_norm: str = setting("statistics of a replica, of all replicas, or those of before", "local", of=BATCH_NORMS)
    precise_batch_norm_images: int = setting(
        "training images over which the running statistics are found anew before each test; 0: none", 0
    )
    ema_decay: float = setting(
        "test a moving average of weights and statistics that keeps this share a step", 0.0, most=0.999999
    )
    remat: bool = setting("compute activations again in the backward pass, to save memory", False)
    patience_epochs: int = setting("stop after so many epochs without a better test accuracy; 0: never", 0)

    def __post_init__(self) -> None:
        check_settings(self)
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
        """Warnings about settings without effect, and about choices that are probably mistakes."""
        warnings = unused_settings(self)
        if self.schedule in ("step", "multi_step") and self.decay_epochs[0] >= self.epochs:
            warnings.append(
                f"warning: the learning rate never decays: decay_epochs={self.decay_epochs} is beyond "
                f"epochs={self.epochs}; give others by --decay-epochs"
            )
        if max(self.train_image_sizes, default=0) > self.image_size:
            warnings.append(
                f"warning: training images have train_image_sizes={self.train_image_sizes}, more than those of the "
                f"test, image_size={self.image_size}; give others by --train-image-sizes"
            )
        return warnings

    @property
    def augments(self) -> bool:
        """Whether an image may look different each time that the network trains on it."""
        return augments(self) or len(set(self.train_image_sizes)) > 1

    def preprocessing(self, mean: Channels, std: Channels, interpolation: str = "bilinear") -> Preprocessing:
        """The preprocessing of an image for the test. Training images are the same at `train_image_size`."""
        return Preprocessing(self.image_size, round(self.image_size / self.crop_pct), mean, std, interpolation)

    def with_sizes_of(self, preprocessing: Preprocessing) -> "Recipe":
        """The recipe with the image size and the crop of another preprocessing, such as that of weights."""
        crop_pct = preprocessing.crop_size / preprocessing.resize_size
        return replace(self, image_size=preprocessing.crop_size, crop_pct=crop_pct)

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
