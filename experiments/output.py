"""The files that commands write: a name that is free, and a whole file or none."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from jaxnets.csv_file import write_csv
from jaxnets.errors import InputError

LISTS = (".csv", ".html")
FIGURES = (".png", ".svg")


def check_output(output: Path | None, suffixes: Sequence[str] = (), flag: str = "--output") -> None:
    """Raises InputError if the file exists or can't be created, or if its name ends in none of the suffixes, if any."""
    if output is None:
        return
    if suffixes and output.suffix.lower() not in suffixes:
        raise InputError(f"{flag} {output}; expected a name that ends in {' or '.join(suffixes)}")
    if output.exists():
        raise InputError(f"{flag} {output} exists already; give another name or remove it")
    check_folder_of(output, flag)


def check_folder_of(output: Path, flag: str = "--output") -> None:
    """Raises InputError if the folder of a file to write does not exist, or if no file can be created in it."""
    folder = output.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{flag} {output}: no folder {folder}; create it, or give another name")
    _try_to_write(output, folder, flag)


def check_new_folder_of(output: Path, flag: str = "--output") -> None:
    """Raises InputError if a folder to write can't be created, or if no file can be created in it."""
    _try_to_write(output, next(path for path in (output, *output.absolute().parents) if path.exists()), flag)


def _try_to_write(output: Path, folder: Path, flag: str) -> None:
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{flag} {output} can't be written ({error.strerror}); give another name") from None


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """The path OUTPUT.new for a file that takes the place of `output` at the end, or is removed after an exception."""
    new = output.with_name(f"{output.name}.new")
    try:
        yield new
        new.replace(output)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def write_page(output: Path, page: str) -> None:
    """Writes an HTML page."""
    with replacing(output) as new:
        new.write_text(page, encoding="utf-8", errors="backslashreplace")


def write_rows(output: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV file."""
    with replacing(output) as new:
        write_csv(new, columns, rows)


def write_figure(output: Path, figure: Any) -> None:
    """Writes a matplotlib figure in the format of the name's ending."""
    with replacing(output) as new:
        figure.savefig(new, format=output.suffix.lower().removeprefix("."), dpi=150)
    print(f"figure in {output}")
