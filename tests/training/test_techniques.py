"""Each setting of a recipe does what it says, and the test of it fails when it is switched off."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.data import trivial_augment
from jaxnets.data.pipeline import Batch
from jaxnets.data.sources import ArraySource
from jaxnets.training.batch_norm import with_batch_norm
from jaxnets.training.config import Config
from jaxnets.training.feed import TrainingFeed
from jaxnets.training.recipe import Recipe
from tests.tiers import slow_except
from tests.training.tiny import (
    PLAIN,
    PREPROCESSING,
    Tiny,
    compiled_step,
    make_batch,
    make_state,
    make_variables,
    normalised,
    step_of,
)

BATCH = make_batch()
ONE_HOT = np.eye(3)[BATCH.labels]
NEIGHBOURS = np.arange(8) ^ 1


class Probe:
    """Stands in for a network: its logits are its parameters, and its statistics are the images that it was given."""

    num_classes = 3
    dtype = jnp.float32

    def apply(self, variables: Any, inputs: jax.Array, **_: Any) -> tuple[jax.Array, dict[str, Any]]:
        params = variables["params"]
        return params["logits"] + params["bias"], {"batch_stats": {"inputs": inputs}, "aux_logits": params["heads"]}


PROBE = Probe()


class Seen(NamedTuple):
    """What the network saw, and the gradients that came back to it."""

    inputs: np.ndarray
    gradients: dict[str, np.ndarray]


def probe_variables(count: int = 8) -> dict[str, Any]:
    draws = np.random.default_rng(1).normal(size=(3, count, 3)).astype(np.float32)
    heads = {"first": draws[1], "second": draws[2]}
    params = {"logits": draws[0], "bias": np.array([0.5, -0.2, 0.1], np.float32), "heads": heads}
    return {"params": params, "batch_stats": {"inputs": np.zeros((count, 8, 8, 3), np.float32)}}


def look(recipe: Recipe, batch: Batch = BATCH, step: int = 0) -> Seen:
    """One step of the probe; by plain descent at a rate of 1 the gradients can be read off."""
    variables = probe_variables()
    state = make_state(recipe, variables).replace(step=jnp.int32(step))
    after, _ = compiled_step(recipe, PROBE)(state, batch)
    gradients = jax.tree.map(lambda old, new: old - np.asarray(new), variables["params"], after.params)
    return Seen(np.asarray(after.batch_stats["inputs"]), gradients)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def probe_logits() -> np.ndarray:
    params = probe_variables()["params"]
    return params["logits"].astype(float) + params["bias"]


def targets_of(seen: Seen) -> np.ndarray:
    """The gradient of the mean cross entropy is (softmax - targets) / N."""
    return softmax(probe_logits()) - 8 * seen.gradients["logits"]


def close(actual: Any, expected: Any, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


# What is minimised.


def check_label_smoothing(recipe: Recipe) -> None:
    close(targets_of(look(recipe)), 0.7 * ONE_HOT + 0.3 / 3)


def check_binary_cross_entropy(recipe: Recipe) -> None:
    expected = (1 / (1 + np.exp(-probe_logits())) - ONE_HOT) / (8 * 3)
    close(look(recipe).gradients["logits"], expected)


def check_target_threshold(recipe: Recipe) -> None:
    # Smoothing has made the targets 0.4, 0.3 and 0.3.
    check_binary_cross_entropy(recipe)


def check_aux_weight(recipe: Recipe) -> None:
    gradients, params = look(recipe).gradients, probe_variables()["params"]
    for head in ("first", "second"):
        close(gradients["heads"][head], 0.7 * (softmax(params["heads"][head]) - ONE_HOT) / 8)


# What the network sees.


def check_flip(recipe: Recipe) -> None:
    inputs, plain = look(recipe).inputs, normalised(BATCH.images)
    mirrored = [np.abs(image - own[:, ::-1]).max() < 1e-5 for image, own in zip(inputs, plain, strict=True)]
    assert 0 < sum(mirrored) < 8
    for image, own, is_mirrored in zip(inputs, plain, mirrored, strict=True):
        close(image, own[:, ::-1] if is_mirrored else own)


def check_shift(recipe: Recipe) -> None:
    # A quarter of 8 pixels, either way.
    padded = np.pad(BATCH.images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    places = set()
    for image, source in zip(look(recipe).inputs, padded, strict=True):
        windows = {(y, x): normalised(source[y : y + 8, x : x + 8]) for y, x in product(range(5), repeat=2)}
        (place,) = (place for place, window in windows.items() if np.abs(image - window).max() < 1e-5)
        places.add(place)
    assert len(places) > 4


def check_color_jitter(recipe: Recipe) -> None:
    # Where all pixels are p, of the grey g, brightness b, contrast c and saturation s make b * (g + c * s * (p - g)).
    pixel, luma = np.array([60, 30, 45]), np.array([0.2989, 0.587, 0.114])
    inputs = look(recipe, BATCH._replace(images=np.broadcast_to(pixel, (8, 8, 8, 3)).astype(np.uint8))).inputs
    pixels = 255 * (inputs * PREPROCESSING.std + PREPROCESSING.mean)
    close(pixels, np.broadcast_to(pixels[:, :1, :1], pixels.shape), atol=1e-3)
    grey = (pixel * luma).sum()
    brightness = (pixels[:, 0, 0] * luma).sum(-1) / grey
    colour = (pixels[:, 0, 0] / brightness[:, None] - grey) / (pixel - grey)
    close(colour, np.broadcast_to(colour[:, :1], colour.shape), atol=0.01)
    assert 0.5 <= brightness.min() < brightness.max() - 0.4 <= 1.1
    assert 0.25 <= colour.min() < colour.max() - 0.4 <= 1.85


def check_trivial_augment(recipe: Recipe) -> None:
    # Each image is one of all that may become of it.
    operations, bins, negative = cases = np.array(
        list(product(range(len(trivial_augment.OPERATIONS)), range(trivial_augment.BINS), (0, 1)))
    ).T
    become = jax.jit(lambda image: trivial_augment.apply(jnp.tile(image, (cases.shape[1], 1, 1, 1)), *made))
    made = (jnp.asarray(operations), jnp.asarray(bins), jnp.asarray(negative == 1))
    found = set()
    for image, source in zip(look(recipe).inputs, BATCH.images, strict=True):
        same = np.abs(normalised(np.asarray(become(source))) - image).max((1, 2, 3)) < 1e-5
        assert same.any()
        found.add(tuple(np.unique(operations[same])))
    assert len(found) > 3


def check_random_erasing(recipe: Recipe) -> None:
    inputs, plain = look(recipe).inputs, normalised(BATCH.images)
    erased = (inputs == 0).all(-1)
    corners = set()
    for image, own, hole in zip(inputs, plain, erased, strict=True):
        close(image[~hole], own[~hole])
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert 0 < hole.sum() <= 0.45 * 64
        corners.add((rows[0], columns[0]))
    assert len(corners) > 2


def check_mixup(recipe: Recipe) -> None:
    seen, plain = look(recipe), normalised(BATCH.images)
    targets = targets_of(seen)
    share = targets[0, 0]
    assert 0.05 < share < 0.95
    close(targets, share * ONE_HOT + (1 - share) * ONE_HOT[NEIGHBOURS])
    close(seen.inputs, share * plain + (1 - share) * plain[NEIGHBOURS])


def check_cutmix(recipe: Recipe) -> None:
    seen, plain = look(recipe), normalised(BATCH.images)
    own = np.abs(seen.inputs - plain).max(-1) < 1e-5
    close(seen.inputs, np.where(own[..., None], plain, plain[NEIGHBOURS]))
    share = own[0].mean()
    assert (own == own[0]).all()
    assert 0.05 < share < 0.95
    close(targets_of(seen), share * ONE_HOT + (1 - share) * ONE_HOT[NEIGHBOURS])


# How gradients become updates.


def descend(rates: Sequence[float], *, momentum: float = 0.0, decay: Callable[[str], tuple[float, float]]) -> Any:
    """Logits and bias after each step, in float64; `decay` gives that through the gradient, and that beside it."""
    params = {name: probe_variables()["params"][name].astype(float) for name in ("logits", "bias")}
    velocities, path = dict.fromkeys(params, 0.0), []
    for rate in rates:
        logits = (softmax(params["logits"] + params["bias"]) - ONE_HOT) / 8
        for name, gradient in {"logits": logits, "bias": logits.sum(0)}.items():
            within, beside = decay(name)
            velocities[name] = momentum * velocities[name] + gradient + within * params[name]
            params[name] = params[name] - rate * (velocities[name] + beside * params[name])
        path.append(dict(params))
    return path


def check_path(recipe: Recipe, expected: Sequence[dict[str, np.ndarray]]) -> None:
    state, step = make_state(recipe, probe_variables()), compiled_step(recipe, PROBE)
    for params in expected:
        state, _ = step(state, BATCH)
        for name, values in params.items():
            close(state.params[name], values, atol=2e-6)


def path(*rates: float, momentum: float = 0.0, kernels: float = 0.0, others: float = 0.0, beside: bool = False) -> Any:
    def decay(name: str) -> tuple[float, float]:
        share = kernels if name == "logits" else others
        return (0.0, share) if beside else (share, 0.0)

    return lambda recipe: check_path(recipe, descend(rates, momentum=momentum, decay=decay))


def check_clip_norm(recipe: Recipe) -> None:
    whole, clipped = look(PLAIN).gradients, look(recipe).gradients
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(whole)))
    assert norm > 0.2
    jax.tree.map(lambda part, leaf: close(part, leaf * 0.1 / norm, 1e-6), clipped, whole)


def rates(*expected: float) -> Callable[[Recipe], None]:
    """Of the epochs' steps, one each."""

    def check(recipe: Recipe) -> None:
        schedule = recipe.schedule_of(len(expected), recipe.batch_size)
        close([float(schedule(step)) for step in range(len(expected))], expected, 1e-6)

    return check


