"""Transfer: a network trained on some classes learns others sooner and from fewer images, if it gets them normalised as
it is used to."""

from experiments.studies.study import Claim, Study
from experiments.studies.transfer_figures import draw
from experiments.studies.transfer_runs import OWN, RANGE, Settings, early_gain, gain, lost, measure

STUDY = Study(
    name="transfer",
    title="Transfer: sooner, and from fewer images",
    why="The first layers of a trained network already find edges and strokes, which other classes consist of too, so "
    "less has to be learnt. A frozen trunk expects the numbers that it was trained with, and its statistics don't "
    "follow others; where all weights train, BatchNorm measures the new numbers and takes scale and shift out. With "
    "plenty of images the start matters little, and features that can't change become the limit.",
    source="Yosinski et al. 2014 (arXiv 1411.1792), section 4; He, Girshick, Dollar 2019 (arXiv 1811.08883), section 5",
    claims=(
        Claim(
            "sooner",
            "A pretrained network is ahead early in training.",
            "test accuracy of `full` minus that from scratch, mean over the first third of the steps, in points",
            lambda one: 100 * early_gain(one),
            above=10,
        ),
        Claim(
            "little-data",
            "With few images a pretrained network gets better results.",
            "final test accuracy of `full` minus that from scratch, mean over up to five images of each class, in "
            "points",
            lambda one: 100 * gain(one),
            above=3,
        ),
        Claim(
            "preprocessing",
            "A pretrained network needs the range of values that it was trained with.",
            "test accuracy that it loses as it is with values from 0 to 255 instead of 0 to 1, in points",
            lambda one: 100 * (one["as_it_is"][OWN] - one["as_it_is"][RANGE]),
            above=10,
        ),
        Claim(
            "imagenet-normalisation",
            "ImageNet's mean and deviation cost accuracy where a network was trained with others.",
            "test accuracy that it loses as it is with them, in points",
            lambda one: 100 * (one["as_it_is"][OWN] - one["as_it_is"]["ImageNet's"]),
            above=2,
        ),
        Claim(
            "preprocessing-head",
            "A new head does not make up for other preprocessing.",
            "final test accuracy that `head` loses with values from 0 to 255 instead of 0 to 1, in points",
            lambda one: 100 * lost(one, "head"),
            above=10,
        ),
        Claim(
            "preprocessing-full",
            "Training all weights does not make up for it either.",
            "final test accuracy that `full` loses with values from 0 to 255 instead of 0 to 1, in points",
            lambda one: 100 * lost(one, "full"),
            above=3,
        ),
        Claim(
            "plenty",
            "With plenty of images training from scratch catches up.",
            "final test accuracy of `full` minus that from scratch, with plenty of images, in points",
            lambda one: 100 * (one["plenty"]["full"][-1] - one["plenty"]["scratch"][-1]),
            below=3,
        ),
        Claim(
            "frozen",
            "With plenty of images a frozen trunk falls behind training from scratch.",
            "final test accuracy from scratch minus that of `head`, with plenty of images, in points",
            lambda one: 100 * (one["plenty"]["scratch"][-1] - one["plenty"]["head"][-1]),
            above=3,
        ),
    ),
    measure=measure,
    draw=draw,
    quick=Settings(
        blocks=3,
        image_size=8,
        images=(2, 5, 20),
        few=5,
        plenty=120,
        batch_size=50,
        epochs=15,
        plenty_epochs=5,
        trunk_epochs=2,
    ),
    full=Settings(
        blocks=3,
        image_size=32,
        images=(2, 5, 10, 20, 50),
        few=5,
        plenty=1000,
        batch_size=50,
        epochs=20,
        plenty_epochs=10,
        trunk_epochs=10,
    ),
    seconds=108,
)
