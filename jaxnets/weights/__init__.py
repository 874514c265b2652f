"""Files of weights, the catalogue of published weights, and conversion to and from torchvision's names."""

from jaxnets.weights.torchvision import from_torchvision, to_torchvision

__all__ = ["from_torchvision", "to_torchvision"]
