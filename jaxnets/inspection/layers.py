"""What layers have learnt and what they output: the first convolution's filters, and feature maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxnets.errors import InputError
from jaxnets.inspection.batches import Programs, batches, checked_images
from jaxnets.models.contract import anatomy, trace
from jaxnets.models.features import features
from jaxnets.models.layers import param_dtype


def first_filters(model: Any, variables: Mapping[str, Any]) -> np.ndarray:
    """The kernels of the first convolution that the network calls, [filters, h, w, C].

    C is 3 for colour images, or 3 / groups. Raises InputError for a network without convolution.
    """
    for path in trace(model).classes:
        tree = variables["params"]
        for name in path:
            tree = tree.get(name, {}) if isinstance(tree, Mapping) else {}
        for leaf in tree.values():
            if not isinstance(leaf, Mapping) and np.ndim(leaf) == 4:
                return np.moveaxis(np.asarray(leaf), -1, 0)
    raise InputError(f"{type(model).__name__} has no convolution with a kernel [h, w, C, filters]")


def feature_maps(
    model: Any,
    variables: Mapping[str, Any],
    images: Any,
    stages: str | Sequence[str],
    *,
    batch_size: int = 32,
) -> dict[str, np.ndarray]:
    """Outputs of stages for normalised images [N, H, W, 3]: maps [N, h, w, C], or [N, C], by stage.

    Those of a block with branches, such as Inception, are followed by those of each branch, as "inception3a/branch1".
    Raises InputError for a stage that the network does not have, and if outputs are not finite.
    """
    names = (stages,) if isinstance(stages, str) else tuple(stages)
    parts = anatomy(model)
    modules = tuple(parts.stages[parts.blocks(name, type(model).__name__)[-1]] for name in names)
    program = _programs(model, stages=names, modules=modules)
    images = checked_images(images)
    labels = _labels(variables, images, model, names, modules)
    results = list(batches(program, variables, (images,), batch_size))
    return {label: np.concatenate(arrays) for label, arrays in zip(labels, zip(*results, strict=True), strict=True)}


def _labels(variables: Any, images: np.ndarray, model: Any, stages: Sequence[str], modules: Any) -> list[str]:
    shape = jax.ShapeDtypeStruct((1, *images.shape[1:]), param_dtype(model.dtype))
    order: list[str] = []

    def run(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        outputs = _outputs(variables, images, model, stages, modules)
        order.extend(outputs)
        return outputs

    jax.eval_shape(run, variables, shape)
    return order


def _step(
    variables: Any, batch: tuple[jax.Array], *, model: Any, stages: tuple[str, ...], modules: Any
) -> list[jax.Array]:
    precise = param_dtype(model.dtype)
    outputs = _outputs(variables, batch[0].astype(precise), model, stages, modules)
    return [output.astype(precise) for output in outputs.values()]


def _outputs(
    variables: Any, images: jax.Array, model: Any, stages: Sequence[str], modules: Sequence[Sequence[str]]
) -> dict[str, jax.Array]:
    branches: dict[tuple[str, str], jax.Array] = {}

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        outputs = call(*args, **kwargs)
        path = context.module.path
        if len(path) == 2 and path[1] in getattr(context.module.parent, "branches", ()):
            branches[path] = outputs
        return outputs

    with nn.intercept_methods(record):
        outputs = features(model, variables, images, stages)
    by_label: dict[str, jax.Array] = {}
    for stage, names in zip(stages, modules, strict=True):
        by_label[stage] = outputs[stage]
        by_label |= {f"{stage}/{name}": value for (module, name), value in branches.items() if module in names}
    return by_label


_programs = Programs(_step)
