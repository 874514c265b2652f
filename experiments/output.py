"""The files that commands write."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxnets.errors import InputError

SUFFIXES = (".csv", ".html")


def check_output(output: Path | None, suffixes: Sequence[str] = SUFFIXES, flag: str = "--output") -> None:
    """Raises InputError unless the name ends in one of the suffixes and no such file exists."""
    if output is None:
        return
    if output.suffix.lower() not in suffixes:
        raise InputError(f"{flag} {output}; expected a name that ends in {' or '.join(suffixes)}")
    if output.exists():
        raise InputError(f"{flag} {output} exists already; give another name or remove it")
    if not output.absolute().parent.is_dir():
        raise InputError(f"{flag} {output}: no folder {output.absolute().parent}; create it, or give another name")


def write_page(output: Path, page: str) -> None:
    """Writes an HTML page."""
    new = output.with_name(f"{output.name}.new")
    new.write_text(page, encoding="utf-8", errors="backslashreplace")
    new.replace(output)


def write_rows(output: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV file."""
    new = output.with_name(f"{output.name}.new")
    with new.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    new.replace(output)
