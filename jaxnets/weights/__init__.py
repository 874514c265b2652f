"""Weights from elsewhere <-> variables."""

from jaxnets.weights.torchvision import from_torchvision, to_torchvision

__all__ = ["from_torchvision", "to_torchvision"]
