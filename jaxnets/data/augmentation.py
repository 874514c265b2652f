"""Random changes of the training images, made on the device inside the training step.

What changes one image is drawn from that image's own key, and mixing pairs neighbours, so that the result does not
depend on how a batch is spread over devices that hold an even number each.
"""

import jax
import jax.numpy as jnp

from jaxnets.ops import image_keys as image_keys

# ITU-R BT.601, as torchvision's rgb_to_grayscale.
_LUMA = (0.2989, 0.587, 0.114)
# Zhong et al. 2017, section 3: the erased share of the area, and the shape; torchvision's defaults.
_ERASED_AREA = (0.02, 0.33)
_ERASED_ASPECT = (0.3, 3.3)


def random_shift(keys: jax.Array, images: jax.Array, most: int) -> jax.Array:
    """Moves each image [N, H, W, C] by up to `most` pixels either way on both axes; zeros come in at the edges.

    Padding and cropping at random, as He et al. 2015, section 4.2, do for CIFAR; a key an image.
    """
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    corners = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * most + 1))(keys)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, corners)


def random_flip(keys: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Mirrors each image [N, H, W, C] left to right with the given probability; a key an image."""
    flipped = jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def color_jitter(keys: jax.Array, images: jax.Array, strength: float) -> jax.Array:
    """Brightness, contrast and saturation times 1 - strength to 1 + strength; images [N, H, W, 3] from 0 to 255.

    Each is a blend with black, with the image's mean grey, and with its greys (torchvision's ColorJitter; here always
    in this order).
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
    """Sets a random rectangle of each normalised image [N, H, W, C] to zero with the given probability.

    Zhong et al. 2017; sides that would not fit are cut to the image's.
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
    """Mixes each image [N, H, W, C] and its targets [N, K] with its neighbour's, in one share for the whole batch.

    By mixup (Zhang et al. 2017: all pixels, share from Beta(alpha, alpha)) or by CutMix (Yun et al. 2019, section 3:
    one rectangle of that area); where both alphas are above 0, a coin decides for the batch. Of an odd number of
    images the last stays as it is.
    """
    height, width = images.shape[1:3]
    coin_key, mixup_key, cutmix_key, centre_key = jax.random.split(key, 4)
    own = jnp.ones((height, width))
    if mixup_alpha:
        own = jnp.full((height, width), jax.random.beta(mixup_key, mixup_alpha, mixup_alpha))
    if cutmix_alpha:
        cut = jnp.sqrt(1 - jax.random.beta(cutmix_key, cutmix_alpha, cutmix_alpha))
        size = jnp.array([height, width])
        centre = jnp.floor(jax.random.uniform(centre_key, (2,)) * size)
        half = jnp.floor(cut * size / 2)
        kept = 1.0 - _inside(centre - half, centre + half, height, width)
        own = jnp.where(jax.random.bernoulli(coin_key), own, kept) if mixup_alpha else kept
    neighbour = jnp.minimum(jnp.arange(len(images)) ^ 1, len(images) - 1)
    share = own.mean()
    weights = own[None, :, :, None].astype(images.dtype)
    images = weights * images + (1 - weights) * images[neighbour]
    return images, share * targets + (1 - share) * targets[neighbour]


def _inside(start: jax.Array, end: jax.Array, height: int, width: int) -> jax.Array:
    """Which pixels [H, W] lie in the rectangle from `start` (row, column) to before `end`."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return (rows >= start[0]) & (rows < end[0]) & (columns >= start[1]) & (columns < end[1])