def check_accumulation(recipe: Recipe) -> None:
    # The running statistics follow four parts of two images.
    variables = make_variables(Tiny())
    after, _ = compiled_step(recipe, Tiny())(make_state(recipe, variables), BATCH)
    mean = np.asarray(variables["batch_stats"]["bn0"]["mean"], float)
    for part in np.split(normalised(BATCH.images), 4):
        mean = 0.9 * mean + 0.1 * part.mean((0, 1, 2))
    close(after.batch_stats["bn0"]["mean"], mean, 1e-6)


def check_remat(recipe: Recipe) -> None:
    assert kept_bytes(recipe) < 0.6 * kept_bytes(PLAIN)


@cache
def kept_bytes(recipe: Recipe) -> int:
    """What the step's backward pass holds of the forward pass."""
    kept, original = [], jax.value_and_grad

    def spy(function: Any, **options: Any) -> Any:
        def call(*arguments: Any) -> Any:
            held = jax.eval_shape(lambda *args: jax.vjp(function, *args, has_aux=True)[1], *arguments)
            kept.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(held)))
            return original(function, **options)(*arguments)

        return call

    model = small_network(recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "value_and_grad", spy)
        jax.eval_shape(step_of(recipe, model), make_state(recipe, make_variables(model)), BATCH)
    return kept[0]


