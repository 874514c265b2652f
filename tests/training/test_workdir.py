"""The folder of a run: one run at a time, and any path that a file system allows."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.errors import InputError
from jaxnets.training.config import Config
from jaxnets.training.evaluation import Evaluation
from jaxnets.training.exclusive import LOCK, Exclusive
from jaxnets.training.new_workdir import new_workdir
from jaxnets.training.workdir import Workdir
from jaxnets.weights import folder_path
from tests.training.networks import STILL, arguments, checkpoints, config, start
from tests.training.test_interruption import ended, stepping, wait_until
from tests.training.tiny import PLAIN

CONFIG = Config("resnet20_cifar", PLAIN, "digits")


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_runs_never_get_the_same_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(16) as threads:
        folders = list(threads.map(lambda _: new_workdir(CONFIG), range(16)))
    assert len(set(folders)) == 16
    assert Path("runs/resnet20_cifar-digits") in folders
    assert Path("runs/resnet20_cifar-digits-16") in folders


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Workdir.prepare(run, CONFIG) as workdir:
        for resume in (False, True):
            with pytest.raises(InputError, match=f"another run is using {run}; wait for its end"):
                Workdir.prepare(run, CONFIG, resume=resume)
        workdir.begin(CONFIG, ("a", "b"), [])
        with pytest.raises(InputError, match="another run is using"):
            Workdir.prepare(run, CONFIG, resume=True)
    with Workdir.prepare(run, CONFIG, resume=True):
        pass
    with pytest.raises(InputError, match="already holds a run"):
        Workdir.prepare(run, CONFIG)
    assert json.loads((run / "classes.json").read_text()) == ["a", "b"]


def test_a_run_that_writes_nothing_leaves_no_trace(tmp_path: Path) -> None:
    with Workdir.prepare(tmp_path / "runs" / "mine", CONFIG):
        pass
    assert listed(tmp_path) == []
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        Workdir.prepare(tmp_path, CONFIG)
    assert listed(tmp_path) == ["photo.jpg"]


HOLDER = """
import sys, time
from pathlib import Path
from jaxnets.training.exclusive import Exclusive
lock = Exclusive(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(600)
"""


def test_the_lock_of_a_killed_process_does_not_last(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(InputError, match="another run is using"):
        Exclusive(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert listed(tmp_path) == [LOCK]
    Exclusive(tmp_path).release(remove=True)
    assert listed(tmp_path) == []


def test_a_file_of_the_user_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        Workdir.prepare(tmp_path, CONFIG)
    assert listed(tmp_path) == [".lock"]


def test_a_lock_of_another_user_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file may be read but not written. A file that can't be opened for another reason is an error."""
    first, opened, errors = Exclusive(tmp_path), os.open, {os.O_RDWR | os.O_CREAT: 13}

    def guarded(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags in errors:
            raise OSError(errors[flags], os.strerror(errors[flags]), path)
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", guarded)
    with pytest.raises(InputError, match="another run is using"):
        Exclusive(tmp_path)
    first.release()
    Exclusive(tmp_path).release()
    errors[os.O_RDWR | os.O_CREAT] = 28
    with pytest.raises(InputError, match=r"can't be opened \(No space left"):
        Exclusive(tmp_path)


def test_a_lock_whose_file_was_removed_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process removes the file of its lock between another's opening and locking of it."""
    import fcntl

    lock, removals = fcntl.flock, [True]

    def slow_lock(descriptor: int, operation: int) -> None:
        if removals:
            removals.pop()
            (tmp_path / LOCK).unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slow_lock)
    first = Exclusive(tmp_path)
    with pytest.raises(InputError, match="another run is using"):
        Exclusive(tmp_path)
    first.release()


@pytest.mark.slow
@pytest.mark.usefixtures("small_networks")
def test_five_runs_at_once_in_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setups = [config(**STILL, epochs=1, learning_rate=0.01 * (1 + index)) for index in range(5)]
    # A command without --workdir.
    words = [arguments(setup, tmp_path)[2:] for setup in setups]
    monkeypatch.chdir(tmp_path)
    processes = [start(*line, JAX_NUM_CPU_DEVICES="1") for line in words]
    for process in processes:
        code, errors = ended(process, within=300)
        assert code == 0, errors
    names = ["tiny_resnet-noise", *(f"tiny_resnet-noise-{number}" for number in range(2, 6))]
    assert listed(tmp_path / "runs") == names
    rates = set()
    for name in names:
        run = tmp_path / "runs" / name
        settings = json.loads((run / "config.json").read_text())
        rates.add(settings["recipe"]["learning_rate"])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, 4]  # four of train, val, test
        number = checkpoints(run)[-1]
        metadata = json.loads((run / "checkpoints" / str(number) / "metadata" / "metadata").read_text())
        assert metadata["config"] == settings
    assert len(rates) == 5


@pytest.mark.slow
@pytest.mark.usefixtures("small_networks")
def test_a_run_in_progress_is_not_resumed_a_second_time(tmp_path: Path) -> None:
    setup = config(**STILL, epochs=40)
    words = (*arguments(setup, tmp_path / "run"), "--resume", "--parallel", "jit")
    first = start(*words)
    wait_until(stepping(tmp_path / "run"), first)
    code, errors = ended(start(*words), within=120)
    assert (code, errors[-1]) == (
        2,
        f"error: another run is using {tmp_path / 'run'}; wait for its end, or give another --workdir",
    )
    first.send_signal(signal.SIGTERM)
    assert ended(first, within=20)[0] == 143


def test_a_path_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on systems without /proc."""
    monkeypatch.setattr(folder_path, "_OPEN_FILES", tmp_path / "nowhere")
    with pytest.raises(
        InputError, match=r"orbax can't use a path with '\[' for checkpoints on this system; give another"
    ):
        Workdir.prepare(tmp_path / "run [2]" / "a", CONFIG)
    assert listed(tmp_path) == []
    Workdir.prepare(tmp_path / "run (2) % # é" / "a", CONFIG).release()


def test_samples_are_the_surest_right_answers(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet((1, 1, 1), 40).astype(np.float32)
    probabilities[:, 2] = 0.0  # the third class is never predicted
    labels = np.arange(40) % 3
    images = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8)
    source = ArraySource(images, labels)
    dataset = Dataset("greys", ("a", "b", "c"), source, source, (0.5,) * 3, (0.5,) * 3)

    def picture(index: int) -> np.ndarray:
        return np.repeat(images[index][..., None], 3, axis=-1)

    with Workdir.prepare(tmp_path / "run", CONFIG) as workdir:
        workdir.begin(CONFIG, ("a", "b", "c"), [])
        workdir.finish({}, dataset, Evaluation(probabilities, labels, {}), picture)

    def number(path: Path) -> int:
        return int(np.asarray(Image.open(path))[0, 0, 0])

    expected = {}
    for label in (0, 1):
        right = [i for i in range(40) if labels[i] == label == max(range(3), key=lambda k: probabilities[i, k])]
        first, second, *_ = sorted(right, key=lambda i: -probabilities[i].max())
        expected |= {f"class-{label}.png": first, f"class-{label}-2.png": second}
    samples = tmp_path / "run" / "samples"
    assert {path.name: number(path) for path in samples.iterdir()} == expected
    wrong = [i for i in range(40) if labels[i] != probabilities[i].argmax()]
    mistakes = {path.stem: number(path) for path in (tmp_path / "run" / "mistakes").iterdir()}
    worst = sorted(wrong, key=lambda i: -probabilities[i].max())[:24]
    assert mistakes == {str(i): i for i in worst}
