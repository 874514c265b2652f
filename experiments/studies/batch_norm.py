"""Batch normalisation: what it does to a batch, what it is good for, and what it needs."""

from experiments.studies.batch_norm_figures import draw
from experiments.studies.batch_norm_runs import Settings, best, deviation, largest_rate, measure, slope
from experiments.studies.study import Claim, Study

STUDY = Study(
    name="batch_norm",
    title="Batch normalisation: what it does and what it needs",
    why="In training mode each channel is normalised with the mean and variance of the batch, so the scale of the "
    "weights before it does not matter: a step that is too large makes them larger, and later gradients smaller. The "
    "statistics of a batch have errors in proportion to 1 / sqrt(images), and eval mode uses running averages instead; "
    "so the two modes differ, the more the smaller or the less mixed the batches are, though small batches also take "
    "more steps, which can outweigh that. A bias of the convolution is a part of the mean, which is "
    "subtracted.",
    source="Ioffe & Szegedy 2015, sections 3 to 3.3 and 4.2, figure 2; Wu & He 2018 (Group Normalization), figure 1; "
    "Wu & Johnson 2021, sections 3 and 4",
    claims=(
        Claim(
            "normalises",
            "BatchNorm gives each channel of a batch the mean 0 and the variance 1, before its scale and bias.",
            "largest deviation of a mean from 0 or a variance from 1, over all channels of a trained network",
            deviation,
            below=0.01,
        ),
        Claim(
            "faster",
            "Networks with BatchNorm learn faster.",
            "mean training loss over all epochs without BatchNorm, divided by that with it, each at its best rate",
            lambda one: best(one, "without") / best(one, "with"),
            above=1.5,
        ),
        Claim(
            "higher-rates",
            "They still learn at rates at which the same network without BatchNorm does not.",
            "largest rate with a final training loss below half that of guessing, with BatchNorm over without",
            lambda one: largest_rate(one, "with") / (largest_rate(one, "without") or one["rates"][0]),
            above=2.5,
        ),
        Claim(
            "before-activation",
            "BatchNorm belongs between convolution and activation.",
            "mean training loss with BatchNorm after the activation, divided by that before it, each at its best rate",
            lambda one: best(one, "late", "late_rates") / best(one, "with", "late_rates"),
            above=1.1,
            scale="deeper networks and longer training (--full)",
        ),
        Claim(
            "small-batches",
            "Small batches perform very badly.",
            "test accuracy with the largest batches minus that with batches of one image, in points",
            lambda one: 100 * (one["batches"][-1] - one["batches"][0]),
            above=5,
            scale="harder images (--full)",
        ),
        Claim(
            "synchronised",
            "Where each replica has one image, synchronised statistics are better than local ones.",
            "test accuracy with the statistics of whole batches minus that with those of one image each, in points",
            lambda one: 100 * (one["local"][-1] - one["local"][0]),
            above=5,
            scale="harder images (--full)",
        ),
        Claim(
            "statistics",
            "The larger the batch, the closer its mean and variance are to those of the whole training set.",
            "slope of log(error) over log(batch size): largest distance from -1/2, of mean and variance",
            lambda one: max(abs(slope(one, kind) + 0.5) for kind in (0, 1)),
            below=0.1,
        ),
        Claim(
            "bias-outputs",
            "A convolution's bias before BatchNorm has no effect on the outputs.",
            "largest change of the logits by random biases in training mode, in float64, relative to the largest logit",
            lambda one: one["bias"]["outputs"],
            below=1e-10,
        ),
        Claim(
            "bias-gradient",
            "It has no gradient either.",
            "largest ratio of the norms of the gradients of a bias and of its kernel, in float64",
            lambda one: one["bias"]["gradient"],
            below=1e-12,
        ),
        Claim(
            "evaluated-in-training-mode",
            "Evaluating in training mode costs accuracy if each batch has one class.",
            "accuracy in eval mode minus that in training mode with batches of one class, in points",
            lambda one: 100 * (one["eval"] - one["train_one_class"]),
            above=5,
        ),
        Claim(
            "trained-in-eval-mode",
            "Training in eval mode costs accuracy.",
            "test accuracy after training in training mode minus that after training in eval mode, in points",
            lambda one: 100 * (one["test"] - one["trained_in_eval_mode"]),
            above=5,
        ),
    ),
    measure=measure,
    draw=draw,
    quick=Settings(
        stage_sizes=(1, 1, 1),
        num_filters=8,
        image_size=8,
        images=1024,
        epochs=5,
        batch_size=64,
        rates=(0.03, 0.1, 0.3, 1.0, 3.0),
        late_rates=(0.1, 0.3),
        learning_rate=0.2,
        sizes=(1, 2, 4, 16, 64),
        few_images=512,
        few_epochs=3,
    ),
    full=Settings(
        stage_sizes=(3, 3, 3),
        num_filters=16,
        image_size=32,
        images=None,
        epochs=20,
        batch_size=128,
        rates=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        late_rates=(0.1, 0.3),
        learning_rate=0.1,
        sizes=(1, 2, 4, 8, 16, 32, 64, 128),
        few_images=10_000,
        few_epochs=4,
    ),
    seconds=128,
)
