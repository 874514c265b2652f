"""The measurement of whole commands: both sides get the same photos and weights, in turns."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from jaxnets.benchmarking import commands


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.jpg").write_bytes(name.encode())
    return tmp_path / "photos"


def test_both_sides_take_turns_on_the_same_photos(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, str]] = []

    def seconds(command: Sequence[str]) -> float:
        words = list(command[1:])
        own = words[0] == "-m"
        task = words[1].removeprefix("experiments.")
        calls.append((task, "own" if own else "peer"))
        weights = Path(words[words.index("--weights") + 1] if own else words[3])
        if task == "save":
            weights.write_bytes(b"weights")
        assert weights.read_bytes() == b"weights"
        # The commands refuse to overwrite a file.
        outputs = [Path(word) for word in words if word.endswith((".csv", ".npz"))]
        for output in outputs:
            assert not output.exists()
            output.touch()
        folder = Path(words[-1]) / "test" if task == "evaluate" and own else Path(words[4])
        if own and task != "evaluate":
            folder = Path(words[6])
        assert [(folder / name / "1.jpg").read_bytes() for name in ("0", "1")] == [b"cats", b"dogs"]
        return 2.0 if own else 2.0 + len(calls)

    monkeypatch.setattr(commands, "_seconds", seconds)
    monkeypatch.setattr(sys, "argv", ["commands", "resnet18", str(photos), "--rounds", "2"])
    commands.main()
    tasks = ("predict", "embed", "evaluate")
    assert calls == [("save", "peer"), *[(task, side) for task in tasks for side in ("own", "peer")] * 2]
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["command"] for result in results] == list(tasks)
    # The peer's first call of predict is the third of all, and its second the ninth.
    assert results[0] == {
        "command": "predict",
        "arch": "resnet18",
        "seconds": 2.0,
        "peer_seconds": 8.0,
        "ratio": 4.0,
        "ratio_spread": [2.5, 5.5],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet5"], "unknown architecture 'resnet5'"),
        (["resnet18", "--rounds", "0"], "--rounds 0; expected at least 1"),
    ],
)
def test_bad_input_is_refused(
    arguments: list[str],
    message: str,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["commands", arguments[0], str(photos), *arguments[1:]])
    with pytest.raises(SystemExit, match="2"):
        commands.main()
    assert message in capsys.readouterr().err


def test_a_folder_without_classes_is_refused(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["commands", "resnet18", str(photos / "cats")])
    with pytest.raises(SystemExit, match="2"):
        commands.main()
    assert "has 0 folders; expected one of images for each class" in capsys.readouterr().err
