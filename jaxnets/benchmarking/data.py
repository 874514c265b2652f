"""Throughput of the data pipeline, compared with the decoder, the transfer, the training step and torchvision."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.benchmarking.machine import host_memory_bytes
from jaxnets.data.batches import evaluation_slots
from jaxnets.data.datasets import load_dataset
from jaxnets.data.decoding import open_image, pixels_of
from jaxnets.data.folder import FolderSource
from jaxnets.data.pipeline import Batch, Preprocessed, available_cores, read_batches
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Dataset, Source, Subset
from jaxnets.errors import InputError
from jaxnets.models.registry import create_model
from jaxnets.training.feed import TrainingFeed
from jaxnets.training.parallel import Parallel
from jaxnets.training.recipe import Recipe
from jaxnets.training.state import create_state
from jaxnets.training.step import train_step

PEERS = ("torch",)
ROUNDS = 5
_MAX_IMAGES = 2_000
_MAX_EPOCHS = 100_000
_MIN_SECONDS = 0.5


def benchmark_data(
    name: str,
    arch: str,
    recipe: Recipe,
    data_dir: str | None,
    peer: str | None,
    done: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Measures whether reading, the transfer to the device or the step limits training `arch` by `recipe`.

    The pipeline, the decoder alone (whole images, on as many threads), the preprocessing of evaluation images and the
    peer's loader take turns on the same images for `ROUNDS` rounds. `done` is called with the number of rounds so far.
    Results are medians in images per second. Raises InputError for a peer that is not installed or can't read the data
    set.
    """
    dataset = load_dataset(name, data_dir=data_dir)
    stride = -(-len(dataset.train) // _MAX_IMAGES)
    source = Subset(dataset.train, np.arange(0, len(dataset.train), stride))
    if recipe.batch_size > len(source):
        raise InputError(
            f"batch_size={recipe.batch_size}; expected at most {len(source)}, the measured images of {name}"
        )
    preprocessing = recipe.preprocessing(dataset.mean, dataset.std)
    # More epochs than a measurement takes.
    feed = TrainingFeed(source, preprocessing, replace(recipe, epochs=_MAX_EPOCHS, train_image_sizes=()), 0)
    ready = feed.images(recipe.image_size)

    def pipeline(times: int) -> int:
        steps = min(times * len(source) // recipe.batch_size, feed.steps_through(_MAX_EPOCHS))
        return sum(len(batch.mask) for batch in feed.batches(0, steps))

    sides: dict[str, Callable[[], float]] = {"pipeline": partial(_rate, pipeline)}
    if isinstance(source[0].image, bytes) and not isinstance(ready, Preprocessed):
        sides["decoder"] = partial(_rate, partial(_decode_whole, source))
        sides["evaluation"] = partial(_rate, partial(_evaluate, source, preprocessing, recipe.batch_size))
    if peer is not None:
        sides["peer"] = _torchvision_loader(dataset.train, recipe, stride, 0)
        sides["peer_evaluation"] = _torchvision_loader(dataset.train, recipe, stride, preprocessing.resize_size)
    sides["pipeline"]()  # Fills the file cache and verifies the checksums of records.
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(ROUNDS):
        for side, measure in sides.items():
            rates[side].append(measure())
        done(number + 1)

    transfer, compute, compile_seconds = _device_rates(arch, recipe, dataset)
    data = statistics.median(rates["pipeline"])
    result = {
        "mode": "data",
        "dataset": name,
        "arch": arch,
        "image_size": recipe.image_size,
        "batch_size": recipe.batch_size,
        "dtype": "float32",
        "device": jax.devices()[0].device_kind,
        "threads": available_cores(),
        "images_per_second": data,
        "images_per_second_spread": [min(rates["pipeline"]), max(rates["pipeline"])],
        "transfer_images_per_second": transfer,
        "compute_images_per_second": compute,
        "compile_seconds": compile_seconds,
        "limited_by": min((data, "data"), (transfer, "transfer"), (compute, "compute"))[1],
    }
    for side in sides.keys() - {"pipeline"}:
        result[f"{side}_images_per_second"] = statistics.median(rates[side])
        result[f"{side}_images_per_second_spread"] = [min(rates[side]), max(rates[side])]
    # Conditions are the same within a round only, so the ratio is the median of the rounds' ratios.
    for side, ours in (("decoder", "pipeline"), ("peer", "pipeline"), ("peer_evaluation", "evaluation")):
        if side in sides:
            ratios = [rate / other for rate, other in zip(rates[ours], rates[side], strict=True)]
            result[f"ratio_to_{side}"] = statistics.median(ratios)
            result[f"ratio_to_{side}_spread"] = [min(ratios), max(ratios)]
    return result | {"peak_memory_bytes": host_memory_bytes()}


def _rate(images: Callable[[int], int]) -> float:
    """Images per second of `images(times)`, which returns a count; repeats it until it takes long enough."""
    times = 1
    while True:
        started = time.perf_counter()
        count = images(times)
        seconds = time.perf_counter() - started
        if seconds >= _MIN_SECONDS:
            return count / seconds
        times *= 2


def _decode_whole(source: Source, times: int) -> int:
    threads = available_cores()

    def decode(thread: int) -> None:
        for _ in range(times):
            for index in range(thread, len(source), threads):
                pixels_of(open_image(source[index].image))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, range(threads)))
    return times * len(source)