# What the network is.


@cache
def small_network(recipe: Recipe) -> Any:
    return Config("resnet20_cifar", recipe).create_model(3).clone(stage_sizes=(1,))


def gradients_of_one_image(recipe: Recipe, steps: int) -> list[Any]:
    """By the chances of several steps."""
    model = small_network(recipe)
    variables, batch = make_variables(model), make_batch(1)
    state = make_state(recipe, variables)
    afters = [compiled_step(recipe, model)(state.replace(step=jnp.int32(step)), batch)[0] for step in range(steps)]
    return [jax.tree.map(lambda old, new: np.asarray(old - new), variables["params"], after.params) for after in afters]


def check_dropout_rate(recipe: Recipe) -> None:
    kernels = np.array([gradients["fc"]["kernel"] for gradients in gradients_of_one_image(recipe, 12)])
    dropped = ~kernels.any(-1)
    assert abs(dropped.mean() - 0.4) < 5 * (0.24 / dropped.size) ** 0.5
    assert len({row.tobytes() for row in dropped}) == 12


def check_stochastic_depth_rate(recipe: Recipe) -> None:
    kernels = [gradients["layer1_0"]["conv1"]["kernel"] for gradients in gradients_of_one_image(recipe, 40)]
    skipped = np.mean([not kernel.any() for kernel in kernels])
    assert abs(skipped - 0.4) < 5 * (0.24 / 40) ** 0.5


