"""The weights of a run, from its checkpoints, without what only training needs."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxnets.devices import devices
from jaxnets.errors import InputError
from jaxnets.models.contract import has_option
from jaxnets.models.initialization import declaration
from jaxnets.models.options import built_options
from jaxnets.models.registry import create_model
from jaxnets.weights.damage import damage_of
from jaxnets.weights.download import say
from jaxnets.weights.file_checksums import check_files
from jaxnets.weights.network_tensors import fault_of
from jaxnets.weights.origin import Origin

FOLDER = "checkpoints"
# The recipe's settings that are options of a network, each with the value that needs none, and how to leave it out.
_SETTINGS: dict[str, tuple[Any, str]] = {
    "dropout_rate": (None, "leave out --dropout-rate"),
    "stochastic_depth_rate": (0.0, "give --stochastic-depth-rate 0"),
    "zero_init_residual": (False, "give --no-zero-init-residual"),
}


@dataclass(frozen=True)
class RunWeights:
    """A network with a run's weights. `settings` are the run's configuration as JSON has it.

    `fingerprints` are those of the images of its parts.
    """

    arch: str
    model: nn.Module
    variables: dict[str, Any]
    origin: Origin
    settings: dict[str, Any]
    fingerprints: dict[str, str]


def network_of(
    settings: Mapping[str, Any], num_classes: int, options: Mapping[str, Any], model: nn.Module | None = None
) -> nn.Module:
    """The network of a run: `settings` are its configuration, `options` come with the weights that it starts from.

    `network_options` in the settings take the place of equal ones. `model` takes the place of the network that the
    settings name.

    Raises InputError if the network does not have an option that the recipe asks for.
    """
    arch, recipe = settings["arch"], settings["recipe"]
    if model is None:
        options = {**options, **options_in(settings)}
        dtype = jnp.dtype(settings["dtype"])
        model = create_model(arch, num_classes=num_classes, dtype=dtype, **built_options(arch, options))
    wanted = {name: recipe[name] for name, (unset, _) in _SETTINGS.items() if recipe[name] != unset}
    for name in wanted:
        if not has_option(model, name):
            raise InputError(f"{arch} has no {name}, which the recipe asks for; {_SETTINGS[name][1]}")
    return model.clone(**wanted) if wanted else model


def options_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the network in a run's configuration; those of runs of earlier versions have none."""
    return dict(settings.get("network_options", {}))


def origin_in(contents: Mapping[str, Any]) -> Origin:
    """The origin of a run's weights, from the metadata of a checkpoint."""
    origin = Origin.from_dict(contents)
    return replace(origin, options=origin.options | options_in(contents["config"]))


def read_contents(workdir: Path) -> dict[str, Any] | None:
    """The metadata of the latest checkpoint that can be read; None if there is none.

    Raises InputError if the system does not let it be read.
    """
    devices()
    folder = workdir.resolve() / FOLDER
    if not os.path.isdir(folder):
        return None
    files = orbax_files()
    with files.reader(folder) as manager:
        for number in sorted(manager.all_steps(), reverse=True):
            try:
                contents: dict[str, Any] = files.read_metadata(manager, number)
                return contents
            except Exception as error:  # orbax and tensorstore raise many types
                damage_of(error, folder / str(number))
    return None


def read_run(workdir: Path, which: str = "best", model: nn.Module | None = None) -> RunWeights:
    """The weights of a run's "best" checkpoint, or the "latest" if there is no best or if that is asked for.

    "intact" is the newest checkpoint that is not damaged; a line on standard error names it, and what is damaged.
    `model` is the one that `train` was given, if any.

    Raises InputError if the checkpoint is missing or can't be read; it names the damaged file.
    """
    folder = Path(os.path.abspath(workdir)) / FOLDER
    if not _numbers(folder):
        raise without_checkpoint(workdir)
    devices()
    try:
        with orbax_files().reader(folder) as manager:
            if which == "intact":
                found, damaged = _newest_intact(manager, folder, model)
                if found is None:
                    raise InputError(
                        f"none of its checkpoints is intact ({damaged[0]}); train again in another workdir"
                    )
                weights, name = found
                say(f"{workdir}: reading {name}, the newest that is intact{''.join(f'; {line}' for line in damaged)}")
                return weights
            return _chosen(manager, folder, which, model)
    except InputError as error:
        raise InputError(f"{workdir}: {error}") from None
    except Exception as error:  # orbax and tensorstore raise many types
        raise InputError(f"{workdir}: its checkpoints can't be opened ({damage_of(error, folder)})") from None


