"""The data set of a finished run, loaded again by the name or path in its configuration."""

from collections.abc import Callable, Mapping

from jaxnets.data.datasets import is_path
from jaxnets.data.sources import Dataset, Source
from jaxnets.errors import InputError
from jaxnets.training.config import Config


def load_data_of(config: Config, *, only_test: bool = False) -> Dataset:
    """Loads the data set of a run; with `only_test`, image files need no training images.

    Raises InputError if there is none, as when `train` was given a Dataset.
    """
    try:
        return config.load_dataset(only_test=only_test)
    except InputError as error:
        if is_path(config.dataset):
            raise
        raise InputError(
            f"the data set of the run, {config.dataset!r}, can't be loaded by its name ({error}); if train() was given "
            "a Dataset, write it as a folder of images"
        ) from None


def warn_of_other_images(
    fingerprints: Mapping[str, str], part: str, source: Source, say: Callable[[str], None]
) -> None:
    """Says so if the images of a part are not those of the run, which has these `fingerprints` by part.

    `source` has no unreadable images, as in training.
    """
    if fingerprints.get(part) != source.fingerprint():
        say(
            f"warning: these are not the {part} images of the run: some were added, removed, renamed or changed since, "
            "or train() was given a Dataset; some may have been trained on in another part; a run of an earlier "
            "version gets this warning in any case"
        )
