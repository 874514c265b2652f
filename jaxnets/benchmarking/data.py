"""Images a second from records to host batches, beside the decoder, the transfer, the training step and torchvision."""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.data.datasets import load_dataset
from jaxnets.data.decoding import open_image, pixels_of
from jaxnets.data.folder import FolderSource
from jaxnets.data.pipeline import available_cores
from jaxnets.data.sources import Dataset, Source
from jaxnets.errors import InputError
from jaxnets.models.registry import create_model
from jaxnets.training.loop import training_batches, training_source
from jaxnets.training.optimizers import make_optimizer, warmup_cosine
from jaxnets.training.recipes import Recipe
from jaxnets.training.step import create_state, train_step

PEERS = ("torch",)
_ROUNDS = 5
_MOST_IMAGES_A_ROUND = 2_000
_SECONDS = 1.0


@dataclass(frozen=True)
class Rates:
    """Images a second, one number a round. `decoder` is empty where there is nothing to decode, `peer` without one."""

    pipeline: list[float]
    decoder: list[float]
    peer: list[float]


def benchmark_data(name: str, arch: str, recipe: Recipe, data_dir: str | None, peer: str | None) -> dict[str, Any]:
    """What limits training `arch` by `recipe` on a data set: reading it, sending it to the device, or the step itself.

    The pipeline, the decoder alone (whole images, on as many threads) and the peer's loader take turns for a few
    rounds; medians count. Raises InputError for a peer that is not installed or can't read such a data set.
    """
    dataset = load_dataset(name, data_dir=data_dir)
    if recipe.batch_size > len(dataset.train):
        raise InputError(f"batch_size={recipe.batch_size}, but {name} has {len(dataset.train)} training images")
    rates = _data_rates(dataset, recipe, peer)
    pipeline = statistics.median(rates.pipeline)
    transfer, compute, compile_seconds = _device_rates(arch, recipe, dataset)
    result = {
        "mode": "data",
        "dataset": name,
        "arch": arch,
        "image_size": recipe.image_size,
        "batch_size": recipe.batch_size,
        "dtype": "float32",
        "device": jax.devices()[0].device_kind,
        "threads": available_cores(),
        "images_per_second": pipeline,
        "images_per_second_spread": [min(rates.pipeline), max(rates.pipeline)],
        "transfer_images_per_second": transfer,
        "compute_images_per_second": compute,
        "compile_seconds": compile_seconds,
        "limited_by": min((pipeline, "data"), (transfer, "transfer"), (compute, "compute"))[1],
        "peak_memory_bytes": _peak_memory_bytes(),
    }
    for name, others in (("decoder", rates.decoder), ("peer", rates.peer)):
        if others:
            result[f"{name}_images_per_second"] = statistics.median(others)
            result[f"{name}_images_per_second_spread"] = [min(others), max(others)]
            # Of each round by itself, as both sides ran under the same conditions only there.
            result[f"ratio_to_{name}"] = statistics.median(
                own / other for own, other in zip(rates.pipeline, others, strict=True)
            )
    return result


def _data_rates(dataset: Dataset, recipe: Recipe, peer: str | None) -> Rates:
    source = dataset.train
    preprocessing = recipe.preprocessing(dataset.mean, dataset.std)
    ready = training_source(source, preprocessing, recipe)
    encoded = isinstance(source[0].image, bytes)
    loader = None if peer is None else _torchvision_loader(source, recipe)

    def pipeline() -> float:
        def images(steps: int) -> int:
            batches = training_batches(ready, preprocessing, recipe, 0, range(steps))
            return sum(len(batch.mask) for batch in batches)

        return _rate(images, max(1, min(len(source), _MOST_IMAGES_A_ROUND) // recipe.batch_size))

    pipeline()  # Files come into the system's cache, and records are checked.
    rates = Rates([], [], [])
    for _ in range(_ROUNDS):
        rates.pipeline.append(pipeline())
        if encoded:
            rates.decoder.append(_rate(partial(_decode_whole, source), 1))
        if loader is not None:
            rates.peer.append(loader())
    return rates


def _rate(images: Callable[[int], int], amount: int) -> float:
    """Images a second; `amount` is doubled until that takes long enough to be measured."""
    while True:
        started = time.perf_counter()
        count = images(amount)
        seconds = time.perf_counter() - started
        if seconds >= _SECONDS / 2:
            return count / seconds
        amount *= 2


def _decode_whole(source: Source, times: int) -> int:
    count, threads = min(len(source), _MOST_IMAGES_A_ROUND), available_cores()

    def decode(thread: int) -> None:
        for _ in range(times):
            for index in range(thread, count, threads):
                pixels_of(open_image(source[index].image))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, range(threads)))
    return times * count


def _device_rates(arch: str, recipe: Recipe, dataset: Dataset) -> tuple[float, float, float]:
    """Images a second that reach the device, and that the compiled training step takes; seconds to compile it."""
    images = np.zeros((recipe.batch_size, recipe.image_size, recipe.image_size, 3), np.uint8)
    labels = np.arange(recipe.batch_size, dtype=np.int32) % len(dataset.class_names)

    def transfer(times: int) -> int:
        for _ in range(times):
            jax.block_until_ready(jax.device_put((images, labels), may_alias=False))
        return times * recipe.batch_size

    model = create_model(arch, num_classes=len(dataset.class_names), dtype=jnp.float32)
    optimizer = make_optimizer(recipe.optimizer, warmup_cosine(recipe.learning_rate, 100, 10), recipe.weight_decay)
    preprocessing = recipe.preprocessing(dataset.mean, dataset.std)
    step = partial(train_step, model=model, optimizer=optimizer, preprocessing=preprocessing, recipe=recipe, seed=0)
    state = create_state(model, optimizer, 0, recipe.image_size)
    started = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, images, labels).compile()
    compile_seconds = time.perf_counter() - started
    on_device = jax.device_put((images, labels))

    def compute(times: int) -> int:
        nonlocal state
        for _ in range(times):
            state, sums = compiled(state, *on_device)
        jax.block_until_ready(sums)
        return times * recipe.batch_size

    compute(1)
    return _rate(transfer, 1), _rate(compute, 1), compile_seconds


def _torchvision_loader(source: Source, recipe: Recipe) -> Callable[[], float]:
    if not isinstance(source, FolderSource):
        raise InputError("torchvision's loader reads folders of images only; give a folder as --data")
    if not recipe.min_crop_area:
        raise InputError("torchvision's loader is compared with random crops; give an --arch that trains with them")
    root = source.root / "train" if (source.root / "train").is_dir() else source.root
    return partial(_torchvision_rate, root, recipe)


def _torchvision_rate(root: Path, recipe: Recipe) -> float:
    # In a process of its own: its workers are forks, and JAX's threads do not survive a fork.
    arguments = (root, recipe.image_size, recipe.batch_size, recipe.min_crop_area, _MOST_IMAGES_A_ROUND)
    command = [sys.executable, "-m", "jaxnets.benchmarking.torchvision_loader", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise InputError(f"torchvision's loader failed ({last}); install it with: pip install 'jaxnets[peer]'")
    return float(done.stdout)


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
