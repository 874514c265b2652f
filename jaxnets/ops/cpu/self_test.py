"""The engine's test of itself: small operations, computed by a program and compared with NumPy in float64."""

import itertools

import jax
import numpy as np

from jaxnets.ops.cpu import calls, operations

_TOLERANCE = 1e-4
_EPSILON = 1e-3
_WINDOW, _STRIDE = 3, 2


def run() -> None:
    """Raises what the engine raises, or RuntimeError that names the first operation with wrong results."""
    calls.register()
    random = np.random.RandomState(0)
    images, kernel = random.standard_normal((2, 5, 5, 16)), random.standard_normal((3, 3, 16, 16))
    gradient, scale, bias = random.standard_normal((2, 5, 5, 16)), *random.standard_normal((2, 16))
    pooled = random.standard_normal((2, 2, 2, 16))
    geometry = {"stride": 1, "padding": 1, "groups": 1}
    pooling = {"window": _WINDOW, "stride": _STRIDE, "pads": ((0, 0), (0, 0))}

    def computed(images, kernel, gradient, scale, bias, pooled):  # type: ignore[no-untyped-def]
        outputs, winners = operations.max_pool(images, counts=(2, 2), winners=True, **pooling)
        *normalised, residual = operations.batch_norm(images, scale, bias, epsilon=_EPSILON, relu=True)
        operands = images, gradient, *normalised[1:], scale, normalised[0], residual
        return {
            "convolution": [operations.convolution(images, kernel, **geometry)],
            "convolution's gradients": operations.convolution_gradients(images, kernel, gradient, **geometry),
            "convolution with bias": operations.biased_convolution(
                images, kernel, bias, gradient, relu=True, **geometry
            ),
            "max-pooling": [outputs],
            "max-pooling's gradient": operations.max_pool_gradient(winners, pooled, sizes=(5, 5), **pooling),
            "normalisation": normalised,
            "normalisation's gradients": operations.batch_norm_gradients(*operands, epsilon=_EPSILON),
        }

    arrays = images, kernel, gradient, scale, bias, pooled
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.ensure_compile_time_eval(), jax.default_device(cpu):
        results = jax.jit(computed)(*(array.astype(np.float32) for array in arrays))
    for name, expected in _references(*arrays).items():
        for actual, exact in zip(results[name], expected, strict=True):
            if not np.abs(np.asarray(actual) - exact).max() <= _TOLERANCE * max(1.0, np.abs(exact).max()):
                raise RuntimeError(f"the engine's {name} has wrong results")


def _references(
    images: np.ndarray,
    kernel: np.ndarray,
    gradient: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    pooled: np.ndarray,
) -> dict[str, list[np.ndarray]]:
    padded, by_padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))), np.zeros((2, 7, 7, 16))
    outputs, by_kernel = np.zeros(gradient.shape), np.zeros(kernel.shape)
    for i, j in itertools.product(range(3), repeat=2):
        here = np.s_[:, i : i + 5, j : j + 5]
        outputs += padded[here] @ kernel[i, j]
        by_padded[here] += gradient @ kernel[i, j].T
        by_kernel[i, j] = np.tensordot(padded[here], gradient, ((0, 1, 2), (0, 1, 2)))

    largest, by_images = np.full(pooled.shape, -np.inf), np.zeros(images.shape)
    taps = [np.s_[:, i : i + 3 : 2, j : j + 3 : 2] for i, j in itertools.product(range(_WINDOW), repeat=2)]
    for tap in taps:
        largest = np.maximum(largest, images[tap])
    for tap in taps:
        by_images[tap] += pooled * (images[tap] == largest)

    axes = (0, 1, 2)
    mean, var = images.mean(axes), images.var(axes)
    centred, inverse = (images - mean) / np.sqrt(var + _EPSILON), 1 / np.sqrt(var + _EPSILON)
    normalised = centred * scale + bias
    pulled = gradient * (normalised > 0)
    by_scale, by_bias = (pulled * centred).sum(axes), pulled.sum(axes)
    by_inputs = scale * inverse * (pulled - pulled.mean(axes) - centred * (pulled * centred).mean(axes))
    return {
        "convolution": [outputs],
        "convolution's gradients": [by_padded[:, 1:6, 1:6], by_kernel],
        "convolution with bias": [np.maximum(outputs + bias + gradient, 0)],
        "max-pooling": [largest],
        "max-pooling's gradient": [by_images],
        "normalisation": [np.maximum(normalised, 0), mean, var],
        "normalisation's gradients": [by_inputs, by_scale, by_bias],
    }
