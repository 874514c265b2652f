"""Every schedule against torch's own learning rates."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.errors import InputError
from jaxnets.training.schedules import SCHEDULES, make_schedule
from tests.references import optimization
from tests.tiers import slow_except


def reference(case: str) -> np.ndarray:
    with np.load(Path(__file__).parents[1] / "references" / "optimizers.npz") as file:
        return file[f"schedule/{case}"]


def build(case: str) -> Any:
    name, options = optimization.SCHEDULE_CASES[case]
    return make_schedule(name, peak=optimization.PEAK, steps=optimization.SCHEDULE_STEPS, **options)


def half_cosine(start: float, end: float, count: int) -> np.ndarray:
    """`count` values from `start` to `end`."""
    return end + (start - end) * (1 + np.cos(np.pi * np.linspace(0, 1, count))) / 2


def test_every_schedule_has_references() -> None:
    assert {name for name, _ in optimization.SCHEDULE_CASES.values()} == set(SCHEDULES)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", optimization.SCHEDULE_CASES)
def test_schedules_are_those_of_torch(case: str) -> None:
    expected, schedule = reference(case), build(case)
    actual = schedule(jnp.arange(len(expected), dtype=jnp.int32))
    assert actual.dtype == jnp.float64
    # torch multiplies from step to step, and so ends near 0 where the formula ends at it.
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-16)
    assert float(schedule(7)) == pytest.approx(float(actual[7]), rel=1e-15)


@pytest.mark.parametrize("case", slow_except(list(optimization.SCHEDULE_CASES)[::8], optimization.SCHEDULE_CASES))
def test_schedules_are_precise_in_float32(case: str) -> None:
    expected = reference(case)
    schedule = jax.jit(build(case))
    actual = np.array([schedule(jnp.int32(step)) for step in range(len(expected))])
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-16)


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial"])
def test_the_end_of_long_runs_is_precise_in_float32(name: str) -> None:
    schedule = make_schedule(name, peak=0.1, steps=1_000_000, warmup_steps=1000, power=2.0)
    left = np.array([0, 1, 2, 1000]) / 999_000
    expected = {"linear": left, "cosine": np.sin(np.pi / 2 * left) ** 2, "polynomial": left**2}[name]
    actual = schedule(1_000_000 - np.array([0, 1, 2, 1000]))
    np.testing.assert_allclose(actual, 0.1 * expected, rtol=1e-6)


@pytest.mark.fast
@pytest.mark.usefixtures("float64")
def test_warm_up_is_at_most_a_fifth() -> None:
    schedule = make_schedule("cosine", peak=0.4, steps=100, warmup_steps=10)
    expected = [*np.linspace(0.4 / 11, 0.4, 11), *half_cosine(0.4, 0.0, 91)[1:]]
    np.testing.assert_allclose(schedule(np.arange(101)), expected, rtol=1e-12, atol=1e-16)
    for name in ("constant", "linear", "cosine", "polynomial"):
        schedule = make_schedule(name, peak=0.4, steps=50, warmup_steps=50)
        np.testing.assert_allclose(schedule(np.arange(11)), np.linspace(0.4 / 11, 0.4, 11), rtol=1e-12)
        assert float(make_schedule(name, peak=0.4, steps=1, warmup_steps=5)(0)) == pytest.approx(0.4)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rising", [1, 2, 30, 59, 60, 200])
def test_one_cycle_rises_for_all_its_warm_up(rising: int) -> None:
    schedule = make_schedule("one_cycle", peak=0.5, steps=60, warmup_steps=rising)
    rising = min(rising, 59)
    rise = half_cosine(0.02, 0.5, rising) if rising > 1 else [0.5]
    expected = [*rise, *half_cosine(0.5, 2e-6, 61 - rising)[1:]]
    np.testing.assert_allclose(schedule(np.arange(60)), expected, rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_polynomial_comes_to_its_end_and_stays() -> None:
    schedule = make_schedule("polynomial", peak=0.5, steps=40, end_share=0.2, power=3.0)
    left = np.maximum(1 - np.arange(45) / 40, 0)
    np.testing.assert_allclose(schedule(np.arange(45)), 0.1 + 0.4 * left**3, rtol=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "one_cycle"])
def test_after_the_last_step_rates_stay(name: str) -> None:
    schedule = make_schedule(name, peak=0.5, steps=40, warmup_steps=4, end_share=0.1)
    assert float(schedule(40)) == float(schedule(41)) == float(schedule(1000)) < 0.06


@pytest.mark.parametrize(
    ("name", "decay_steps", "message"),
    [
        ("cosinus", (), "unknown schedule 'cosinus'; expected one of constant, step, .*cosine"),
        ("step", (), r"decay_steps=\(\) for schedule step; expected one period"),
        ("step", (10, 20), "expected one period"),
        ("step", (0,), "expected one period"),
        ("exponential", (), r"decay_steps=\(\) for schedule exponential; expected one period"),
        ("exponential", (10, 20), "expected one period"),
        ("exponential", (-3,), "expected one period"),
        ("multi_step", (), "expected increasing steps"),
        ("multi_step", (20, 10), r"decay_steps=\(20, 10\) for schedule multi_step; expected increasing"),
        ("multi_step", (10, 10), "increasing"),
        ("multi_step", (0, 10), "increasing"),
    ],
)
def test_schedules_refuse_what_they_cannot_follow(name: str, decay_steps: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_schedule(name, peak=0.1, steps=100, decay_steps=decay_steps)
