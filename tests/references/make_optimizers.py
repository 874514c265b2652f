"""Writes optimizers.npz: torch's parameters and learning rates in float64 for the cases of optimization.py.

Needs torch (made with 2.14.1):  python -m tests.references.make_optimizers

Three parts differ from torch. Gradients are clipped here, as clip_grad_norm_ adds 1e-6 to the norm. Decoupled decay is
added here to all optimisers but AdamW and Muon, which have it. Muon orthogonalises in float64 rather than bfloat16.
"""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.optim import lr_scheduler

from tests.references import optimization


def to_torch(array: np.ndarray, matrix: bool) -> torch.Tensor:
    """Converts a kernel [..., in, out] to [out, in, ...], or to a matrix [out, in * ...]."""
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif array.ndim == 2:
        array = array.T
    return torch.from_numpy(array.reshape(len(array), -1).copy() if matrix and array.ndim > 1 else array.copy())


def to_jax(tensor: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    array = tensor.numpy()
    if len(shape) == 4:
        return array.reshape(shape[3], shape[2], *shape[:2]).transpose(2, 3, 1, 0)
    return array.T


def build(name: str, momentum: float, kernels: dict[str, Any], others: dict[str, Any]) -> list[torch.optim.Optimizer]:
    groups, betas = [kernels, others], (momentum, 0.999)
    match name:
        case "sgd":
            return [torch.optim.SGD(groups)]
        case "momentum" | "nesterov":
            return [torch.optim.SGD(groups, momentum=momentum, nesterov=name == "nesterov")]
        case "adagrad":
            return [torch.optim.Adagrad(groups)]
        case "rmsprop":
            return [torch.optim.RMSprop(groups)]
        case "adam":
            return [torch.optim.Adam(groups, betas=betas)]
        case "adamw":
            return [torch.optim.AdamW(groups, betas=betas)]
    return [torch.optim.Muon([kernels], momentum=momentum), torch.optim.AdamW([others])]


def trained(name: str, options: dict[str, Any]) -> np.ndarray:
    """The fingerprints of the parameters after each of the steps KEPT: [steps, 7 * parameters]."""
    params = {key: to_torch(array, name == "muon") for key, array in optimization.initial_params().items()}
    decay = options.get("weight_decay", 0.0)
    decays = (decay, decay if options.get("decay_norms_and_biases") else 0.0)
    by_hand = options.get("decoupled_weight_decay", False) and name not in ("adamw", "muon")
    groups = [
        {"params": [p for p in params.values() if (p.ndim > 1) == kernel], "weight_decay": 0.0 if by_hand else share}
        for kernel, share in zip((True, False), decays, strict=True)
    ]
    optimizers = build(name, options.get("momentum", 0.9), *groups)
    results, clipped = [], set()
    for step in range(optimization.STEPS):
        gradients = {key: to_torch(g, name == "muon") for key, g in optimization.gradients(step).items()}
        if clip_norm := options.get("clip_norm"):
            norm = torch.sqrt(sum((g**2).sum() for g in gradients.values()))
            clipped.add(bool(norm > clip_norm))
            gradients = {key: g * min(1.0, clip_norm / norm) for key, g in gradients.items()}
        rate = optimization.learning_rate(step)
        for key, param in params.items():
            param.grad = gradients[key]
            if by_hand:
                param.mul_(1 - rate * decays[0 if param.ndim > 1 else 1])
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        if step + 1 in optimization.KEPT:
            arrays = {key: to_jax(param, optimization.SHAPES[key]) for key, param in params.items()}
            results.append(optimization.fingerprints(arrays))
    assert clipped in (set(), {True, False}), "some gradients should be clipped and some not"
    return np.array(results)


def learning_rates(name: str, options: dict[str, Any]) -> np.ndarray:
    """The learning rates after 0, 1, ... steps; one_cycle has none after the last step."""
    peak, steps, warmup = optimization.PEAK, optimization.SCHEDULE_STEPS, options["warmup_steps"]
    period = options.get("decay_steps", (0,))
    factor, end = options.get("decay_factor", 0.1), options.get("end_share", 0.0)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    left = steps - warmup

    def warm_up() -> Any:
        return lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)

    def after_warm_up(main: Any) -> Any:
        return lr_scheduler.SequentialLR(optimizer, [warm_up(), main], [warmup]) if warmup else main

    def times_warm_up(main: Any) -> Any:
        return lr_scheduler.ChainedScheduler([warm_up(), main]) if warmup else main

    match name:
        case "constant":
            scheduler = times_warm_up(lr_scheduler.ConstantLR(optimizer, factor=1.0))
        case "step":
            scheduler = times_warm_up(lr_scheduler.StepLR(optimizer, period[0], gamma=factor))
        case "multi_step":
            scheduler = times_warm_up(lr_scheduler.MultiStepLR(optimizer, period, gamma=factor))
        case "exponential":
            scheduler = times_warm_up(lr_scheduler.ExponentialLR(optimizer, gamma=factor ** (1 / period[0])))
        case "linear":
            main = lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=end, total_iters=left)
            scheduler = after_warm_up(main)
        case "cosine":
            scheduler = after_warm_up(lr_scheduler.CosineAnnealingLR(optimizer, left, eta_min=end * peak))
        case "polynomial":
            scheduler = after_warm_up(lr_scheduler.PolynomialLR(optimizer, left, power=options["power"]))
        case _:
            scheduler = lr_scheduler.OneCycleLR(
                optimizer, peak, total_steps=steps, pct_start=warmup / steps, cycle_momentum=False
            )
            steps -= 1
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return np.array(rates)


def main() -> None:
    torch.set_default_dtype(torch.float64)
    results = {}
    with patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
        for case, (name, options) in optimization.OPTIMIZER_CASES.items():
            results[case] = trained(name, options)
    for case, (name, options) in optimization.SCHEDULE_CASES.items():
        results[f"schedule/{case}"] = learning_rates(name, options)
        print(case, results[f"schedule/{case}"][[0, 1, 8, 20, -2, -1]])
    np.savez_compressed(Path(__file__).with_name("optimizers.npz"), **results)


if __name__ == "__main__":
    main()
