"""Whether files are as they were written: python -m experiments.verify PATH..."""

import sys
from pathlib import Path

from experiments.arguments import parser_of
from experiments.command import run
from jaxnets.errors import InputError
from jaxnets.training.progress import counting
from jaxnets.verification import faults_of, items_in


def main() -> None:
    """Checks all checkpoints, prepared records and weight files in folders, and names what is damaged.

    The exit code is 0 if nothing is, and 1 otherwise.
    """
    parser = parser_of("verify", main.__doc__)
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="path", help="folder, such as that of a run, or file of weights"
    )
    items = []
    for path in parser.parse_args().paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; give runs, prepared records or files of weights")
        found = items_in(path)
        if not found:
            raise InputError(f"{path} holds no checkpoint, prepared records or files of weights; give another folder")
        items += found
    with counting("verifying", sum(item.checks for item in items)) as (done, _):
        faults = list(faults_of(items, done))
    for fault in faults:
        print(fault)
    counts = [
        f"{count:,} {kind}{'s' * (count != 1)}"
        for kind in ("checkpoint", "record", "weight file")
        if (count := sum(item.checks for item in items if item.kind == kind))
    ]
    print(f"{', '.join(counts)}: {f'{len(faults):,} damaged' if faults else 'all intact'}")
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
