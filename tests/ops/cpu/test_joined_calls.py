"""Joined calls of oneDNN against the same programs with each call by itself: equal to the last bit."""

import itertools
import os
import re
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.ops import batch_norm, compile, conv2d, max_pool
from jaxnets.ops.cpu import calls, compilation
from jaxnets.ops.cpu.calls import _layout
from jaxnets.training.parallel import Parallel
from tests.ops.cpu.test_engine import pytestmark  # noqa: F401
from tests.tiers import slow_except

IMAGES = (2, 8, 8, 16)


def calls_in(text: str) -> int:
    return text.count(f"@{calls.TARGET}(")


def both(function: Any, *arguments: Any) -> tuple[str, str]:
    """The program before and after its calls were joined, of which the results must be the same."""
    expected = compilation._compiled(jax.jit(function).lower(*arguments))(*arguments)
    jitted = jax.jit(lambda *a: function(*a))
    before = jitted.lower(*arguments).as_text()
    program = compile(jitted, *arguments)
    for _ in range(2):  # The memory that calls share is then not fresh.
        actual = program(*arguments)
        for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            assert np.ptp(theirs) > 0
            np.testing.assert_array_equal(ours, theirs)
    return before, jitted.lower(*arguments).as_text()  # JAX keeps the module that was joined


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), jnp.float32)


