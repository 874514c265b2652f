"""A fixture that the tests of the commands share."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from experiments.command import run
from tests.experiments.commands import Refuses, refused


@pytest.fixture
def refuses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refuses:
    """Runs a command in this process, in an empty folder, and checks that it is refused with these words."""

    def run_here(name: str, *arguments: object, words: tuple[str, ...], folder: Path = tmp_path) -> None:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            run(import_module(f"experiments.{name}").main)
        output, errors = capsys.readouterr()
        refused(subprocess.CompletedProcess([], caught.value.code or 0, output, errors), *words)
        assert output == ""

    return run_here
