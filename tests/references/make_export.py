"""Writes references/exported_by_jax_0_12.bin: a small program as `experiments.export` of jax 0.12.0.1 writes it.

Run it with that version: `pip install jax==0.12.0.1` in an environment of Python 3.12 or newer, then
`python -m tests.references.make_export`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

FILE = Path(__file__).with_name("exported_by_jax_0_12.bin")


def program() -> export.Exported:
    """Logits [batch, 5] of uint8 images [batch, 8, 8, 3], for any batch and all platforms."""
    from jaxnets.export import PLATFORMS

    (batch,) = export.symbolic_shape("batch")
    return export.export(jax.jit(classify), platforms=PLATFORMS)(jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.uint8))


def classify(images: jax.Array) -> jax.Array:
    """What a network is made of: normalisation, convolution, maximum, mean and a dense layer."""
    kernel, dense = weights()
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(images / 255 - 0.5, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jax.nn.relu(x).mean((1, 2)) @ dense


def expected(images: np.ndarray) -> np.ndarray:
    """The same in NumPy and float64."""
    kernel, dense = (array.astype(float) for array in weights())
    padded = np.pad(images / 255 - 0.5, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = sum(padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3))
    x = np.asarray(x).reshape(-1, 4, 2, 4, 2, x.shape[-1]).max((2, 4))
    return np.maximum(x, 0).mean((1, 2)) @ dense


def weights() -> tuple[np.ndarray, np.ndarray]:
    """The kernel [3, 3, 3, 4] and the weights [4, 5] of the dense layer."""
    random = np.random.RandomState(0)
    return random.normal(size=(3, 3, 3, 4)).astype(np.float32), random.normal(size=(4, 5)).astype(np.float32)


if __name__ == "__main__":
    from jaxnets.export import for_older_readers

    assert jax.__version__ == "0.12.0.1", jax.__version__
    FILE.write_bytes(for_older_readers(program()).serialize())
    print(f"{FILE.stat().st_size} bytes")
