"""A run that was stopped goes on as if nothing had happened: to the last bit."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxnets.errors import InputError
from jaxnets.training import workdir
from tests.tiers import slow_except
from tests.training.networks import (
    DATASET,
    FAMILIES,
    STILL,
    Trainer,
    assert_same_run,
    checkpoints,
    config,
    cpus,
    images,
    largest_difference,
    losses,
    saved,
)

pytestmark = pytest.mark.usefixtures("small_networks")

# After each of 20 steps, and after each of two batches of five val evaluations and of the test.
MOMENTS = range(1, 33)
# Quick to compile; the third of five epochs is the best.
QUICK = {
    **STILL,
    "min_crop_area": 0.5,
    "flip": 0.5,
    "dropout_rate": 0.3,
    "stochastic_depth_rate": 0.3,
    "learning_rate": 0.3,
}


def trainer(
    monkeypatch: pytest.MonkeyPatch,
    devices: int = 1,
    arch: str = "tiny_resnet",
    *,
    quickly: bool = True,
    **changes: Any,
) -> Trainer:
    # A line of the log is under way at most stops.
    return Trainer(replace(config(arch, **changes), log_every=3), cpus(devices), monkeypatch, quickly=quickly)


@pytest.mark.fast
@pytest.mark.parametrize("devices", slow_except([1], [1, 4]))
def test_a_stopped_run_ends_as_one_that_never_was(
    devices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train = trainer(monkeypatch, devices, precise_batch_norm_images=0 if devices == 1 else 32, **QUICK)
    assert train(whole)
    # Within the first epoch, at its end, twice at one place of the evaluation, at its end; and so on, up to the test.
    for place, stop in enumerate((2, 2, 1, 1, 4, 3, 9, 8, 1)):
        assert not train(stopped, resume=place > 0, stop=stop)
    assert train(stopped, resume=True)
    assert_same_run(stopped, whole)
    # What is over stays as it is.
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*")}
    assert train(stopped, resume=True)
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("*")} == before


@pytest.mark.exhaustive
@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("arch", FAMILIES)
def test_a_run_may_be_stopped_at_any_moment(
    arch: str, devices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = trainer(monkeypatch, devices, arch, quickly=False)
    assert train(tmp_path / "whole")
    for moment in MOMENTS:
        stopped = tmp_path / "stopped"
        assert not train(stopped, stop=moment)
        assert train(stopped, resume=True)
        assert_same_run(stopped, tmp_path / "whole")
        shutil.rmtree(stopped)
    assert train(tmp_path / "more", stop=MOMENTS[-1] + 1)


@pytest.mark.slow
def test_a_run_may_go_on_on_other_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert trainer(monkeypatch, **QUICK)(whole)
    for devices, stop in ((1, 7), (4, 8), (2, None)):
        trainer(monkeypatch, devices, **QUICK)(moved, resume=devices > 1, stop=stop)
    # Other images, or another order, would change the losses in the first digits.
    np.testing.assert_allclose(losses(moved), losses(whole), rtol=1e-5)
    difference = largest_difference(saved(moved), saved(whole))
    print(f"1, 4 and 2 devices against 1: {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.slow
def test_a_run_that_ends_between_its_last_files_writes_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = trainer(monkeypatch, **QUICK, epochs=2)
    assert train(tmp_path / "whole")
    for name in ("classes.json", "result.json"):
        with monkeypatch.context() as patch:
            patch.setattr(workdir, "_write", partial(write_unless, name, workdir._write))
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path / name, resume=True)
        assert train(tmp_path / name, resume=True)
        assert_same_run(tmp_path / name, tmp_path / "whole")
        for file in ("config.json", "classes.json"):
            assert (tmp_path / name / file).read_text() == (tmp_path / "whole" / file).read_text()


def write_unless(name: str, write: Callable[[Path, str], None], path: Path, text: str) -> None:
    if path.name == name:
        raise KeyboardInterrupt
    write(path, text)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole run, and one that was stopped after its ninth step, which saved at each."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        train = trainer(monkeypatch, **QUICK)
        assert train(folder / "whole")
        assert not train(folder / "half", stop=13, checkpoint_interval=0)
    return folder / "whole", folder / "half"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def numbers(item: Path) -> list[Path]:
    """The files of a checkpoint's item that hold its numbers; orbax keeps some twice."""
    files = [path for path in item.rglob("*") if path.parent.name in ("d", "metadata")]
    return [path for path in files if path.name != "commit_success.txt"]


