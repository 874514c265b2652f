"""Looking inside a network: class activation maps, occlusion, filters and feature maps."""

from jaxnets.inspection.class_maps import ClassMaps, class_maps, grad_cam
from jaxnets.inspection.figures import coloured, filter_pictures, grid, overlay, resize_maps
from jaxnets.inspection.layers import feature_maps, first_filters
from jaxnets.inspection.occlusion import occlusion

__all__ = [
    "ClassMaps",
    "class_maps",
    "coloured",
    "feature_maps",
    "filter_pictures",
    "first_filters",
    "grad_cam",
    "grid",
    "occlusion",
    "overlay",
    "resize_maps",
]
