"""A share of the cases of each group, and each guard taken out once. All cases: python -m tests.faults."""

from pathlib import Path

import jax
import pytest

from tests.faults.group import GROUPS, load_group
from tests.faults.running import run_cases

pytestmark = pytest.mark.faults
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_SHARE = 20  # one in so many cases is done here


def test_the_page_has_the_counts_of_each_group() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    counted = {row[0].removeprefix("| "): row for row in rows if len(row) == 6}
    for name in GROUPS:
        group = load_group(name)
        _, promise, cases, failed, *_ = counted[group.fault]
        assert (promise, cases, failed) == (group.promise, f"{group.cases:,}", "0")


def _cache() -> Path:
    return Path(jax.config.jax_compilation_cache_dir) / "faults"


@pytest.mark.parametrize("name", GROUPS)
def test_what_was_promised_holds(name: str) -> None:
    group = load_group(name)
    results = list(run_cases(name, range(0, group.cases, _SHARE), _cache()))
    assert len(results) == len(range(0, group.cases, _SHARE))
    assert not [result for result in results if result["error"]]


@pytest.mark.parametrize("name", GROUPS)
def test_without_its_guard_it_does_not(name: str) -> None:
    group = load_group(name)
    results = run_cases(name, group.telling, _cache(), unguarded=True)
    assert [result for result in results if result["error"]]
