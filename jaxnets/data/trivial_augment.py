"""TrivialAugment (Müller & Hutter 2021, the "wide" space), on the device inside the training step.

Each pixel equals that of torchvision 0.29.1's TrivialAugmentWide on a PIL image with the defaults: 31 magnitudes,
nearest neighbour, black fill. Pillow computes partly in 16.16 fixed point, partly in float32 or float64. If a level
depends on that, this module reproduces it with integers and float32.
"""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
BINS = 31
# The magnitudes of the first and the last bin (of Posterize: bits to drop).
_ENDS = (
    {"ShearX": (0, 0.99), "ShearY": (0, 0.99), "TranslateX": (0, 32), "TranslateY": (0, 32), "Rotate": (0, 135)}
    | dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0, 0.99))
    | {"Posterize": (0, 6), "Solarize": (255, 0)}
)
_UNSIGNED = {"Identity", "Posterize", "Solarize", "AutoContrast", "Equalize"}
_BLENDS = {"Brightness", "Color", "Contrast", "Sharpness"}


def trivial_augment(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Applies one random operation of random strength to each uint8 image [N, H, W, 3]; keys [N].

    Exact for sides below 16,000 and areas below 8.4 million pixels.
    """
    return apply(images, *draw(keys))


def draw(keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws operations, bins of magnitudes, and whether magnitudes are negative; keys [N] -> [N] each."""
    most = jnp.array([len(OPERATIONS), BINS, 2])
    operations, bins, negative = jax.vmap(lambda key: jax.random.randint(key, (3,), 0, most))(keys).T
    return operations, bins, negative == 1


def apply(images: jax.Array, operations: jax.Array, bins: jax.Array, negative: jax.Array) -> jax.Array:
    """Applies the given operations [N] to uint8 images [N, H, W, 3].

    Each image goes through a table of grey levels, a blend and an affine map, of which at most one changes it.
    """
    case = (operations, bins, negative.astype(jnp.int32))
    images = _look_up(images, operations, jnp.asarray(signed_magnitudes())[case])
    images = _blend(images, operations, jnp.asarray(_factors())[case])
    return _affine(images, jnp.asarray(_fixed_point_maps(*images.shape[1:3]))[case])


@cache
def signed_magnitudes() -> np.ndarray:
    """Magnitudes, float32 [operation, bin, negative]; of Posterize the bits to keep, 0 without a magnitude."""
    space = np.zeros((len(OPERATIONS), BINS, 2), np.float32)
    index = np.arange(BINS)
    for name, (first, last) in _ENDS.items():
        # As torch.linspace: from the nearer end in float32 steps. np.linspace differs in the last bits.
        step = float(np.float32(last - first) / np.float32(BINS - 1))
        values = np.where(index < BINS // 2, first + step * index, np.float32(last) - step * (BINS - 1 - index))
        values = 8 - np.round(values) if name == "Posterize" else values
        space[OPERATIONS.index(name)] = np.stack([values, values if name in _UNSIGNED else -values], axis=1)
    return space


@cache
def _factors() -> np.ndarray:
    """The factor of each blend between the other image and this one, as a sum of two float32 [..., 2] of 12 bits.

    Products of these with grey levels are exact, so that the sum rounds as Pillow's single product does.
    """
    blends = np.array([name in _BLENDS for name in OPERATIONS])[:, None, None]
    factors = np.where(blends, 1 + signed_magnitudes().astype(np.float64), 1).astype(np.float32)
    high = (factors.view(np.uint32) & np.uint32(0xFFFFF000)).view(np.float32)
    return np.stack([high, factors - high], axis=-1)


@cache
def _fixed_point_maps(height: int, width: int) -> np.ndarray:
    """Pillow's affine maps from a pixel to its source in 1 / 65536 pixels: int32 [operation, bin, negative, 2, 3]."""
    maps = np.zeros((len(OPERATIONS), BINS, 2, 2, 3))
    maps[..., 0, 0] = maps[..., 1, 1] = 1
    magnitudes = dict(zip(OPERATIONS, signed_magnitudes().astype(np.float64), strict=True))
    maps[OPERATIONS.index("ShearX"), ..., 0, 1] = magnitudes["ShearX"]
    maps[OPERATIONS.index("ShearY"), ..., 1, 0] = magnitudes["ShearY"]
    maps[OPERATIONS.index("TranslateX"), ..., 0, 2] = -np.trunc(magnitudes["TranslateX"])
    maps[OPERATIONS.index("TranslateY"), ..., 1, 2] = -np.trunc(magnitudes["TranslateY"])
    for case, degrees in np.ndenumerate(magnitudes["Rotate"]):
        angle = -math.radians(degrees % 360)
        cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
        x, y = width / 2, height / 2
        maps[(OPERATIONS.index("Rotate"), *case)] = [
            [cos, sin, cos * -x + sin * -y + x],
            [-sin, cos, -sin * -x + cos * -y + y],
        ]
    # The position of a pixel is its centre.
    maps[..., 2] += maps[..., 0] * 0.5 + maps[..., 1] * 0.5
    return np.floor(maps * 65536 + 0.5).astype(np.int32)


@cache
def _shortfalls() -> np.ndarray:
    """Where rounding makes Pillow's autocontrast one grey level too low: uint32 [lowest, highest].

    Exact results are integers at the gcd(span, 255) + 1 ends of equal parts of the span; bit n stands for the nth end.
    """
    low, high, part = np.ogrid[:256, :256, :18]  # With more than 17 parts, none is too low.
    span = np.maximum(high - low, 1)
    parts = np.gcd(span, 255)
    scale = 255 / span
    missed = (low + part * (span // parts)) * scale + -low * scale < part * (255 // parts)
    return ((missed & (part <= parts)).astype(np.uint32) << part).sum(-1, dtype=np.uint32)


def _look_up(images: jax.Array, operations: jax.Array, magnitudes: jax.Array) -> jax.Array:
    """Posterize, Solarize, AutoContrast and Equalize: a table of 256 grey levels for each image and channel."""
    levels = jnp.arange(256)
    magnitudes = magnitudes[:, None, None]
    posterized = levels & -(1 << 8 - magnitudes.astype(jnp.int32))
    solarized = jnp.where(levels < magnitudes, levels, 255 - levels)
    tables = jnp.broadcast_to(levels, (len(images), 3, 256))
    for name, values in {
        "Posterize": posterized,
        "Solarize": solarized,
        "AutoContrast": _stretching(images.min((1, 2)), images.max((1, 2))),
    }.items():
        tables = jnp.where(_is(name, operations, 3), values, tables)
    # One after the other: histograms are slow, and one image in fourteen needs one.
    equalized = _is("Equalize", operations, 1)
    order = jnp.argsort(~equalized)
    tables = jax.lax.fori_loop(
        0, equalized.sum(), lambda i, tables: tables.at[order[i]].set(_equalizing(images[order[i]])), tables
    )
    positions = images.astype(jnp.int32) + 256 * jnp.arange(3)
    return jax.vmap(lambda table, position: table[position])(tables.reshape(-1, 768).astype(jnp.uint8), positions)


def _stretching(lowest: jax.Array, highest: jax.Array) -> jax.Array:
    """AutoContrast's tables [..., 256], which stretch the levels from `lowest` to `highest` [...] to 0 to 255."""
    low, high = (ends.astype(jnp.int32)[..., None] for ends in (lowest, highest))
    levels = jnp.arange(256)
    span = jnp.maximum(high - low, 1)
    scaled = 255 * (levels - low)
    part = (levels - low) * jnp.asarray(np.gcd(np.arange(256), 255))[span] // span
    missed = jnp.asarray(_shortfalls())[low, high] >> jnp.clip(part, 0, 31).astype(jnp.uint32) & 1
    stretched = scaled // span - jnp.where(scaled % span == 0, missed.astype(jnp.int32), 0)
    return jnp.where(high > low, jnp.clip(stretched, 0, 255), levels)


def _equalizing(image: jax.Array) -> jax.Array:
    """Equalize's tables [3, 256] for an image [H, W, 3], after which grey levels are about equally frequent."""
    counts = jnp.zeros((3, 256), jnp.int32).at[jnp.arange(3), image.astype(jnp.int32)].add(1)
    area = image.shape[0] * image.shape[1]
    brightest = jnp.take_along_axis(counts, image.max((0, 1)).astype(jnp.int32)[:, None], axis=1)
    # The step is 0 if a channel has only one level.
    step = (area - brightest) // 255
    below = jnp.cumsum(counts, axis=1) - counts
    equalized = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, equalized, jnp.arange(256))


def _blend(images: jax.Array, operations: jax.Array, factors: jax.Array) -> jax.Array:
    """Brightness, Color, Contrast and Sharpness: blends with black, grey, mean grey or the smoothed image."""
    pixels = images.astype(jnp.int32)
    area = images.shape[1] * images.shape[2]
    greys = (pixels * jnp.array([19595, 38470, 7471])).sum(-1, keepdims=True) + 32768 >> 16
    mean = (greys.sum((1, 2), keepdims=True) + area // 2) // area
    # Weighted 3x3 means with weight 5 for the middle, rounded; the border is not smoothed.
    middles = pixels[:, 1:-1, 1:-1]
    columns = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    sums = columns[:, :, :-2] + columns[:, :, 1:-1] + columns[:, :, 2:] + 4 * middles
    smooth = pixels.at[:, 1:-1, 1:-1].set((2 * sums + 13) // 26)
    others = {"Brightness": jnp.zeros_like(mean), "Color": greys, "Contrast": mean, "Sharpness": smooth}
    other = pixels
    for name, values in others.items():
        other = jnp.where(_is(name, operations, 4), values, other)
    return _mixed(other, pixels, factors[:, None, None, None])


def _mixed(other: jax.Array, pixels: jax.Array, factors: jax.Array) -> jax.Array:
    """other + factor * (pixels - other), clipped, with the factor as the sum of two parts [..., 2]."""
    gaps = (pixels - other).astype(jnp.float32)
    mixed = other.astype(jnp.float32) + (factors[..., 0] * gaps + factors[..., 1] * gaps)
    return jnp.clip(mixed, 0, 255).astype(jnp.uint8)


def _affine(images: jax.Array, maps: jax.Array) -> jax.Array:
    """Each pixel from the position that the map [N, 2, 3] of its image gives, black outside the image."""
    height, width = images.shape[1:3]
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]

    def mapped(image: jax.Array, map_: jax.Array) -> jax.Array:
        x, y = (row[0] * columns + row[1] * rows + row[2] >> 16 for row in map_)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        indices = jnp.where(inside, y * width + x, height * width)
        return image.reshape(-1, 3).at[indices].get(mode="fill", fill_value=0)

    return jax.vmap(mapped)(images, maps)


def _is(name: str, operations: jax.Array, axes: int) -> jax.Array:
    """Which images have the operation `name`, as an array of `axes` axes."""
    return (operations == OPERATIONS.index(name)).reshape(-1, *[1] * (axes - 1))
