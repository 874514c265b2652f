"""Learning rate schedules by name, as torch's schedulers of the same names."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.errors import InputError

# The step, counted from 0, as a JAX array or an int -> the learning rate.
Schedule = Callable[[Any], Any]

SCHEDULES: tuple[str, ...] = (
    "constant",
    "step",
    "multi_step",
    "exponential",
    "linear",
    "cosine",
    "polynomial",
    "one_cycle",
)


def make_schedule(
    name: str,
    *,
    peak: float,
    steps: int,
    warmup_steps: int = 0,
    decay_steps: tuple[int, ...] = (),
    decay_factor: float = 0.1,
    end_share: float = 0.0,
    power: float = 1.0,
) -> Schedule:
    """The schedule `name` over `steps` steps; raises InputError for an unknown name and invalid `decay_steps`.

    The rate first rises linearly to `peak` over `warmup_steps`, or over a fifth of all steps if that is less. one_cycle
    rises along half a cosine from peak / 25 to the peak at the last of `warmup_steps`, and falls along another to
    peak / 250000 at the last step (Smith & Topin 2018, without the cycle of the momentum).

    step multiplies the rate by `decay_factor` after every `decay_steps[0]` steps, exponential does the same
    continuously, and multi_step multiplies it at each of `decay_steps`; all three count from the start of training.
    linear, cosine and polynomial (with exponent `power`) fall to `end_share` of the peak between the warm-up and the
    last step.
    """
    if name not in SCHEDULES:
        raise InputError(f"unknown schedule {name!r}; expected one of {', '.join(SCHEDULES)}")
    if name in ("step", "exponential") and (len(decay_steps) != 1 or decay_steps[0] < 1):
        raise InputError(f"decay_steps={decay_steps} for schedule {name}; expected one period, such as (1000,)")
    if name == "multi_step" and not (decay_steps and all(a < b for a, b in pairwise((0, *decay_steps)))):
        raise InputError(
            f"decay_steps={decay_steps} for schedule {name}; expected increasing steps, such as (1000, 2000)"
        )
    if name == "one_cycle":
        return _one_cycle(peak, steps, min(warmup_steps, steps - 1))
    warmup_steps = min(warmup_steps, steps // 5)

    def schedule(step: Any) -> Any:
        # JAX divides two 32-bit integers in 32 bits even if 64 are enabled.
        step = jnp.asarray(step, float)
        left = jnp.clip((steps - step) / (steps - warmup_steps), 0, 1)
        match name:
            case "step":
                share = decay_factor ** (step // decay_steps[0])
            case "multi_step":
                share = decay_factor ** sum(jnp.where(step < at, 0.0, 1.0) for at in decay_steps)
            case "exponential":
                share = decay_factor ** (step / decay_steps[0])
            case "linear":
                share = end_share + (1 - end_share) * left
            case "cosine":
                share = end_share + (1 - end_share) * _half_cosine(left)
            case "polynomial":
                share = end_share + (1 - end_share) * left**power
            case _:
                share = 1.0
        return peak * share * jnp.minimum((step + 1) / (warmup_steps + 1), 1)

    return schedule


def _one_cycle(peak: float, steps: int, rising_steps: int) -> Schedule:
    top = rising_steps - 1

    def schedule(step: Any) -> Any:
        step = jnp.asarray(step, float)
        rises = step < top
        low = jnp.where(rises, peak / 25, peak / 25 / 1e4)
        share = jnp.where(rises, step / max(top, 1), (steps - 1 - step) / (steps - 1 - top))
        return low + (peak - low) * _half_cosine(jnp.clip(share, 0, 1))

    return schedule


def _half_cosine(share: jax.Array) -> jax.Array:
    """(1 - cos(pi * share)) / 2, from 0 to 1, written as a square to be precise near 0."""
    return jnp.sin(jnp.pi / 2 * share) ** 2
