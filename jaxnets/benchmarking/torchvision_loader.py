"""The peer: images a second of torchvision's ImageFolder, RandomResizedCrop and DataLoader, printed.

Run by the data benchmark as a process of its own: ROOT IMAGE_SIZE BATCH_SIZE MIN_AREA MOST_IMAGES.
"""

import sys
import time


def main(root: str, image_size: int, batch_size: int, min_area: float, most_images: int) -> float:
    """The better of as many workers as cores, and one more; without the time that starting them takes."""
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, PILToTensor, RandomResizedCrop

    from jaxnets.data.pipeline import available_cores

    images = ImageFolder(root, Compose([RandomResizedCrop(image_size, scale=(min_area, 1.0)), PILToTensor()]))
    step = -(-len(images) // most_images)
    subset = Subset(images, range(0, len(images), step))
    best = 0.0
    for workers in (available_cores(), available_cores() + 1):
        loader = DataLoader(subset, batch_size, shuffle=True, num_workers=workers, persistent_workers=True)
        for _ in range(2):  # The first epoch starts the workers.
            started = time.perf_counter()
            count = sum(len(labels) for _, labels in loader)
            seconds = time.perf_counter() - started
        best = max(best, count / seconds)
    return best


if __name__ == "__main__":
    root, image_size, batch_size, min_area, most_images = sys.argv[1:]
    print(main(root, int(image_size), int(batch_size), float(min_area), int(most_images)))
