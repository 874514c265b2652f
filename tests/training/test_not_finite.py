"""NaN and infinity, each hidden in a large array: no compiled program of jaxnets loses them, and no step takes them."""

from collections.abc import Callable
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnets
from jaxnets.ops.cpu import compilation
from jaxnets.training.step import all_finite
from tests.training.networks import compiling, cpus
from tests.training.tiny import PLAIN, make_batch, make_state, step_of

FAULTS = {"nan": np.nan, "inf": np.inf}
# Where the network below puts a fault, as its running statistics say.
PLACES = ("inputs", "activations", "gradients", "loss")
BATCH = make_batch(8, size=16)


@jax.custom_vjp
def _with_fault_behind(values: jax.Array, fault: jax.Array) -> jax.Array:
    return values


_with_fault_behind.defvjp(
    lambda values, fault: (values, fault),
    lambda fault, slopes: (slopes.at[0, 0].add(fault), jnp.zeros_like(fault)),
)


class Network:
    """A convolution, ReLU, the mean over the image and a dense layer; nothing spreads a fault to its neighbours."""

    num_classes = 10
    dtype = jnp.float32

    def variables(self) -> dict[str, Any]:
        random = np.random.default_rng(0)
        kernel, dense = random.normal(0, 0.2, (3, 3, 3, 256)), random.normal(0, 0.2, (256, 10))
        return {
            "params": {"kernel": jnp.asarray(kernel, jnp.float32), "dense": jnp.asarray(dense, jnp.float32)},
            "batch_stats": {"mean": jnp.zeros(5000), "faults": jnp.zeros(len(PLACES))},
        }

    def apply(self, variables: Any, inputs: jax.Array, **_: Any) -> Any:
        params, stats = variables["params"], variables["batch_stats"]
        # 0 is no fault; the numbers themselves are finite.
        faults = jnp.select([stats["faults"] == 1, stats["faults"] == 2], [jnp.nan, jnp.inf], 0.0)
        fault = dict(zip(PLACES, faults, strict=True))
        inputs = inputs.at[0, 5, 7, 1].add(fault["inputs"])
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(inputs, params["kernel"], (1, 1), "SAME", dimension_numbers=numbers)
        x = nn.relu(x.at[1, 2, 3, 5].add(fault["activations"])).mean((1, 2))
        logits = _with_fault_behind(x, fault["gradients"]) @ params["dense"]
        logits = logits.at[0, BATCH.labels[0]].add(fault["loss"])
        return logits, {"batch_stats": {"mean": 0.9 * stats["mean"] + 0.1, "faults": stats["faults"]}}


@pytest.fixture(scope="module", params=["jit", "pmap", "shard_map"])
def take_step(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Takes one step from a state; compiled once, with all of XLA's optimisations."""
    parallel = cpus(1 if request.param == "jit" else 2, request.param)
    compiled = parallel.wrap(step_of(PLAIN, Network(), parallel.axis_name))

    def take(state: Any) -> Any:
        with compiling(quickly=False):
            return parallel.fetch(compiled(parallel.replicate(state), parallel.put(BATCH)))

    return take


def with_fault(place: str, fault: str) -> Any:
    """The state from which a step meets a fault; "none" is a place without one."""
    variables: Any = jax.tree.map(np.array, Network().variables())
    match place:
        case "weights":
            variables["params"]["kernel"][1, 2, 0, 77] = FAULTS[fault]
        case "statistics":
            variables["batch_stats"]["mean"][3210] = FAULTS[fault]
        case "none":
            pass
        case _:
            variables["batch_stats"]["faults"][PLACES.index(place)] = 1 + list(FAULTS).index(fault)
    return make_state(PLAIN, variables)


def test_a_step_without_a_fault_is_taken(take_step: Callable[[Any], Any]) -> None:
    state = with_fault("none", "")
    after, sums = take_step(state)
    assert (sums["skipped"], sums["count"]) == (0, 8)
    assert (after.params["kernel"] != state.params["kernel"]).any()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", [*PLACES, "weights", "statistics"])
def test_a_step_with_a_fault_anywhere_is_skipped(place: str, fault: str, take_step: Callable[[Any], Any]) -> None:
    state = with_fault(place, fault)
    after, sums = take_step(state)
    assert (sums["skipped"], sums["count"], after.skipped) == (1, 0, 1)
    before = state.params, state.batch_stats, state.opt_state
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.batch_stats, after.opt_state), before)


@pytest.mark.parametrize("place", ["gradients", "loss", "weights", "statistics"])
def test_the_test_of_a_step_needs_no_help_of_the_compiler(place: str) -> None:
    """In a loop of a user's own, the step is compiled by `jax.jit`."""
    with compiling(quickly=False):
        _, sums = _plain_step()(with_fault(place, "nan"), BATCH)
    assert sums["skipped"] == 1


_plain_step = cache(lambda: jax.jit(step_of(PLAIN, Network())))


PROGRAMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "max": jnp.max,
    "min": jnp.min,
    "largest absolute value": lambda x: jnp.abs(x).max(),
    "mean of ReLU": lambda x: nn.relu(x).mean(),
    "sums of ReLU": lambda x: nn.relu(x.reshape(-1, 64)).sum(0),
    "max_pool": lambda x: nn.max_pool(x.reshape(1, -1, 32, 1), (2, 2), strides=(2, 2)),
    "softmax": lambda x: jax.nn.softmax(x.reshape(-1, 1024)),
}


@pytest.mark.parametrize("size", [4096, 1 << 17])
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_programs_keep_nan(name: str, size: int) -> None:
    values = np.random.default_rng(0).normal(size=size).astype(np.float32)
    values[size // 3] = np.nan
    function = jax.jit(PROGRAMS[name])
    with compiling(quickly=False):
        outputs = jaxnets.compile(function, values)(values)
    # Op by op, JAX loses NaN in maxima as well, so NumPy counts what has to be there.
    windows = {"sums of ReLU": 1, "max_pool": 1, "softmax": 1024}
    assert np.isnan(outputs).sum() == windows.get(name, 1)


def test_an_unknown_option_of_the_compiler_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA may rename it."""
    monkeypatch.setattr(compilation, "_KEEP_NAN", {"xla_cpu_no_such_option": ""})
    assert jaxnets.compile(jax.jit(jnp.sum), np.ones(3))(np.ones(3)) == 3


@pytest.mark.parametrize("shape", [(3, 5), (700,), (2, 3, 400, 128)])  # the last is tested by itself, as a large array
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_the_test_of_a_step_sees_each_place(shape: tuple[int, ...], value: float) -> None:
    """Also a number whose square is infinite, which optimizers would keep for ever."""
    check, count = jax.jit(all_finite), int(np.prod(shape))
    others = {"loss": jnp.ones(()), "bias": jnp.full(7, 1e10)}
    assert check({**others, "kernel": jnp.full(shape, -3.0)})
    for place in (0, count // 2, count - 1):
        kernel = np.full(count, -3.0, np.float32)
        kernel[place] = value
        assert not check({**others, "kernel": jnp.asarray(kernel.reshape(shape))}), place