def check_zero_init_residual(recipe: Recipe) -> None:
    initializers = {}

    def note(call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        if hasattr(context.module, "scale_init"):
            initializers["/".join(context.module.path)] = context.module.scale_init
        return call(*arguments, **keywords)

    with nn.intercept_methods(note):
        make_variables(small_network(recipe))
    scales = {name: init(jax.random.key(0), (2,)).tolist() for name, init in initializers.items()}
    assert scales == {"bn1": [1, 1], "layer1_0/bn1": [1, 1], "layer1_0/bn2": [0, 0]}


def check_batch_norm(recipe: Recipe) -> None:
    model = with_batch_norm(Tiny(), recipe.batch_norm, None)
    state = make_state(recipe, make_variables(Tiny()))
    after, _ = compiled_step(recipe, model)(state, BATCH)
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, state.batch_stats)


def check_ema_decay(recipe: Recipe) -> None:
    # Of weights and statistics; in the first step a tenth is kept.
    state, step = make_state(recipe, probe_variables()), compiled_step(recipe, PROBE)
    average = jax.tree.map(lambda leaf: leaf.astype(float), probe_variables())
    for number, kept in enumerate((0.1, 0.15, 0.15)):
        state, _ = step(state, make_batch(seed=number))
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        average = jax.tree.map(lambda old, new, k=kept: k * old + (1 - k) * np.asarray(new), average, variables)
        assert jax.tree.structure(state.ema) == jax.tree.structure(average)
        jax.tree.map(close, state.ema, average)


# Which images come, at what size.

# The place of each pixel as its colour; the third channel tells the image.
PLACES = np.array([np.stack([*np.mgrid[:64, :64] * 4, np.full((64, 64), 10 * i)], -1) for i in range(12)], np.uint8)


@cache
def feed(recipe: Recipe) -> tuple[Batch, ...]:
    source = ArraySource(PLACES, np.arange(12))
    mine = TrainingFeed(source, recipe.preprocessing((0.5,) * 3, (0.5,) * 3), recipe, 0)
    return tuple(mine.batches(0, mine.steps_through(recipe.epochs)))


def check_image_size(recipe: Recipe) -> None:
    assert {batch.images.shape[1:] for batch in feed(recipe)} == {(16, 16, 3)}


def check_train_image_sizes(recipe: Recipe) -> None:
    sizes = [batch.images.shape[1] for batch in feed(recipe) for _ in batch.labels]
    assert sizes == [4] * 24 + [12] * 24


def check_epochs(recipe: Recipe) -> None:
    assert (np.bincount(np.concatenate([batch.labels for batch in feed(recipe)])) == 8).all()


def check_batch_size(recipe: Recipe) -> None:
    assert {len(batch.labels) for batch in feed(recipe)} == {6}


