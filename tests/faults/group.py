"""Groups of cases: each case does one fault to jaxnets, by its number alone, and checks what was promised."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

# In the order of the table. Each is a module of this package.
GROUPS = (
    "kills",
    "signals",
    "checkpoint_bits",
    "checkpoint_files",
    "disks",
    "not_finite",
    "processes",
    "starts",
    "weight_files",
    "images",
    "records",
    "archives",
    "mistakes",
)


@dataclass(frozen=True)
class Group:
    """Cases 0 to `cases` - 1 of one kind of fault.

    `fault` and `promise` are its cells of the table. `run(case, folder)` does the fault in an empty folder, raises
    AssertionError if the promise is broken, and returns counts of what happened, such as {"fell back": 1}. Its
    randomness comes from `case` alone. `unguarded()` takes the guard out, in this process and its children: then at
    least one of `telling` cases has to fail. A case that takes more than `seconds` hangs.
    """

    fault: str
    promise: str
    cases: int
    run: Callable[[int, Path], Mapping[str, int]]
    unguarded: Callable[[], AbstractContextManager[None]]
    telling: tuple[int, ...]
    seconds: float = 120


def load_group(name: str) -> Group:
    """The group of a name in `GROUPS`."""
    group: Group = import_module(f"tests.faults.{name}").GROUP
    return group
