"""The peer: prints the images per second of torchvision's ImageFolder, RandomResizedCrop and DataLoader.

Run it by its path, without jaxnets: python torchvision_loader.py ROOT IMAGE_SIZE BATCH_SIZE MIN_AREA RESIZE STRIDE
CORES. It reads every STRIDE-th image. If RESIZE is not 0, it resizes to this short side and crops the centre instead.
"""

import sys
import time

from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, PILToTensor, RandomResizedCrop, Resize


def images_per_second(
    root: str, image_size: int, batch_size: int, min_area: float, resize: int, stride: int, cores: int
) -> float:
    """The best rate with one worker per core, or one more, without the time to start them."""
    central = [Resize(resize), CenterCrop(image_size)]
    crops = central if resize else [RandomResizedCrop(image_size, scale=(min_area, 1.0))]
    images = ImageFolder(root, Compose([*crops, PILToTensor()]))
    subset = Subset(images, range(0, len(images), stride))
    best = 0.0
    for workers in (cores, cores + 1):
        loader = DataLoader(subset, batch_size, shuffle=not resize, num_workers=workers, persistent_workers=True)
        for _ in range(2):  # The first epoch starts the workers.
            started = time.perf_counter()
            count = sum(len(labels) for _, labels in loader)
            seconds = time.perf_counter() - started
        best = max(best, count / seconds)
    return best


if __name__ == "__main__":
    root, image_size, batch_size, min_area, *numbers = sys.argv[1:]
    print(images_per_second(root, int(image_size), int(batch_size), float(min_area), *map(int, numbers)))
