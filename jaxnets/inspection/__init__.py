"""What a network has learned, and what its data holds; functions return arrays and figures."""

from jaxnets.inspection.duplicates import Pair, find_duplicates
from jaxnets.inspection.embedding import draw_embedding, principal_components, umap_embedding
from jaxnets.inspection.label_errors import LabelErrors, find_label_errors
from jaxnets.inspection.linear_probe import out_of_sample
from jaxnets.inspection.neighbours import nearest

__all__ = [
    "LabelErrors",
    "Pair",
    "draw_embedding",
    "find_duplicates",
    "find_label_errors",
    "nearest",
    "out_of_sample",
    "principal_components",
    "umap_embedding",
]