def contents(folder: Path) -> list[bytes]:
    """Of all files, wherever they lie, but for empty ones."""
    return sorted(content for path in folder.rglob("*") if path.is_file() and (content := path.read_bytes()))


@pytest.mark.parametrize(
    ("item", "damage"),
    slow_except(
        [("variables", cut)],
        [("variables", cut), ("training", flip), ("metadata", cut), ("variables", Path.unlink)],
    ),
)
def test_a_damaged_checkpoint_is_left_for_the_one_before(
    item: str,
    damage: Callable[[Path], None],
    half: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(half[1], run)
    *_, before, last = checkpoints(run)
    for path in numbers(run / "checkpoints" / str(last) / item):
        damage(path)
    left = contents(run / "checkpoints" / str(last))
    # What a killed process leaves.
    shutil.copytree(run / "checkpoints" / str(before), run / "checkpoints" / f"{last + 1}.orbax-checkpoint-tmp")
    assert trainer(monkeypatch, **QUICK)(run, resume=True)
    assert f"warning: checkpoint {last} is damaged" in capsys.readouterr().err
    assert contents(run / "damaged-checkpoints" / str(last)) == left
    assert_same_run(run, half[0])


@pytest.mark.slow
def test_where_a_run_stood_is_checked_as_well(
    half: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(half[1], run)
    (metadata,) = numbers(run / "checkpoints" / str(checkpoints(run)[-1]) / "metadata")
    text = metadata.read_text()
    assert '"step": 9' in text
    metadata.write_text(text.replace('"step": 9', '"step": 8'))  # one bit
    assert trainer(monkeypatch, **QUICK)(run, resume=True)
    assert_same_run(run, half[0])


@pytest.mark.exhaustive
def test_any_file_of_a_checkpoint_may_be_damaged(
    half: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = str(checkpoints(half[1])[-1])
    train = trainer(monkeypatch, **QUICK)
    for path in sorted(path for path in (half[1] / "checkpoints" / last).rglob("*") if path.is_file()):
        for damage in (cut, flip, Path.unlink):
            run = tmp_path / "run"
            shutil.copytree(half[1], run)
            damage(run / path.relative_to(half[1]))
            assert train(run, resume=True)
            assert_same_run(run, half[0])
            shutil.rmtree(run)


def test_where_all_checkpoints_are_damaged_nothing_is_lost(
    half: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(half[1], run)
    for number in checkpoints(run):
        for path in numbers(run / "checkpoints" / str(number) / "variables"):
            cut(path)
    before = contents(run)
    for _ in range(2):  # nor does it start again
        with pytest.raises(InputError, match=r"none of the checkpoints in .* train again in another workdir") as caught:
            trainer(monkeypatch, **QUICK)(run, resume=True)
        assert "\n" not in str(caught.value)
        assert contents(run) == before


@pytest.mark.parametrize(
    ("changes", "dataset", "words"),
    [
        ({"weight_decay": 0.5}, DATASET, "began with weight_decay=0.001, now it is 0.5; resume with the same"),
        ({"seed": 4}, DATASET, "the run began with seed=3, now it is 4"),
        ({}, replace(DATASET, train=images(63, 5)), "the train images are not those that the run began with"),
        ({}, replace(DATASET, test=images(22, 1)), "the test images are not those that the run began with"),
        ({}, replace(DATASET, class_names=("a", "b", "c")), "class 0 is 'a', in training it was 'round'"),
    ],
)
def test_a_run_goes_on_as_it_began_or_not_at_all(
    changes: dict[str, Any], dataset: Any, words: str, half: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(half[1])
    with pytest.raises(InputError, match=words) as caught:
        trainer(monkeypatch, **{**QUICK, **changes})(half[1], resume=True, dataset=dataset)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="already holds a run; continue it with --resume"):
        trainer(monkeypatch, **QUICK)(half[1])
    assert contents(half[1]) == before


def test_a_log_that_was_cut_is_named(half: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    shutil.copytree(half[1], run)
    cut(run / "metrics.jsonl")
    with pytest.raises(InputError, match=r"metrics\.jsonl is shorter than when the run stopped"):
        trainer(monkeypatch, **QUICK)(run, resume=True)
