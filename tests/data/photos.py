"""Writes a folder of JPEGs for experiments: python -m tests.data.photos FOLDER [COUNT].

The JPEGs are crops of eight photos from scikit-learn and scikit-image, of about 500x375 pixels and 57 kB each. Each
photo is a class. Nine tenths are in train/, the rest in val/.
"""

import sys
from pathlib import Path

import numpy as np
import skimage
import sklearn
from PIL import Image

_SKLEARN = Path(sklearn.__file__).parent / "datasets" / "images"
_SKIMAGE = Path(skimage.__file__).parent / "data"
PHOTOS = {
    "china": _SKLEARN / "china.jpg",
    "flower": _SKLEARN / "flower.jpg",
    "astronaut": _SKIMAGE / "astronaut.png",
    "chelsea": _SKIMAGE / "chelsea.png",
    "coffee": _SKIMAGE / "coffee.png",
    "rocket": _SKIMAGE / "rocket.jpg",
    "hubble": _SKIMAGE / "hubble_deep_field.jpg",
    "motorcycle": _SKIMAGE / "motorcycle_left.png",
}


def make_photos(folder: Path, count: int) -> None:
    """Writes `count` JPEGs, three quarters of them landscape. A crop covers 30 % to 100 % of the largest possible."""
    random = np.random.default_rng(0)
    photos = {name: Image.open(path).convert("RGB") for name, path in PHOTOS.items()}
    for number in range(count):
        name = list(photos)[number % len(photos)]
        photo = photos[name]
        width, height = (500, 375) if random.random() < 0.75 else (375, 500)
        scale = min(photo.width / width, photo.height / height) * random.uniform(0.3, 1.0) ** 0.5
        left = random.uniform(0, photo.width - width * scale)
        top = random.uniform(0, photo.height - height * scale)
        box = (left, top, left + width * scale, top + height * scale)
        path = folder / ("val" if number // len(photos) % 10 == 9 else "train") / name / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.resize((width, height), Image.Resampling.BICUBIC, box=box).save(path, quality=93)


if __name__ == "__main__":
    make_photos(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2400)
