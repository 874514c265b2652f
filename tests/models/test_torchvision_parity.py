"""All twelve networks against torchvision's own numbers, in float64, with random weights and statistics."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnets
from jaxnets.errors import InputError
from jaxnets.weights import from_torchvision, to_torchvision
from tests.references import recipe
from tests.tiers import slow_except

pytestmark = pytest.mark.usefixtures("float64")
_CASES = [(arch, pixels) for arch in recipe.TORCHVISION_MODELS for pixels, _, _ in recipe.EVALUATION_CASES]
# The others have the same blocks, or show nothing more with more pixels.
_DEFAULT = [(arch, 97) for arch in ("alexnet", "googlenet", "resnet18", "resnext50_32x4d")]
_EXHAUSTIVE = [case for case in _CASES if case[0] in ("resnext101_64x4d", "wide_resnet101_2", "resnet152")]
# In float64 whole networks run longer than they take to compile.
_compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
_BATCH_NORM = ("googlenet", "resnet50", "resnext50_32x4d")


@cache
def references() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[1] / "references" / "torchvision.npz") as file:
        return dict(file)


def build(arch: str, classes: int, **options: Any) -> tuple[Any, Any]:
    model = jaxnets.create_model(arch, num_classes=classes, dtype=jnp.float64, **options)
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))
    shapes = {name: array.shape for name, array in to_torchvision(arch, jax.tree.map(_empty, like)).items()}
    return model, from_torchvision(arch, recipe.random_state_dict(shapes.items()), like)


def _empty(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def assert_close(actual: Any, expected: np.ndarray, tolerance: float) -> None:
    """Largest error at most `tolerance` of the largest reference value."""
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(("arch", "pixels"), slow_except(_DEFAULT, _CASES, _EXHAUSTIVE, fast=[("resnet18", 97)]))
def test_logits(arch: str, pixels: int) -> None:
    count, classes = next(case[1:] for case in recipe.EVALUATION_CASES if case[0] == pixels)
    model, variables = build(arch, classes)
    if arch == "googlenet":
        model = model.clone(transform_input=pixels == recipe.TRANSFORMED_PIXELS)
    logits = _compiled(partial(model.apply, train=False))(variables, recipe.random_images(pixels, count))
    assert logits.dtype == jnp.float64
    assert_close(logits, references()[f"{arch}/logits_{pixels}"], 1e-9)


def test_tensors_that_do_not_fit_are_named() -> None:
    model = jaxnets.create_model("alexnet", num_classes=13)
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    state = to_torchvision("alexnet", jax.tree.map(_empty, like))
    with pytest.raises(
        InputError, match=r"classifier.1.weight has shape \(4096, 9210\); alexnet expects \(4096, 9216\)"
    ):
        from_torchvision("alexnet", state | {"classifier.1.weight": np.zeros((4096, 9210))}, like)
    renamed = {("features.0.scale" if key == "features.0.bias" else key): value for key, value in state.items()}
    with pytest.raises(InputError, match=r"missing \['features.0.bias'\], left over \['features.0.scale'\]"):
        from_torchvision("alexnet", renamed, like)


@pytest.mark.slow
@pytest.mark.parametrize("arch", recipe.TRAINED_MODELS)
def test_training(arch: str) -> None:
    pixels, count, classes = recipe.TRAINING_CASE
    options: dict[str, float] = {"dropout_rate": 0.0} if arch in ("alexnet", "googlenet") else {}
    if arch == "googlenet":
        options["aux_dropout_rate"] = 0.0
    model, variables = build(arch, classes, **options)
    images, labels = recipe.random_images(pixels, count), recipe.labels(count, classes)
    optimizer = optax.sgd(recipe.LEARNING_RATE, recipe.MOMENTUM)

    def loss_of(params: Any, statistics: Any) -> Any:
        logits, updates = model.apply(
            {"params": params, **statistics}, images, train=True, mutable=["batch_stats", "aux_logits"]
        )
        aux = {name: head["logits"][0] for name, head in updates.pop("aux_logits", {}).items()}
        loss = cross_entropy(logits, labels)
        for head in aux.values():
            loss += recipe.AUX_WEIGHT * cross_entropy(head, labels)
        return loss, (logits, aux, updates)

    @_compiled
    def step(params: Any, statistics: Any, momentum: Any) -> Any:
        (loss, outputs), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, statistics)
        updates, momentum = optimizer.update(gradients, momentum)
        return optax.apply_updates(params, updates), outputs[2], momentum, loss, outputs, gradients

    params = variables["params"]
    statistics = {k: v for k, v in variables.items() if k != "params"}
    momentum = optimizer.init(params)
    expected = references()
    for index in range(recipe.STEPS):
        params, statistics, momentum, loss, (logits, aux, _), gradients = step(params, statistics, momentum)
        if index == 0:
            assert_close(logits, expected[f"{arch}/train_logits"], 1e-9)
            assert sorted(aux) == (["aux1", "aux2"] if arch == "googlenet" else [])
            for name, head in aux.items():
                assert_close(head, expected[f"{arch}/{name}"], 1e-8)
            assert_fingerprints(arch, "gradient", {"params": gradients}, 1e-8)
            assert bool(statistics) == (arch in _BATCH_NORM)
            assert_fingerprints(arch, "statistics", statistics, 1e-8)
    assert_fingerprints(arch, "trained", {"params": params}, 1e-7)
    assert_close(loss, expected[f"{arch}/last_loss"], 1e-7)


def cross_entropy(logits: Any, labels: np.ndarray) -> Any:
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])


def assert_fingerprints(arch: str, kind: str, variables: Any, tolerance: float) -> None:
    prefix = f"{arch}/{kind}/"
    expected = {key.removeprefix(prefix): value for key, value in references().items() if key.startswith(prefix)}
    actual = to_torchvision(arch, variables)
    assert sorted(actual) == sorted(expected)
    # Convolutions before a BatchNorm pass it constants that it removes: gradients that are all rounding are compared
    # with the largest of the network, not with themselves.
    floor = 1e-6 * max((value[0] for value in expected.values()), default=0.0)
    for name, value in expected.items():
        error = np.abs(recipe.fingerprint(name, actual[name]) - value).max()
        assert error <= tolerance * max(value[0], floor), (name, error, value)
