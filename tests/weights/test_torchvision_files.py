"""All twelve networks through files that torchvision's own models were saved to, and back.

They need torch and torchvision: pip install -e '.[peer]' && python -m pytest -m torch
"""

from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

import jaxnets
from jaxnets.conversion import convert_weights
from jaxnets.weights import to_torchvision
from jaxnets.weights.catalogue import published
from jaxnets.weights.tensors import Spec
from jaxnets.weights.torch_file import write_torch_file
from tests.references.recipe import TORCHVISION_MODELS, random_state_dict

pytestmark = pytest.mark.torch
# Published in the older format, as their sizes say.
STREAMS = ("googlenet", "resnext50_32x4d", "resnext101_32x8d")


@cache
def photos() -> list[np.ndarray]:
    return list(load_sample_images().images)


def torch_model(arch: str) -> Any:
    """A network with random weights and statistics that do not enlarge rounding errors (torch's own are 1e-6)."""
    import torch
    import torchvision

    options = {"init_weights": False} if arch == "googlenet" else {}
    model = getattr(torchvision.models, arch)(weights=None, **options).double()
    state = random_state_dict((name, tuple(tensor.shape)) for name, tensor in model.state_dict().items())
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=False)
    return model.eval()


@pytest.mark.parametrize("arch", TORCHVISION_MODELS)
def test_logits_on_photos_are_torchvisions(arch: str, tmp_path: Path) -> None:
    import torch
    import torchvision

    preprocess = published(arch).preprocessing
    images = np.stack([preprocess(photo, np.float64) for photo in photos()])
    # torchvision's own transforms see the same, but for the rounding of a grey level.
    from PIL import Image

    transforms = torchvision.models.get_model_weights(arch).DEFAULT.transforms()
    for photo, image in zip(photos(), images, strict=True):
        theirs = transforms(Image.fromarray(photo)).permute(1, 2, 0).numpy()
        assert np.abs(theirs - image).max() < 1.01 / 255 / 0.224
    model = torch_model(arch)
    for dtype, tolerance in (("float64", 1e-9), ("float32", 1e-5)):
        torch_dtype, jax_dtype = getattr(torch, dtype), getattr(jnp, dtype)
        model = model.to(torch_dtype)
        path = tmp_path / f"{arch}-{dtype}.pth"
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=arch not in STREAMS)
        # The published GoogLeNet rescales its input: a property of the model, not of its weights.
        scales = arch == "googlenet"
        if scales:
            model.transform_input = True
        with torch.no_grad():
            expected = model(torch.from_numpy(images).to(torch_dtype).permute(0, 3, 1, 2)).double().numpy()
        with jax.enable_x64(dtype == "float64"):
            loaded = jaxnets.load_pretrained(arch, path, dtype=jax_dtype)
            ours: Any = loaded.model.clone(transform_input=True) if scales else loaded.model
            apply = jax.jit(partial(ours.apply, train=False))
            logits = np.asarray(apply(loaded.variables, images.astype(dtype)), np.float64)
        scale = max(1.0, np.abs(expected).max())
        assert np.abs(expected[0] - expected[1]).max() > 1e-2 * scale
        assert np.abs(logits - expected).max() <= tolerance * scale
        back(arch, loaded, path)


def back(arch: str, loaded: Any, path: Path) -> None:
    """What was read is written to a file that torchvision's model loads, with the same tensors as the first."""
    import torch
    import torchvision

    tensors = to_torchvision(arch, loaded.variables)
    written = path.with_name("written.pth")
    specs = {name: Spec(array.dtype, array.shape) for name, array in tensors.items()}
    write_torch_file(written, specs, tensors.__getitem__)
    before, after = torch.load(path), torch.load(written)
    assert set(before) - set(after) == {name for name in before if name.endswith("num_batches_tracked")}
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name
    options = {"init_weights": False} if arch == "googlenet" else {}
    getattr(torchvision.models, arch)(weights=None, **options).load_state_dict(after)
    converted = path.with_suffix(".safetensors")
    convert_weights(arch, path, converted)
    from safetensors.torch import load_file

    for name, tensor in load_file(converted).items():
        assert torch.equal(tensor, before[name]), name
    for file in (written, converted, path):
        file.unlink()
