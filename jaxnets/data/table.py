"""A data set in a CSV file: a row for each image, with its path, its label and perhaps its part."""

import csv
import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxnets.data.division import Division, groups_of
from jaxnets.data.folder import FolderSource, class_order, held_out
from jaxnets.data.image_files import normalised, printable, sort_key
from jaxnets.data.part_names import PARTS, part_of
from jaxnets.data.sources import Dataset
from jaxnets.errors import InputError

_COLUMNS = ("path", "label")


@dataclass(frozen=True)
class _Row:
    """A line of the file; `values` are those of all columns, by name."""

    line: int
    path: str
    label: str
    part: str
    values: dict[str, str]


def load_table(file: Path, division: Division, *, only_test: bool = False) -> Dataset:
    """Loads the images that a CSV file names, relative to its folder, in the columns path, label and perhaps part.

    A part is train, val or test. Parts that are not there are held out of the training images as `division` says, whose
    `group_by` may also name a column. With `only_test` there need not be training images; `train` is then the same
    images as `test`, or else `val`. Raises InputError, with the line, for a row that is not complete, for an image that
    is missing or named twice, and for a class without training images.
    """
    rows = _read(file)
    class_names = class_order(sorted({row.label for row in rows}))
    if len(class_names) < 2:
        raise InputError(f"{printable(file)} has only one label, {class_names[0]!r}; expected at least two")
    labels = {name: label for label, name in enumerate(class_names)}
    of_part = {part: [row for row in rows if row.part == part] for part in PARTS}
    present = {part: rows for part, rows in of_part.items() if rows}
    sources = {
        part: FolderSource(file.parent, [(row.path, labels[row.label]) for row in rows])
        for part, rows in present.items()
    }
    train, val, test = (sources.get(part) for part in PARTS)
    origins = {part: f"by {printable(file.name)}" for part in sources if part != "train"}
    if train is None:
        judged = test or val
        if not only_test or judged is None:
            raise InputError(f"{printable(file)} has no rows of the part train; add some")
        return Dataset(file.stem, tuple(class_names), judged, test, val=val, origins=origins)
    for label, name in enumerate(class_names):
        if all(label != other for _, other in train.files):
            raise InputError(f"{printable(file)}: class {name!r} has no training images; add some, or remove its rows")
    groups = None
    if division.group_by is not None:
        groups = {part: _groups(rows, division.group_by) for part, rows in present.items()}
    dataset = Dataset(file.stem, tuple(class_names), train, test, val=val, origins=origins)
    return held_out(dataset, division, [name for name, _ in train.files], groups)


def _groups(rows: Sequence[_Row], group_by: str) -> list[str]:
    columns = rows[0].values
    if group_by not in columns:
        try:
            return groups_of([sort_key(row.path)[0] for row in rows], group_by)
        except InputError as error:
            near = difflib.get_close_matches(group_by, columns, n=1)
            hint = f"did you mean {near[0]}?" if near else "give a column, or a regular expression for the paths"
            reason = str(error).partition(";")[0]
            raise InputError(f"{reason}, and there is no such column in {', '.join(columns)}; {hint}") from None
    for row in rows:
        if not row.values[group_by]:
            raise InputError(f"line {row.line} has no {group_by}, the column to group by; fill it in")
    return [row.values[group_by] for row in rows]


def _read(file: Path) -> list[_Row]:
    name = printable(file)
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            lines = csv.reader(text, strict=True)
            header = [column.strip() for column in next(lines, [])]
            if len(set(header)) < len(header) or not set(_COLUMNS) <= set(header):
                raise InputError(
                    f"{name} has the columns {', '.join(map(repr, header)) or 'none'}; expected path, label and "
                    "perhaps part in its first line, each once"
                )
            rows = [_row(name, header, lines.line_num, values) for values in lines if values]
    except OSError as error:
        raise InputError(
            f"{name} can't be read ({error.strerror}); give a CSV file with a row for each image"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except csv.Error as error:
        raise InputError(
            f"{name} is not CSV ({error}); expected a header path,label and a row for each image"
        ) from None
    if not rows:
        raise InputError(f"{name} names no images; expected a row for each image after the header")
    first: dict[str, int] = {}
    for row in rows:
        where = os.path.normpath(file.parent / row.path)
        if first.setdefault(where, row.line) != row.line:
            raise InputError(f"{name} line {row.line}: {row.path!r} is in line {first[where]} too; remove one")
        if not os.path.isfile(where):
            raise InputError(
                f"{name} line {row.line}: no file {row.path!r} in {printable(file.parent)}; paths are relative to the "
                "CSV file"
            )
    return rows


def _row(name: str, header: Sequence[str], line: int, values: Sequence[str]) -> _Row:
    if len(values) != len(header):
        raise InputError(f"{name} line {line} has {len(values)} values; expected {len(header)}, as in the header")
    of = {column: value.strip() for column, value in zip(header, values, strict=True)}
    for column in _COLUMNS:
        if not of[column]:
            raise InputError(f"{name} line {line} has no {column}; fill it in, or remove the row")
    part = part_of(of["part"]) if "part" in of else "train"
    if part is None:
        raise InputError(f"{name} line {line}: part {of['part']!r}; expected train, val or test")
    return _Row(line, os.path.normpath(of["path"]), normalised(of["label"]), part, of)
