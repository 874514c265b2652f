"""The command that checks files: what is damaged is named, and nothing else is."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import verify
from jaxnets.data.datasets import digits
from jaxnets.data.records import write_records
from jaxnets.training.checkpoint import Checkpoints
from jaxnets.weights.safetensors_file import write_safetensors
from jaxnets.weights.tensors import Spec
from tests.experiments.commands import Refuses
from tests.training.test_checkpoint import CONTENTS, cut, flip, position_at, state_at


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    (root / "run").mkdir()
    with Checkpoints(root / "run", CONTENTS) as checkpoints:
        for number in (3, 5):
            checkpoints.save(number, state_at(number), position_at(number))
    few = digits().train.subset(np.arange(40))  # type: ignore[attr-defined]
    write_records(replace(digits(), train=few, val=None, test=few), root / "records", 8, lambda count: None)
    array = np.arange(6, dtype=np.float32)
    write_safetensors(root / "x.safetensors", {"weight": Spec(array.dtype, (6,))}, lambda name: array, {})
    return root


def verified(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["verify", str(folder)])
    code = 0
    try:
        verify.main()
    except SystemExit as end:
        code = int(end.code or 0)
    return code, capsys.readouterr().out


def test_what_is_whole_is_said_to_be(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, said in (
        (whole, "2 checkpoints, 80 records, 1 weight file: all intact\n"),
        (whole / "run", "2 checkpoints: all intact\n"),
        (whole / "x.safetensors", "1 weight file: all intact\n"),
    ):
        assert verified(path, monkeypatch, capsys) == (0, said)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("file", "run/checkpoints/5 is damaged: training/_METADATA has another checksum than when it was written"),
        ("file of an earlier version", "run/checkpoints/5 is damaged: "),
        ("record", "train.pixels record 1: does not match its checksum"),
        ("index", "test.index does not match its checksum"),
        ("weights", "x.safetensors "),
        ("value", "x.safetensors has a tensor weight that has 1 values that are not finite"),
        ("pickle", "y.pth is not a file of weights"),
    ],
)
def test_damage_is_named(
    whole: Path,
    kind: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "root"
    shutil.copytree(whole, root)
    step = root / "run" / "checkpoints" / "5"
    if kind == "file":
        flip("training/_METADATA")(step)
    elif kind == "file of an earlier version":
        (step / "files.json").unlink()
        cut("training")(step)
    elif kind == "record":
        content = bytearray((root / "records" / "train.pixels").read_bytes())
        content[8 * 8 * 3] ^= 4
        (root / "records" / "train.pixels").write_bytes(content)
    elif kind == "index":
        flip("test.index")(root / "records")
    elif kind == "weights":
        (root / "x.safetensors").write_bytes((root / "x.safetensors").read_bytes()[:-3])
    elif kind == "value":
        (root / "x.safetensors").write_bytes((root / "x.safetensors").read_bytes()[:-4] + np.float32("nan").tobytes())
    else:
        (root / "y.pth").write_bytes(b"something else")
    code, said = verified(root, monkeypatch, capsys)
    *lines, summary = said.splitlines()
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith(str(root))
    assert words in lines[0]
    assert summary.endswith(": 1 damaged")


def test_nothing_to_verify_is_not_well(refuses: Refuses, tmp_path: Path) -> None:
    refuses("verify", "nowhere", words=("nowhere: no such file or folder",))
    refuses("verify", tmp_path, words=("holds no checkpoint, prepared records or files of weights",))
