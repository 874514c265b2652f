"""Checkpoints: what is saved comes back exactly, and what is damaged is named."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError
from jaxnets.pretrained import load_pretrained
from jaxnets.training.checkpoint import Checkpoints, load_classifier
from jaxnets.training.config import Config
from jaxnets.training.contents import Contents
from jaxnets.training.run_log import Position
from jaxnets.training.state import TrainState
from jaxnets.weights import checkpoint_files
from jaxnets.weights.runs import read_contents
from tests.tiers import slow_except
from tests.training.tiny import PLAIN, Tiny, make_state, make_variables

# Beside the weights there is an optimiser's state, and an average that differs from the weights.
RECIPE = replace(PLAIN, optimizer="adam", ema_decay=0.9, decay_epochs=(1.0, 2.5))
CONFIG = Config("resnet20_cifar", RECIPE, dataset="none", seed=7, log_every=3)
# A string sort would put "10" before "2".
CLASSES = ("1", "2", "10", "naïve")
PREPROCESSING = Preprocessing(8, 10, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
CONTENTS = Contents(CONFIG, PREPROCESSING, CLASSES, {"train": "a", "test": "b"})
NUMBERS = (3, 5, 10, 11)

pytestmark = pytest.mark.usefixtures("tiny")


def state_at(number: int) -> TrainState:
    """A state that no other number has."""
    state = make_state(RECIPE, make_variables(Tiny(num_classes=4)))
    random = np.random.default_rng(number)
    # No number is negative, as variances cannot be.
    return jax.tree.map(lambda leaf: np.asarray(abs(random.normal(0, 9, leaf.shape))).astype(leaf.dtype), state)


def position_at(number: int) -> dict[str, Any]:
    position = Position(step=number - 1, epochs_done=1, best_accuracy=0.1 + number, log_bytes=2**40)
    position.epoch.sums["loss"] = 1 / 3
    return position.to_dict()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four checkpoints were written, of which the first was the best."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir, CONTENTS) as checkpoints:
        for number in NUMBERS:
            checkpoints.save(number, state_at(number), position_at(number), best=number == 3)
        assert checkpoints.best == 3
    return workdir


def assert_same(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_the_two_latest_and_the_best_are_kept(saved: Path) -> None:
    assert sorted(int(folder.name) for folder in (saved / "checkpoints").iterdir()) == [3, 10, 11]


@pytest.mark.parametrize(("which", "number"), [("latest", 11), ("best", 3)])
def test_a_classifier_comes_back_with_all_that_it_needs(saved: Path, which: str, number: int) -> None:
    classifier = load_classifier(saved, which)
    assert (classifier.config, classifier.preprocessing, classifier.class_names) == (CONFIG, PREPROCESSING, CLASSES)
    assert_same(classifier.variables, state_at(number).ema)


def test_weights_are_taken_where_there_is_no_average(tmp_path: Path) -> None:
    contents = replace(CONTENTS, config=replace(CONFIG, recipe=replace(RECIPE, ema_decay=0.0)))
    state = state_at(1).replace(ema={})  # type: ignore[attr-defined]
    with Checkpoints(tmp_path, contents) as checkpoints:
        checkpoints.save(1, state, position_at(1))
        restored = checkpoints.restore(state_at(2).replace(ema={}), print)  # type: ignore[attr-defined]
    assert restored is not None
    assert_same(restored[0], state)
    for which in ("latest", "best"):
        variables = load_classifier(tmp_path, which).variables
        assert_same(variables, {"params": state.params, "batch_stats": state.batch_stats})


def test_a_best_checkpoint_that_is_missing_or_damaged_is_not_replaced_in_silence(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    best = run / "checkpoints" / "3"
    offer = r"; restore it, or read checkpoint 11 \(step 10\), which is intact, with --checkpoint intact$"
    shutil.rmtree(best / "variables")
    with pytest.raises(InputError, match=rf"its best checkpoint, {best}, is damaged: variables/\S+ is missing{offer}"):
        load_classifier(run)
    shutil.rmtree(best)
    with pytest.raises(InputError, match=rf"its best checkpoint, {best}, is missing{offer}"):
        load_classifier(run)
    assert not capsys.readouterr().err
    for which in ("latest", "intact"):
        assert_same(load_classifier(run, which).variables, state_at(11).ema)
    assert capsys.readouterr().err == f"{run}: reading checkpoint 11 (step 10), the newest that is intact\n"


def test_all_of_a_run_comes_back(saved: Path) -> None:
    with Checkpoints(saved, CONTENTS) as checkpoints:
        restored = checkpoints.restore(state_at(99), print)
        assert checkpoints.best == 3
    assert restored is not None
    state, position = restored
    assert_same(state, state_at(11))
    dtypes = [jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (state, state_at(11))]
    assert dtypes[0] == dtypes[1]
    assert position == position_at(11)
    assert Position.from_dict(position).to_dict() == position
    assert Position.from_dict(position).number == 11


def test_nothing_comes_back_of_nothing(tmp_path: Path) -> None:
    for workdir in (tmp_path, None):
        with Checkpoints(workdir, CONTENTS) as checkpoints:
            assert checkpoints.restore(state_at(0), print) is None
    with Checkpoints(None, CONTENTS) as checkpoints:
        checkpoints.save(1, state_at(1), position_at(1), best=True)
        checkpoints.wait()
        assert checkpoints.best == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_names": ("1", "10", "2", "naïve")}, "class 1 is '10', in training it was '2'"),
        ({"fingerprints": {"train": "a", "test": "c"}}, "the test images are not those that the run began with"),
        ({"config": replace(CONFIG, seed=8)}, "the run began with seed=7, now it is 8"),
        (
            {"config": replace(CONFIG, recipe=replace(RECIPE, flip=0.25))},
            r"the run began with flip=0.0, now it is 0.25",
        ),
    ],
)
def test_another_run_does_not_go_on(saved: Path, change: dict[str, Any], words: str) -> None:
    with (
        Checkpoints(saved, replace(CONTENTS, **change)) as checkpoints,
        pytest.raises(InputError, match=words),
    ):
        checkpoints.restore(state_at(0), print)


def test_a_classifier_knows_its_classes(saved: Path) -> None:
    classifier = load_classifier(saved)
    classifier.check_classes(CLASSES)
    for other, words in (
        (("1", "10", "2", "naïve"), "class 1 is '10', in training it was '2'"),
        (("1", "2", "10"), r"\(3 and 4\): class 3 is missing, in training it was 'naïve'"),
        ((*CLASSES, "zebra"), "class 4 is 'zebra', in training it was missing"),
    ):
        with pytest.raises(InputError, match=words):
            classifier.check_classes(other)


class Earlier(Contents):
    """The metadata of a version without val parts."""

    def to_dict(self) -> dict[str, Any]:
        metadata = super().to_dict()
        for name in ("val_share", "val_folder", "fold", "group_by"):
            del metadata["config"][name]
        del metadata["custom"]
        return metadata


def test_checkpoints_of_earlier_versions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(manager: Any, number: int, items: dict[str, Any], metadata: dict[str, Any]) -> None:
        checksums = {name: checkpoint_files._checksum(tree, values_alone=True) for name, tree in items.items()}
        metadata = metadata | {"checksums": checksums}
        metadata["checksum"] = checkpoint_files._checksum_of_json(metadata)
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        manager.save(number, args=ocp.args.Composite(**arrays, metadata=ocp.args.JsonSave(metadata)))

    monkeypatch.setattr(checkpoint_files, "write", write)
    monkeypatch.setattr("jaxnets.training.checkpoint.write_checksums", lambda folder: None)
    with Checkpoints(tmp_path, Earlier(CONFIG, PREPROCESSING, CLASSES, {"train": "a", "test": "b"})) as checkpoints:
        for number in (1, 2):
            checkpoints.save(number, state_at(number), position_at(number), best=number == 1)
    for which, number in (("best", 1), ("latest", 2)):
        classifier = load_classifier(tmp_path, which)
        assert_same(classifier.variables, state_at(number).ema)
        assert classifier.config == CONFIG
    # But such a run can't go on: it was trained on what is the val part now.
    with (
        Checkpoints(tmp_path, replace(CONTENTS, fingerprints={"train": "a", "val": "c", "test": "b"})) as checkpoints,
        pytest.raises(InputError, match=r"the val images are not those .*or the run is of an earlier version"),
    ):
        checkpoints.restore(state_at(0), print)


def remove(name: str) -> Callable[[Path], None]:
    return lambda step: shutil.rmtree(step / name)


def cut(name: str) -> Callable[[Path], None]:
    def damage(step: Path) -> None:
        files = [file for file in (step / name).rglob("*") if file.is_file() and file.stat().st_size]
        largest = max(files, key=lambda file: file.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])

    return damage


def flip(name: str) -> Callable[[Path], None]:
    def damage(step: Path) -> None:
        content = bytearray((step / name).read_bytes())
        content[len(content) // 2] ^= 1
        (step / name).write_bytes(content)

    return damage


FAULTS = {
    "a missing folder": (remove("metadata"), r"metadata/\S+ is missing"),
    "missing arrays": (remove("variables"), r"variables/\S+ is missing"),
    "metadata cut short": (cut("metadata"), r"metadata/metadata has 1,\d\d\d bytes, 2,\d\d\d were written"),
    "arrays cut short": (cut("variables"), r"variables/\S+ has 1,\d\d\d bytes, 2,\d\d\d were written"),
    "a flipped bit": (flip("variables/_METADATA"), "variables/_METADATA has another checksum than when it was written"),
    "a flipped bit beside": (flip("commit_success.txt"), "commit_success.txt has another checksum than when .*"),
    "a flipped bit in the checksums": (flip("files.json"), "files.json is not as it was written"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("listed", [True, False])
def test_a_damaged_file_is_named(
    saved: Path, fault: str, listed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, words = FAULTS[fault]
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    damaged = workdir / "checkpoints" / "11"
    damage(damaged)
    if not listed:  # as in a run of an earlier version
        for file in (workdir / "checkpoints").glob("*/files.json"):
            file.unlink()
        if fault in ("a flipped bit beside", "a flipped bit in the checksums"):
            assert_same(load_classifier(workdir, "latest").variables, state_at(11).ema)
            return
        words = r"[^\n]*"
    with pytest.raises(InputError) as raised:
        load_classifier(workdir, "latest")
    assert re.fullmatch(
        rf"{workdir}: its latest checkpoint, {damaged}, is damaged: {words}; restore it, or read checkpoint 10 "
        r"\(step 9\), which is intact, with --checkpoint intact",
        str(raised.value),
    )
    assert not capsys.readouterr().err
    assert_same(load_classifier(workdir, "intact").variables, state_at(10).ema)
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"{workdir}: reading checkpoint 10 \(step 9\), the newest that is intact; checkpoint 11 is damaged: {words}\n",
        said,
    )
    # A run goes on from the one before.
    lines: list[str] = []
    with Checkpoints(workdir, CONTENTS) as checkpoints:
        restored = checkpoints.restore(state_at(0), lines.append)
    assert restored is not None
    assert_same(restored[0], state_at(10))
    (line,) = lines
    assert re.match(rf"warning: checkpoint 11 is damaged \({words}\); it is moved to", line)
    assert (workdir / "damaged-checkpoints" / "11").is_dir()


def test_a_run_without_an_intact_checkpoint_is_named(saved: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    for number in (3, 10, 11):
        cut("training")(workdir / "checkpoints" / str(number))
    words = {
        "best": r"its best checkpoint, \S+ is damaged: training/\S+ has .*; none of the others is intact; restore it",
        "intact": r"none of its checkpoints is intact \(checkpoint 11 is damaged: training/.*\); train again",
    }
    for which, said in words.items():
        with pytest.raises(InputError, match=said):
            load_classifier(workdir, which)
    with Checkpoints(workdir, CONTENTS) as checkpoints, pytest.raises(InputError, match=r"is intact \(checkpoint 11: "):
        checkpoints.restore(state_at(0), print)


def test_what_orbax_can_no_longer_read_is_not_called_damaged(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise KeyError("an entry of a later version")

    monkeypatch.setattr(checkpoint_files, "read_arrays", fails)
    words = "can't be read .*KeyError.*, but its files are as they were written; use the versions"
    with pytest.raises(InputError, match=words):
        load_classifier(saved)
    with Checkpoints(saved, CONTENTS) as checkpoints, pytest.raises(InputError, match=words):
        checkpoints.restore(state_at(0), print)


@pytest.mark.parametrize("change", ["name", "shape", "dtype"])
def test_checksums_are_of_names_shapes_and_types_too(change: str) -> None:
    before = {"weight": np.ones((2, 3), np.float32)}
    after = {
        "name": {"bias": np.ones((2, 3), np.float32)},
        "shape": {"weight": np.ones((3, 2), np.float32)},
        "dtype": {"weight": np.ones((2, 3), np.float32).view(np.int32)},
    }[change]
    checksum = checkpoint_files._checksum
    assert checksum(before) == checksum({"weight": np.ones((2, 3), np.float32)})
    assert checksum(before) != checksum(after)
    assert checksum(before, values_alone=True) == checksum(after, values_alone=True)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    broken = state_at(4)
    broken.ema["params"]["fc"]["kernel"][0, 0] = np.inf
    with Checkpoints(tmp_path, CONTENTS) as checkpoints:
        with pytest.raises(InputError, match=r"^the state is not finite after step .* and is not saved; train again"):
            checkpoints.save(2, broken, position_at(2))
        checkpoints.save(3, state_at(3), position_at(3))
        good = tmp_path / "checkpoints" / "3"
        with pytest.raises(InputError, match=f"the last good checkpoint is {good}; train again in another --workdir"):
            checkpoints.save(4, broken, position_at(4), best=True)
        restored = checkpoints.restore(state_at(0), print)
    assert restored is not None
    assert_same(restored[0], state_at(3))


def test_a_run_without_a_finished_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        load_classifier(tmp_path)
    # As a run does before its first step; then as orbax does for its first checkpoint.
    (tmp_path / "config.json").write_text(CONTENTS.config.to_json())
    for folder in ("checkpoints", "checkpoints/8.orbax-checkpoint-tmp"):
        words = rf"stopped before its first checkpoint; begin it .* jaxnets train --workdir {tmp_path} --resume$"
        for load in (partial(load_classifier, tmp_path), partial(load_pretrained, CONTENTS.config.arch, tmp_path)):
            with pytest.raises(InputError, match=words):
                load()
        (tmp_path / folder).mkdir()


def unusual_folders() -> list[bytes]:
    """Names of folders that together hold every byte that a name may have."""
    single = [bytes([number]) for number in range(1, 256) if number != ord("/")]
    names = [b"".join(single[begin : begin + 85]) for begin in range(0, len(single), 85)]
    return [*names, b"run [2]", b"[ab]", b"[!x]*?{y,z}", b"a\\b", b"..\\up", b"~", b"$HOME", b"%41", b"file:", b"-"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="there is no /proc")
@pytest.mark.parametrize(
    "name", slow_except(unusual_folders()[:2], unusual_folders()), ids=lambda name: str(unusual_folders().index(name))
)
def test_checkpoints_in_a_folder_of_any_name(name: bytes, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    workdir = folder / "run"
    workdir.mkdir(parents=True)
    with Checkpoints(workdir, CONTENTS) as checkpoints:
        for number in (1, 2):
            checkpoints.save(number, state_at(number), position_at(number), best=number == 1)
    assert_same(load_classifier(workdir, "latest").variables, state_at(2).ema)
    assert_same(load_classifier(workdir).variables, state_at(1).ema)
    with Checkpoints(workdir, CONTENTS) as checkpoints:
        restored = checkpoints.restore(state_at(0), print)
    assert restored is not None
    assert_same(restored[0], state_at(2))
    # Nothing lies elsewhere, and nothing stays open.
    assert [path.name for path in workdir.iterdir()] == ["checkpoints"]
    assert list(tmp_path.iterdir()) == [folder]
    assert not [path for path in open_files() if str(folder) in path]


def open_files() -> list[str]:
    found = []
    for link in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{link}"))
    return found


def test_a_checkpoint_before_the_latest_is_not_skipped_in_silence(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, CONTENTS) as checkpoints:
        checkpoints.save(5, state_at(5), position_at(5))
        with pytest.raises(InputError, match=r"can't be written to .*checkpoint 4 is older than checkpoint 5"):
            checkpoints.save(4, state_at(4), position_at(4))


def test_arrays_other_than_expected_are_named(saved: Path) -> None:
    """orbax would cast them, or hand out those of another shape."""

    def changed(change: Callable[[Any], None]) -> TrainState:
        state = state_at(0)
        change(state)
        return state

    def other_shape(state: Any) -> None:
        state.ema["params"]["conv1"]["kernel"] = state.ema["params"]["conv1"]["kernel"].T

    def other_type(state: Any) -> None:
        state.ema["params"]["fc"]["bias"] = state.ema["params"]["fc"]["bias"].astype(np.int32)

    def other_name(state: Any) -> None:
        state.ema["params"]["fd"] = state.ema["params"].pop("fc")

    def other_key(state: Any) -> None:
        # As of the generator that JAX_DEFAULT_PRNG_IMPL=rbg asks for.
        object.__setattr__(state, "key", np.zeros(4, np.uint32))

    def other_count(state: Any) -> None:
        object.__setattr__(state, "skipped", np.zeros((), np.uint32))

    for change, words in (
        (other_shape, r"params/conv1/kernel as float32 \[3, 3, 3, 4\], expected float32 \[4, 3, 3, 3\]"),
        (other_type, r"holds params/fc/bias as float32 \[4\], expected int32 \[4\]; use it with"),
        (other_name, r"holds params/fd/bias as nothing, expected float32 \[4\]"),
        (other_key, r"as uint32 \[2\], expected uint32 \[4\]"),
        (other_count, r"as int32 \[\], expected uint32 \[\]"),
    ):
        with Checkpoints(saved, CONTENTS) as checkpoints, pytest.raises(InputError, match=words):
            checkpoints.restore(changed(change), print)
    assert not (saved / "damaged-checkpoints").exists()


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EIO, "Input/output error"),
        ValueError('PERMISSION_DENIED: Error opening "zarr" driver'),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
        MemoryError(),
    ],
)
def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(
    saved: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise error

    for reads in ("read_metadata", "read_arrays"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_files, reads, fails)
            with pytest.raises(InputError, match="can't be read now") as raised:
                load_classifier(saved)
            assert "damaged" not in str(raised.value)
            with Checkpoints(saved, CONTENTS) as checkpoints, pytest.raises(InputError, match="can't be read now"):
                checkpoints.restore(state_at(0), print)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "read_metadata", fails)
        with pytest.raises(InputError, match="can't be read now"):
            read_contents(saved)
    assert not (saved / "damaged-checkpoints").exists()
