"""Mistakes of users in Python, among `belongings`: each with words that the InputError has to hold."""

from collections.abc import Callable

import jaxnets
from tests.faults.belongings import ARCH

CALLS: tuple[tuple[Callable[[], object], tuple[str, ...]], ...] = (
    (lambda: jaxnets.create_model("resnet5"), ("unknown architecture 'resnet5'", "resnet50")),
    (lambda: jaxnets.create_model("resnet50", num_classes=0), ("num_classes=0; a network needs at least 1 class",)),
    (lambda: jaxnets.load_pretrained(ARCH, "text.pth"), ("is not a file of weights; expected torch's format",)),
    (lambda: jaxnets.load_pretrained("resnet18", "run"), (f"run is a run of {ARCH}, not of resnet18",)),
    (lambda: jaxnets.fine_tune("./photo", "resnet18"), ("photo: no such folder; give a folder of images",)),
    (lambda: jaxnets.train("resnet18", "photos", epochs="3"), ("epochs='3'; expected a whole number",)),
    (lambda: jaxnets.train("resnet18", "photos", learning_rat=1), ("'learning_rat'", "did you mean learning_rate")),
)