def check_repeats(recipe: Recipe) -> None:
    batches = feed(recipe)
    labels = np.concatenate([batch.labels for batch in batches]).reshape(-1, 3, 2)
    assert (labels == labels[:, :1]).all()
    assert (labels[:, 0, 0] != labels[:, 0, 1]).all()
    # Each time another crop.
    images = np.concatenate([batch.images for batch in batches]).reshape(-1, 3, 2, 8, 8, 3)
    assert all((images[:, a] != images[:, b]).any((2, 3, 4)).all() for a, b in ((0, 1), (1, 2), (0, 2)))


def areas(recipe: Recipe) -> np.ndarray:
    """The share of its image that each crop covers, from the places of its first and last pixels."""
    images = np.concatenate([batch.images for batch in feed(recipe)]).astype(float)
    spans = (images[:, -1, -1, :2] - images[:, 0, 0, :2]) / 4 / 64 * 8 / 7
    return spans.prod(-1)


def check_min_crop_area(recipe: Recipe) -> None:
    shares = areas(recipe)
    assert 0.25 < shares.min() < 0.5
    assert 0.7 < shares.max() <= 1.05


def check_crop_pct(recipe: Recipe) -> None:
    close(areas(recipe), 0.25, 0.03)


@dataclass(frozen=True)
class Technique:
    """What a recipe must say beside the setting itself, how it is checked, and what switches it off."""

    on: Any
    check: Callable[[Recipe], None]
    off: Any = None
    beside: tuple[tuple[str, Any], ...] = ()


def technique(on: Any, check: Callable[[Recipe], None], off: Any = None, **beside: Any) -> Technique:
    return Technique(on, check, off, tuple(beside.items()))


TECHNIQUES = {
    "image_size": technique(16, check_image_size, 8),
    "epochs": technique(8, check_epochs, 4),
    "batch_size": technique(6, check_batch_size, 8),
    "optimizer": technique("momentum", path(1, 1, 1, momentum=0.9), "sgd"),
    "learning_rate": technique(0.5, path(0.5, 0.5), 1.0),
    "weight_decay": technique(0.1, path(1, 1, kernels=0.1), 0.0),
    "momentum": technique(0.5, path(1, 1, 1, momentum=0.5), optimizer="momentum"),
    "decoupled_weight_decay": technique(
        True, path(1, 1, 1, momentum=0.9, kernels=0.1, beside=True), optimizer="momentum", weight_decay=0.1
    ),
    "decay_norms_and_biases": technique(True, path(1, 1, kernels=0.1, others=0.1), weight_decay=0.1),
    "clip_norm": technique(0.1, check_clip_norm),
    "accumulation": technique(4, check_accumulation),
    "loss": technique("binary_cross_entropy", check_binary_cross_entropy),
    "label_smoothing": technique(0.3, check_label_smoothing, 0.0),
    "target_threshold": technique(0.35, check_target_threshold, loss="binary_cross_entropy", label_smoothing=0.9),
    "aux_weight": technique(0.7, check_aux_weight),
    "schedule": technique("linear", path(1, 0.75, 0.5, 0.25), "constant"),
    "warmup_epochs": technique(2.0, rates(1 / 3, 2 / 3, *[1] * 8), 0.0),
    "decay_epochs": technique((1.0, 3.0), rates(1, 0.1, 0.1, 0.01), (2.0,), schedule="multi_step"),
    "decay_factor": technique(0.5, rates(1, 1, 0.5, 0.5, 0.25), schedule="step", decay_epochs=(2.0,)),
    "end_share": technique(0.2, rates(1, 0.8, 0.6, 0.4), schedule="linear"),
    "power": technique(2.0, rates(1, 0.5625, 0.25, 0.0625), schedule="polynomial"),
    "train_image_sizes": technique((4, 12), check_train_image_sizes),
    "crop_pct": technique(0.5, check_crop_pct),
    "min_crop_area": technique(0.3, check_min_crop_area),
    "shift": technique(0.25, check_shift),
    "flip": technique(0.5, check_flip),
    "color_jitter": technique(0.5, check_color_jitter),
    "trivial_augment": technique(True, check_trivial_augment),
    "random_erasing": technique(1.0, check_random_erasing),
    "mixup_alpha": technique(1.0, check_mixup),
    "cutmix_alpha": technique(1.0, check_cutmix),
    "repeats": technique(3, check_repeats, min_crop_area=0.3),
    "dropout_rate": technique(0.4, check_dropout_rate),
    "stochastic_depth_rate": technique(0.4, check_stochastic_depth_rate),
    "zero_init_residual": technique(True, check_zero_init_residual),
    "batch_norm": technique("frozen", check_batch_norm),
    "ema_decay": technique(0.15, check_ema_decay),
    "remat": technique(True, check_remat),
}
# What shows in whole runs alone.
IN_RUNS = {
    "sampler": "test_class_weights.py",
    "class_weights": "test_class_weights.py",
    "precise_batch_norm_images": "test_batch_norm_training.py",
    "patience_epochs": "test_loop.py",
    "head_epochs": "test_transfer_runs.py",
    "layer_decay": "test_transfer_runs.py",
}


