"""Every optimiser against torch's own steps, or against the paper's formula where torch has none."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets.errors import InputError
from jaxnets.training.optimizers import OPTIMIZERS, make_optimizer
from jaxnets.training.schedules import make_schedule
from tests.references import optimization
from tests.tiers import slow_except

# Name -> the rate at which it learns the small problem below.
RATES = {
    "sgd": 0.1,
    "momentum": 0.02,
    "nesterov": 0.02,
    "adagrad": 0.3,
    "rmsprop": 0.03,
    "adam": 0.05,
    "adamw": 0.05,
    "lars": 5.0,
    "lamb": 0.1,
    "muon": 0.1,
}


def step_by_step(optimizer: Any, steps: int = optimization.STEPS) -> list[dict[str, np.ndarray]]:
    """The parameters after each step."""
    # Not under jit: operations are compiled once for all cases, which is quicker.
    params: Any = jax.tree.map(jnp.asarray, optimization.initial_params())
    state, results = optimizer.init(params), []
    for step in range(steps):
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, optimization.gradients(step)), state, params)
        params = optax.apply_updates(params, updates)
        results.append(jax.tree.map(np.asarray, params))
    return results


def one_update(name: str, params: Any, gradients: Any, **options: Any) -> Any:
    optimizer = make_optimizer(name, optax.constant_schedule(0.5), **options)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "case",
    slow_except(
        [case for case in optimization.OPTIMIZER_CASES if case.endswith("/plain")],
        optimization.OPTIMIZER_CASES,
        fast=["momentum/plain", "adamw/plain"],
    ),
)
def test_optimizers_are_those_of_torch(case: str) -> None:
    name, options = optimization.OPTIMIZER_CASES[case]
    results = step_by_step(make_optimizer(name, optimization.learning_rate, **options))
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {np.dtype(np.float64)}
    actual = np.array([optimization.fingerprints(results[step - 1]) for step in optimization.KEPT])
    with np.load(Path(__file__).parents[1] / "references" / "optimizers.npz") as file:
        np.testing.assert_allclose(actual, file[case], rtol=1e-11, atol=1e-12)


def lars_loop(momentum: float, decay: float, decay_all: bool, clip_norm: float) -> dict[str, np.ndarray]:
    """You et al. 2017, algorithm 1, with norms and biases by plain momentum."""
    params = optimization.initial_params()
    velocities = {key: np.zeros_like(w) for key, w in params.items()}
    for step in range(optimization.STEPS):
        for key, g in clipped(optimization.gradients(step), clip_norm).items():
            w = params[key]
            beta = decay if w.ndim > 1 or decay_all else 0.0
            norms = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
            local_rate = 0.001 * norms[0] / (norms[1] + beta * norms[0]) if w.ndim > 1 else 1.0
            rate = optimization.learning_rate(step) * local_rate
            velocities[key] = momentum * velocities[key] + rate * (g + beta * w)
            params[key] = w - velocities[key]
    return params


def lamb_loop(momentum: float, decay: float, decay_all: bool, clip_norm: float) -> dict[str, np.ndarray]:
    """You et al. 2019, algorithm 2, with norms and biases by Adam."""
    params = optimization.initial_params()
    first, second = ({key: np.zeros_like(w) for key, w in params.items()} for _ in range(2))
    for step in range(optimization.STEPS):
        for key, g in clipped(optimization.gradients(step), clip_norm).items():
            x = params[key]
            first[key] = momentum * first[key] + (1 - momentum) * g
            second[key] = 0.999 * second[key] + 0.001 * g * g
            m, v = first[key] / (1 - momentum ** (step + 1)), second[key] / (1 - 0.999 ** (step + 1))
            r = m / (np.sqrt(v) + 1e-6) + (decay if x.ndim > 1 or decay_all else 0.0) * x
            ratio = np.sqrt((x**2).sum()) / np.sqrt((r**2).sum()) if x.ndim > 1 else 1.0
            params[key] = x - optimization.learning_rate(step) * ratio * r
    return params


def clipped(gradients: dict[str, np.ndarray], clip_norm: float) -> dict[str, np.ndarray]:
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    return {key: g * min(1.0, clip_norm / norm) if clip_norm else g for key, g in gradients.items()}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("name", "loop"), [("lars", lars_loop), ("lamb", lamb_loop)])
@pytest.mark.parametrize(
    ("momentum", "decay", "decay_all", "clip_norm"),
    [
        pytest.param(0.9, 0.0, False, 0.0, marks=pytest.mark.slow),
        pytest.param(0.9, 0.1, False, 0.0, marks=pytest.mark.slow),
        (0.8, 0.1, True, 0.0),
        (0.9, 0.1, False, optimization.CLIP_NORM),
    ],
)
def test_optimizers_are_those_of_the_papers(
    name: str, loop: Any, momentum: float, decay: float, decay_all: bool, clip_norm: float
) -> None:
    optimizer = make_optimizer(
        name,
        optimization.learning_rate,
        momentum=momentum,
        weight_decay=decay,
        decay_norms_and_biases=decay_all,
        clip_norm=clip_norm,
    )
    actual = step_by_step(optimizer)[-1]
    for key, expected in loop(momentum, decay, decay_all, clip_norm).items():
        assert actual[key].dtype == np.float64
        np.testing.assert_allclose(actual[key], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_kernels_of_zeros_and_gradients_of_zeros_do_no_harm(name: str) -> None:
    zeros, ones = {"kernel": jnp.zeros((3, 2))}, {"kernel": jnp.ones((3, 2))}
    moved = one_update(name, zeros, ones)["kernel"]
    np.testing.assert_allclose(moved, -0.5, rtol=1e-5)
    np.testing.assert_array_equal(one_update(name, ones, zeros)["kernel"], 0)
    np.testing.assert_array_equal(one_update(name, zeros, zeros)["kernel"], 0)


@pytest.mark.usefixtures("float64")
def test_muon_makes_kernels_orthogonal() -> None:
    stream = np.random.RandomState(0)
    for shape in ((3, 3, 4, 6), (2, 1, 3, 24), (10, 7)):
        kernel = jnp.asarray(stream.standard_normal(shape))
        update = one_update("muon", {"kernel": kernel}, {"kernel": kernel})["kernel"]
        matrix = np.asarray(update).reshape(-1, shape[-1])
        values = np.linalg.svd(matrix, compute_uv=False) / 0.5 / max(1, matrix.shape[1] / matrix.shape[0]) ** 0.5
        assert 0.6 < values.min() < values.max() < 1.3


@pytest.mark.parametrize("everywhere", slow_except([True], [False, True]))
@pytest.mark.parametrize("decoupled", slow_except([False], [False, True]))
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norms_and_biases_decay_only_if_asked(name: str, decoupled: bool, everywhere: bool) -> None:
    params = {"Dense": {"kernel": jnp.full((3, 2), 2.0), "bias": jnp.full(2, 2.0)}, "BatchNorm": {"scale": jnp.ones(2)}}
    # Against the decay and smaller: a first step of Adagrad or Adam knows little but the sign.
    gradients = jax.tree.map(lambda leaf: -0.05 * jnp.arange(1.0, leaf.size + 1).reshape(leaf.shape), params)
    options = {"decoupled_weight_decay": decoupled, "decay_norms_and_biases": everywhere}
    with_decay, without = (one_update(name, params, gradients, weight_decay=d, **options) for d in (0.5, 0.0))
    difference = jax.tree.map(lambda a, b: np.asarray(a - b), with_decay, without)
    assert np.any(difference["Dense"]["kernel"])
    for leaf in (difference["Dense"]["bias"], difference["BatchNorm"]["scale"]):
        assert np.any(leaf) == everywhere
    if decoupled and name not in ("lars", "lamb"):
        for part, leaf in (("Dense", "kernel"), *((("Dense", "bias"), ("BatchNorm", "scale")) if everywhere else ())):
            np.testing.assert_allclose(difference[part][leaf], -0.5 * 0.5 * params[part][leaf], rtol=1e-5)


@pytest.mark.fast
def test_clipping_comes_first() -> None:
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(4, 3.0)}
    gradients = {"kernel": jnp.full((2, 2), 6.0), "bias": jnp.full(4, 8.0)}
    update = one_update("sgd", params, gradients, clip_norm=2.0, weight_decay=0.1)
    # The norm of all is 20, so a tenth is left; decay is not clipped.
    np.testing.assert_allclose(update["kernel"], -0.5 * (0.6 + 0.3), rtol=1e-6)
    np.testing.assert_allclose(update["bias"], -0.5 * 0.8, rtol=1e-6)
    for clip_norm in (0.0, 21.0):
        update = one_update("sgd", params, gradients, clip_norm=clip_norm)
        np.testing.assert_array_equal(update["bias"], -4)


@pytest.mark.fast
def test_every_optimizer_has_references() -> None:
    assert {name for name, _ in optimization.OPTIMIZER_CASES.values()} | {"lars", "lamb"} == set(OPTIMIZERS)
    with pytest.raises(InputError, match=r"unknown optimizer 'sdg'; expected one of sgd, .*muon"):
        make_optimizer("sdg", optax.constant_schedule(0.1))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_in_float32_and_goes_on_from_its_state(name: str) -> None:
    stream = np.random.RandomState(0)
    inputs = stream.standard_normal((16, 4)).astype(np.float32)
    targets = inputs @ stream.standard_normal((4, 3)).astype(np.float32) + 0.5
    schedule = make_schedule("cosine", peak=RATES[name], steps=100, warmup_steps=10)
    optimizer = make_optimizer(name, schedule, weight_decay=1e-4, clip_norm=5.0)

    def loss(params: Any) -> Any:
        return ((inputs @ params["kernel"] + params["bias"] - targets) ** 2).mean()

    @jax.jit
    def run(params: Any, state: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            value, gradients = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, state), length=50)

    params = {"kernel": 0.5 * jnp.ones((4, 3)), "bias": jnp.zeros(3)}
    state = optimizer.init(params)
    (params, state), losses = run(params, state)
    leaves, structure = jax.tree.flatten(state)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype in (jnp.float32, jnp.int32) for leaf in leaves)
    # As a checkpoint does it.
    state = jax.tree.unflatten(structure, [jnp.asarray(np.asarray(leaf)) for leaf in leaves])
    _, more_losses = run(params, state)
    assert more_losses[0] < losses[0]
    assert more_losses[-1] < 0.05 * losses[0]
