"""Commands in other environments: settings of JAX, no home, closed output, and files as other programs write them."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import command
from experiments.convert import _lines
from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.devices import devices
from jaxnets.errors import InputError
from jaxnets.weights.origin import Origin
from tests.experiments.commands import Refuses
from tests.tiers import slow_except
from tests.training.networks import STILL, arguments, config, start
from tests.training.test_interruption import ended

pytestmark = pytest.mark.usefixtures("small_networks")

SETUP = config(**STILL, epochs=1)
# Checks that JAX makes of a user's own code.
CHECKS = {
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_TRANSFER_GUARD": "disallow",
    "JAX_DEBUG_KEY_REUSE": "1",
}


@pytest.mark.slow
def test_train_under_the_checks_of_other_code(tmp_path: Path) -> None:
    code, errors = ended(start(*arguments(SETUP, tmp_path / "run"), JAX_NUM_CPU_DEVICES="1", **CHECKS), within=300)
    assert code == 0, errors
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"JAX_PLATFORMS": "cuda"}, ["JAX finds no device with JAX_PLATFORMS=cuda", "change the setting"]),
        pytest.param({"JAX_PLATFORMS": "rubbish"}, ["JAX_PLATFORMS=rubbish", "rubbish"], marks=pytest.mark.slow),
        pytest.param({"JAX_DISABLE_JIT": "1"}, ["JAX_DISABLE_JIT", "unset it"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is a GPU")
def test_settings_that_do_not_work_are_named(setting: dict[str, str], words: list[str], tmp_path: Path) -> None:
    code, errors = ended(start(*arguments(SETUP, tmp_path / "run"), **setting), within=120)
    assert code == 2
    (line,) = [line for line in errors if line.startswith("error: ")]
    assert errors[-1] == line
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def no_device(*_: object) -> None:
    raise RuntimeError("Unable to initialize backend 'cuda': no such thing\nand more")


def test_a_missing_device_is_not_a_damaged_run(
    tmp_path: Path, refuses: Refuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "photo.jpg").touch()
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", no_device)
    with pytest.raises(
        InputError, match=r"^JAX finds no device with JAX_PLATFORMS=cuda \(Unable to initialize .* thing\)"
    ):
        devices()
    for words in (["predict", "run", "photo.jpg"], ["evaluate", "run"], ["convert", "run", "--output", "x.pth"]):
        refuses(*words, words=("JAX finds no device with JAX_PLATFORMS=cuda",))
    # Whatever else fails because of it.
    monkeypatch.setattr("experiments.predict.images_of", no_device)
    refuses("predict", "run", "photo.jpg", words=("JAX finds no device with JAX_PLATFORMS=cuda",))


def test_a_full_device_is_named(tmp_path: Path, refuses: Refuses, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nmore")

    monkeypatch.setattr("experiments.predict.images_of", full)
    refuses("predict", "run", "photo.jpg", words=("out of memory (RESOURCE_EXHAUSTED: Out", "end other programs"))


def test_no_home_folder(
    tmp_path: Path, refuses: Refuses, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("JAXNETS_CACHE", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user whom the system does not know
    before = jax.config.jax_compilation_cache_dir
    command.run(lambda: print("done"))
    output, errors = capsys.readouterr()
    assert output == "done\n"
    assert errors.startswith("warning: compiled programs are not kept for the next start: ~/.cache/jaxnets: the home")
    assert len(errors.splitlines()) == 1
    assert jax.config.jax_compilation_cache_dir == before
    refuses("prepare", "digits", "--output", "~/digits", words=("the home folder, which ~ stands for, is unknown",))


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAXNETS_CACHE", str(tmp_path / "file"))
    command.run(lambda: print("done"))
    output, errors = capsys.readouterr()
    assert output == "done\n"
    (line,) = errors.splitlines()
    assert line.startswith("warning: compiled programs are not kept for the next start: ")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "a"), "a: Permission denied; check the permissions"),
        (OSError(28, "No space left on device", "a"), "a: No space left on device; free some space"),
        (OSError(24, "Too many open files", "a\nb"), "a b: Too many open files\n"),
    ],
)
def test_errors_of_the_system_are_said_as_they_are(
    error: OSError, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        command.run(fails)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")


WRITER = """
import os, sys
from experiments.command import run

def main():
    file = open(sys.argv[1], "w")
    print("to the closed output")
    os.write(1, b"as a library of C does")
    sys.stdout.write("and this")
    file.write("contents")
    file.close()

run(main)
"""


@pytest.mark.parametrize("closed", slow_except([">&- 2>&- <&-"], [">&-", "2>&-", "<&-", ">&- 2>&- <&-"]))
def test_a_closed_stream(closed: str, tmp_path: Path) -> None:
    """The next file that is opened does not get what is printed."""
    words = f'exec "$0" -c "$1" "$2" {closed}'
    done = subprocess.run(
        ["sh", "-c", words, sys.executable, WRITER, tmp_path / "file"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "file").read_text() == "contents"


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    code = "from experiments.command import run; run(lambda: print('é \\udcff ok'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "\\xe9 \\udcff ok\n"), done.stderr


@pytest.mark.parametrize("count", ["", "many", "1", "-3"])
def test_a_launcher_that_started_one_process(count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", count)
    import_module("jaxnets.training.parallel").join_processes()


def test_class_names_as_editors_write_them(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    for text in ("\ufeffpoodle\r\nchien à poil\r\nz\u2028z\r\n", "poodle\nchien à poil\nz\u2028z\n\n"):
        path.write_bytes(text.encode())
        assert _lines(path) == ["poodle", "chien à poil", "z\u2028z"]
    path.write_bytes(b"a\n\nb\n")
    with pytest.raises(InputError, match=r"line 2 of .* is empty; expected one class name per line"):
        _lines(path)
    path.write_bytes("a\nb\n".encode("utf-16"))
    with pytest.raises(InputError, match="not text in UTF-8"):
        _lines(path)


def test_class_names_are_different_strings() -> None:
    source = ArraySource(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2))
    for names, words in (
        ((3, 4), "class 0 is named 3; expected a string"),
        (("cat", "cat"), "classes 0 and 1 are both named 'cat'; rename one"),
    ):
        with pytest.raises(InputError, match=words):
            Dataset("pets", names, source, source)  # type: ignore[arg-type]
    values = {"preprocessing": {"crop_size": 8, "resize_size": 8, "mean": (0, 0, 0), "std": (1, 1, 1)}, "options": {}}
    with pytest.raises(InputError, match="a class name is not text"):
        Origin.from_dict({**values, "class_names": [3, 4]})
