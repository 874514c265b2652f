"""JAX's devices, or the reason why there are none."""

import os

import jax

from jaxnets.errors import InputError

_SETTINGS = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_NUM_CPU_DEVICES", "CUDA_VISIBLE_DEVICES")


def devices() -> list[jax.Device]:
    """`jax.devices()`. Raises InputError if JAX can't use the platform that its environment variables name."""
    try:
        return jax.devices()
    except Exception as error:  # RuntimeError, ValueError, or AssertionError without a message
        asked = {name: os.environ[name] for name in _SETTINGS if name in os.environ}
        settings = " ".join(f"{name}={value}" for name, value in asked.items()) or "the installed plugins"
        reason = next(iter(str(error).splitlines()), "") or "no such device"
        if "RESOURCE_EXHAUSTED" in reason or "out of memory" in reason.lower():
            raise InputError(f"the memory of the device is full ({reason[:200]}); end other programs") from None
        raise InputError(
            f"JAX finds no device with {settings} ({reason[:200]}); change the setting, or install the driver and "
            "jaxnets[cuda12] or jaxnets[cuda13]"
        ) from None
