"""Networks, images and a recipe so small that a whole run takes a moment; and the command that trains them.

`python -m tests.training.networks ARGUMENTS` is `python -m experiments.train ARGUMENTS`, where they are known as well.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import experiments.train
from experiments.command import run
from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.models import registry
from jaxnets.models.alexnet import AlexNet
from jaxnets.models.googlenet import GoogLeNet
from jaxnets.models.layers import torch_kernel_init
from jaxnets.models.resnet import BasicBlock, Bottleneck, ResNet
from jaxnets.training import loop
from jaxnets.training.config import Config
from jaxnets.training.interruption import Interrupted, Interruption
from jaxnets.training.parallel import Parallel
from jaxnets.training.recipe import Recipe

# torch's initialisation is the quickest to compile.
_resnet = partial(ResNet, num_filters=4, stem="cifar", kernel_init=torch_kernel_init)
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "tiny_alexnet": partial(AlexNet, hidden_features=8),
    "tiny_googlenet": GoogLeNet,
    # No norm, which alone makes the images of a batch depend on each other.
    "tiny_plain": partial(_resnet, stage_sizes=(1,), block=BasicBlock, norm=None),
    "tiny_resnet": partial(_resnet, stage_sizes=(1,), block=BasicBlock),
    "tiny_resnext": partial(_resnet, stage_sizes=(1,), block=Bottleneck, groups=2),
    "small_resnet": partial(_resnet, stage_sizes=(1, 1), block=BasicBlock),
    "small_resnext": partial(_resnet, stage_sizes=(1, 1), block=Bottleneck, groups=2),
}
FAMILIES = ("tiny_alexnet", "tiny_googlenet", "small_resnet", "small_resnext")
SIDES = {"tiny_alexnet": 63, "tiny_googlenet": 16}
# What lets a run be compared with one that rounds otherwise. GoogLeNet's last maps of 16 pixels are single ones, which
# sixteen images alone normalise: changes of its weights by 1e-15 grow to 1e-8 of the loss within 20 steps; here to
# 1e-13.
STEADY: dict[str, dict[str, Any]] = {"tiny_googlenet": {"image_size": 64, "learning_rate": 5e-5}}
NAMES = ("round", "striped", "plain")

# Whatever draws chance is on. 20 steps through 63 images: four of the five epochs end within a batch.
RECIPE = Recipe(
    image_size=8,
    epochs=5,
    batch_size=16,
    optimizer="momentum",
    learning_rate=0.02,
    weight_decay=1e-3,
    batch_norm="synchronised",
    min_crop_area=0.5,
    shift=0.2,
    flip=0.5,
    color_jitter=0.3,
    trivial_augment=True,
    random_erasing=0.5,
    mixup_alpha=0.3,
    cutmix_alpha=1.0,
    dropout_rate=0.3,
    stochastic_depth_rate=0.3,
    ema_decay=0.9,
)
# The same with no chance but the order of the images.
STILL: dict[str, Any] = {
    "min_crop_area": 0.0,
    "shift": 0.0,
    "flip": 0.0,
    "color_jitter": 0.0,
    "trivial_augment": False,
    "random_erasing": 0.0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "dropout_rate": 0.0,
    "stochastic_depth_rate": 0.0,
}


def images(count: int, seed: int = 0, side: int = 8) -> ArraySource:
    """Noise, with labels that show in it."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(NAMES)
    noise = random.integers(0, 200, (count, side, side, 3)) + 20 * labels[:, None, None, None]
    return ArraySource(noise.astype(np.uint8), labels)


DATASET = Dataset("noise", NAMES, images(63), images(21, 2), (0.45,) * 3, (0.25,) * 3, val=images(21, 1))


def config(arch: str = "tiny_resnet", *, dtype: str = "float32", seed: int = 3, **changes: Any) -> Config:
    """A run of RECIPE with changes; every step is logged."""
    if arch in SIDES:
        changes = {"stochastic_depth_rate": 0.0, "image_size": SIDES[arch], **changes}
    if arch in ("tiny_alexnet", "tiny_plain"):
        changes = {"batch_norm": "local", **changes}  # has none
    return Config(arch, replace(RECIPE, **changes), dataset="noise", seed=seed, dtype=dtype, log_every=1)


def cpus(count: int, kind: str = "auto") -> Parallel:
    """So many of the simulated devices."""
    return Parallel.choose(kind, jax.devices("cpu")[:count])


class Stop(Interruption):
    """Asks a run to end the nth time (from 1) that it looks: after each step and each batch of an evaluation."""

    def __init__(self, at: int) -> None:
        self.can_save = False
        self.left = at

    @property
    def requested(self) -> int | None:  # type: ignore[override]
        self.left -= 1
        return signal.SIGTERM if self.left <= 0 else None


@contextmanager
def compiling(quickly: bool) -> Iterator[None]:
    """Spares XLA most of its optimisations; or does not: those are the programs that users run."""
    jax.config.update("jax_disable_most_optimizations", quickly)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)  # as tests/conftest.py has it


