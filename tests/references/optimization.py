"""The cases, parameters and gradients of the optimiser references, in NumPy, for both torch and jaxnets."""

from typing import Any

import numpy as np

from tests.references.recipe import fingerprint

SHAPES = {"conv": (3, 3, 4, 6), "conv_bias": (6,), "dense": (10, 7), "dense_bias": (7,)}
STEPS, KEPT = 50, (1, 2, 10, 50)
# Close to the median norm of the gradients, so that some of them are clipped.
CLIP_NORM = 14.0
_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "decay_everywhere": {"weight_decay": 0.1, "decay_norms_and_biases": True},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "decoupled_everywhere": {"weight_decay": 0.1, "decoupled_weight_decay": True, "decay_norms_and_biases": True},
    "clip": {"clip_norm": CLIP_NORM, "weight_decay": 0.1, "momentum": 0.8},
}
TORCH_OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "muon")
# Name -> optimizer, options of make_optimizer.
OPTIMIZER_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{optimizer}/{variant}": (optimizer, options)
    for optimizer in TORCH_OPTIMIZERS
    for variant, options in _VARIANTS.items()
    if not (optimizer in ("adamw", "muon") and "decoupled_weight_decay" in options)
}

PEAK, SCHEDULE_STEPS = 0.3, 60
_SCHEDULES: dict[str, tuple[str, dict[str, Any]]] = {
    "constant": ("constant", {}),
    "step": ("step", {"decay_steps": (17,)}),
    "step_factor": ("step", {"decay_steps": (5,), "decay_factor": 0.7}),
    "multi_step": ("multi_step", {"decay_steps": (5, 20, 41)}),
    "exponential": ("exponential", {"decay_steps": (24,)}),
    "exponential_factor": ("exponential", {"decay_steps": (7,), "decay_factor": 0.8}),
    "linear": ("linear", {}),
    "linear_end": ("linear", {"end_share": 0.05}),
    "cosine": ("cosine", {}),
    "cosine_end": ("cosine", {"end_share": 0.05}),
    "polynomial": ("polynomial", {"power": 0.9}),
    "polynomial_square": ("polynomial", {"power": 2.0}),
    "one_cycle": ("one_cycle", {}),
}
# Name -> schedule, options of make_schedule without `peak` and `steps`.
SCHEDULE_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name}/{warmup_steps}": (schedule, options | {"warmup_steps": warmup_steps})
    for name, (schedule, options) in _SCHEDULES.items()
    for warmup_steps in ((0, 18, 59) if schedule == "one_cycle" else (0, 1, 8))
}


def initial_params() -> dict[str, np.ndarray]:
    stream = np.random.RandomState(0)
    return {name: 0.3 * stream.standard_normal(shape) for name, shape in SHAPES.items()}


def gradients(step: int) -> dict[str, np.ndarray]:
    stream = np.random.RandomState(1 + step)
    tree = {name: stream.uniform(0.3, 1.2) * stream.standard_normal(shape) for name, shape in SHAPES.items()}
    for gradient in tree.values():
        # A zero gradient, and gradients so small that the position of epsilon matters.
        gradient.flat[0] = 0
        gradient.flat[1:3] *= (1e-9, 1e-7)
    return tree


def learning_rate(step: Any) -> Any:
    return 0.05 / (1 + 0.1 * step)


def fingerprints(params: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([fingerprint(name, params[name]) for name in SHAPES])