def _evaluate(source: Source, preprocessing: Preprocessing, batch_size: int, times: int) -> int:
    for _ in range(times):
        for _ in read_batches(source, preprocessing, evaluation_slots(batch_size, len(source))):
            pass
    return times * len(source)


def _device_rates(arch: str, recipe: Recipe, dataset: Dataset) -> tuple[float, float, float]:
    """Returns the images per second of the transfer and of the compiled training step, and the compile seconds."""
    images = np.zeros((recipe.batch_size, recipe.image_size, recipe.image_size, 3), np.uint8)
    labels = np.arange(recipe.batch_size, dtype=np.int32) % len(dataset.class_names)

    def transfer(times: int) -> int:
        for _ in range(times):
            jax.block_until_ready(jax.device_put((images, labels), may_alias=False))
        return times * recipe.batch_size

    model = create_model(arch, num_classes=len(dataset.class_names), dtype=jnp.float32)
    optimizer = recipe.make_optimizer(recipe.schedule_of(100, len(dataset.train)))
    preprocessing = recipe.preprocessing(dataset.mean, dataset.std)
    step = partial(train_step, model=model, optimizer=optimizer, preprocessing=preprocessing, recipe=recipe)
    state = create_state(model, optimizer, 0, recipe.image_size, ema=recipe.ema_decay > 0)
    compiled = Parallel.choose("jit").wrap(step, donate=True)
    batch = jax.device_put(Batch(images, labels, np.ones(recipe.batch_size, bool)))

    def compute(times: int) -> int:
        nonlocal state
        for _ in range(times):
            state, sums = compiled(state, batch)
        jax.block_until_ready(sums)
        return times * recipe.batch_size

    compute(1)
    return _rate(transfer), _rate(compute), compiled.seconds


def _torchvision_loader(source: Source, recipe: Recipe, stride: int, resize_size: int) -> Callable[[], float]:
    if not isinstance(source, FolderSource):
        raise InputError("torchvision's loader reads only image folders; give a folder as --data")
    if not recipe.min_crop_area:
        raise InputError("torchvision's loader uses random crops; give an --arch whose recipe has them")
    root = source.root / "train" if (source.root / "train").is_dir() else source.root
    # In a separate process that does not import JAX, as the loader forks and JAX's threads do not survive a fork.
    script = Path(__file__).with_name("torchvision_loader.py")
    numbers = (recipe.image_size, recipe.batch_size, recipe.min_crop_area, resize_size, stride, available_cores())
    return partial(_run, [sys.executable, str(script), str(root), *map(str, numbers)])


def _run(command: list[str]) -> float:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        last = (finished.stderr.strip() or "no message").splitlines()[-1]
        raise InputError(f"torchvision's loader failed ({last}); install it with pip install 'jaxnets[peer]'")
    return float(finished.stdout)
