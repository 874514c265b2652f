"""GoogLeNet: branches of several scales, 1x1 reductions, auxiliary classifiers, and average pooling at the end."""

from functools import partial

from experiments.studies.googlenet_figures import draw
from experiments.studies.googlenet_runs import Settings, first_half, gain, measure, ratio, smallest_drop
from experiments.studies.study import Claim, Study

STUDY = Study(
    name="googlenet",
    title="GoogLeNet: wide blocks at a low price",
    why="Each block looks at its input through windows of several sizes and lets the next block choose, which would "
    "be expensive if 1x1 convolutions did not first make the input of the large windows narrower. Where each channel "
    "of the last map is averaged, the classifier has one weight for a channel and class instead of one for each "
    "pixel. Auxiliary classifiers bring gradients to the early layers, where those of the network of 2014 are small "
    "with initial weights of 0.01; batch normalisation makes that needless, and Szegedy et al. 2015 found no faster "
    "start and called them regularisers.",
    source="Szegedy et al. 2014, sections 3 to 5, figures 2 and 3, table 1; Szegedy et al. 2015 (arXiv 1512.00567), "
    "section 4",
    claims=(
        Claim(
            "scales",
            "Inception merges features of several scales: a trained network needs each kind of branch.",
            "smallest drop in test accuracy when all branches of one kind are switched off, in points",
            lambda one: 100 * smallest_drop(one),
            above=5,
        ),
        Claim(
            "reductions",
            "1x1 convolutions before the 3x3 and 5x5 ones save parameters and multiply-adds.",
            "the smaller of two ratios, without reductions over with: parameters, multiply-adds",
            lambda one: min(ratio(one, "unreduced", place) for place in range(2)),
            above=2,
        ),
        Claim(
            "auxiliary-gradients",
            "Auxiliary classifiers enlarge the gradients of the early layers of the paper's network.",
            "gradient norm of the stages up to 4a with auxiliary classifiers over without, for initial weights of 0.01",
            partial(gain, network="plain"),
            above=1.6,  # the sum of the weights of the losses
        ),
        Claim(
            "auxiliary-normalised",
            "They do so in a network with batch normalisation too.",
            "gradient norm of the stages up to 4a with auxiliary classifiers over without, at initialisation",
            partial(gain, network="normalised"),
            above=1.6,
        ),
        Claim(
            "auxiliary-start",
            "Auxiliary classifiers speed up the start of training.",
            "training accuracy of the main classifier with auxiliary ones minus without, first half of the epochs, in "
            "points",
            lambda one: 100 * (first_half(one, "with") - first_half(one, "without")),
            above=2,
            scale="more seeds, and networks without batch normalisation",
        ),
        Claim(
            "auxiliary-accuracy",
            "Auxiliary classifiers improve the trained network.",
            "test accuracy with auxiliary classifiers minus without, in points",
            lambda one: 100 * (one["with"]["test_accuracy"] - one["without"]["test_accuracy"]),
            above=1,
            scale="training to convergence on ImageNet (the paper's gain is 0.5 points) and more seeds",
        ),
        Claim(
            "average-pooling",
            "Average pooling in place of a dense layer on the last map saves most parameters.",
            "parameters of the network with a classifier on the flattened last map, to those with average pooling",
            lambda one: ratio(one, "flattened", 0),
            above=2,
        ),
    ),
    measure=measure,
    draw=draw,
    quick=Settings(
        image_size=32, images=800, test_images=500, epochs=4, batch_size=32, learning_rate=0.05, map_size=96
    ),
    full=Settings(
        image_size=64,
        images=None,
        test_images=None,
        epochs=30,
        batch_size=128,
        learning_rate=0.01,
        map_size=128,
        trained={},
    ),
    seconds=165,
)
