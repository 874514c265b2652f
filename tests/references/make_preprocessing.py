"""Writes preprocessing.npz: torchvision's pixels of scikit-learn's two sample photos, and samples of its random draws.

Needs torch, torchvision and scikit-learn (made with 2.14.1, 0.29.1 and 1.9.1; Pillow 13.0.0):
python -m tests.references.make_preprocessing

The entry `cases` describes the arrays in JSON.
"""

import hashlib
import importlib.resources
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import RandomErasing, RandomResizedCrop
from torchvision.transforms import functional as F
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.v2 import CutMix

PHOTOS = ("china.jpg", "flower.jpg")
# Name -> photo; top, left, height and width of the region used as an image (None: the whole file).
IMAGES = {
    "landscape": ("china.jpg", None),
    "flower": ("flower.jpg", None),
    "portrait": ("china.jpg", (10, 77, 401, 203)),
    "panorama": ("china.jpg", (200, 0, 37, 640)),
    "tower": ("flower.jpg", (0, 300, 427, 19)),
    "tall": ("flower.jpg", (0, 200, 427, 120)),
    "small": ("flower.jpg", (120, 210, 90, 123)),
    "odd": ("flower.jpg", (3, 5, 333, 335)),
}
# Crop, resize, interpolation.
PRESETS = (
    (224, 256, "bilinear"),
    (224, 232, "bilinear"),
    (224, 256, "bicubic"),
    (97, 111, "bilinear"),
    (32, 32, "bilinear"),
)
# Crops of at least this size are sampled: every STRIDE-th row and column, and all pixels of two corners.
SAMPLED_FROM, STRIDE, CORNER = 97, 6, 12
NORMALISED = ("small 97/111 bilinear", "landscape 32/32 bilinear")
TENSORS = ("landscape 224/256 bilinear", "portrait 97/111 bilinear", "odd 224/232 bilinear")

CROP_AREA, CROP_ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
CROP_SIZES = ((427, 640), (500, 333), (100, 300))
FALLBACK_SIZES = ((10, 5000), (5000, 10), (1, 50), (50, 1), (3, 100), (7, 300))
CROP_DRAWS, REPLAYED = 40_000, 200
QUANTILES = np.linspace(0, 1, 201)

FACTORS = ((0.7, 1.0, 1.0), (1.0, 1.3, 1.0), (1.0, 1.0, 0.5), (1.4, 0.6, 1.2), (0.6, 1.4, 1.4), (1.8, 1.9, 1.7))
JITTERED = (64, 260, 40, 36)
ERASED_SIZE, ERASED_AREA, ERASED_ASPECT = (96, 96), (0.02, 0.33), (0.3, 3.3)
CUTMIX_SIZE, CUTMIX_ALPHAS = (64, 48), (1.0, 0.3)


def photo(name: str) -> bytes:
    return (importlib.resources.files("sklearn.datasets.images") / name).read_bytes()


def image_of(name: str) -> Image.Image:
    file, part = IMAGES[name]
    image = Image.open(io.BytesIO(photo(file))).convert("RGB")
    if part is None:
        return image
    top, left, height, width = part
    return image.crop((left, top, left + width, top + height))


def photo_pixels(name: str, part: tuple[int, int, int, int]) -> np.ndarray:
    top, left, height, width = part
    return np.asarray(Image.open(io.BytesIO(photo(name))))[top : top + height, left : left + width]


def sample(pixels: np.ndarray) -> dict[str, np.ndarray]:
    if len(pixels) < SAMPLED_FROM:
        return {"all": pixels}
    corners = np.stack([pixels[:CORNER, :CORNER], pixels[-CORNER:, -CORNER:]])
    return {"strided": pixels[::STRIDE, ::STRIDE], "corners": corners}


def presets() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    cases, arrays = {}, {}
    for image_name in IMAGES:
        image = image_of(image_name)
        for crop, resize, interpolation in PRESETS:
            name = f"{image_name} {crop}/{resize} {interpolation}"
            mode = F.InterpolationMode(interpolation)
            preset = ImageClassification(crop_size=crop, resize_size=resize, interpolation=mode)
            # The preset's steps before normalisation, as it returns only normalised floats.
            pixels = F.pil_to_tensor(F.center_crop(F.resize(image, [resize], mode, antialias=True), [crop]))
            normalised = preset(image)
            again = F.normalize(F.convert_image_dtype(pixels, torch.float), preset.mean, preset.std)
            assert torch.equal(normalised, again), name
            cases[name] = {
                "image": image_name,
                "crop_size": crop,
                "resize_size": resize,
                "interpolation": interpolation,
                "mean": preset.mean,
                "std": preset.std,
            }
            for kind, array in sample(pixels.permute(1, 2, 0).numpy()).items():
                arrays[f"preset/{name}/{kind}"] = array
            if name in NORMALISED:
                for kind, array in sample(normalised.permute(1, 2, 0).numpy()).items():
                    arrays[f"normalised/{name}/{kind}"] = array
            if name in TENSORS:
                # For tensors the preset uses torch's resize.
                floats = preset(F.pil_to_tensor(image))
                scaled = floats * torch.tensor(preset.std)[:, None, None] + torch.tensor(preset.mean)[:, None, None]
                levels = (255 * scaled).round()
                assert (255 * scaled - levels).abs().max() < 1e-3, name
                for kind, array in sample(levels.to(torch.uint8).permute(1, 2, 0).numpy()).items():
                    arrays[f"tensor/{name}/{kind}"] = array
    return cases, arrays


