"""Writes trivial_augment.npz: torchvision's TrivialAugmentWide on regions of scikit-learn's sample photos.

Needs torch, torchvision and scikit-learn (made with 2.14.1, 0.29.1 and 1.9.1; Pillow 13.0.0, x86-64):
python -m tests.references.make_trivial_augment

Stores the pixels of a small region, and for the other images a checksum per operation, magnitude and sign.
"""

import importlib.resources
import io
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

BINS = 31
# Magnitudes whose pixels are stored, with both signs.
KEPT_BINS = (1, 11, 20, 30)
# Name -> photo; top, left, height and width.
PARTS = {
    "kept": ("flower.jpg", (190, 275, 17, 20)),
    "house": ("china.jpg", (180, 300, 48, 40)),
    "square": ("flower.jpg", (170, 250, 32, 32)),
    "sky": ("china.jpg", (10, 10, 48, 40)),
}


def part(name: str) -> np.ndarray:
    file, (top, left, height, width) = PARTS[name]
    photo = Image.open(io.BytesIO((importlib.resources.files("sklearn.datasets.images") / file).read_bytes()))
    return np.asarray(photo.convert("RGB"))[top : top + height, left : left + width]


def synthetic_images() -> dict[str, np.ndarray]:
    """Images with rare colours, with one and two levels, with few pixels, and a large one."""
    dots = (np.indices((48, 40)).sum(0) % 3 == 0)[..., None]
    house = part("house")
    # Colours whose grey level is close to a rounding boundary.
    colours = np.random.default_rng(0).integers(0, 256, (2_000_000, 3))
    edges = colours[(colours @ [19595, 38470, 7471] + 32768 + 100) % 65536 < 200]
    images = {
        "edges": edges[: 48 * 40].reshape(48, 40, 3),
        "plain": np.broadcast_to([17, 0, 255], (48, 40, 3)),
        "two levels": np.where(dots, [0, 3, 90], [255, 4, 200]),
        "one row": house[20:21],
        "large": np.tile(house, (5, 5, 1))[:224],
    }
    return {name: image.astype(np.uint8) for name, image in images.items()}


def changed(image: np.ndarray, name: str, magnitude: float) -> np.ndarray:
    return np.asarray(_apply_op(Image.fromarray(image), name, magnitude, InterpolationMode.NEAREST, None))


def main() -> None:
    space = TrivialAugmentWide()._augmentation_space(BINS)
    magnitudes = np.zeros((len(space), BINS, 2), np.float32)
    for place, (values, signed) in enumerate(space.values()):
        values = values.to(torch.float32).expand(BINS).numpy()
        magnitudes[place] = np.stack([values, -values if signed else values], axis=1)
    images = {name: part(name) for name in PARTS} | synthetic_images()
    arrays = {"magnitudes": magnitudes, "signed": np.array([signed for _, signed in space.values()])}
    for key, image in images.items():
        checksums = np.zeros(magnitudes.shape, np.uint32)
        for place, magnitude in np.ndenumerate(magnitudes):
            checksums[place] = zlib.crc32(changed(image, list(space)[place[0]], float(magnitude)).tobytes())
        arrays |= {f"image/{key}": image, f"checksums/{key}": checksums}
    arrays["pixels"] = np.array(
        [
            [
                [changed(images["kept"], name, float(magnitude)) for magnitude in both]
                for both in values[list(KEPT_BINS)]
            ]
            for name, values in zip(space, magnitudes, strict=True)
        ]
    )
    about = {"operations": list(space), "bins": BINS, "kept_bins": KEPT_BINS, "images": list(images)}
    path = Path(__file__).with_name("trivial_augment.npz")
    np.savez_compressed(path, about=np.array(json.dumps(about)), **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
