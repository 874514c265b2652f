"""Which folders of a data set hold the training images, the test images and the classes."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from jaxnets.data.image_files import printable, sort_key
from jaxnets.data.part_names import SPLITS, Part, is_numbered_piece, names_images, part_of, without_part, words_of
from jaxnets.data.top_folders import TopFolder, only_inner, top_folders, unwrapped, with_images
from jaxnets.errors import InputError

# Folders beside train/ and val/ that a data set may have; more of them are rather classes.
_MOST_IGNORED = 3
_ITSELF = "--train-folder . takes the folders themselves for classes"


@dataclass(frozen=True)
class Layout:
    """The folders that hold the class folders of training and of testing; `test` is None if there are no test images.

    `left_out` are folders in `train` that are not classes.
    """

    train: Path
    test: Path | None = None
    left_out: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()


def find_layout(
    root: Path,
    train_folder: str | None = None,
    test_folder: str | None = None,
    split: str | None = None,
    *,
    only_test: bool = False,
) -> Layout:
    """Finds the folders of training and test images below `root`, by their names or as given (relative to `root`).

    `split` is the part to test on, "val" or "test"; by default the first of them that is there. With `only_test` there
    need not be training images; `train` then is the same folder as `test`. Raises InputError if the names do not say
    which folders are parts and which are classes.
    """
    root = Path(os.path.abspath(root))
    test = None if test_folder is None else _folder(root, test_folder, "--test-folder")
    if only_test and test is not None and train_folder is None:
        return Layout(test, test)
    if train_folder is None:
        layout = _by_name(root, split, test, only_test)
        if layout.train == layout.test:
            return layout
    else:
        layout = _given(root, train_folder, split, test)
    if test is not None:
        layout = replace(layout, test=test)
    if layout.test is not None:
        if layout.train.is_relative_to(layout.test):
            raise InputError(f"the training images in {printable(layout.train)} are test images too; give two folders")
        if layout.test.is_relative_to(layout.train):
            inside = layout.train / layout.test.relative_to(layout.train).parts[0]
            layout = replace(layout, left_out=(*layout.left_out, inside))
    return layout


def _folder(root: Path, name: str, flag: str) -> Path:
    path = Path(os.path.normpath(root / name))
    if not os.path.isdir(path):
        raise InputError(f"{flag} {printable(name)}: no such folder in {printable(root)}")
    return path if path == Path(os.path.normpath(root)) else unwrapped(path)


def _given(root: Path, train_folder: str, split: str | None, test: Path | None) -> Layout:
    """The layout with the folder of training images that the user names."""
    train = _folder(root, train_folder, "--train-folder")
    tops, empty = top_folders(root, test)
    if split is not None:
        names = [sort_key(path.name)[0] for path in with_images(train)[0]]
        return Layout(train, _test_part(root, tops, empty, names, split, []))
    unused = [top.label for top in tops if top.part in SPLITS and not train.is_relative_to(top.path)]
    if train == root or test is not None:
        unused = []
    warnings = [f"warning: {name}/ is not used; to test on it, give --test-folder {name}" for name in unused]
    return Layout(train, None, (), tuple(warnings))


def _by_name(root: Path, split: str | None, test: Path | None, only_test: bool) -> Layout:
    """The layout as the names of the folders say. `test` is a folder of test images that is known already."""
    here = root
    tops, empty = top_folders(here, test)
    while len(tops) == 1 and (tops[0].part is None or tops[0].has_parts) and (inner := only_inner(here, test)):
        here = inner
        tops, empty = top_folders(here, test)
    training = [top for top in tops if top.part == "train" and top.names]
    if not training:
        return _classes_themselves(here, tops, split, only_test)
    train = _one(here, training, "--train-folder")
    only = train.names[0] if len(train.names) == 1 else ""
    if names_images(only) or part_of(only) == "train":
        raise _without_classes(here, train.inner / only, "train/")
    itself = f"--train-folder {train.label} takes the folders in it for classes"
    _refuse_parts(train.inner, top_folders(train.inner, test)[0], itself)
    warnings: list[str] = []
    others = [top.path for top in tops if top.part is None]
    has_tests = test is not None or any(top.part in SPLITS for top in tops)
    if others and (not has_tests or len(others) > _MOST_IGNORED):
        raise InputError(
            f"{printable(others[0])} has images but is not a split; expected only train, val or test in "
            f"{printable(here)}; move it away, or give --train-folder {train.label} ({_ITSELF})"
        )
    others += [top.path for top in tops if top.part == "train" and top is not train]
    if others:
        warnings.append(f"warning: ignored beside {train.label}/: {_list(path.name + '/' for path in others)}")
    if test is None:
        test = _test_part(here, tops, empty, train.names, split, warnings)
    return Layout(train.inner, test, (), tuple(warnings))


def _test_part(
    root: Path,
    tops: Sequence[TopFolder],
    empty: Sequence[Path],
    classes: Sequence[str],
    split: str | None,
    say: list[str],
) -> Path | None:
    """The folder of test images; what is not used goes to `say`. Raises InputError if there is none for `split`."""
    for wanted in SPLITS if split is None else (split,):
        labelled = []
        for top in tops:
            if top.part == wanted:
                if len(top.names) > 1 or set(top.names) & set(classes):
                    labelled.append(top)
                else:
                    say.append(f"warning: {top.label}/ is ignored: its images are not in class folders")
        say += [
            f"warning: {printable(path.name)}/ is ignored: it has no images"
            for path in empty
            if part_of(path.name) == wanted
        ]
        if labelled:
            return _one(root, labelled, "--test-folder").inner
    if split is not None:
        raise InputError(f"{printable(root)} has no {split}/ with class folders; leave out --split {split}")
    return None


def _classes_themselves(here: Path, tops: Sequence[TopFolder], split: str | None, only_test: bool) -> Layout:
    """The layout of a folder without a folder of training images: each folder is a class."""
    nested = any(top.part is None and len(top.names) > 1 for top in tops)
    tests = [top for top in tops if top.part in SPLITS and (nested or not top.is_flat)]
    if tests:
        if only_test and (part := _test_part(here, tests, (), tests[0].names, split, [])):
            return Layout(part, part)
        others = [top for top in tops if top not in tests]
        # As in rps/ and rps-test-set/.
        stem = without_part(tests[0].path.name)
        if (
            len(tests) == len(others) == 1
            and stem == tuple(words_of(others[0].path.name))
            and split in (None, tests[0].part)
        ):
            return Layout(others[0].inner, tests[0].inner)
        raise InputError(
            f"{printable(here)} has {tests[0].label}/ but no train/; expected train/CLASS/IMAGE; give the folder "
            f"of training images as --train-folder ({_ITSELF})"
        )
    flat = {part: [top.path.name for top in tops if top.part == part and top.is_flat] for part in get_args(Part)}
    if flat["train"] and (flat["val"] or flat["test"]):
        raise _without_classes(here, here / flat["train"][0], "train/")
    if split is not None:
        raise InputError(f"{printable(here)} has no {split}/ with class folders; leave out --split {split}")
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
    return Layout(here, None, tuple(top.path for top in copies), tuple(warnings))


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
                        f"such as --train-folder {other.label}, and that to test on with --test-folder ({itself})"
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
