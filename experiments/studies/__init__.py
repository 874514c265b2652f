"""The laboratory: each module studies claims of the course, and draws what it measures."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.studies.study import Study

# In the order of the course.
STUDIES = (
    "convolution",
    "layout",
    "gradients",
    "optimizers",
    "activations",
    "alexnet",
    "googlenet",
    "residual",
    "batch_norm",
    "transfer",
    "resnext",
)


def load_study(name: str) -> "Study":
    """The study of a name in `STUDIES`."""
    study: Study = import_module(f"experiments.studies.{name}").STUDY
    return study
