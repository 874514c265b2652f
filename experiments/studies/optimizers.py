"""Optimisers: SGD, momentum, Adagrad, RMSProp and Adam, each at the learning rate that suits it."""

from experiments.studies.optimizers_figures import draw
from experiments.studies.optimizers_runs import Settings, better, largest_rise, measure, ratio_of_losses, share_left
from experiments.studies.study import Claim, Study

STUDY = Study(
    name="optimizers",
    title="Optimisers: which way, and how far",
    why="Momentum adds up past gradients, which helps where the loss is steep in one direction and flat in another; "
    "where the noise of small batches limits the rate, SGD at a larger rate is as fast. Adagrad divides each weight's "
    "rate by the root of the sum of its squared gradients, so it can only fall, most of all at the start; RMSProp and "
    "Adam use moving averages, which forget, so their rates rise again as gradients shrink. Whether Adagrad's fall "
    "comes too early depends on the length of the run and on the tuned rate; which optimiser ends best depends on the "
    "network and the data.",
    source="Duchi et al. 2011 (Adagrad), Kingma & Ba 2014 (Adam), algorithm 1, Tieleman & Hinton 2012 (RMSProp), "
    "Sutskever et al. 2013 (momentum), Wilson et al. 2017 (which ends best)",
    claims=(
        Claim(
            "adagrad-falls",
            "Adagrad's rate falls as squared gradients add up.",
            "share of the effective rate after the first epoch that is left at the end",
            lambda one: share_left(one, "adagrad"),
            below=0.9,
        ),
        Claim(
            "adagrad-never-rises",
            "Adagrad's rate never rises.",
            "largest ratio of the effective rate after an epoch to that after the epoch before",
            largest_rise,
            below=1.0001,
        ),
        Claim(
            "adagrad-too-early",
            "Adagrad's rate falls too early: SGD, whose rate does not fall, comes further.",
            "Adagrad's training loss in the last epoch, as a multiple of that of SGD",
            lambda one: ratio_of_losses(one, "adagrad", "sgd"),
            above=2,
            scale="longer runs, of networks that are harder to train (--full)",
        ),
        Claim(
            "rmsprop-bounded",
            "RMSProp keeps more of its rate than Adagrad.",
            "share of RMSProp's effective rate that is left at the end, as a multiple of Adagrad's share",
            lambda one: share_left(one, "rmsprop") / share_left(one, "adagrad"),
            above=2,
        ),
        Claim(
            "adam-bounded",
            "Adam keeps more of its rate than Adagrad.",
            "share of Adam's effective rate that is left at the end, as a multiple of Adagrad's share",
            lambda one: share_left(one, "adam") / share_left(one, "adagrad"),
            above=2,
        ),
        Claim(
            "momentum-batches",
            "Momentum is faster than SGD, with small batches.",
            "steps of SGD to a training loss of 0.1 (at most one more than all) over those with momentum",
            lambda one: one["sgd"]["steps"] / one["momentum"]["steps"],
            above=1.25,
        ),
        Claim(
            "momentum-all-images",
            "Momentum is faster than SGD, with all images in each step.",
            "steps of SGD to a training loss of 0.1 (at most one more than all) over those with momentum",
            lambda one: one["sgd"]["whole_steps"] / one["momentum"]["whole_steps"],
            above=1.25,
        ),
        Claim(
            "sgd-slow",
            "SGD is slower than Adam.",
            "steps of SGD to a training loss of 0.1 (at most one more than all) over those of Adam",
            lambda one: one["sgd"]["steps"] / one["adam"]["steps"],
            above=1.25,
        ),
        Claim(
            "sgd-ends-best",
            "But SGD may end best.",
            "test accuracy of SGD minus that of Adam, in points",
            lambda one: 100 * better(one, "sgd", "adam"),
            above=0.5,
            scale="residual networks and thousands of test images (--full), and a schedule",
        ),
    ),
    measure=measure,
    draw=draw,
    quick=Settings(
        arch="experiments.studies.optimizers_runs:perceptron",
        image_size=8,
        images=500,
        batch_size=50,
        epochs=60,
        whole_images=500,
        whole_steps=200,
    ),
    full=Settings(
        arch="resnet20_cifar",
        image_size=32,
        images=None,
        batch_size=128,
        epochs=60,
        whole_images=2000,
        whole_steps=600,
    ),
    seconds=73,
)
