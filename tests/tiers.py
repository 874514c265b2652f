"""The tiers of tests, see docs/checks.md: `fast`, the default, `slow` and `exhaustive`."""

from collections.abc import Collection, Iterable
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
