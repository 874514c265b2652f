"""A new folder for a run that is given none."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxnets.data.datasets import is_path
from jaxnets.training.config import Config
from jaxnets.training.parallel import Parallel


@contextmanager
def workdir_or_new(workdir: Path | None, config: Config, parallel: Parallel) -> Iterator[Path]:
    """`workdir`, or if it is None a new folder, which is removed if the run writes nothing to it."""
    if workdir is not None:
        yield workdir
        return
    new = parallel.broadcast(parallel.on_primary(lambda: str(new_workdir(config))))
    try:
        yield Path(new)
    finally:
        if parallel.is_primary:
            for folder in (Path(new), Path(new).parent):
                with suppress(OSError):
                    folder.rmdir()


def new_workdir(config: Config) -> Path:
    """Creates runs/ARCH-DATASET, or with -2, -3, ... appended if that exists. Two processes never get the same."""
    name = Path(config.dataset).name if is_path(config.dataset) else config.dataset
    name = _plain(f"{config.arch}-{name}")
    path, number = Path("runs") / name, 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
            path = Path("runs") / f"{name}-{number}"


def _plain(name: str) -> str:
    """The name of one folder, without separators of paths."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)
