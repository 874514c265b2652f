"""Single bits flipped at random places of all files of a checkpoint."""

import random
from collections.abc import Mapping
from pathlib import Path

from tests.faults.damaged_checkpoint import check_damage, drop_some_checksums, inner_files, kind_of, without_checksums
from tests.faults.group import Group

_OLDER = 8  # one in so many is the older of two


def run(case: int, folder: Path) -> Mapping[str, int]:
    """Flips a bit; each kind of file gets as many."""
    chance, flipped = random.Random(case), ""

    def damage(older: Path, newer: Path) -> Path:
        nonlocal flipped
        drop_some_checksums(chance, older, newer)
        checkpoint = older if chance.randrange(_OLDER) == 0 else newer
        files = [path for path in inner_files(checkpoint) if path.stat().st_size]
        kind = chance.choice(sorted({kind_of(path, checkpoint) for path in files}))
        path = chance.choice([path for path in files if kind_of(path, checkpoint) == kind])
        content = bytearray(path.read_bytes())
        bit = chance.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        flipped = f"bit {bit} of {kind}"
        return checkpoint

    try:
        return check_damage(folder, damage)
    except Exception as error:
        raise AssertionError(f"{flipped}: {type(error).__name__}: {error}") from error


GROUP = Group(
    fault="single bits flipped in all files of a checkpoint",
    promise="never silent: the arrays are those that were written, or the newest intact checkpoint is read",
    cases=2000,
    run=run,
    unguarded=without_checksums,
    telling=tuple(range(40)),
)
