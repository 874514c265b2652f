"""Where a network looked in the images that it classified wrongly."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxnets.errors import InputError
from jaxnets.report.run_files import RunFiles


def heat_map_of(mistake: Path) -> Path:
    """The file of the heat map of an image in mistakes/."""
    return mistake.with_name(f"{mistake.stem}-map.png")


def draw_heat_maps(run: RunFiles) -> None:
    """Writes a Grad-CAM map of the prediction beside each image in mistakes/, unless all are there.

    Raises InputError if the classifier can't be loaded, or has no layer that a map could be drawn of.
    """
    files = mistakes_of(run)
    if run.answers is None or all(heat_map_of(file).exists() for file in files.values()):
        return
    from jaxnets.inspection import grad_cam, overlay
    from jaxnets.training.checkpoint import load_classifier

    # Earlier versions judged a run by its last checkpoint.
    classifier = load_classifier(run.path, "best" if "judged_on" in (run.result or {}) else "latest")
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files.values()])
    images = classifier.preprocessing.normalise(jnp.asarray(pixels))
    maps = grad_cam(classifier.model, classifier.variables, images, run.answers.predicted[list(files)])
    for file, picture, heat in zip(files.values(), pixels, maps, strict=True):
        Image.fromarray(overlay(picture, heat)).save(heat_map_of(file))


def mistakes_of(run: RunFiles) -> dict[int, Path]:
    """The images in mistakes/ by their row in the answers, the surest mistake first."""
    answers = run.answers
    if answers is None:
        return {}
    wrong = np.flatnonzero(~answers.right)
    order = wrong[np.argsort(-answers.confidence[wrong], kind="stable")]
    files = {int(row): run.path / "mistakes" / f"{answers.indices[row]}.png" for row in order}
    return {row: file for row, file in files.items() if file.exists()}


def try_heat_maps(run: RunFiles) -> str | None:
    """Draws the heat maps; returns the reason if that is impossible."""
    try:
        draw_heat_maps(run)
    except InputError as error:
        return str(error)
    return None
