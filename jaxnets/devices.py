"""JAX's devices, or the reason why there are none."""

import os

import jax

from jaxnets.errors import InputError


def devices() -> list[jax.Device]:
    """`jax.devices()`. Raises InputError if JAX can't use the platform that its environment variables name."""
    try:
        return jax.devices()
    except Exception as error:  # RuntimeError, ValueError, or AssertionError without a message
        asked = {name: os.environ[name] for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES") if name in os.environ}
        settings = " ".join(f"{name}={value}" for name, value in asked.items()) or "the installed plugins"
        reason = next(iter(str(error).splitlines()), "") or "no such device"
        raise InputError(
            f"JAX finds no device with {settings} ({reason[:200]}); change the setting, or install the driver and "
            "jaxnets[cuda12] or jaxnets[cuda13]"
        ) from None
