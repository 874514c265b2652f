"""Aligns pairs of small images: finds the shift and scale on each axis with which one looks most like the other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

_STEPS = 5
# Pairs at a time.
_BATCH = 512
# Most change of scale and most shift, as a share of the side: those of a crop that leaves out an eighth of a side.
_MOST_SCALE, _MOST_SHIFT = 0.16, 0.1
# Deviation of the blur in pixels, without which gradients lead to the nearest edge only.
_BLUR = 1.2


def aligned(templates: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Images [N, S, S], float32, resampled so that each correlates most with its template [N, S, S].

    Gauss-Newton on the correlation, which brightness and contrast do not change (Evangelidis & Psarakis 2008), for the
    four numbers of shift and scale. An image keeps its place if nothing near correlates more.
    """
    parts = [np.empty((0, *images.shape[1:]), np.float32)]
    for start in range(0, len(images), _BATCH):
        pair = [array[start : start + _BATCH] for array in (templates, images)]
        missing = _BATCH - len(pair[0])
        full = [np.pad(array, ((0, missing), (0, 0), (0, 0))) for array in pair]
        parts.append(np.asarray(_align(*full))[: len(pair[0])])
    return np.concatenate(parts)


@jax.jit
def _align(templates: jax.Array, images: jax.Array) -> jax.Array:
    count, side = images.shape[:2]
    blur = _blurring(side)
    blurred = blur @ images @ blur.T
    target = _unit((blur @ templates @ blur.T).reshape(count, -1))
    # From -0.5 to 0.5 across the template.
    place = (jnp.arange(side) - (side - 1) / 2) / side

    def residual(params: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Correlations [N], residuals [N, S * S] and their derivatives [N, S * S, 4]."""
        warped = _warp(blurred, params)
        down, across = jnp.gradient(warped, axis=(1, 2))
        down = down * side / (1 + params[:, 0, None, None])
        across = across * side / (1 + params[:, 1, None, None])
        columns = [down * place[:, None], across * place, down, across]
        flat = warped.reshape(count, -1)
        centred = flat - flat.mean(axis=1, keepdims=True)
        length = jnp.maximum(jnp.linalg.norm(centred, axis=1), 1e-6)
        unit = centred / length[:, None]
        slopes = jnp.stack(columns, axis=-1).reshape(count, -1, 4) / length[:, None, None]
        slopes = slopes - slopes.mean(axis=1, keepdims=True)
        slopes = slopes - unit[..., None] * jnp.einsum("np,npk->nk", unit, slopes)[:, None]
        correlation = (unit * target).sum(axis=1)
        rest = target / jnp.maximum(correlation, 0.3)[:, None] - unit
        rest = rest - unit * (unit * rest).sum(axis=1, keepdims=True)
        return correlation, rest, slopes

    def step(_: int, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        params, best, highest = state
        correlation, rest, slopes = residual(params)
        better = correlation > highest
        best, highest = jnp.where(better[:, None], params, best), jnp.maximum(correlation, highest)
        normal = jnp.einsum("npk,npl->nkl", slopes, slopes)
        trace = jnp.trace(normal, axis1=1, axis2=2)[:, None, None]
        normal = normal + (1e-4 * trace + 1e-9) * jnp.eye(4)
        change = jnp.linalg.solve(normal, jnp.einsum("npk,np->nk", slopes, rest)[..., None])[..., 0]
        most = jnp.asarray([_MOST_SCALE, _MOST_SCALE, _MOST_SHIFT, _MOST_SHIFT])
        return jnp.clip(params + jnp.clip(change, -most / 2, most / 2), -most, most), best, highest

    start = jnp.zeros((count, 4))
    params, best, highest = jax.lax.fori_loop(0, _STEPS, step, (start, start, jnp.full(count, -1.0)))
    correlation, *_ = residual(params)
    return _warp(images, jnp.where((correlation > highest)[:, None], params, best))


def _warp(images: jax.Array, params: jax.Array) -> jax.Array:
    """Images [N, S, S] resampled linearly; params [N, 4] are changes of scale (down, across) and shifts, in sides."""
    side = images.shape[1]
    middle = (side - 1) / 2
    offsets = jnp.arange(side) - middle

    def weights(scale: jax.Array, shift: jax.Array) -> jax.Array:
        at = jnp.clip(middle + (1 + scale)[:, None] * offsets + side * shift[:, None], 0, side - 1)
        return jnp.maximum(0, 1 - jnp.abs(at[:, :, None] - jnp.arange(side)))

    rows, columns = weights(params[:, 0], params[:, 2]), weights(params[:, 1], params[:, 3])
    return rows @ images @ columns.transpose(0, 2, 1)


@partial(jax.jit, static_argnums=0)
def _blurring(side: int) -> jax.Array:
    """The matrix [S, S] of a Gaussian blur."""
    distance = jnp.arange(side)[:, None] - jnp.arange(side)
    weights = jnp.exp(-0.5 * (distance / _BLUR) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


def _unit(rows: jax.Array) -> jax.Array:
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
