"""The console command `jaxnets`."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import experiments.__main__ as console
from experiments.command import with_options

ROOT = Path(__file__).parents[2]


def _console(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["jaxnets", *arguments])
    try:
        console.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_help_lists_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    modules = {path.stem for path in ROOT.glob("experiments/[!_]*.py")} - {"command", "arguments", "loading", "output"}
    assert set(console.COMMANDS) == modules
    assert _console(monkeypatch, "--help") == 0
    commands = capsys.readouterr().out.partition("commands:\n")[2].partition("\n\n")[0]
    listed = [line.split()[0] for line in commands.splitlines()]
    assert listed == [name.replace("_", "-") for name in console.COMMANDS]
    assert _console(monkeypatch) == 0
    assert capsys.readouterr().out.startswith("usage: jaxnets COMMAND")


@pytest.mark.parametrize("command", console.COMMANDS)
def test_help_of_a_command(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hyphenated = command.replace("_", "-")
    for name in {command, hyphenated}:
        assert _console(monkeypatch, name, "--help") == 0
        assert capsys.readouterr().out.startswith(f"usage: jaxnets {hyphenated} ")
    monkeypatch.setattr(sys, "argv", [f"/somewhere/experiments/{command}.py", "--help"])
    with pytest.raises(SystemExit):
        __import__(f"experiments.{command}", fromlist=["main"]).main()
    assert capsys.readouterr().out.startswith(f"usage: python -m experiments.{command} ")


def test_an_unknown_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _console(monkeypatch, "evalute", "runs/mine") == 2
    assert capsys.readouterr().err == "error: unknown command evalute; did you mean evaluate?\n"
    assert _console(monkeypatch, "find-rl") == 2
    assert capsys.readouterr().err == "error: unknown command find-rl; did you mean find-lr?\n"
    assert _console(monkeypatch, "xyz") == 2
    assert capsys.readouterr().err == "error: unknown command xyz; jaxnets --help lists the commands\n"


def test_a_command_fails_as_its_module_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _console(monkeypatch, "predict", "runs/mine") == 2
    assert capsys.readouterr().err == "error: no images; name image files, or folders of them\n"
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("batch_size=0; expected at least 1", "--batch-size 0; expected at least 1"),
        ("the run began with learning_rate=0.1, now it is 2", "the run began with --lr 0.1, now it is 2"),
        ("accumulation=3 (batch_size=8)", "accumulation=3 (--batch-size 8)"),
        # No flags, no tuples, and no paths.
        (
            "batch_size=8; lr=True, learning_rate=(1,), runs/lr=3/x",
            "--batch-size 8; lr=True, learning_rate=(1,), runs/lr=3/x",
        ),
        # Not given as options.
        ("epochs=3; expected fewer", "epochs=3; expected fewer"),
    ],
)
def test_settings_are_named_as_the_options_that_were_given(message: str, expected: str) -> None:
    assert with_options(message, ["--batch-size", "0", "--lr=0.1"]) == expected


def test_listing_commands_imports_nothing_large() -> None:
    code = (
        "import sys; sys.argv = ['jaxnets', '--help'];"
        "from experiments.__main__ import main; main();"
        "print([name for name in ('jax', 'numpy', 'flax') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.strip() == "[]"


def test_a_wheel_in_a_folder_with_other_experiments(tmp_path: Path) -> None:
    """Builds and installs the wheel offline: the new environment sees the packages of this one."""
    environment, folder = tmp_path / "environment", tmp_path / "project"
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    paths = {name: str(environment) for name in ("base", "platbase", "installed_base", "installed_platbase")}
    python = Path(sysconfig.get_path("scripts", "venv", paths)) / "python"
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    (packages / "outside.pth").write_text(sysconfig.get_path("purelib"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, env=outside)

    (folder / "experiments").mkdir(parents=True)
    (folder / "experiments" / "__init__.py").write_text("raise RuntimeError('not that one')")

    def run(*arguments: str) -> str:
        command = [str(python.with_name("jaxnets")), *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, env=outside)
        return done.stdout

    assert run("--help").startswith("usage: jaxnets COMMAND")
    assert run("train", "--help").startswith("usage: jaxnets train ")
    assert (packages / "jaxnets" / "py.typed").exists()
    for path in ROOT.glob("jaxnets/**/*"):
        if path.suffix not in (".pyc", "") and path.is_file():
            assert (packages / path.relative_to(ROOT)).exists(), path
