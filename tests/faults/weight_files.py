"""Mutations of good weight files of all formats, opened in a process with little memory that may run nothing."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.group import Group
from tests.weights.test_hostile_weights import GOOD, work

_AT_ONCE = 100


def _run(case: int, folder: Path) -> dict[str, int]:
    results = work("mutations", GOOD, str(_AT_ONCE), str(case * _AT_ONCE), cwd=folder)
    assert len(results) == _AT_ONCE
    assert not list(folder.iterdir()), list(folder.iterdir())
    for result in results:
        assert result["outcome"] in ("accepted", "refused"), result
        assert "\n" not in result["message"], result
        # An archive's checksums detect all changes of what is read.
        assert result["kind"] != "zip" or result["outcome"] == "refused" or result["same"], result
    refused = Counter(result["outcome"] for result in results)["refused"]
    return {"refused in one line": refused, "read whole": _AT_ONCE - refused}


@contextmanager
def _unguarded() -> Iterator[None]:
    """Python's pickle, which imports what a file names, reads the pickles; the watcher stops it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXNETS_TESTS_WITH_PLAIN_PICKLE", "1")
        yield


GROUP = Group(
    fault="10,000 mutations of good weight files of all formats, 100 a case",
    promise="nothing is run, at most 400 MB and 5 s of processor time, refused in one line or read whole; a "
    "changed zip archive is never read as good",
    cases=100,
    run=_run,
    unguarded=_unguarded,
    telling=(0,),
)