def _chosen(manager: Any, folder: Path, which: str, model: nn.Module | None) -> RunWeights:
    """The weights of the best or latest checkpoint. Raises InputError, which tells what is intact, if it is damaged."""
    number, name = max(_numbers(folder)), "latest"
    try:
        if which == "best":
            best = orbax_files().read_metadata(manager, number)["best"]
            if best not in (None, number):
                number, name = best, "best"
        return _read(manager, folder, number, model)[0]
    except Exception as error:  # orbax and tensorstore raise many types
        path = folder / str(number)
        fault = f"is damaged: {damage_of(error, path)}" if path.is_dir() else "is missing"
        found, _ = _newest_intact(manager, folder, model)
        offer = (
            f"restore it, or read {found[1]}, which is intact, with --checkpoint intact"
            if found
            else ("none of the others is intact; restore it, or train again in another workdir")
        )
        raise InputError(f"its {name} checkpoint, {path}, {fault}; {offer}") from None


def _newest_intact(
    manager: Any, folder: Path, model: nn.Module | None
) -> tuple[tuple[RunWeights, str] | None, list[str]]:
    """The weights of the newest intact checkpoint with its name, and what is damaged in those after it."""
    damaged: list[str] = []
    for number in sorted(_numbers(folder), reverse=True):
        try:
            weights, step = _read(manager, folder, number, model)
            return (weights, f"checkpoint {number} (step {step:,})"), damaged
        except Exception as error:  # orbax and tensorstore raise many types
            damaged.append(f"checkpoint {number} is damaged: {damage_of(error, folder / str(number))}")
    return None, damaged


def _read(manager: Any, folder: Path, number: int, custom: nn.Module | None) -> tuple[RunWeights, int]:
    """The weights of checkpoint `number`, and the number of steps before it, if all of its files are intact."""
    check_files(folder / str(number))
    metadata = orbax_files().read_metadata(manager, number)
    settings, origin = metadata["config"], origin_in(metadata)
    trained = metadata.get("custom", {}).get("model")  # runs of earlier versions have no such entry
    if trained is not None and custom is None:
        raise InputError(f"its network {trained} was given to train(); give it to load_classifier(model=...) too")
    model = network_of(settings, len(origin.class_names), origin.options, custom)
    shapes = declaration(model, origin.preprocessing.crop_size).shapes
    like = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
    variables = orbax_files().read_arrays(manager, number, "variables", metadata, like)
    for path, leaf in flatten_dict(variables).items():
        if fault := fault_of(np.asarray(leaf), is_variance=path[0] == "batch_stats" and path[-1] == "var"):
            raise InputError(f"checkpoint {number} has {'/'.join(path)} that {fault}; use another checkpoint or run")
    variables, fingerprints = jax.device_put(variables), metadata["fingerprints"]
    weights = RunWeights(settings["arch"], model, variables, origin, settings, fingerprints)
    return weights, metadata["position"]["step"]


def without_checkpoint(workdir: Path) -> InputError:
    """The error for a path without a checkpoint that can be read: what it is or holds instead, and what to do."""
    if os.path.isfile(workdir):
        return InputError(f"{workdir} is a file, not a run; weights in a file need --arch NAME --weights {workdir}")
    if _numbers(workdir / FOLDER):
        return InputError(f"{workdir} holds no checkpoint that can be read; restore one, or train again elsewhere")
    if os.path.exists(workdir / "result.json"):
        return InputError(f"{workdir} holds a finished run, but not its checkpoints; restore them, or train again")
    if os.path.exists(workdir / "config.json"):
        return InputError(
            f"{workdir} holds a run that was stopped before its first checkpoint; begin it from the start with "
            f"jaxnets train --workdir {shlex.quote(str(workdir))} --resume"
        )
    return InputError(f"{workdir} holds no run; give a folder that jaxnets train wrote")


def _numbers(folder: Path) -> list[int]:
    """The numbers of the checkpoints in a folder of them, which need not be there."""
    return [int(name) for name in os.listdir(folder) if name.isdecimal()] if os.path.isdir(folder) else []


def orbax_files() -> Any:
    """The module that imports orbax, which takes as long to import as Flax and optax together."""
    from jaxnets.weights import checkpoint_files

    return checkpoint_files
