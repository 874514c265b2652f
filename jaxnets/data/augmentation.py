"""Random augmentation of training images, on the device inside the training step.

Each image has its own key, and mixing pairs neighbours. So the result does not depend on how a batch is split over
devices, if each device has an even number of images.
"""

import jax
import jax.numpy as jnp

from jaxnets.ops import image_keys as image_keys

# ITU-R BT.601, as torchvision's rgb_to_grayscale.
_LUMA = (0.2989, 0.587, 0.114)
# Zhong et al. 2017, section 3: range of the erased share of the area, and of the aspect ratio; as in torchvision.
_ERASED_AREA = (0.02, 0.33)
_ERASED_ASPECT = (0.3, 3.3)


def random_shift(keys: jax.Array, images: jax.Array, most: int) -> jax.Array:
    """Shifts each image [N, H, W, C] by up to `most` pixels in both directions on both axes, and fills with zeros.

    This is padding and random cropping (He et al. 2015, section 4.2). keys [N].
    """
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    corners = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * most + 1))(keys)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, corners)


def random_flip(keys: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Flips each image [N, H, W, C] horizontally with the given probability; keys [N]."""
    flipped = jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def color_jitter(keys: jax.Array, images: jax.Array, strength: float) -> jax.Array:
    """Changes brightness, contrast and saturation by factors from 1 - strength to 1 + strength; keys [N].

    Images [N, H, W, 3] from 0 to 255 are blended with black, with their mean grey, and with their grey image, as in
    torchvision's ColorJitter, but always in this order.
    """
    factors = jax.vmap(lambda key: jax.random.uniform(key, (3,), minval=max(0.0, 1 - strength), maxval=1 + strength))(
        keys
    )[:, :, None, None, None]

    def blend(images: jax.Array, other: jax.Array | float, factor: jax.Array) -> jax.Array:
        return jnp.clip(factor * images + (1 - factor) * other, 0, 255)

    def grey(images: jax.Array) -> jax.Array:
        return (images * jnp.asarray(_LUMA, images.dtype)).sum(-1, keepdims=True)

    images = blend(images.astype(jnp.float32), 0.0, factors[:, 0])
    images = blend(images, grey(images).mean((1, 2), keepdims=True), factors[:, 1])
    return blend(images, grey(images), factors[:, 2])


def random_erasing(keys: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Sets a random rectangle of each normalised image [N, H, W, C] to zero with the given probability; keys [N].

    Zhong et al. 2017; a side that is longer than the image is cut.
    """
    height, width = images.shape[1:3]

    def erased(key: jax.Array) -> jax.Array:
        draws = jax.random.uniform(key, (5,))
        area = height * width * (_ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * draws[0])
        low, high = jnp.log(jnp.asarray(_ERASED_ASPECT))
        aspect = jnp.exp(low + (high - low) * draws[1])
        sides = jnp.minimum(jnp.round(jnp.sqrt(jnp.stack([area * aspect, area / aspect]))), jnp.array([height, width]))
        corner = jnp.floor(draws[2:4] * (jnp.array([height, width]) - sides + 1))
        return _inside(corner, corner + sides, height, width) & (draws[4] < probability)

    return jnp.where(jax.vmap(erased)(keys)[..., None], 0, images)


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, mixup_alpha: float, cutmix_alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image [N, H, W, C] and its targets [N, K] with those of its neighbour, with one share for the batch.

    mixup (Zhang et al. 2017) blends all pixels with a share from Beta(alpha, alpha); CutMix (Yun et al. 2019,
    section 3) replaces a rectangle of that share. If both alphas are above 0, one of the two is drawn for the batch. In
    an odd number of images the last is not mixed.
    """
    height, width = images.shape[1:3]
    coin_key, mixup_key, cutmix_key, centre_key = jax.random.split(key, 4)
    weight = jnp.ones((height, width))
    if mixup_alpha:
        weight = jnp.full((height, width), jax.random.beta(mixup_key, mixup_alpha, mixup_alpha))
    if cutmix_alpha:
        cut = jnp.sqrt(1 - jax.random.beta(cutmix_key, cutmix_alpha, cutmix_alpha))
        size = jnp.array([height, width])
        centre = jnp.floor(jax.random.uniform(centre_key, (2,)) * size)
        half = jnp.floor(cut * size / 2)
        kept = 1.0 - _inside(centre - half, centre + half, height, width)
        weight = jnp.where(jax.random.bernoulli(coin_key), weight, kept) if mixup_alpha else kept
    neighbour = jnp.minimum(jnp.arange(len(images)) ^ 1, len(images) - 1)
    share = weight.mean()
    weights = weight[None, :, :, None].astype(images.dtype)
    images = weights * images + (1 - weights) * images[neighbour]
    return images, share * targets + (1 - share) * targets[neighbour]


def _inside(start: jax.Array, end: jax.Array, height: int, width: int) -> jax.Array:
    """Which pixels [H, W] are in the rectangle from `start` (row, column) up to `end`, exclusive."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return (rows >= start[0]) & (rows < end[0]) & (columns >= start[1]) & (columns < end[1])
