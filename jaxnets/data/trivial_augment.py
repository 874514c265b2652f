"""TrivialAugment (Müller & Hutter 2021, the "wide" space), made on the device inside the training step.

Every pixel equals what torchvision 0.29.1's TrivialAugmentWide makes of a PIL image, which is what its reference
pipeline gives it, with the defaults: 31 magnitudes, nearest neighbour, black outside. Pillow computes in 16.16 fixed
point, float32 or doubles by turns; where a grey level hangs on that, so does this, in whole numbers and float32.
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
# The first and the last bin's magnitude, where there is one (Posterize's: bits to drop).
_ENDS = (
    {"ShearX": (0, 0.99), "ShearY": (0, 0.99), "TranslateX": (0, 32), "TranslateY": (0, 32), "Rotate": (0, 135)}
    | dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0, 0.99))
    | {"Posterize": (0, 6), "Solarize": (255, 0)}
)
_UNSIGNED = {"Identity", "Posterize", "Solarize", "AutoContrast", "Equalize"}
_BLENDS = {"Brightness", "Color", "Contrast", "Sharpness"}


def trivial_augment(keys: jax.Array, images: jax.Array) -> jax.Array:
    """One operation of random strength on each uint8 image [N, H, W, 3], drawn from its own key [N].

    Exact for sides below 16,000 and areas below 8.4 million pixels.
    """
    return apply(images, *draw(keys))


def draw(keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The operation, its magnitude's bin, and whether that is negative (where it has a sign); keys [N] -> [N] each."""
    most = jnp.array([len(OPERATIONS), BINS, 2])
    operations, bins, negative = jax.vmap(lambda key: jax.random.randint(key, (3,), 0, most))(keys).T
    return operations, bins, negative == 1


def apply(images: jax.Array, operations: jax.Array, bins: jax.Array, negative: jax.Array) -> jax.Array:
    """The given operation [N] on each uint8 image [N, H, W, 3].

    Every image goes through a table of grey levels, a blend and an affine map, of which at most one changes it.
    """
    case = (operations, bins, negative.astype(jnp.int32))
    images = _look_up(images, operations, jnp.asarray(signed_magnitudes())[case])
    images = _blend(images, operations, jnp.asarray(_factors())[case])
    return _affine(images, jnp.asarray(_fixed_point_maps(*images.shape[1:3]))[case])


@cache
def signed_magnitudes() -> np.ndarray:
    """The space: float32 [operation, bin, negative]; for Posterize the bits to keep, 0 where there is no magnitude."""
    space = np.zeros((len(OPERATIONS), BINS, 2), np.float32)
    place = np.arange(BINS)
    for name, (first, last) in _ENDS.items():
        # From the nearer end, in steps of float32, rounded once, as torch.linspace: np.linspace has other last bits.
        step = float(np.float32(last - first) / np.float32(BINS - 1))
        values = np.where(place < BINS // 2, first + step * place, np.float32(last) - step * (BINS - 1 - place))
        values = 8 - np.round(values) if name == "Posterize" else values
        space[OPERATIONS.index(name)] = np.stack([values, values if name in _UNSIGNED else -values], axis=1)
    return space


@cache
def _factors() -> np.ndarray:
    """How far each case's blend goes from the other image to this one, as two float32 [..., 2] of 12 bits that add up.

    Their products with grey levels are exact, so that the sum is rounded as Pillow's one product, fused or not.
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
    for place, degrees in np.ndenumerate(magnitudes["Rotate"]):
        angle = -math.radians(degrees % 360)
        cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
        x, y = width / 2, height / 2
        maps[(OPERATIONS.index("Rotate"), *place)] = [
            [cos, sin, cos * -x + sin * -y + x],
            [-sin, cos, -sin * -x + cos * -y + y],
        ]
    # Pixels have their place in their middle.
    maps[..., 2] += maps[..., 0] * 0.5 + maps[..., 1] * 0.5
    return np.floor(maps * 65536 + 0.5).astype(np.int32)


@cache
def _shortfalls() -> np.ndarray:
    """Where Pillow's autocontrast falls one short, as its doubles miss a whole grey level: uint32 [lowest, highest].

    Grey levels are whole at the parts that gcd(span, 255) cuts the span into; the nth is bit n.
    """
    low, high, part = np.ogrid[:256, :256, :18]  # With more than 17 parts, doubles miss none.
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
    # One after the other, as histograms are slow and only a fourteenth of the images need one.
    equalized = _is("Equalize", operations, 1)
    order = jnp.argsort(~equalized)
    tables = jax.lax.fori_loop(
        0, equalized.sum(), lambda i, tables: tables.at[order[i]].set(_equalizing(images[order[i]])), tables
    )
    places = images.astype(jnp.int32) + 256 * jnp.arange(3)
    return jax.vmap(lambda table, place: table[place])(tables.reshape(-1, 768).astype(jnp.uint8), places)


def _stretching(lowest: jax.Array, highest: jax.Array) -> jax.Array:
    """AutoContrast's tables [..., 256], which spread the levels from `lowest` to `highest` [...] over all."""
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
    # No step where a channel has one level only, as then all pixels are its brightest.
    step = (area - brightest) // 255
    below = jnp.cumsum(counts, axis=1) - counts
    equalized = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, equalized, jnp.arange(256))


def _blend(images: jax.Array, operations: jax.Array, factors: jax.Array) -> jax.Array:
    """Brightness, Color, Contrast and Sharpness: from black, the greys, their mean or the smoothed image to this."""
    pixels = images.astype(jnp.int32)
    area = images.shape[1] * images.shape[2]
    greys = (pixels * jnp.array([19595, 38470, 7471])).sum(-1, keepdims=True) + 32768 >> 16
    mean = (greys.sum((1, 2), keepdims=True) + area // 2) // area
    # Summed over three by three with 5 for the middle, and rounded; the border stays as it is.
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
    """From one's whole levels to the other's or beyond, as far as the two parts [..., 2] of a factor add up to."""
    gaps = (pixels - other).astype(jnp.float32)
    mixed = other.astype(jnp.float32) + (factors[..., 0] * gaps + factors[..., 1] * gaps)
    return jnp.clip(mixed, 0, 255).astype(jnp.uint8)


def _affine(images: jax.Array, maps: jax.Array) -> jax.Array:
    """Each pixel from where its image's map [N, 2, 3] points to, black where that is outside."""
    height, width = images.shape[1:3]
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]

    def mapped(image: jax.Array, map_: jax.Array) -> jax.Array:
        x, y = (row[0] * columns + row[1] * rows + row[2] >> 16 for row in map_)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        places = jnp.where(inside, y * width + x, height * width)
        return image.reshape(-1, 3).at[places].get(mode="fill", fill_value=0)

    return jax.vmap(mapped)(images, maps)


def _is(name: str, operations: jax.Array, axes: int) -> jax.Array:
    """Which images have the operation of that name, with axes of size 1 up to `axes` in all."""
    return (operations == OPERATIONS.index(name)).reshape(-1, *[1] * (axes - 1))
