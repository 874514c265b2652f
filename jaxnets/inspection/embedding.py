"""Features in two dimensions: principal components, or UMAP, and their figure."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnets.errors import InputError

# Classes that the legend names beside the figure; more get a second place on the colour circle in light and dark.
_MAX_NAMED = 40
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")


def principal_components(features: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [N, count] along the principal components of features [N, ...], and their shares of the variance.

    The sign of a component is such that its largest loading is positive. Raises InputError for too few images.
    """
    rows = np.asarray(features, np.float64).reshape(len(features), -1)
    if min(rows.shape) < count or len(rows) < 2:
        raise InputError(f"{len(rows)} images with {rows.shape[1]} features; expected at least {max(2, count)} of each")
    centred = rows - rows.mean(axis=0)
    # The smaller of the two: covariances of features, or products of images.
    if rows.shape[1] <= len(rows):
        variances, vectors = np.linalg.eigh(centred.T @ centred)
        directions = vectors[:, ::-1][:, :count]
    else:
        variances, vectors = np.linalg.eigh(centred @ centred.T)
        directions = centred.T @ vectors[:, ::-1][:, :count]
        directions /= np.maximum(np.linalg.norm(directions, axis=0), np.finfo(np.float64).tiny)
    largest = directions[np.abs(directions).argmax(axis=0), np.arange(count)]
    directions = directions * np.where(largest < 0, -1, 1)
    total = np.square(centred).sum()
    shares = np.maximum(variances[::-1][:count], 0) / total if total else np.zeros(count)
    return centred @ directions, shares


def require_umap() -> Any:
    """The module umap. Raises InputError with a hint if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages that it would use for other things
            import umap
    except ImportError:
        raise InputError("UMAP needs umap-learn: pip install 'jaxnets[umap]'; or leave it out for PCA") from None
    return umap


def umap_embedding(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Coordinates [N, 2] of features [N, ...] by UMAP (McInnes et al. 2018) with cosine distances and its defaults."""
    umap = require_umap()
    rows = np.asarray(features, np.float32).reshape(len(features), -1)
    neighbours = min(15, len(rows) - 1)
    if neighbours < 2:
        raise InputError(f"{len(rows)} images; expected at least 3 for UMAP")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed means one thread
        start = "spectral" if len(rows) > 10 else "random"
        reducer = umap.UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, init=start)
        return np.asarray(reducer.fit_transform(rows))


def draw_embedding(
    points: np.ndarray,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    *,
    axes: Sequence[str] = ("1st component", "2nd component"),
    title: str = "",
) -> Any:
    """A matplotlib figure of points [N, 2], coloured by their labels [N], with the names of the axes.

    Classes differ in colour and marker. Up to 40 are listed in a legend, and named in the middle of their points.
    """
    from matplotlib import colormaps, patheffects
    from matplotlib.figure import Figure

    named = labels is not None and 0 < len(class_names) <= _MAX_NAMED
    figure = Figure(figsize=(9.5 if named else 7.5, 6.5), layout="constrained")
    axis = figure.subplots()
    size = float(np.clip(12_000 / max(1, len(points)), 3, 28))
    classes = np.zeros(len(points), np.int64) if labels is None else np.asarray(labels)
    count = int(classes.max()) + 1 if len(classes) else 1
    # Fewer colours than 20 are told apart; then the markers change too.
    hues = colormaps["tab10" if count <= 10 else "tab20"]
    colours = hues.N
    for label in np.unique(classes):
        at = points[classes == label]
        axis.scatter(
            at[:, 0],
            at[:, 1],
            s=size,
            color=hues(int(label) % colours),
            marker=_MARKERS[int(label) // colours % len(_MARKERS)],
            alpha=0.65,
            linewidths=0,
            label=_short(class_names[label]) if named else None,
        )
    if named:
        for label in np.unique(classes):
            middle = np.median(points[classes == label], axis=0)
            style: Any = {"ha": "center", "va": "center", "fontsize": 9, "weight": "bold", "parse_math": False}
            name = axis.text(float(middle[0]), float(middle[1]), _short(class_names[label]), **style)
            name.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])
        legend: Any = figure.legend(loc="outside right upper", frameon=False, fontsize=9, ncols=1 + (count > 25))
        for text in legend.get_texts():
            text.set_parse_math(False)
        for handle in legend.legend_handles:
            handle.set_alpha(1)
    axis.set_xlabel(axes[0])
    axis.set_ylabel(axes[1])
    axis.set_title(title, fontsize=11, parse_math=False)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _short(name: str) -> str:
    # Matplotlib leaves names that begin with an underscore out of legends.
    name = name if len(name) <= 24 else f"{name[:23]}..."
    return f" {name}" if name.startswith("_") else name
