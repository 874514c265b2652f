"""Throughput of a training step or of inference, compared with torchvision's network on the same machine.

Both sides take turns, each measurement in a new process, so that they share no memory, threads or caches.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from jaxnets.benchmarking.worker import Job
from jaxnets.errors import InputError
from jaxnets.models.registry import family_of, list_models
from jaxnets.weights.catalogue import list_weights

ROUNDS = 5
PEERS = ("torch", "onnxruntime")
TORCH_SETTINGS = ("eager", "channels_last", "compile")
PACKAGES = {"torch": ("torch", "torchvision"), "onnxruntime": ("torch", "torchvision", "onnxruntime", "onnxscript")}
# The loss is computed in training mode, where BatchNorm over few values amplifies rounding errors.
_TOLERANCES = {"logits": 1e-4, "loss": 1e-3}


def default_image_size(arch: str) -> int:
    """The image size in pixels that the network was designed for. Raises InputError for an unknown network."""
    return 32 if family_of(arch) == "cifar" else 224


def measurements(rounds: int, peer: str | None, settings: Sequence[str]) -> int:
    """The number of measurements of `benchmark_step`, the last value that its `done` gets."""
    return 1 + bool(peer) + rounds * (1 + len(settings_of(peer, settings)))


def settings_of(peer: str | None, requested: Sequence[str]) -> tuple[str, ...]:
    """The settings to measure: the `requested` ones of torch, or all if there are none; onnxruntime has only one.

    Raises InputError for unknown settings.
    """
    if peer != "torch" and requested:
        raise InputError(f"peer_settings={' '.join(requested)} need --peer torch; give it, or leave them out")
    unknown = [setting for setting in requested if setting not in TORCH_SETTINGS]
    if unknown:
        raise InputError(f"unknown peer_settings {' '.join(unknown)}; expected some of {', '.join(TORCH_SETTINGS)}")
    if peer == "torch":
        return tuple(dict.fromkeys(requested)) or TORCH_SETTINGS
    return () if peer is None else (peer,)


def benchmark_step(
    job: Job,
    *,
    rounds: int = ROUNDS,
    peer: str | None = None,
    peer_settings: Sequence[str] = (),
    profile: Path | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Measures the images per second of a job, compared with the machine's FLOP/s and, in each round, with a peer.

    The peer must first compute the same outputs from the same weights. If `profile` is given, a trace of a few steps is
    written to this folder. `done` is called with the number of measurements so far. Raises InputError for a job or a
    peer that can't be measured.
    """
    if rounds < 1:
        raise InputError(f"rounds={rounds}; expected at least 1")
    settings = settings_of(peer, peer_settings)
    if peer is not None:
        _check_measurable(job, peer)
    if profile is not None:
        profile.mkdir(parents=True, exist_ok=True)
    machine = _ours("machine", job)
    if peer == "onnxruntime" and machine["platform"] != "cpu":
        raise InputError(
            f"onnxruntime is measured on the CPU, but JAX runs on {machine['platform']}; set JAX_PLATFORMS=cpu"
        )
    done(1)
    rates: list[dict[str, Any]] = []
    peers: dict[str, list[dict[str, Any]]] = {setting: [] for setting in settings}
    count = 1
    with TemporaryDirectory() as folder:
        if peer is not None:
            expected = _ours("weights", job, folder)
            check_same(job, machine, settings[0], Path(folder), expected)
            count += 1
            done(count)
        for _ in range(rounds):
            rates.append(_ours("measure", job, repr(time.time())))
            count += 1
            done(count)
            for setting in settings:
                peers[setting].append(_theirs("measure", job, machine, setting, Path(folder)))
                count += 1
                done(count)
    result = _result(job, machine, rates)
    if peer is not None:
        result |= _compared(peer, rates, peers)
    if profile is not None:
        _ours("profile", job, str(profile))
        result["profile"] = str(profile)
    return result


def check_same(job: Job, machine: dict[str, Any], setting: str, folder: Path, expected: dict[str, Any]) -> None:
    """Raises InputError unless the peer computes `expected`, our outputs, from the weights and images in the folder.

    Logits may differ by 1e-4 of the largest one, the training loss (of networks without dropout) by 1e-3 of its value.
    """
    actual = _theirs("check", job, machine, setting, folder, with_loss=expected["loss"] is not None)
    for name, tolerance in _TOLERANCES.items():
        if expected[name] is None:
            continue
        ours, theirs = np.asarray(expected[name]), np.asarray(actual[name])
        difference = np.abs(ours - theirs).max() / np.abs(theirs).max() if ours.shape == theirs.shape else np.inf
        if not difference <= tolerance:
            raise InputError(
                f"jaxnets and torchvision compute different {name} of {job.arch} from the same weights: the relative "
                f"difference is {difference:.1e}, expected at most {tolerance:.0e}; please report this"
            )


