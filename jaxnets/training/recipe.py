"""Training recipes: their settings and the values that these accept."""

from dataclasses import dataclass, replace
from itertools import pairwise

import optax

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Channels
from jaxnets.errors import InputError
from jaxnets.training.augmentations import AugmentationSettings, augments
from jaxnets.training.class_weights import BALANCED
from jaxnets.training.losses import LOSSES
from jaxnets.training.optimizers import OPTIMIZERS, make_optimizer
from jaxnets.training.schedules import SCHEDULES, Schedule, make_schedule
from jaxnets.training.settings import check_settings, setting, unused_settings

SAMPLERS = ("shuffled", "balanced")
BATCH_NORMS = ("local", "synchronised", "frozen")
# A batch of larger images is in no device's memory.
_LARGEST_SIDE = 4096
_MOMENTUM = ("optimizer", ("momentum", "nesterov", "adam", "adamw", "lars", "lamb", "muon"))
# lars and lamb apply it within the trust ratio.
_DECOUPLING = ("optimizer", ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "muon"))
_DECAYING = ("schedule", ("step", "multi_step", "exponential"))
_ENDING = ("schedule", ("linear", "cosine", "polynomial"))


@dataclass(frozen=True)
class Recipe(AugmentationSettings):
    """The settings of a training run. Numbers of epochs for schedules may be fractions."""

    image_size: int = setting("side of the test images in pixels", least=1, most=_LARGEST_SIDE)
    epochs: int = setting("number of passes over the training images", least=1)
    batch_size: int = setting("images in a step, over all devices", least=1)
    optimizer: str = setting("optimizer", of=OPTIMIZERS)
    learning_rate: float = setting("peak learning rate", least=1e-12)
    weight_decay: float = setting("weight decay of the kernels")

    momentum: float = setting("momentum, or beta 1 of adam, adamw and lamb", 0.9, most=0.99999, only_with=_MOMENTUM)
    decoupled_weight_decay: bool = setting(
        "subtract the weight decay from the weights, not through the gradients", False, only_with=_DECOUPLING
    )
    decay_norms_and_biases: bool = setting("decay norms and biases as well as kernels", False)
    clip_norm: float = setting("largest global norm of the gradients; 0: no clipping", 0.0)
    accumulation: int = setting("number of parts in which a batch is computed, to save memory", 1, least=1)
    loss: str = setting("loss", "cross_entropy", of=LOSSES)
    label_smoothing: float = setting("share of the target that is spread over all classes", 0.1, most=1)
    target_threshold: float = setting(
        "binary_cross_entropy: targets above this are 1, the others 0; 0: targets are not changed",
        0.0,
        most=1,
        only_with=("loss", ("binary_cross_entropy",)),
    )
    aux_weight: float = setting("weight of each auxiliary head's loss", 0.3)

    schedule: str = setting("learning rate schedule after the warm-up", "cosine", of=SCHEDULES)
    warmup_epochs: float = setting("epochs of linear warm-up, at most a fifth of all; one_cycle: of its rise", 1.0)
    decay_epochs: tuple[float, ...] = setting(
        "epochs at which multi_step decays, or the period of step and exponential", (), only_with=_DECAYING
    )
    decay_factor: float = setting(
        "factor of the learning rate for step, multi_step and exponential", 0.1, most=1, only_with=_DECAYING
    )
    end_share: float = setting(
        "final learning rate of linear, cosine and polynomial, as a share of the peak", 0.0, most=1, only_with=_ENDING
    )
    power: float = setting("exponent of polynomial", 1.0, only_with=("schedule", ("polynomial",)))

    train_image_sizes: tuple[int, ...] = setting(
        "sides of the training images in pixels, each for an equal number of epochs; none: image_size",
        (),
        least=1,
        most=_LARGEST_SIDE,
    )
    crop_pct: float = setting("share of the short side that the centre crop of the test keeps", 1.0, least=0.1, most=1)
    repeats: int = setting("repeats of an image in a row, each with other augmentations", 1, least=1)

    sampler: str = setting(
        "images of an epoch: each once, or as many of each class",
        "shuffled",
        of=SAMPLERS,
    )

    class_weights: str | None = setting(
        "weights of classes in the training loss: balanced, or a JSON or CSV file of class and weight",
        None,
    )

    head_epochs: int = setting("epochs at the start in which only the head is trained", 0)
    layer_decay: float = setting(
        "factor of the learning rate for each block further from the head", 1.0, least=1e-6, most=1
    )

    dropout_rate: float | None = setting("dropout rate; none: the default of the network", None, most=0.999)
    stochastic_depth_rate: float = setting("probability of skipping the last block, falling to 0", 0.0, most=0.999)
    zero_init_residual: bool = setting("initialise the last norm of each residual branch with zeros", False)
    batch_norm: str = setting(
        "statistics of each replica, of all replicas, or the running ones",
        "local",
        of=BATCH_NORMS,
    )
    precise_batch_norm_images: int = setting(
        "number of training images to recompute the running statistics over before each test; 0: none", 0
    )
    ema_decay: float = setting(
        "test an exponential moving average of weights and statistics with this decay; 0: none", 0.0, most=0.999999
    )
    remat: bool = setting("recompute activations in the backward pass, to save memory", False)
    patience_epochs: int = setting("stop after this number of epochs without a better val accuracy; 0: never", 0)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.class_weights is not None and self.loss != "cross_entropy":
            raise InputError(f"class_weights need loss=cross_entropy, not {self.loss}; leave out --class-weights")
        if self.class_weights is not None and self.label_smoothing == 1:
            raise InputError("class_weights need label_smoothing below 1; give a smaller --label-smoothing")
        if self.batch_size % self.accumulation:
            raise InputError(f"batch_size={self.batch_size} can't be split into accumulation={self.accumulation} parts")
        if self.batch_norm == "frozen" and self.precise_batch_norm_images:
            raise InputError("batch_norm=frozen keeps the statistics that precise_batch_norm_images replaces")
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
                f"epochs={self.epochs}; give smaller ones with --decay-epochs"
            )
        if max(self.train_image_sizes, default=0) > self.image_size:
            warnings.append(
                f"warning: training images have train_image_sizes={self.train_image_sizes}, larger than the test "
                f"images, image_size={self.image_size}; give smaller ones with --train-image-sizes"
            )
        if self.sampler == "balanced" and self.class_weights == BALANCED:
            warnings.append(
                "warning: the sampler and the class weights are both balanced, which corrects the sizes of the classes "
                "twice; leave out --sampler or --class-weights"
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
        """The learning rates of a run of `steps` steps on `train_images` images."""
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
        """The optimiser, with the learning rates of a schedule."""
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
        """The side [pixels] of the training images in an epoch (from 0)."""
        sizes = self.train_image_sizes or (self.image_size,)
        return sizes[epoch * len(sizes) // self.epochs]
