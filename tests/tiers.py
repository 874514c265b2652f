"""The tiers of tests, see docs/checks.md: `fast`, the default, `slow` and `exhaustive`."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest


def slow_except(
    default: Collection[Any], cases: Iterable[Any], exhaustive: Collection[Any] = (), fast: Collection[Any] = ()
) -> list[Any]:
    """The cases as parameters of a test: those in `default`, those in `exhaustive`, and the others as slow ones.

    Those in `fast`, a part of `default`, are in the fast tier too. Cases of several arguments are tuples.
    """
    cases = list(cases)
    unknown = [case for case in (*default, *exhaustive, *fast) if case not in cases]
    assert not unknown, f"{unknown} are not among the cases"
    params = []
    for case in cases:
        marks = [] if case in default else [pytest.mark.exhaustive if case in exhaustive else pytest.mark.slow]
        marks += [pytest.mark.fast] * (case in fast)
        params.append(pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks))
    return params


# Files whose tests are in the fast tier. In other files, single tests have its mark.
FAST = (
    "data/test_batches.py",
    "data/test_cropping.py",
    "data/test_datasets.py",
    "data/test_preprocessing.py",
    "docs/test_commands.py",
    "docs/test_links.py",
    "experiments/test_console.py",
    "experiments/test_train_options.py",
    "ops/cpu/test_grouped_convolution.py",
    "ops/cpu/test_grouped_gradient.py",
    "ops/cpu/test_own_pooling.py",
    "ops/cpu/test_winograd.py",
    "test_package.py",
    "training/test_checkpoint.py",
    "training/test_metrics.py",
    "training/test_step.py",
    "weights/test_catalogue.py",
    "weights/test_torch_formats.py",
)
_SLOWER = ("slow", "exhaustive", "cuda", "torch")


def mark_fast(items: Iterable[pytest.Item]) -> None:
    """Puts the tests of the files in `FAST` into the fast tier. Tests of slower tiers are never in it."""
    folder = Path(__file__).parent
    for item in items:
        if any(map(item.get_closest_marker, _SLOWER)):
            item.own_markers = [mark for mark in item.own_markers if mark.name != "fast"]
        elif item.path.relative_to(folder).as_posix() in FAST:
            item.add_marker(pytest.mark.fast)
