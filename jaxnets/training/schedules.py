"""Learning rates over the steps of a run, by name: torch's schedulers of those names."""

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
    """The schedule `name` over `steps` steps; raises InputError for an unknown one and for unfit `decay_steps`.

    The rate rises linearly to `peak`, reached after `warmup_steps` or a fifth of all if that is less, except:
    one_cycle rises by a half cosine, from peak / 25, reached at the last of `warmup_steps`, and falls to peak / 250000
    at the last step (Smith & Topin 2018, without the cycle of the momentum).

    step multiplies by `decay_factor` after every `decay_steps[0]` steps, exponential evenly so that it comes to the
    same, multi_step at each of `decay_steps`; all three count from the start of training, so warm-up multiplies.
    linear, cosine (a half one) and polynomial (of `power`) fall to `end_share` of the peak over the steps after it.
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
        # First of all a float: JAX divides two 32-bit integers in 32 bits even where 64 are enabled.
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
    """(1 - cos(pi * share)) / 2, from 0 to 1; as a square it is as precise near 0 as elsewhere."""
    return jnp.sin(jnp.pi / 2 * share) ** 2
