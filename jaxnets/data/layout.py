"""Which folders of a data set hold the training, val and test images and the classes."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from jaxnets.data.image_files import printable, sort_key
from jaxnets.data.part_names import SPLITS, Part, is_numbered_piece, names_images, part_of, without_part, words_of
from jaxnets.data.top_folders import TopFolder, only_inner, top_folders, unwrapped
from jaxnets.errors import InputError

# Folders beside train/ and val/ that a data set may have; more of them are rather classes.
_MOST_IGNORED = 3
_ITSELF = "--train-folder . takes the folders themselves for classes"


@dataclass(frozen=True)
class Layout:
    """The folders that hold the class folders of each part; `val` and `test` are None if there are no such images.

    `left_out` are folders in `train` that are not classes.
    """

    train: Path
    val: Path | None = None
    test: Path | None = None
    left_out: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def judged(self) -> tuple[Path, ...]:
        """The folders of val and test images."""
        return tuple(part for part in (self.val, self.test) if part is not None)


def find_layout(
    root: Path,
    train_folder: str | None = None,
    val_folder: str | None = None,
    test_folder: str | None = None,
    *,
    only_test: bool = False,
) -> Layout:
    """Finds the folders of the parts of a data set below `root`, by their names or as given (relative to `root`).

    With `only_test` there need not be training images; `train` then is the same folder as `test`, or else `val`. Raises
    InputError if the names do not say which folders are parts and which are classes.
    """
    root = Path(os.path.abspath(root))
    val = None if val_folder is None else _folder(root, val_folder, "--val-folder")
    test = None if test_folder is None else _folder(root, test_folder, "--test-folder")
    given = tuple(part for part in (val, test) if part is not None)
    if only_test and given and train_folder is None:
        return Layout(test or given[0], val, test)
    if train_folder is None:
        layout = _by_name(root, given, only_test)
        if layout.train in layout.judged:
            return layout
    else:
        layout = _given(root, train_folder, given)
    layout = replace(layout, val=val or layout.val, test=test or layout.test)
    for name, part in (("val", layout.val), ("test", layout.test)):
        if part is None:
            continue
        if layout.train.is_relative_to(part):
            raise InputError(
                f"the training images in {printable(layout.train)} are {name} images too; give two folders"
            )
        if part.is_relative_to(layout.train):
            inside = layout.train / part.relative_to(layout.train).parts[0]
            layout = replace(layout, left_out=(*layout.left_out, inside))
    if (
        layout.val
        and layout.test
        and (layout.val.is_relative_to(layout.test) or layout.test.is_relative_to(layout.val))
    ):
        raise InputError(
            f"the images in {' and '.join(map(printable, layout.judged))} are the same, for val and for test; give two "
            "folders"
        )
    return layout


def _folder(root: Path, name: str, flag: str) -> Path:
    path = Path(os.path.normpath(root / name))
    if not os.path.isdir(path):
        raise InputError(f"{flag} {printable(name)}: no such folder in {printable(root)}")
    return path if path == Path(os.path.normpath(root)) else unwrapped(path)


def _given(root: Path, train_folder: str, given: Sequence[Path]) -> Layout:
    """The layout with the folder of training images that the user names."""
    train = _folder(root, train_folder, "--train-folder")
    tops, _ = top_folders(root, given)
    unused = [top for top in tops if top.part in SPLITS and not train.is_relative_to(top.path)]
    if train == root or given:
        unused = []
    warnings = [f"warning: {top.label}/ is not used; to use it, give --{top.part}-folder {top.label}" for top in unused]
    return Layout(train, warnings=tuple(warnings))


def _by_name(root: Path, given: Sequence[Path], only_test: bool) -> Layout:
    """The layout as the names of the folders say. `given` are folders of val or test images that are known already."""
    here = root
    tops, empty = top_folders(here, given)
    while len(tops) == 1 and (tops[0].part is None or tops[0].has_parts) and (inner := only_inner(here, given)):
        here = inner
        tops, empty = top_folders(here, given)
    training = [top for top in tops if top.part == "train" and top.names]
    if not training:
        return _classes_themselves(here, tops, only_test)
    train = _one(here, training, "--train-folder")
    only = train.names[0] if len(train.names) == 1 else ""
    if names_images(only) or part_of(only) == "train":
        raise _without_classes(here, train.inner / only, "train/")
    itself = f"--train-folder {train.label} takes the folders in it for classes"
    _refuse_parts(train.inner, top_folders(train.inner, given)[0], itself)
    warnings: list[str] = []
    others = [top.path for top in tops if top.part is None]
    has_tests = bool(given) or any(top.part in SPLITS for top in tops)
    if others and (not has_tests or len(others) > _MOST_IGNORED):
        raise InputError(
            f"{printable(others[0])} has images but is not a split; expected only train, val or test in "
            f"{printable(here)}; move it away, or give --train-folder {train.label} ({_ITSELF})"
        )
    others += [top.path for top in tops if top.part == "train" and top is not train]
    if others:
        warnings.append(f"warning: ignored beside {train.label}/: {_list(path.name + '/' for path in others)}")
    val, test = (_part(here, tops, empty, train.names, part, warnings) for part in SPLITS)
    return Layout(train.inner, val, test, (), tuple(warnings))


def _part(
    root: Path, tops: Sequence[TopFolder], empty: Sequence[Path], classes: Sequence[str], part: str, say: list[str]
) -> Path | None:
    """The folder of val or test images, or None; what is not used goes to `say`."""
    labelled = []
    for top in tops:
        if top.part == part:
            if len(top.names) > 1 or set(top.names) & set(classes):
                labelled.append(top)
            else:
                say.append(f"warning: {top.label}/ is ignored: its images are not in class folders")
    say += [
        f"warning: {printable(path.name)}/ is ignored: it has no images" for path in empty if part_of(path.name) == part
    ]
    return _one(root, labelled, f"--{part}-folder").inner if labelled else None


def _classes_themselves(here: Path, tops: Sequence[TopFolder], only_test: bool) -> Layout:
    """The layout of a folder without a folder of training images: each folder is a class."""
    nested = any(top.part is None and len(top.names) > 1 for top in tops)
    tests = [top for top in tops if top.part in SPLITS and (nested or not top.is_flat)]
    if tests:
        if only_test:
            val, test = (_part(here, tests, (), tests[0].names, part, []) for part in SPLITS)
            if judged := test or val:
                return Layout(judged, val, test)
        others = [top for top in tops if top not in tests]
        # As in rps/ and rps-test-set/.
        stem = without_part(tests[0].path.name)
        if len(tests) == len(others) == 1 and stem == tuple(words_of(others[0].path.name)):
            is_val = tests[0].part == "val"
            return Layout(others[0].inner, *((tests[0].inner, None) if is_val else (None, tests[0].inner)))
        raise InputError(
            f"{printable(here)} has {tests[0].label}/ but no train/; expected train/CLASS/IMAGE; give the folder "
            f"of training images as --train-folder ({_ITSELF})"
        )
    flat = {part: [top.path.name for top in tops if top.part == part and top.is_flat] for part in get_args(Part)}
    if flat["train"] and (flat["val"] or flat["test"]):
        raise _without_classes(here, here / flat["train"][0], "train/")
    copies = _nested_copies(tops)
    tops = [top for top in tops if top not in copies]
    _refuse_parts(here, tops)
    warnings = [
        f"warning: {top.label}/ is ignored: it has class folders of the same names as its neighbours" for top in copies
    ]
    named = [top.path.name for top in tops if top.part is not None]
    if named and len(tops) > 1:
        warnings.append(f"warning: taken for classes: {_list(named)}; if they are not, give --train-folder")
    mixed = [top for top in tops if len(top.names) > 1]
    if mixed and len(tops) > 1:
        more = f", and so are {len(mixed) - 1} others" if len(mixed) > 1 else ""
        warnings.append(
            f"warning: {mixed[0].label}/ is one class with the images of all its folders "
            f"({_list(mixed[0].names)}){more}"
        )
    return Layout(here, None, None, tuple(top.path for top in copies), tuple(warnings))


def _refuse_parts(here: Path, tops: Sequence[TopFolder], itself: str = _ITSELF) -> None:
    """Raises InputError for folders that are parts of a data set rather than classes.

    `itself` says how to take them for classes nevertheless.
    """
    for top in tops:
        if top.has_parts:
            flags = "one of them as --dataset" if len(tops) > 1 else f"--dataset {printable(top.path)}"
            raise InputError(
                f"{printable(top.path)} has folders for training and testing of its own ({_list(top.names)}); "
                f"give {flags} ({itself})"
            )
        if top.is_flat and names_images(top.path.name) and len(tops) > 1:
            raise _without_classes(here, top.path, itself=itself)
    owners: dict[str, TopFolder] = {}
    for top in tops:
        if len(top.names) > 1:
            shared = [name for name in top.names if name in owners]
            for other, count in Counter(owners[name] for name in shared).items():
                if count > 1 and any(map(names_images, shared)):
                    raise InputError(
                        f"the classes in {printable(here)} have the same folders inside ({_list(shared)}); remove "
                        f"those that are not photos, such as masks, or move the photos up ({itself})"
                    )
                if count > 1:
                    raise InputError(
                        f"{printable(here)} has parts rather than classes: {_list(top.path.name for top in tops)} have "
                        f"the same class folders ({_list(shared)}); name the part to train on with --train-folder, "
                        f"such as --train-folder {other.label}, and others with --val-folder and --test-folder "
                        f"({itself})"
                    )
            owners |= {name: top for name in top.names if name not in owners}
    if is_numbered_piece([top.path.name for top in tops]):
        raise InputError(
            f"{_list(top.path.name for top in tops)} in {printable(here)} are numbered parts rather than classes; "
            f"expected {printable(here)}/CLASS/IMAGE ({itself})"
        )
    # As in SUN397 and Places365: a/abbey, a/airport, b/beach.
    if len(tops) > 1 and all(_is_initial(top) for top in tops):
        raise InputError(
            f"the folders in {printable(here)} are initials of classes ({_list(top.path.name for top in tops)}); "
            f"move the class folders together into one folder ({itself})"
        )


def _without_classes(here: Path, images: Path, part: str = "", itself: str = _ITSELF) -> InputError:
    return InputError(
        f"the images in {printable(images)} are not in class folders; expected {printable(here)}/{part}CLASS/IMAGE "
        f"({itself})"
    )


def _is_initial(top: TopFolder) -> bool:
    letter = top.path.name.lower()
    return re.fullmatch("[a-z]", letter) is not None and all(
        name.lower().startswith(letter) for name in top.names or "?"
    )


def _nested_copies(tops: Sequence[TopFolder]) -> list[TopFolder]:
    """The folders whose class folders, at least two, are all named as classes beside them."""
    names = {sort_key(top.path.name)[0] for top in tops}
    return [top for top in tops if not top.is_flat and len(top.names) > 1 and set(top.names) <= names]


def _one(root: Path, tops: Sequence[TopFolder], flag: str) -> TopFolder:
    """The folder whose name is exactly that of the part, or else the only one."""
    tops = [top for top in tops if len(words_of(top.path.name)) == 1] or tops
    if len(tops) > 1:
        raise InputError(
            f"{printable(root)} has both {tops[0].label}/ and {tops[1].label}/; rename or remove one, or give "
            f"one as {flag}"
        )
    return tops[0]


def _list(names: Iterable[str], most: int = 4) -> str:
    names = [printable(name) for name in names]
    return ", ".join(names[:most]) + (f", ... ({len(names)})" if len(names) > most else "")
