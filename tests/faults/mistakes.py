"""A catalogue of mistakes, on the command line and in Python: one clear line each, at once, and nothing is written."""

import contextlib
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import jax
import pytest

from experiments.__main__ import COMMANDS as ALL
from experiments.__main__ import main
from jaxnets.errors import InputError
from tests.experiments.commands import command, refused
from tests.faults.belongings import belongings
from tests.faults.group import Group
from tests.faults.mistaken_calls import CALLS
from tests.faults.mistaken_commands import COMMANDS

_SECONDS = 5  # of processor time
_COUNT = len(COMMANDS) + len(CALLS)
# What JAX compiles to describe a network or a schedule, before any network.
_SMALL = {"jit(stage)", "jit(_threefry_seed)", "jit(schedule)"}
_compiled: list[str] = []


def _run(case: int, folder: Path) -> dict[str, int]:
    _prepare()
    number = _number(case)
    belongings(folder)
    before = _listing(folder)
    how = _in_python if number >= len(COMMANDS) else _as_a_process if case % 10 == 7 else _as_a_command
    counts = how(number, folder)
    assert _listing(folder) == before, sorted(set(_listing(folder).items()) ^ set(before.items()))[:4]
    return {"one clear line": 1, **counts}


def _number(case: int) -> int:
    """Its place in the catalogue; neighbours there are far apart here."""
    return case * 37 % _COUNT


def _as_a_command(number: int, folder: Path) -> dict[str, int]:
    arguments, words = COMMANDS[number]
    output, errors = io.StringIO(), io.StringIO()
    with (
        _at_once(folder),
        patch.object(sys, "argv", ["jaxnets", *arguments]),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        pytest.raises(SystemExit) as caught,
    ):
        main()
    code = caught.value.code
    refused(subprocess.CompletedProcess(arguments, code if isinstance(code, int) else 1, "", errors.getvalue()), *words)
    assert not output.getvalue(), output.getvalue()
    return {"before a network was compiled": 1}


def _as_a_process(number: int, folder: Path) -> dict[str, int]:
    (name, *arguments), words = COMMANDS[number]
    done = command(name.replace("-", "_"), *arguments, folder=folder)
    refused(done, *words)
    assert not done.stdout
    assert "compiling" not in done.stderr
    return {"as processes of their own": 1}


def _in_python(number: int, folder: Path) -> dict[str, int]:
    call, words = CALLS[number - len(COMMANDS)]
    with _at_once(folder), pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    return {"before a network was compiled": 1, "in Python": 1}


@contextlib.contextmanager
def _at_once(folder: Path) -> Iterator[None]:
    """In the folder: what runs there compiles no network and takes little time."""
    jax.clear_caches()
    _compiled.clear()
    started, path = time.process_time(), sys.path[:]
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        sys.path[:] = path
    assert set(_compiled) <= _SMALL, _compiled
    assert time.process_time() - started < _SECONDS


def _listing(folder: Path) -> dict[Path, int]:
    """All folders, and all files with their times."""
    return {path: 0 if path.is_dir() else path.stat().st_mtime_ns for path in folder.rglob("*")}


@cache
def _prepare() -> None:
    """Imports all commands, and listens to what is compiled."""
    for name in ALL:
        import_module(f"experiments.{name}")

    def listen(event: str, duration_secs: float, **about: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            _compiled.append(str(about.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)


@contextlib.contextmanager
def _unguarded() -> Iterator[None]:
    """An output is no longer tried before the work."""
    with patch("experiments.output._try_to_write"):
        yield


def _case_of(line: str) -> int:
    number = next(number for number, (words, _) in enumerate(COMMANDS) if " ".join(words) == line)
    return next(case for case in range(_COUNT) if _number(case) == number)


GROUP = Group(
    fault=f"{len(COMMANDS)} mistakes on the command line and {len(CALLS)} in Python",
    promise="one clear line (what was given, what is expected, what to do) before a network is compiled, exit code 2, "
    "nothing written",
    cases=_COUNT,
    run=_run,
    unguarded=_unguarded,
    telling=(_case_of("evaluate run --output /proc/scores"),),
    seconds=60,
)
