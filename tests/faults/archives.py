"""Names from elsewhere, of archives, data sets and class folders: nothing is written outside of the target."""

import contextlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from jaxnets.data.division import Division
from jaxnets.data.folder import load_folder
from jaxnets.data.records import write_records
from jaxnets.errors import InputError
from jaxnets.training.config import Config
from jaxnets.training.new_workdir import new_workdir
from jaxnets.training.recipes import recipe_for
from jaxnets.weights.tensor_file import open_tensors
from tests.faults.group import Group
from tests.weights.test_hostile_weights import state, tensor, zipped

_ODD = (
    "../{}", "../../{}", "a/../../{}", "./../{}", "/tmp/jaxnets-{}", "//{}", "..\\{}", "C:\\{}", "~/{}", "{}/..",
    "{}\n", "{}\x1b[2J", "{}/", "\u202e{}", "{}?x=*", "$HOME/{}", "%2e%2e/{}", ".../{}", "{}:stream", "-{}", ".{}",
    "{}/./../..",
)  # fmt: skip


def _in_an_archive(name: str, target: Path) -> str:
    """A weight file with an odd entry: it is read, or refused, and unpacked in no case."""
    path = target / "weights.pth"
    content = {"top/data.pkl": state(a=tensor()), "top/data/0": bytes(16), "top/version": b"3\n"}
    path.write_bytes(zipped(content | {name: b"odd"}))
    try:
        with open_tensors(path) as tensors:
            assert [array.tolist() for array in tensors.values()] == [[[0, 0], [0, 0]]]
            return "read right"
    except InputError as error:
        assert str(path) in str(error), str(error)
        assert str(error).isprintable(), str(error)
        return "refused"
    finally:
        path.unlink()


def _of_a_data_set(name: str, target: Path) -> str:
    """A new run's folder is named after its network and its data set."""
    with contextlib.chdir(target):
        new = new_workdir(Config("resnet18", recipe_for("resnet18"), dataset=f"set{name}"))
        assert new.parent == Path("runs"), new
        assert new.resolve().parent == target / "runs"
        new.rmdir()
        new.parent.rmdir()
    return "inside the target"


def _of_a_class(name: str, target: Path) -> str:
    """Classes are named after folders: no file of the records is."""
    name = name.replace("/", "_")
    for label in (name, "b"):
        (target / "photos" / label).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(target / "photos" / label / f"{number}.png")
    try:
        write_records(load_folder(target / "photos", Division()), target / "records", 4, lambda count: None)
    except InputError as error:
        assert str(error).isprintable(), str(error)
        return "refused"
    parts = {f"{part}.{what}" for part in ("train", "val", "test") for what in ("pixels", "index")}
    assert {path.name for path in (target / "records").iterdir()} == parts | {"records.json"}
    return "inside the target"


def _run(case: int, folder: Path) -> dict[str, int]:
    name = _ODD[(case // 3) % len(_ODD)].format(random.Random(case).choice(("odd", "x" * 120, "\u00e4\u00f6", "a b")))
    target = folder.resolve() / "around" / "target"
    target.mkdir(parents=True)
    (target.parent / "mine").write_text("mine")
    before = _around(folder, target)
    absolute = Path(name).exists()
    happened = (_in_an_archive, _of_a_data_set, _of_a_class)[case % 3](name, target)
    assert _around(folder, target) == before
    assert Path(name).exists() == absolute
    return {happened: 1, "bytes outside of the target": 0}


def _around(folder: Path, target: Path) -> dict[Path, int]:
    """All files and folders but those in the target."""
    paths = (path for path in folder.resolve().rglob("*") if not path.is_relative_to(target))
    return {path: path.stat().st_size if path.is_file() else 0 for path in paths}


@contextmanager
def _unguarded() -> Iterator[None]:
    """Separators stay in the name of a new run's folder."""
    with patch("jaxnets.training.new_workdir._plain", lambda name: name):
        yield


GROUP = Group(
    fault="100 odd paths as entries of archives, names of data sets and of class folders",
    promise="0 bytes outside of the target folder; refused or read right",
    cases=100,
    run=_run,
    unguarded=_unguarded,
    telling=(1, 4, 7),
)
