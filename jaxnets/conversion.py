"""Weights from one file format to another, tensor by tensor, with their origin."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError
from jaxnets.pretrained import open_weights
from jaxnets.weights.download import say, sha256_of
from jaxnets.weights.file_origin import ASSUMED_NAMES
from jaxnets.weights.origin import Origin
from jaxnets.weights.runs import read_run
from jaxnets.weights.safetensors_file import write_safetensors
from jaxnets.weights.tensors import Spec
from jaxnets.weights.torch_file import write_torch_file
from jaxnets.weights.torchvision import to_torchvision

SUFFIXES = (".safetensors", ".pth", ".pt")


def convert_weights(
    arch: str,
    weights: str | Path,
    output: Path,
    *,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    weights_key: str | None = None,
) -> Origin:
    """Writes published weights, or those of a file, as a state dict with torchvision's names.

    Returns their origin, which a .safetensors file holds in its metadata, for `load_pretrained`. `preprocessing` and
    `class_names` replace what is known. `weights_key` is as for `load_pretrained`. Tensors keep their types; one at a
    time is in memory. Raises InputError, before the output exists, if they do not fit the network or are not finite.
    """
    _check_output(output)
    with open_weights(arch, weights, weights_key) as opened:
        tensors, origin = opened.tensors, opened.origin
        if opened.choice:
            say(f"{opened.source}: {opened.choice}")
        if class_names is not None:
            if len(class_names) != len(origin.class_names):
                raise InputError(
                    f"{len(class_names)} class names for a head of {len(origin.class_names)} classes; name each once"
                )
            origin = replace(origin, class_names=tuple(class_names))
        if preprocessing is not None:
            origin = replace(origin, preprocessing=preprocessing)
        metadata = _metadata(arch, origin, opened.source) | {"source_sha256": sha256_of(tensors.path)}
        if not opened.are_named and class_names is None:
            metadata[ASSUMED_NAMES] = "true"
        _write(output, tensors.specs, tensors.__getitem__, metadata)
    return origin


def convert_run(workdir: Path, output: Path, which: str = "best", arch: str | None = None) -> tuple[str, Origin]:
    """Writes a run's weights as a state dict, which torchvision loads if it has the network.

    Returns the network's name and the weights' origin. Raises InputError if they can't be read or written, or are of
    another network than `arch`.
    """
    _check_output(output)
    run = read_run(workdir, which)
    if arch not in (None, run.arch):
        raise InputError(f"{workdir} is a run of {run.arch}, not of {arch}")
    arch, origin = run.arch, run.origin
    tensors = to_torchvision(arch, run.variables)
    for name in list(tensors):
        if name.endswith("running_var"):  # torch counts the batches behind its statistics, and asks for the counter
            tensors[name.replace("running_var", "num_batches_tracked")] = np.array(0, np.int64)
    metadata = _metadata(arch, origin, f"a run of jaxnets on {Path(run.settings['dataset']).name}")
    specs = {name: Spec(array.dtype, array.shape) for name, array in sorted(tensors.items())}
    _write(output, specs, tensors.__getitem__, metadata)
    return arch, origin


def _check_output(output: Path) -> None:
    """Raises InputError for a file that exists, or whose name does not end in one of `SUFFIXES`."""
    if output.suffix not in SUFFIXES:
        raise InputError(f"output {output}; expected a name that ends in {', '.join(SUFFIXES)}")
    if output.exists():
        raise InputError(f"output {output} exists already; give another name, or remove it")


def _metadata(arch: str, origin: Origin, source: str) -> dict[str, str]:
    values: dict[str, Any] = asdict(origin)
    # Readers of safetensors take only UTF-8, and look for "format".
    source = source.encode(errors="backslashreplace").decode()
    plain = {"format": "pt", "arch": arch, "source": source}
    return plain | {name: json.dumps(value) for name, value in values.items()}


def _write(
    output: Path, specs: Mapping[str, Spec], read: Callable[[str], np.ndarray], metadata: dict[str, str]
) -> None:
    if output.suffix == ".safetensors":
        write_safetensors(output, specs, read, metadata)
    else:
        write_torch_file(output, specs, read)
