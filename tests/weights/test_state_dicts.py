"""Which of the weights in a checkpoint are read."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.conversion import convert_weights
from jaxnets.models.initialization import initial_variables
from jaxnets.pretrained import load_pretrained
from jaxnets.weights.pickle_values import Tensor
from jaxnets.weights.state_dicts import find_state_dict
from tests.test_pretrained import write


class Backbone(nn.Module):
    """A module with layers inside, whose names are unlike the head's."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.relu(nn.Conv(4, (3, 3), name="conv1")(images))


class BackboneAndHead(nn.Module):
    """A network whose modules have the names of a wrapper's."""

    num_classes: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return nn.Dense(self.num_classes, name="head")(Backbone(name="backbone")(images).mean((1, 2)))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_modules_may_have_the_names_of_wrappers(suffix: str, tmp_path: Path) -> None:
    arch = f"{__name__}:BackboneAndHead"
    variables = {"batch_stats": {}, **initial_variables(BackboneAndHead(), jax.random.key(0), image_size=8)}
    path = write(tmp_path / "first.pth", arch, variables)
    convert_weights(arch, path, tmp_path / f"second{suffix}")
    loaded = load_pretrained(arch, tmp_path / f"second{suffix}").variables
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], variables["params"])


def tensors(*names: str) -> dict[str, Tensor]:
    return {name: Tensor(None, 0, (2,), (1,)) for name in names}  # type: ignore[arg-type]


PLAIN = tensors("conv1.weight", "fc.weight")


@pytest.mark.parametrize(
    ("key", "average", "read", "unread"),
    [
        ("model_ema", PLAIN, "model_ema", None),
        ("ema", tensors("module.conv1.weight", "module.fc.weight", "n_averaged"), "ema", None),
        # ema_pytorch, torch_ema, nested and pickled modules, and names that no library shares.
        ("ema", tensors("initted", "step", "ema_model.conv1.weight", "ema_model.fc.weight"), "model", "ema"),
        ("ema", {"shadow_params": [], "decay": 0.9}, "model", "ema"),
        ("model_ema", {"module": PLAIN, "decay": 0.9}, "model", "model_ema"),
        ("model_state_dict_ema", PLAIN, "model", "model_state_dict_ema"),
        ("swa_state_dict", PLAIN, "model", "swa_state_dict"),
        # Weights of another network, such as a teacher's, and settings.
        ("ema", tensors("stem.weight"), "model", "ema"),
        ("ema_decay", 0.9, "model", None),
        ("use_ema", True, "model", None),
        ("schema", {"a": 1}, "model", None),
    ],
)
def test_an_average_is_read_or_said(key: str, average: Any, read: str, unread: str | None) -> None:
    for checkpoint in ({"model": PLAIN, key: average}, {key: average, "model": PLAIN}):
        found = find_state_dict(checkpoint)
        assert (found.key, found.unread) == (read, unread)
        assert found.is_average == (read != "model")
