"""The tiers of tests, see docs/checks.md: `fast`, the default, `slow` and `exhaustive`."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest


def slow_except(default: Collection[Any], cases: Iterable[Any], exhaustive: Collection[Any] = ()) -> list[Any]:
    """The cases as parameters of a test: those in `default`, those in `exhaustive`, and the others as slow ones.

    Cases of several arguments are tuples.
    """
    cases = list(cases)
    unknown = [case for case in (*default, *exhaustive) if case not in cases]
    assert not unknown, f"{unknown} are not among the cases"
    params = []
    for case in cases:
        marks = () if case in default else pytest.mark.exhaustive if case in exhaustive else pytest.mark.slow
        params.append(pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks))
    return params


# Files whose tests are in the fast tier, unless they are in a slower one. Other files mark single tests as fast.
FAST = (
    "benchmarking/test_data.py",
    "data/test_batches.py",
    "data/test_cropping.py",
    "data/test_datasets.py",
    "data/test_preprocessing.py",
    "docs/test_commands.py",
    "docs/test_links.py",
    "experiments/test_console.py",
    "experiments/test_train_options.py",
    "models/test_batch_norm.py",
    "models/test_features.py",
    "ops/cpu/test_fallback.py",
    "ops/cpu/test_grouped_convolution.py",
    "ops/cpu/test_grouped_gradient.py",
    "ops/cpu/test_own_pooling.py",
    "ops/cpu/test_pixel_products.py",
    "ops/cpu/test_winograd.py",
    "ops/test_conv.py",
    "ops/test_norm.py",
    "ops/test_pool.py",
    "test_package.py",
    "training/test_checkpoint.py",
    "training/test_custom.py",
    "training/test_metrics.py",
    "training/test_step.py",
    "weights/test_catalogue.py",
    "weights/test_torch_formats.py",
)
_SLOWER = ("slow", "exhaustive", "cuda", "torch")


def mark_fast(items: Iterable[pytest.Item]) -> None:
    """Puts the tests of the files in `FAST` into the fast tier."""
    folder = Path(__file__).parent
    for item in items:
        if item.path.relative_to(folder).as_posix() in FAST and not any(map(item.get_closest_marker, _SLOWER)):
            item.add_marker(pytest.mark.fast)