def _check_measurable(job: Job, peer: str) -> None:
    if not list_weights(job.arch):
        archs = ", ".join(filter(list_weights, list_models()))
        raise InputError(f"torchvision has no {job.arch}; leave --peer out, or give one of {archs}")
    if peer not in PEERS:
        raise InputError(f"unknown peer {peer!r}; expected one of {', '.join(PEERS)}")
    if peer == "onnxruntime" and (job.mode, job.dtype) != ("inference", "float32"):
        raise InputError(
            f"onnxruntime runs only inference in float32, not mode={job.mode} dtype={job.dtype}; give "
            "--mode inference --dtype float32, or --peer torch"
        )
    missing = [package for package in PACKAGES[peer] if find_spec(package) is None]
    if missing:
        raise InputError(f"--peer {peer} needs {', '.join(missing)}: pip install 'jaxnets[peer]'")


def _result(job: Job, machine: dict[str, Any], measured: list[dict[str, Any]]) -> dict[str, Any]:
    rates = [result["images_per_second"] for result in measured]
    medians = {name: statistics.median(result[name] for result in measured) for name in measured[0]}
    rate = medians["images_per_second"]
    return {
        "arch": job.arch,
        **({"network_options": job.options} if job.options else {}),
        "mode": job.mode,
        "image_size": job.image_size,
        "batch_size": job.batch_size,
        "dtype": job.dtype,
        "device": machine["device"],
        "parallel": job.parallel,
        "rounds": len(measured),
        "images_per_second": rate,
        "images_per_second_spread": [min(rates), max(rates)],
        "step_seconds": medians["step_seconds"],
        "initial_seconds": medians["initial_seconds"],
        "compile_seconds": medians["compile_seconds"],
        "first_step_seconds": medians["first_step_seconds"],
        "peak_memory_bytes": int(medians["peak_memory_bytes"]),
        "import_memory_bytes": int(medians["import_memory_bytes"]),
        "flops_per_image": machine["flops_per_image"],
        "arithmetic_ceiling_flops": machine["arithmetic_ceiling_flops"],
        "bandwidth_ceiling_bytes": machine["bandwidth_ceiling_bytes"],
        "percent_of_arithmetic": 100 * rate * machine["flops_per_image"] / machine["arithmetic_ceiling_flops"],
        "jax": machine["jax"],
        "python": machine["python"],
        "cores": machine["cores"],
    }


def _compared(peer: str, ours: list[dict[str, Any]], theirs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for setting, measured in theirs.items():
        rates = [result["images_per_second"] for result in measured]
        summary[setting] = {
            "images_per_second": statistics.median(rates),
            # The first round's value, as later rounds use its compilation cache.
            "compile_seconds": measured[0]["compile_seconds"],
            "spread": [min(rates), max(rates)],
            **{
                name: int(statistics.median(result[name] for result in measured))
                for name in ("peak_memory_bytes", "import_memory_bytes")
            },
        }
    best = max(summary, key=lambda setting: summary[setting]["images_per_second"])
    # Conditions are the same within a round only, so the ratio is the median of the rounds' ratios.
    ratios = [a["images_per_second"] / b["images_per_second"] for a, b in zip(ours, theirs[best], strict=True)]
    memory = statistics.median(result["peak_memory_bytes"] for result in ours)
    return {
        "peer": peer,
        "torch": theirs[best][0]["torch"],
        "peer_images_per_second": summary[best]["images_per_second"],
        "peer_setting": best,
        "peer_peak_memory_bytes": summary[best]["peak_memory_bytes"],
        "peer_import_memory_bytes": summary[best]["import_memory_bytes"],
        "memory_ratio": memory / summary[best]["peak_memory_bytes"],
        "peer_settings": summary,
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
    }


def _ours(task: str, job: Job, *more: str) -> dict[str, Any]:
    # Measures compilation without JAX's cache.
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-m", "jaxnets.benchmarking.worker", task, json.dumps(asdict(job)), *more]
    return _run(command, environment, "")


def _theirs(task: str, job: Job, machine: dict[str, Any], setting: str, folder: Path, **more: Any) -> dict[str, Any]:
    """The output of torch's script. torch's compilation cache is in the folder."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    settings = {
        **asdict(job),
        "platform": machine["platform"],
        "cores": machine["cores"],
        "setting": setting,
        "folder": str(folder),
        **more,
    }
    script = Path(__file__).with_name("torch_step.py")
    return _run([sys.executable, str(script), task, json.dumps(settings)], environment, f"torch ({setting}) failed: ")


def _run(command: list[str], environment: dict[str, str], failed: str) -> dict[str, Any]:
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if finished.returncode < 0:
        raise InputError(
            f"{failed}signal {-finished.returncode} ended the measuring process, perhaps for lack of memory; try a "
            "smaller --batch-size or --image-size"
        )
    if finished.returncode:
        last = (finished.stderr.strip() or f"no message, exit code {finished.returncode}").splitlines()[-1]
        hint = "; pip install 'jaxnets[peer]'" if "ModuleNotFoundError" in last and failed else ""
        raise InputError(f"{failed}{last}{hint}")
    return json.loads(finished.stdout.strip().splitlines()[-1])
