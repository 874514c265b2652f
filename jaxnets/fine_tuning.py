"""Training from Python with the options of the command: `jaxnets.fine_tune("photos", "resnet18", epochs=3)`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from jaxnets.data.folder import named_images
from jaxnets.data.sources import Dataset
from jaxnets.errors import InputError
from jaxnets.ops import keep_memory
from jaxnets.prediction import Prediction, predict
from jaxnets.pretrained import Pretrained
from jaxnets.training.checkpoint import load_classifier
from jaxnets.training.configure import configure
from jaxnets.training.loop import train as train_run
from jaxnets.training.new_workdir import workdir_or_new
from jaxnets.training.parallel import Parallel

# How a run is launched, beside `parallel`; arguments of the training loop.
_LAUNCH = ("steps_per_call", "checkpoint_interval", "tensorboard")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and what its result.json holds."""

    workdir: Path
    result: dict[str, Any]

    def __repr__(self) -> str:
        part = self.result.get("judged_on", "test")
        return (
            f"Run({self.result['arch']} on {self.result['dataset']}: {part} accuracy "
            f"{self.result[f'{part}_accuracy']:.2%}, files in {self.workdir})"
        )

    @cached_property
    def classifier(self) -> Pretrained:
        """The network of the best checkpoint, with its weights, preprocessing and class names."""
        best = load_classifier(self.workdir, "best")
        return Pretrained(best.model, best.variables, best.preprocessing, best.class_names)

    def predict(self, images: str | Path | Sequence[str | Path], *, top: int = 5) -> list[Prediction]:
        """The `top` most probable classes of image files, and of all images in folders, in order.

        Raises InputError for an image that can't be read.
        """
        paths = [images] if isinstance(images, str | Path) else images
        return list(predict(self.classifier, named_images([Path(path).expanduser() for path in paths]), top=top))


def train(
    arch: str,
    dataset: str | Path | Dataset = "digits",
    *,
    workdir: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> Run:
    """Trains the network `arch` as `jaxnets train` does, with the same recipes and defaults; returns the finished run.

    `dataset` is a folder of images, a name, or a Dataset. `settings` are the command's options, by the names of the
    fields of Config and of Recipe: `recipe="fast"`, `epochs=3`, `learning_rate=0.01`, `weights="DEFAULT"`,
    `transfer="head"`, `network_options={"activation": "gelu"}`; and `parallel`, `steps_per_call`, `checkpoint_interval`
    and `tensorboard`. Without `workdir` the run gets a new folder under runs/; with `resume` it continues the run in
    `workdir`. Raises InputError, before it writes anything, if the input is invalid.
    """
    return _run({**settings, "arch": arch, "dataset": dataset}, workdir, resume)


def fine_tune(
    dataset: str | Path | Dataset,
    arch: str = "resnet50",
    *,
    weights: str | Path = "DEFAULT",
    workdir: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> Run:
    """Trains a pretrained network on other images, as `train` with `weights`; returns the finished run.

    `weights` are a published name ("DEFAULT" for the best ones, downloaded once), a .pth, .pt or .safetensors file, or
    the folder of a run. `transfer` says what is trained: "full" (all, the default), "partial" or "head".
    """
    return _run({**settings, "arch": arch, "dataset": dataset, "weights": weights}, workdir, resume)


def _run(settings: Mapping[str, Any], workdir: str | Path | None, resume: bool) -> Run:
    keep_memory()
    folder = None if workdir is None else Path(workdir).expanduser()
    launch = {name: settings[name] for name in _LAUNCH if name in settings}
    if resume and folder is None:
        raise InputError("resume=True needs the workdir of the run to continue")
    of_config = {name: value for name, value in settings.items() if name not in ("parallel", *_LAUNCH)}
    config = configure(of_config, folder if resume else None)
    if config.dtype == "float64" and jax.dtypes.canonicalize_dtype("float64") != "float64":
        raise InputError('dtype="float64" needs jax.config.update("jax_enable_x64", True) before anything is computed')
    parallel = Parallel.choose(settings.get("parallel", "auto"))
    dataset = settings["dataset"] if isinstance(settings["dataset"], Dataset) else None
    with workdir_or_new(folder, config, parallel) as path:
        return Run(path, train_run(config, path, dataset, parallel=parallel, resume=resume, **launch))
