"""What the commands that list images share: readable images, and output files."""

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from jaxnets.data.sources import Source
from jaxnets.data.verification import usable
from jaxnets.errors import InputError

SUFFIXES = (".csv", ".html")


def readable(source: Source, num_classes: int, done: Callable[[int], None], say: Callable[[str], None]) -> Source:
    """The source without the images that can't be read, which are named. Raises InputError if none is left."""
    images, bad, _ = usable(source, num_classes, done)
    for image in bad:
        if not image.used:
            say(f"left out: {image.where}: {image.reason}")
    if not len(images):
        raise InputError(f"none of {len(bad)} images can be read; the first is {bad[0].where} ({bad[0].reason})")
    return images


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