# Take long to compile; other tests show what they do.
LONG = ("accumulation", "cutmix_alpha", "dropout_rate", "mixup_alpha", "stochastic_depth_rate", "trivial_augment")


def test_every_setting_has_a_test() -> None:
    assert {setting.name for setting in fields(Recipe)} == set(TECHNIQUES) | set(IN_RUNS)


@pytest.mark.parametrize("name", slow_except([name for name in TECHNIQUES if name not in LONG], TECHNIQUES))
def test_a_setting_does_what_it_says(name: str) -> None:
    case = TECHNIQUES[name]
    recipe = replace(PLAIN, **dict(case.beside), **{name: case.on})
    case.check(recipe)
    off = case.off if case.off is not None else getattr(Recipe, name)
    with pytest.raises((AssertionError, ValueError)):
        case.check(replace(recipe, **{name: off}))


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    model, results = Tiny(norm=None), []
    for parts in (1, 4):
        recipe = replace(PLAIN, accumulation=parts, flip=0.5, weight_decay=0.01)
        state = make_state(recipe, make_variables(model))
        after, sums = compiled_step(recipe, model)(state, BATCH)
        results.append((after.params, {name: sums[name] for name in ("loss", "accuracy", "count")}))
    jax.tree.map(close, *results)


@pytest.mark.slow
def test_a_step_that_computes_activations_again_is_the_same() -> None:
    model = Tiny(dropout_rate=0.5)
    states = []
    for remat in (False, True):
        recipe = replace(PLAIN, remat=remat)
        states.append(compiled_step(recipe, model)(make_state(recipe, make_variables(model)), BATCH)[0])
    jax.tree.map(close, states[0].params, states[1].params)


def test_a_network_has_the_dropout_of_its_own_unless_told() -> None:
    assert Config("googlenet", PLAIN).create_model(3).dropout_rate == 0.2
    assert Config("googlenet", replace(PLAIN, dropout_rate=0.0)).create_model(3).dropout_rate == 0.0


def test_bfloat16_is_for_computing_alone() -> None:
    model: Any = Config("resnet20_cifar", PLAIN, dtype="bfloat16").create_model(3)
    recipe = replace(PLAIN, optimizer="adam", ema_decay=0.9, accumulation=2)
    state = make_state(recipe, make_variables(model.clone(stage_sizes=(1,))))
    step = step_of(recipe, model.clone(stage_sizes=(1,)))
    after, sums = jax.eval_shape(step, state, BATCH)
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((after, sums))} == {"float32", "int32", "uint32"}
    program = str(jax.make_jaxpr(step)(state, BATCH))
    convolutions = [line for line in program.splitlines() if "= conv2d" in line]
    assert convolutions
    assert all(":bf16[" in line for line in convolutions)
