"""The tables of docs/performance.md by one command, with measurements that are made up."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import benchmark
from jaxnets.benchmarking import step, tables
from jaxnets.benchmarking.worker import Job
from jaxnets.errors import InputError


def measurement(job: Job, *, peer: str | None = None, peer_settings: Any = (), **_: Any) -> dict[str, Any]:
    ours = [
        {
            "images_per_second": 20.0,
            "step_seconds": 11.0,
            "initial_seconds": 1.0,
            "compile_seconds": 2.0,
            "first_step_seconds": 3.0,
            "peak_memory_bytes": 900e6,
            "import_memory_bytes": 200e6,
        }
    ]
    machine = {
        "device": "cpu",
        "flops_per_image": 1,
        "arithmetic_ceiling_flops": 40,
        "bandwidth_ceiling_bytes": 1,
        "jax": "1",
        "python": "3",
        "cores": 2,
    }
    result = step._result(job, machine, ours)
    if peer is None:
        return result
    theirs = {
        setting: [
            {
                "images_per_second": 10.0 + number,
                "compile_seconds": 0.0,
                "torch": "2",
                "peak_memory_bytes": 1500e6,
                "import_memory_bytes": 700e6,
            }
        ]
        for number, setting in enumerate(peer_settings or [peer])
    }
    return result | step._compared(peer, ours, theirs)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str | None]]:
    """What is measured, in order; the command runs in an empty folder, with all peers."""
    seen: list[tuple[str, str | None]] = []

    def measure(job: Job, **options: Any) -> dict[str, Any]:
        seen.append((job.arch, options["peer"]))
        options["done"](1)
        return measurement(job, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(step, "benchmark_step", measure)
    monkeypatch.setattr(tables, "find_spec", lambda name: object())
    monkeypatch.setattr(tables, "environment", lambda: {"processor": "slow", "commit": "abc"})
    return seen


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--table", *map(str, arguments)])
    benchmark.main()
    return capsys.readouterr().out.splitlines()


def test_rows_of_training_inference_and_depth(
    jobs: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run(monkeypatch, capsys, "--rounds", 3)
    assert (
        "| `resnet18` | 224, 8 | 20.0 | 11.0 | 1.82 (1.82 to 1.82) | 0.90 (0.20) | 1.50 (0.70) | 0.60 | 2.0 s | 50 % |"
        in lines
    )
    assert "| `resnet50` | 224, 1 | 20.0 | 10.0 | 2.00 (2.00 to 2.00) | 0.90 (0.20) | 1.50 (0.70) |" in lines
    # 11 s for 110 layers.
    assert "| `resnet110_cifar` | 32, 32 | 11.00 s | 100.0 ms | 0.90 (0.20) | 2.0 s | 3.0 s |" in lines
    assert lines[-1].endswith("medians of 3 rounds in turns: processor slow, commit abc.")
    assert len(jobs) == 7 + 4 * 2 + 2


def test_a_second_run_measures_only_what_is_missing(
    jobs: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    some = run(monkeypatch, capsys, "rows.jsonl", "--arch", "resnet1202_cifar")
    assert jobs == [("resnet1202_cifar", None)]
    assert run(monkeypatch, capsys, "rows.jsonl", "--arch", "resnet1202_cifar") == some
    assert len(jobs) == 1
    run(monkeypatch, capsys, "rows.jsonl", "--arch", "resnet110_cifar")
    assert [arch for arch, _ in jobs] == ["resnet1202_cifar", "resnet110_cifar"]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
    monkeypatch.setattr(tables, "environment", lambda: {"processor": "fast", "commit": "abc"})
    run(monkeypatch, capsys, "rows.jsonl", "--arch", "resnet1202_cifar")
    assert len(jobs) == 3


@pytest.mark.parametrize("missing", ["torch", "onnxruntime"])
def test_a_missing_peer_leaves_its_columns_out(
    missing: str, jobs: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "find_spec", lambda name: None if name == missing else object())
    monkeypatch.setattr(sys, "argv", ["benchmark", "--table", "--arch", "resnet50", "--batch-size", "8"])
    benchmark.main()
    printed = capsys.readouterr()
    assert f"{missing} is not installed, so its columns are missing: pip install 'jaxnets[peer]'" in printed.err
    titles = [line for line in printed.out.splitlines() if line.startswith("| network")]
    # onnxruntime's networks come from PyTorch.
    assert ["onnxruntime" in line for line in titles] == [False, False]
    assert ["PyTorch" in line for line in titles] == [missing != "torch", False]
    rows = [line for line in printed.out.splitlines() if line.startswith("| `")]
    assert [row.count("|") for row in rows] == [title.count("|") for title in titles]


def test_the_tables_take_their_place_in_a_page(
    jobs: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    for _ in range(2):
        lines = run(monkeypatch, capsys, "--arch", "resnet1202_cifar", "--output", page)
        text = "\n".join(lines)
        assert page.read_text() == f"before\n{tables.BEGIN}\n\n{text}\n\n{tables.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(InputError, match="lacks the lines"):
        run(monkeypatch, capsys, "--output", page)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--dtype", "bfloat16"), "--dtype can't be combined with --table"),
        (("--arch", "plain34"), "no table has a row with arch=plain34"),
        (("--output", "nowhere.md"), "--output nowhere.md: No such file"),
    ],
)
def test_bad_input_is_refused(
    arguments: tuple[str, ...],
    words: str,
    jobs: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(InputError, match=words):
        run(monkeypatch, capsys, *arguments)
    assert not jobs


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(json.dumps({"other": 1}))
    with pytest.raises(InputError, match="has no results of this command"):
        tables.Results(tmp_path / "file", 1)