def random_crop(height: int, width: int) -> tuple[int, int, int, int]:
    return RandomResizedCrop.get_params(torch.empty(1, height, width), list(CROP_AREA), list(CROP_ASPECT))


def crops() -> dict[str, np.ndarray]:
    arrays = {}
    for height, width in CROP_SIZES:
        torch.manual_seed(height)
        boxes = np.array([random_crop(height, width) for _ in range(CROP_DRAWS)], np.float64)
        for name, values in crop_figures(boxes, height, width).items():
            arrays[f"crop/{height}x{width}/{name}"] = np.quantile(values, QUANTILES).astype(np.float32)
        # Boxes with their random draws.
        replayed, draws = [], []
        for seed in range(REPLAYED):
            torch.manual_seed(seed)
            replayed.append(random_crop(height, width))
            torch.manual_seed(seed)
            draws.append([float(torch.empty(1).uniform_()) for _ in range(20)])
        arrays[f"crop/{height}x{width}/replayed"] = np.array(replayed, np.int16)
        arrays[f"crop/{height}x{width}/draws"] = np.array(draws, np.float32)
    fallback = [(*size, *random_crop(*size)) for size in FALLBACK_SIZES for _ in range(100)]
    arrays["crop/fallback"] = np.unique(np.array(fallback, np.int16), axis=0)
    assert len(arrays["crop/fallback"]) == len(FALLBACK_SIZES)
    return arrays


def crop_figures(boxes: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    top, left, box_height, box_width = boxes.T
    return {
        "area": box_height * box_width / (height * width),
        "aspect": np.log(box_width / box_height),
        "top": top,
        "left": left,
        "bottom": top + box_height,
        "right": left + box_width,
    }


def colours() -> dict[str, np.ndarray]:
    arrays = {}
    for name in PHOTOS:
        pixels = photo_pixels(name, JITTERED)
        image = torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)
        changed = []
        for brightness, contrast, saturation in FACTORS:
            result = F.adjust_contrast(F.adjust_brightness(image, brightness), contrast)
            changed.append(255 * F.adjust_saturation(result, saturation).permute(1, 2, 0).numpy())
        arrays[f"colour/{name}/changed"] = np.stack(changed)[:, ::3, ::3]
    return arrays


def erased_and_mixed() -> dict[str, np.ndarray]:
    arrays = {}
    torch.manual_seed(1)
    boxes = np.array(
        [
            RandomErasing.get_params(torch.empty(1, *ERASED_SIZE), list(ERASED_AREA), list(ERASED_ASPECT), [0.0])[:4]
            for _ in range(CROP_DRAWS // 2)
        ],
        np.float64,
    )
    for name, values in crop_figures(boxes, *ERASED_SIZE).items():
        arrays[f"erased/{name}"] = np.quantile(values, QUANTILES).astype(np.float32)
    for alpha in CUTMIX_ALPHAS:
        cutmix = CutMix(alpha=alpha, num_classes=2)
        images, labels = torch.zeros(2, 1, *CUTMIX_SIZE), torch.tensor([0, 1])
        shares = np.array([float(cutmix(images, labels)[1][0, 0]) for _ in range(CROP_DRAWS // 4)])
        arrays[f"cutmix/{alpha}"] = np.quantile(shares, QUANTILES).astype(np.float32)
    return arrays


def main() -> None:
    cases, arrays = presets()
    about = {
        "photos": {name: hashlib.sha256(photo(name)).hexdigest() for name in PHOTOS},
        "images": IMAGES,
        "presets": cases,
        "stride": STRIDE,
        "corner": CORNER,
        "crop_area": CROP_AREA,
        "crop_sizes": CROP_SIZES,
        "jittered": JITTERED,
        "factors": FACTORS,
        "erased_size": ERASED_SIZE,
        "cutmix_size": CUTMIX_SIZE,
        "cutmix_alphas": CUTMIX_ALPHAS,
    }
    arrays |= crops() | colours() | erased_and_mixed()
    path = Path(__file__).with_name("preprocessing.npz")
    np.savez_compressed(path, cases=np.array(json.dumps(about)), **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
