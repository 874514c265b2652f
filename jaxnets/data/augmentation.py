"""Random changes of the training images, made on the device."""

import jax
import jax.numpy as jnp


def random_shift(key: jax.Array, images: jax.Array, most: int) -> jax.Array:
    """Moves each image [N, H, W, C] by up to `most` pixels either way on both axes; zeros come in at the edges.

    Padding and cropping at random, as He et al. 2015, section 4.2, do for CIFAR.
    """
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * most + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, corners)