class Trainer:
    """Runs of one configuration, in this process; what one has compiled the next uses."""

    def __init__(
        self, config: Config, parallel: Parallel, monkeypatch: pytest.MonkeyPatch, *, quickly: bool = True
    ) -> None:
        self.config = config
        self.parallel = parallel
        self._monkeypatch = monkeypatch
        self._quickly = quickly
        self._programs: dict[Any, Any] = {}

    def __call__(
        self, workdir: Path, *, stop: int | None = None, dataset: Dataset | None = None, **options: Any
    ) -> bool:
        """Trains, with a `stop` if one is given; whether the run came to its end."""
        wrap = Parallel.wrap

        def wrap_once(self_: Parallel, function: Any, **keywords: Any) -> Any:
            compiled = wrap(self_, function, **keywords)
            compiled._programs = self._programs.setdefault((self_, function.func), {})
            return compiled

        with self._monkeypatch.context() as patch, compiling(self._quickly):
            patch.setattr(Parallel, "wrap", wrap_once)
            patch.setattr(loop, "write_report", lambda workdir: None)
            try:
                loop.train(
                    self.config,
                    workdir,
                    dataset or DATASET,
                    parallel=self.parallel,
                    interruption=None if stop is None else Stop(stop),
                    **options,
                )
            except Interrupted:
                return False
        return True


def arguments(config: Config, workdir: Path) -> list[str]:
    """What to give the command so that it trains as `config` says."""
    words = ["--workdir", str(workdir)]
    settings = {**asdict(config), **asdict(config.recipe)}
    for name, value in settings.pop("network_options").items():
        words += ["--set", f"{name}={value}"]
    for name, value in settings.items():
        flag = "--lr" if name == "learning_rate" else "--" + name.replace("_", "-")
        if name == "log_gradients":
            words += [flag] * value
        elif isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        elif name != "recipe" and value is not None:
            words += [flag, str(value)]
    return words


def start(
    *words: object, module: str = "tests.training.networks", quickly: bool = True, **variables: str
) -> subprocess.Popen[str]:
    """Starts `python -m MODULE WORDS` with what earlier processes have compiled, and further environment variables."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(quickly),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment, **variables},
    )


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl but for what a clock decides."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


def losses(workdir: Path) -> list[float]:
    """The training loss of each step."""
    return [line["loss"] for line in metrics(workdir) if line["split"] == "train"]


def checkpoints(workdir: Path) -> list[int]:
    """The numbers of the finished checkpoints, in order."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def saved(workdir: Path, number: int | None = None) -> dict[str, np.ndarray]:
    """Every array of a checkpoint (the last) by its place, as orbax reads it without being told what to expect."""
    number = number or checkpoints(workdir)[-1]
    with ocp.CheckpointManager(workdir.resolve() / "checkpoints") as manager:
        items = manager.restore(
            number, args=ocp.args.Composite(variables=ocp.args.StandardRestore(), training=ocp.args.StandardRestore())
        )
    leaves, _ = jax.tree.flatten_with_path({"variables": items["variables"], "training": items["training"]})
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def best(workdir: Path) -> int:
    """The number of the best checkpoint, as the last one has it."""
    path = workdir / "checkpoints" / str(checkpoints(workdir)[-1]) / "metadata" / "metadata"
    return json.loads(path.read_text())["best"]


def assert_same_run(actual: Path, expected: Path) -> None:
    """Two finished runs left the same: bytes of the last checkpoint, metrics, predictions."""
    assert checkpoints(actual)[-1] == checkpoints(expected)[-1]
    assert_same_bytes(saved(actual), saved(expected))
    assert best(actual) == best(expected)
    assert_same_bytes(saved(actual, best(actual)), saved(expected, best(expected)))
    assert metrics(actual) == metrics(expected)
    assert (actual / "predictions.csv").read_bytes() == (expected / "predictions.csv").read_bytes()
    for name in ("test_accuracy", "test_loss", "val_loss", "best_val_accuracy", "best_epoch", "epochs", "steps"):
        results = [json.loads((workdir / "result.json").read_text())[name] for workdir in (actual, expected)]
        assert results[0] == results[1], name


def assert_same_bytes(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Equal to the last bit."""
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape), name
        assert actual[name].tobytes() == array.tobytes(), name


def largest_difference(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Of any two numbers, on the scale of the larger but for those below 1."""
    assert actual.keys() == expected.keys()
    return max(
        float(np.max(np.abs(actual[name].astype(float) - array) / np.maximum(1, np.abs(array)), initial=0))
        for name, array in expected.items()
    )


def register() -> None:
    """Makes the small networks known by name; their recipes are those of the networks for small images."""
    registry._FAMILIES["cifar"] = registry._FAMILIES["cifar"] | NETWORKS


if __name__ == "__main__":
    register()
    experiments.train.train = partial(loop.train, dataset=DATASET)
    run(experiments.train.main)
