"""Looks inside a network and its data: maps, filters, neighbours, duplicates, label errors; as arrays and figures."""

from jaxnets.inspection.class_maps import ClassMaps, class_maps, grad_cam
from jaxnets.inspection.duplicates import Pair, find_duplicates
from jaxnets.inspection.embedding import draw_embedding, principal_components, umap_embedding
from jaxnets.inspection.figures import coloured, filter_pictures, grid, overlay, resize_maps
from jaxnets.inspection.label_errors import LabelErrors, find_label_errors
from jaxnets.inspection.layers import feature_maps, first_filters
from jaxnets.inspection.linear_probe import out_of_sample
from jaxnets.inspection.neighbours import nearest
from jaxnets.inspection.occlusion import occlusion

__all__ = [
    "ClassMaps",
    "LabelErrors",
    "Pair",
    "class_maps",
    "coloured",
    "draw_embedding",
    "feature_maps",
    "filter_pictures",
    "find_duplicates",
    "find_label_errors",
    "first_filters",
    "grad_cam",
    "grid",
    "nearest",
    "occlusion",
    "out_of_sample",
    "overlay",
    "principal_components",
    "resize_maps",
    "umap_embedding",
]
