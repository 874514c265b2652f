"""Recipes by name, each after a paper or a reference implementation, and the defaults of a run without a name."""

from dataclasses import replace

from jaxnets.data.sources import Dataset
from jaxnets.errors import InputError
from jaxnets.models.registry import family_of
from jaxnets.training.recipe import Recipe

# Krizhevsky et al. 2012, section 5. The paper lowers the rate by hand, three times in about 90 epochs, when the
# validation error stops falling. Crops of 224 in 256 pixels are 0.77 of the area. The paper changes colours along
# principal components; here brightness, contrast and saturation change. Biases do not decay, as in cuda-convnet.
ALEXNET_2012 = Recipe(
    image_size=224,
    epochs=90,
    batch_size=128,
    optimizer="momentum",
    learning_rate=0.01,
    weight_decay=5e-4,
    label_smoothing=0.0,
    schedule="multi_step",
    warmup_epochs=0.0,
    decay_epochs=(30.0, 60.0, 80.0),
    crop_pct=0.875,
    min_crop_area=0.77,
    flip=0.5,
    color_jitter=0.1,
)

# Szegedy et al. 2014, section 6: momentum 0.9, 4 % less every 8 epochs, crops of 8 % to 100 %, photometric distortions,
# a Polyak average for the test. The paper gives no batch size, rate and length: these and the weight decay are those of
# the BVLC model, which takes 10,000,000 steps. The decay of the average is our choice.
GOOGLENET_2014 = Recipe(
    image_size=224,
    epochs=250,
    batch_size=32,
    optimizer="momentum",
    learning_rate=0.01,
    weight_decay=2e-4,
    label_smoothing=0.0,
    schedule="step",
    warmup_epochs=0.0,
    decay_epochs=(8.0,),
    decay_factor=0.96,
    crop_pct=0.875,
    min_crop_area=0.08,
    flip=0.5,
    color_jitter=0.4,
    ema_decay=0.9999,
)

# He et al. 2015, section 3.4: 600,000 steps of 256 are 120 epochs; a tenth when the error plateaus. Crops of 224 in
# images scaled to 256 to 480 pixels are 16 % to 57 % of a 4:3 photo, here 16 % and more. The paper changes colours
# along principal components; here brightness, contrast and saturation change.
RESNET_2015 = Recipe(
    image_size=224,
    epochs=120,
    batch_size=256,
    optimizer="momentum",
    learning_rate=0.1,
    weight_decay=1e-4,
    decay_norms_and_biases=True,
    label_smoothing=0.0,
    schedule="multi_step",
    warmup_epochs=0.0,
    decay_epochs=(30.0, 60.0, 90.0),
    crop_pct=0.875,
    min_crop_area=0.16,
    flip=0.5,
    color_jitter=0.1,
)

# He et al. 2015, section 4.2: 64,000 steps of 128 are 164 epochs of CIFAR-10; a tenth after 32,000 and 48,000.
# The paper starts 110 layers with some 400 steps at a rate of 0.01; use --warmup-epochs 1 instead.
RESNET_CIFAR = Recipe(
    image_size=32,
    epochs=164,
    batch_size=128,
    optimizer="momentum",
    learning_rate=0.1,
    weight_decay=1e-4,
    decay_norms_and_biases=True,
    label_smoothing=0.0,
    schedule="multi_step",
    warmup_epochs=0.0,
    decay_epochs=(82.0, 123.0),
    shift=0.125,
    flip=0.5,
)

# Xie et al. 2017, section 4, after Gross & Wilber 2016 (fb.resnet.torch): crops of 8 % to 100 %, colours of 0.4
# (but not its lighting noise). The length is torchvision's.
RESNEXT_2017 = replace(RESNET_2015, epochs=100, decay_epochs=(30.0, 60.0, 90.0), min_crop_area=0.08, color_jitter=0.4)

# The defaults of torchvision's references/classification, which trained the V1 weights; alexnet with a rate of 0.01,
# resnext for 100 epochs. The weights of googlenet were ported from TensorFlow.
TORCHVISION_V1 = Recipe(
    image_size=224,
    epochs=90,
    batch_size=256,
    optimizer="momentum",
    learning_rate=0.1,
    weight_decay=1e-4,
    decay_norms_and_biases=True,
    label_smoothing=0.0,
    schedule="step",
    warmup_epochs=0.0,
    decay_epochs=(30.0,),
    crop_pct=0.875,
    min_crop_area=0.08,
    flip=0.5,
)

# Vryniotis 2021, "How to train state-of-the-art models using TorchVision's latest primitives": the V2 weights. The
# decay of the average, 0.99998 every 32 steps scaled by batch size and epochs, is 0.99997 a step. Here the copies of a
# repeated image are on one device, and the bias of the last layer does not decay; there it is otherwise.
TORCHVISION_V2 = Recipe(
    image_size=224,
    epochs=600,
    batch_size=1024,
    optimizer="momentum",
    learning_rate=0.5,
    weight_decay=2e-5,
    label_smoothing=0.1,
    schedule="cosine",
    warmup_epochs=5.0,
    train_image_sizes=(176,),
    crop_pct=224 / 232,
    min_crop_area=0.08,
    flip=0.5,
    trivial_augment=True,
    random_erasing=0.1,
    mixup_alpha=0.2,
    cutmix_alpha=1.0,
    repeats=4,
    ema_decay=0.99997,
)

