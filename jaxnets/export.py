"""A classifier as one portable program: StableHLO with its weights inside, for batches of any size."""

import json
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxnets.errors import InputError
from jaxnets.models.layers import param_dtype
from jaxnets.ops import compile
from jaxnets.pretrained import Pretrained

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# JAX writes for readers that are at most some weeks older; jax 0.10 can't read what jax 0.12 writes by itself.
_STABLEHLO_VERSION = "1.0.0"
_CHECKED_BATCHES = (1, 3)
# Of the largest logit: XLA may sum in another order for another batch size.
_TOLERANCE = 1e-4


def classify(classifier: Pretrained, images: jax.Array) -> jax.Array:
    """Logits [N, K], float32, of uint8 images [N, S, S, 3] as `preprocess.pixels` gives them."""
    model: Any = classifier.model
    inputs = classifier.preprocess.normalise(images, param_dtype(model.dtype))
    return model.apply(classifier.variables, inputs, train=False).astype(jnp.float32)


def export_classifier(classifier: Pretrained) -> export.Exported:
    """`classify` as a StableHLO program for all platforms, with a symbolic N; `.call(images)` runs it.

    Raises InputError if its logits differ from the model's on this machine, for one of several batch sizes.
    """
    side = classifier.preprocess.crop_size
    (batch,) = export.symbolic_shape("batch")
    function = jax.jit(lambda images: classify(classifier, images))
    exported = export.export(function, platforms=PLATFORMS)(jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8))
    exported = for_older_readers(exported)
    for count in _CHECKED_BATCHES:
        images = np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)
        # Compiled so that they keep NaN; and not by jnp.max, which may lose it.
        expected, actual = (compile(program, images)(images) for program in (function, jax.jit(exported.call)))
        difference, largest = (float(np.abs(values).max()) for values in (actual - expected, expected))
        if not difference <= _TOLERANCE * max(largest, 1.0):
            raise InputError(f"the exported program differs from the model by {difference} in a batch of {count}")
    return exported


def for_older_readers(exported: export.Exported) -> export.Exported:
    """The same program in the first stable version of StableHLO, which jax 0.10 reads as well as jax 0.12.

    A program that needs a later version is returned as it is, and so are all without these parts of JAX.
    """
    try:
        from jax.interpreters import mlir
        from jaxlib.mlir.dialects import stablehlo
    except ImportError:
        return exported
    with mlir.make_ir_context() as context:
        module = stablehlo.deserialize_portable_artifact(context, exported.mlir_module_serialized)
        try:
            older = stablehlo.serialize_portable_artifact(module, _STABLEHLO_VERSION)
        except ValueError:
            return exported
    return replace(exported, mlir_module_serialized=bytes(older))


def check_installed() -> None:
    """Raises InputError if flatbuffers, which the format needs, is not installed."""
    if find_spec("flatbuffers") is None:
        raise InputError("exporting needs the package flatbuffers; pip install 'jaxnets[export]'")


def write_export(classifier: Pretrained, arch: str, path: Path) -> int:
    """Writes the program, and a description of its input and output as PATH.json; returns its size in bytes.

    Raises InputError as `check_installed` does.
    """
    check_installed()
    program = export_classifier(classifier).serialize()
    side = classifier.preprocess.crop_size
    meaning = {
        "arch": arch,
        "input": f"uint8 [batch, {side}, {side}, 3], RGB, resized and cropped but not normalised",
        "output": f"float32 logits [batch, {len(classifier.categories)}]",
        "preprocessing": asdict(classifier.preprocess),
        "class_names": list(classifier.categories),
        "jax": jax.__version__,
    }
    for target, data in (
        (path, bytes(program)),
        (path.with_name(f"{path.name}.json"), (json.dumps(meaning, indent=2) + "\n").encode()),
    ):
        new = target.with_name(f"{target.name}.new")
        new.write_bytes(data)
        new.replace(target)
    return len(program)
