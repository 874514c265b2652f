"""Depth: what it does to training and to gradients, without and with shortcuts and batch normalisation."""

from experiments.studies.residual_figures import draw
from experiments.studies.residual_runs import Settings, growth, measure, saved, worse
from experiments.studies.study import Claim, Study

_FIRST_LAYER = "log10 of the first convolution's gradient norm at initialisation, deepest {} network over shallowest"
_BARE = _FIRST_LAYER + ", without batch normalisation"
STUDY = Study(
    name="residual",
    title="Residual learning: depth that does not hurt",
    why="A deeper plain network could copy a shallow one and let its further layers be the identity, so a larger "
    "training loss is a failure of optimisation, not overfitting; a shortcut makes the identity the starting point, "
    "and a block only has to learn the difference. The gradient is a product over the layers: with PyTorch's default "
    "weights each factor is below one, while a shortcut adds a path on which it is one; with larger weights the sum "
    "of both paths is above one. Batch normalisation rescales the outputs of each layer, so gradients do not vanish, "
    "but at the start those of plain networks grow exponentially towards the first layer (Yang et al. 2019); training "
    "removes that growth, but not the degradation.",
    source="He et al. 2015, sections 1, 3.1, 3.3, 4.1 and 4.2, figures 1, 5 and 6; Goyal et al. 2017, section 5.1; "
    "Yang et al. 2019 (A Mean Field Theory of Batch Normalization)",
    claims=(
        Claim(
            "degradation",
            "Plain networks get worse on the training images with depth.",
            "final training loss of the deepest plain network minus that of the second shallowest",
            lambda one: worse(one, "plain"),
            above=0.1,
            scale="longer training and deeper networks (--full)",
        ),
        Claim(
            "no-degradation",
            "Residual networks of the same depths do not.",
            "final training loss of the deepest residual network minus that of the second shallowest",
            lambda one: worse(one, "residual"),
            below=0.1,
            scale="longer training (--full)",
        ),
        Claim(
            "vanishing",
            "Without batch normalisation, the gradients of plain networks vanish with depth.",
            _BARE.format("plain"),
            lambda one: growth(one, "plain", " without norm"),
            below=-2,
            scale="deeper networks",
        ),
        Claim(
            "shortcuts",
            "Shortcuts alone prevent that.",
            _BARE.format("residual"),
            lambda one: growth(one, "residual", " without norm"),
            above=-2,
        ),
        Claim(
            "large-weights",
            "With larger initial weights, the gradients of residual networks without batch normalisation explode.",
            _BARE.format("residual") + " and with He's initial weights",
            lambda one: growth(one, "residual", " without norm, large weights"),
            above=2,
            scale="deeper networks",
        ),
        Claim(
            "norm",
            "Batch normalisation alone prevents that too: gradients do not vanish in the plain networks that degrade.",
            _FIRST_LAYER.format("plain"),
            lambda one: growth(one, "plain"),
            above=-2,
        ),
        Claim(
            "exploding",
            "With batch normalisation, the gradients of plain networks do not explode either.",
            _FIRST_LAYER.format("plain"),
            lambda one: growth(one, "plain"),
            below=2,
            scale="deeper networks",
        ),
        Claim(
            "both",
            "With batch normalisation and shortcuts, gradients neither vanish nor explode.",
            "absolute value of " + _FIRST_LAYER.format("residual"),
            lambda one: abs(growth(one, "residual")),
            below=2,
            scale="deeper networks",
        ),
        Claim(
            "bottleneck",
            "1x1 convolutions reduce and restore the channels of a block, which saves parameters.",
            "parameters of two 3x3 convolutions between 256 channels over those of a bottleneck between as many",
            saved,
            above=4,
        ),
        Claim(
            "thousand",
            "Residual networks of more than a thousand layers can be trained.",
            "training loss of a network of more than a thousand layers in the last epoch over that of guessing",
            lambda one: one["deep"]["losses"][-1] / one["guessing"],
            below=0.75,
            scale="longer training (--full)",
        ),
    ),
    measure=measure,
    draw=draw,
    quick=Settings(
        blocks=(1, 3, 9),
        image_size=8,
        filters=8,
        images=800,
        epochs=8,
        batch_size=32,
        deep_blocks=167,
        deep_filters=8,
        deep_images=160,
        deep_epochs=9,
        deep_learning_rate=0.05,
    ),
    full=Settings(
        blocks=(1, 3, 5, 9),
        image_size=32,
        filters=16,
        images=None,
        epochs=40,
        batch_size=128,
        deep_blocks=200,
        deep_filters=16,
        deep_images=5000,
        deep_epochs=3,
        deep_learning_rate=0.05,
    ),
    seconds=180,
)
