"""The outputs of a network's stages."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxnets.errors import InputError
from jaxnets.models.contract import Anatomy, anatomy


def features(
    model: Any, variables: Mapping[str, Any], images: jax.Array, stages: Sequence[str]
) -> dict[str, jax.Array]:
    """Outputs of a network's stages in evaluation, for normalised images [N, H, W, 3].

    Maps are [N, H', W', C]; dense layers and what the head reads, "pool" in most networks, are [N, C]; the last stage
    outputs the logits. "layer4" stands for the last block of that name. jaxnets' networks output maps after activation
    and normalisation, before pooling. Under `jax.jit` nothing beyond the last of the stages is computed.
    Raises InputError for a stage that the network does not have.
    """
    parts = anatomy(model)
    blocks = {stage: parts.blocks(stage, type(model).__name__)[-1] for stage in stages}
    returned: dict[str, Any] = {}
    read: dict[str, Any] = {}

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        outputs = call(*args, **kwargs)
        if context.method_name == "__call__" and len(context.module.path) == 1:
            (name,) = context.module.path
            returned[name] = outputs
            read[name] = args[0] if args else None
        return outputs

    with nn.intercept_methods(record):
        logits, sown = model.apply(variables, images, train=False, mutable=["features"])
    outputs = sown.get("features", {}).get("outputs", {})
    return {stage: _output(block, parts, logits, outputs, returned, read) for stage, block in blocks.items()}


def _output(
    stage: str, parts: Anatomy, logits: jax.Array, sown: Mapping[str, jax.Array], returned: Any, read: Any
) -> jax.Array:
    if stage == list(parts.stages)[-1]:
        return logits
    if stage in sown:
        return sown[stage]
    # Of several modules the last one that is called.
    called = [name for name in returned if name in parts.stages[stage]]
    value = read.get(parts.head) if stage == parts.head_inputs else returned[called[-1]] if called else None
    if not isinstance(value, jax.Array):
        raise InputError(f"stage {stage} outputs no array; sow one by jaxnets.models.layers.sow_feature")
    return value


def head_of(model: Any) -> str:
    """The name of the head's module, such as "fc"."""
    return anatomy(model).head


def head_inputs(model: Any) -> str:
    """The stage whose outputs [N, C] the head reads."""
    return anatomy(model).head_inputs


def blocks_of(model: Any, stage: str) -> list[str]:
    """The stages that `stage` names: itself, or its blocks. Raises InputError if there is none."""
    return anatomy(model).blocks(stage, type(model).__name__)
