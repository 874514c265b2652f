"""The weights of a run, from its checkpoints, without what only training needs."""

import errno
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
from jaxnets.weights.network_tensors import fault_of
from jaxnets.weights.origin import Origin

FOLDER = "checkpoints"
# Errors of the system that say nothing about the contents of a file.
_NOT_DAMAGE = {
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EROFS),
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EDQUOT),
}
_NOT_DAMAGE_IN_WORDS = (
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "out of memory"),
    *("Too many open files", "Stale file handle", "Input/output error"),
)
_IF_DAMAGED = "train --resume falls back to the one before, or train again in another workdir"
_IF_BEST_DAMAGED = "restore it, or read the last one with --checkpoint latest"
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
                check_is_damage(error, folder / str(number))
    return None


def read_run(workdir: Path, which: str = "best", model: nn.Module | None = None) -> RunWeights:
    """The weights of a run's "best" checkpoint, or the "latest" if there is no best or if that is asked for.

    `model` is the one that `train` was given, if any.

    Raises InputError if the checkpoint is missing or can't be read.
    """
    folder = Path(os.path.abspath(workdir)) / FOLDER
    if not _numbers(folder):
        raise without_checkpoint(workdir)
    devices()
    files, advice = orbax_files(), _IF_DAMAGED
    try:
        with files.reader(folder) as manager:
            number = manager.latest_step()
            metadata = files.read_metadata(manager, number)
            best = metadata["best"]
            if which == "best" and best not in (None, number):
                number, advice = best, _IF_BEST_DAMAGED
                if number not in manager.all_steps():
                    raise InputError(f"its best checkpoint, {folder / str(number)}, is missing; {advice}")
                metadata = files.read_metadata(manager, number)
            return _read(manager, number, metadata, model)
    except InputError as error:
        raise InputError(f"{workdir}: {error}") from None
    except Exception as error:
        # orbax and tensorstore raise many types for a file that is missing, cut short or of another form.
        check_is_damage(error, folder)
        raise InputError(
            f"{workdir}: its checkpoint is damaged or from another version ({type(error).__name__}: "
            f"{first_line(error)}); {advice}"
        ) from None


def _read(manager: Any, number: int, metadata: dict[str, Any], custom: nn.Module | None) -> RunWeights:
    """The weights of checkpoint `number`, which has this metadata."""
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
    return RunWeights(settings["arch"], model, jax.device_put(variables), origin, settings, metadata["fingerprints"])


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


def check_is_damage(error: Exception, folder: Path) -> None:
    """Raises InputError if `error`, met in reading a checkpoint, is due to memory, permissions or the like."""
    number = error.errno if isinstance(error, OSError) else None
    not_damage = number in _NOT_DAMAGE or any(words in str(error) for words in _NOT_DAMAGE_IN_WORDS)
    if not_damage or isinstance(error, MemoryError | jax.errors.JaxRuntimeError):
        reason = first_line(error) or type(error).__name__
        raise InputError(f"{folder} can't be read now ({reason}); check the permissions and the free memory") from None


def first_line(error: Exception) -> str:
    """The first line of an error's message, shortened."""
    return next(iter(str(error).splitlines()), "")[:200]