def unit(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    ones = jnp.ones(kernel.shape[-1])
    return batch_norm(conv2d(inputs, kernel, padding=1), ones, ones / 4, 1e-5, None, jax.nn.relu)[0]


def chain(inputs: jax.Array, kernels: jax.Array) -> jax.Array:
    for kernel in kernels:
        inputs = unit(inputs, kernel)
    return max_pool(inputs, 3, stride=2)


def test_a_chain_is_one_call_and_so_is_its_gradient() -> None:
    arguments = normal(*IMAGES), normal(3, 3, 3, 16, 16)
    before, after = both(chain, *arguments)
    assert (calls_in(before), calls_in(after)) == (7, 1)
    before, after = both(jax.grad(lambda *a: jnp.sin(chain(*a)).sum(), (0, 1)), *arguments)
    assert (calls_in(before), calls_in(after)) == (14, 2)


def test_what_only_the_call_needs_shares_memory() -> None:
    arguments = normal(4, 32, 32, 16), normal(12, 3, 3, 16, 16) / 12
    jitted = jax.jit(chain)
    program: Any = compile(jitted, *arguments)
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes < arguments[0].nbytes
    program(*arguments)
    (text,) = re.findall(r'call = "((?:[^"\\]|\\.)*)"', jitted.lower(*arguments).as_text())
    prepared = calls._plans.find(text.replace("\\22", '"'))
    assert len(prepared.temporaries) > 24
    assert prepared.scratch < 3 * arguments[0].nbytes


def test_memory_is_shared_by_what_is_never_needed_at_once() -> None:
    random = np.random.RandomState(0)
    for _ in range(50):
        count, works = random.randint(1, 12), random.randint(1, 15)
        sizes = [int(size) for size in random.randint(1, 1000, count)]
        spans = [sorted(random.randint(0, works, 2)) for _ in range(count)]
        # Two arrays before them are operands or results.
        places = [[0, 1, *(2 + i for i, span in enumerate(spans) if time in span)] for time in range(works)]
        if max(itertools.chain(*places)) != 1 + count:
            continue
        offsets, whole = _layout(sizes, places)
        owners: dict[tuple[int, int], int] = {}
        for i, (offset, size, (first, last)) in enumerate(zip(offsets, sizes, spans, strict=True)):
            assert offset % 64 == 0
            assert offset + size <= whole
            for time, byte in itertools.product(range(first, last + 1), range(offset, offset + size)):
                assert owners.setdefault((time, byte), i) == i


@pytest.mark.parametrize("seed", slow_except([0], range(8)))
def test_any_order_of_calls_and_other_operations(seed: int) -> None:
    random = np.random.RandomState(seed)
    kernels = normal(8, 3, 3, 16, 16, seed=seed) / 12
    plan = [(random.randint(6), *random.randint(1000, size=2), random.randint(8)) for _ in range(24)]

    def function(inputs: jax.Array, kernels: jax.Array) -> list[jax.Array]:
        values = [inputs]
        for kind, first, second, kernel in plan:
            left, right = values[first % len(values)], values[second % len(values)]
            match kind:
                case 0:
                    values.append(jnp.tanh(left) + right)
                case 1:
                    values.append(max_pool(left, 3, stride=1, padding=1))
                case 2:
                    halves = jnp.concatenate([left[..., :8], right[..., 8:]], axis=-1)
                    values.append(jax.lax.cond(left.sum() > 0, lambda x=left, y=halves: x + y, lambda y=halves: y))
                case 3:
                    values.append(unit(left, kernels[kernel]))
                case _:
                    values.append(conv2d(left, kernels[kernel], padding=1))
        return values[-5:]

    before, after = both(function, normal(*IMAGES, seed=seed), kernels)
    assert calls_in(after) < calls_in(before)
    gradient = jax.grad(lambda x, k: sum(jnp.sin(value).sum() for value in function(x, k)), (0, 1))
    before, after = both(gradient, normal(*IMAGES, seed=seed), kernels)
    assert calls_in(after) < calls_in(before)


def repeated(inputs: jax.Array, kernels: jax.Array, *, also: bool) -> tuple[jax.Array, Any]:
    def block(inputs: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
        mapped = conv2d(inputs, kernel, padding=1)
        outputs = jnp.tanh(unit(mapped, kernel)) + inputs / 2
        # With `also` a value is both a row and something else's operand.
        return outputs, (mapped, outputs if also else inputs.sum())

    return jax.lax.scan(block, inputs, kernels)


@pytest.mark.parametrize("also", [False, True])
@pytest.mark.parametrize("reverse", slow_except([True], [False, True]))
def test_rows_of_stacked_arrays_are_used_where_they_lie(also: bool, reverse: bool) -> None:
    arguments = normal(*IMAGES), normal(5, 3, 3, 16, 16) / 12
    function: Any = partial(repeated, also=also)
    if reverse:
        function = jax.grad(lambda *a: sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(repeated(*a, also=also))), 1)
    _, after = both(function, *arguments)
    assert re.search(r"\\22rows\\22: \[\[", after)
    assert "output_operand_alias<" in after


def test_a_rows_number_may_be_known_after_the_row() -> None:
    def step(i: Any, carried: Any) -> Any:
        stacked, images, kernel = carried
        outputs = conv2d(images, kernel, padding=1)
        number = i * 3 % 5
        written = jax.lax.dynamic_update_index_in_dim(stacked, outputs, number, 0, allow_negative_indices=False)
        return written, jnp.tanh(images), kernel

    both(
        lambda *arguments: jax.lax.fori_loop(0, 3, step, arguments),
        *(normal(5, *IMAGES), normal(*IMAGES), normal(3, 3, 16, 16) / 12),
    )


def test_nothing_is_looked_at_after_it_was_erased() -> None:
    script = """
import jax, jax.numpy as jnp
from jaxnets.ops import compile, conv2d, cpu
assert cpu.available()
function = jax.jit(lambda x, kernels: jax.lax.scan(lambda x, k: (jnp.tanh(x), conv2d(x, k, padding=1)), x, kernels))
arguments = jnp.ones((2, 8, 8, 16)), jnp.ones((5, 3, 3, 16, 16))
compile(function, *arguments)
assert "output_operand_alias<" in function.lower(*arguments).as_text()
"""
    # The allocator of glibc then overwrites what is freed.
    environment = {**os.environ, "MALLOC_PERTURB_": "165"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


@pytest.mark.parametrize("seed", slow_except(range(3), range(8)))
def test_any_use_of_rows(seed: int) -> None:
    random = np.random.RandomState(seed)
    plan = [(random.randint(7), *random.randint(1000, size=3)) for _ in range(12)]
    kernel = normal(3, 3, 16, 16) / 12

    def body(i: Any, carried: Any) -> Any:
        *stacks, value, carried_number = carried
        values = [value]
        # Also of rows that there are not: JAX takes the nearest.
        numbers = [i, carried_number, (i * 3) % 5, i - 7, i + 3, jnp.int32(2)]
        for kind, first, second, which in plan:
            left, right = values[first % len(values)], values[second % len(values)]
            stack, number = which % 2, numbers[which % len(numbers)]
            match kind:
                case 0:
                    values.append(jnp.tanh(left) + right)
                case 1:
                    at = {"keepdims": False, "allow_negative_indices": False}
                    values.append(jax.lax.dynamic_index_in_dim(stacks[stack], number, **at))
                case 2:
                    values.append(max_pool(left, 3, stride=1, padding=1))
                case 3:
                    numbers.append(jnp.int32(jnp.abs(left).sum()) % 7)
                case _:
                    outputs = conv2d(left, kernel, padding=1)
                    values.append(outputs)
                    if kind > 4:
                        written = outputs if kind == 5 else left
                        stacks[stack] = jax.lax.dynamic_update_index_in_dim(
                            stacks[stack], written, number, 0, allow_negative_indices=False
                        )
        return *stacks, values[-1] / (1 + jnp.abs(values[-1]).max()), (carried_number * 3 + i) % 6

    def function(*arguments: Any) -> Any:
        return jax.lax.fori_loop(0, 5, body, (*arguments, jnp.int32(1)))[:-1]

    before, after = both(function, normal(5, *IMAGES), normal(5, *IMAGES, seed=1), normal(*IMAGES))
    assert calls_in(after) <= calls_in(before)


def test_a_stacked_array_that_is_read_elsewhere_too_is_not_overwritten() -> None:
    def step(i: Any, carried: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        stacked, kernel = carried
        row = jax.lax.dynamic_index_in_dim(stacked, i, keepdims=False)
        outputs = conv2d(row, kernel, padding=1)
        written = jax.lax.dynamic_update_index_in_dim(stacked, outputs, i, 0, allow_negative_indices=False)
        return written, kernel + stacked.sum((0, 1, 2, 3)) / written.sum()

    def function(stacked: jax.Array, kernel: jax.Array) -> Any:
        return jax.lax.fori_loop(0, 3, step, (stacked, kernel))

    _, after = both(function, normal(3, *IMAGES), normal(3, 3, 16, 16) / 12)
    assert "output_operand_alias<" not in after


@pytest.mark.parametrize("parallel", slow_except(["jit", "shard_map"], ["jit", "pmap", "shard_map"]))
def test_steps_are_joined_however_they_run(parallel: str) -> None:
    devices = 1 if parallel == "jit" else 2
    chosen = Parallel.choose(parallel, jax.devices()[:devices])
    kernels, images = normal(3, 3, 3, 16, 16), np.asarray(normal(4, *IMAGES[1:]))

    def gradient_of(kernels: jax.Array, images: jax.Array) -> jax.Array:
        return jax.grad(lambda k: jnp.sin(chain(images, k)).sum())(kernels)

    def step(kernels: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        gradient = gradient_of(kernels, images)
        if chosen.axis_name is not None:
            gradient = jax.lax.psum(gradient, chosen.axis_name)
        return gradient, jnp.abs(gradient).sum()

    compiled = chosen.wrap(step)
    actual = chosen.fetch(compiled(chosen.replicate(kernels), chosen.put(images))[0])
    expected = sum(jax.jit(gradient_of)(kernels, share) for share in np.split(images, devices))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * float(np.abs(expected).max()))
    (program,) = compiled._programs.values()
    assert program.as_text().count(f'custom_call_target="{calls.TARGET}"') == 2