# Wightman et al. 2021, "ResNet strikes back", table 2, with the clipping of timm's LAMB, and TrivialAugment in place of
# RandAugment. With the threshold, as in timm, label smoothing affects only mixed labels.
TIMM_A1 = Recipe(
    image_size=224,
    epochs=600,
    batch_size=2048,
    optimizer="lamb",
    learning_rate=5e-3,
    weight_decay=0.01,
    clip_norm=1.0,
    loss="binary_cross_entropy",
    label_smoothing=0.1,
    target_threshold=0.2,
    schedule="cosine",
    warmup_epochs=5.0,
    crop_pct=0.95,
    min_crop_area=0.08,
    flip=0.5,
    trivial_augment=True,
    mixup_alpha=0.2,
    cutmix_alpha=1.0,
    repeats=3,
    stochastic_depth_rate=0.05,
    zero_init_residual=True,
)
TIMM_A2 = replace(TIMM_A1, epochs=300, weight_decay=0.02, label_smoothing=0.0, mixup_alpha=0.1)
TIMM_A3 = replace(
    TIMM_A2, epochs=100, learning_rate=8e-3, train_image_sizes=(160,), repeats=1, stochastic_depth_rate=0.0
)

# For pretrained weights and a few thousand photos.
FINETUNE = Recipe(
    image_size=224,
    epochs=20,
    batch_size=64,
    optimizer="momentum",
    learning_rate=0.01,
    weight_decay=1e-4,
    crop_pct=0.875,
    min_crop_area=0.25,
    flip=0.5,
)

# For a new head on frozen features. There is no augmentation, so that the features are computed once.
LINEAR_PROBE = Recipe(
    image_size=224,
    epochs=50,
    batch_size=64,
    optimizer="adam",
    learning_rate=1e-3,
    weight_decay=0.0,
    label_smoothing=0.0,
    crop_pct=0.875,
)

# Our own, similar to FFCV's 16 epochs (Leclerc et al. 2023): growing images, a rate that rises and falls linearly,
# large batches.
FAST = Recipe(
    image_size=224,
    epochs=16,
    batch_size=512,
    optimizer="nesterov",
    learning_rate=1.0,
    weight_decay=5e-5,
    schedule="linear",
    warmup_epochs=2.0,
    train_image_sizes=(128, 144, 160, 176),
    crop_pct=0.875,
    min_crop_area=0.25,
    flip=0.5,
)

RECIPES: dict[str, Recipe] = {
    "alexnet_2012": ALEXNET_2012,
    "googlenet_2014": GOOGLENET_2014,
    "resnet_2015": RESNET_2015,
    "resnet_cifar": RESNET_CIFAR,
    "resnext_2017": RESNEXT_2017,
    "torchvision_v1": TORCHVISION_V1,
    "torchvision_v2": TORCHVISION_V2,
    "timm_a1": TIMM_A1,
    "timm_a2": TIMM_A2,
    "timm_a3": TIMM_A3,
    "fast": FAST,
    "finetune": FINETUNE,
    "linear_probe": LINEAR_PROBE,
}

# Fast and accurate on the embedded data set on two CPU cores. A flipped digit is another digit, or none.
_DIGITS = Recipe(
    image_size=48, epochs=10, batch_size=32, optimizer="adam", learning_rate=1e-3, weight_decay=0.0, shift=0.1
)
_ON_DIGITS: dict[str, Recipe] = {
    "alexnet": replace(_DIGITS, image_size=64, epochs=12, batch_size=64, learning_rate=3e-4),
    "googlenet": replace(_DIGITS, image_size=32, epochs=8),
    "resnet": _DIGITS,
    "resnext": _DIGITS,
    "cifar": replace(_DIGITS, image_size=16, epochs=15),
}
_FAST_ON_DIGITS = replace(_DIGITS, image_size=32, epochs=5)
# On photos: the crops, the flips and the test crop of the ImageNet results in these papers.
_PHOTOS = replace(_DIGITS, image_size=224, epochs=30, crop_pct=0.875, shift=0.0, min_crop_area=0.08, flip=0.5)
_ON_PHOTOS: dict[str, Recipe] = {
    "alexnet": replace(_PHOTOS, batch_size=64, learning_rate=3e-4),
    "googlenet": _PHOTOS,
    "resnet": _PHOTOS,
    "resnext": _PHOTOS,
    # He et al. 2015, section 4.2: 4 of 32 pixels in both directions.
    "cifar": replace(_PHOTOS, image_size=32, crop_pct=1.0, shift=0.125, min_crop_area=0.0),
}


def recipe_for(arch: str, dataset: str | Dataset = "digits", name: str | None = None) -> Recipe:
    """The recipe `name`, or the default of the network's family, for a data set or its name.

    On digits a recipe keeps its optimisation and regularisation, and takes the image sizes and augmentations of the
    default: digits are 8 pixels wide and must not be flipped. On digits "fast" is another recipe: 5 epochs at
    no more than 32 pixels. Raises InputError for an unknown network or recipe.
    """
    dataset = dataset.name if isinstance(dataset, Dataset) else dataset
    family = family_of(arch)
    default = (_ON_DIGITS if dataset == "digits" else _ON_PHOTOS)[family]
    if name is None:
        return default
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}")
    if dataset != "digits":
        return RECIPES[name]
    if name == "fast":
        return replace(_FAST_ON_DIGITS, image_size=min(_FAST_ON_DIGITS.image_size, default.image_size))
    return replace(
        RECIPES[name],
        image_size=default.image_size,
        train_image_sizes=(),
        crop_pct=1.0,
        min_crop_area=0.0,
        shift=default.shift if RECIPES[name].augments else 0.0,
        flip=0.0,
    )
