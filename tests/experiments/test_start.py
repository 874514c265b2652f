"""A command starts itself over once, with a glibc that keeps its memory, and seldom looks for garbage."""

import gc
import os
import sys

import pytest

import experiments


def test_starts_over_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    thresholds: list[int] = []
    monkeypatch.setattr(gc, "set_threshold", thresholds.append)
    monkeypatch.setattr(os, "execv", lambda program, arguments: started.append(arguments))
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "experiments.train", "--arch", "resnet50"])
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=512")
    experiments._prepare_command()
    assert started == [[sys.executable, "-m", "experiments.train", "--arch", "resnet50"]]
    tunables = os.environ["GLIBC_TUNABLES"].split(":")
    assert {"glibc.rtld.optional_static_tls=512", "glibc.malloc.arena_max=1", "glibc.malloc.mmap_max=0"} < set(tunables)
    experiments._prepare_command()
    assert len(started) == 1
    assert thresholds[-1] > 400_000


@pytest.mark.parametrize(
    ("platform", "argv", "gpu"), [("darwin", "-m", False), ("linux", "x.py", False), ("linux", "-m", True)]
)
def test_does_not_where_it_would_not_help(platform: str, argv: str, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "execv", lambda program, arguments: pytest.fail("started over"))
    monkeypatch.setattr(os.path, "exists", lambda path: gpu and path == "/dev/nvidiactl")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(sys, "argv", [argv])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(gc, "set_threshold", lambda count: argv == "-m" or pytest.fail("changed for a library's user"))
    experiments._prepare_command()
    assert "GLIBC_TUNABLES" not in os.environ
