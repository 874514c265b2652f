"""The outputs of a network's stages."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax

from jaxnets.errors import InputError
from jaxnets.models.contract import Anatomy, anatomy
from jaxnets.models.layers import ADDED


def features(
    model: Any, variables: Mapping[str, Any], images: jax.Array, stages: Sequence[str]
) -> dict[str, jax.Array]:
    """Outputs of a network's stages in evaluation, for normalised images [N, H, W, 3].

    Maps are [N, H', W', C]; dense layers and what the head reads, "pool" in most networks, are [N, C]; the last stage
    outputs the logits. "layer4" stands for the last block of that name. jaxnets' networks output maps after activation
    and normalisation, before pooling. Under `jax.jit` nothing beyond the last of the stages is computed.
    Raises InputError for a stage that the network does not have.
    """
    return with_features(model, variables, images, stages)[1]


def with_features(
    model: Any,
    variables: Mapping[str, Any],
    images: jax.Array,
    stages: Sequence[str],
    added: Mapping[str, jax.Array] = MappingProxyType({}),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The logits [N, num_classes] and `features`, from one pass.

    `added` has arrays that are added to the outputs of stages before the rest of the network reads them: a derivative
    with respect to such an array is one with respect to the stage's output. Stages are named by their last blocks.
    """
    parts = anatomy(model)
    blocks = {stage: parts.blocks(stage, type(model).__name__)[-1] for stage in stages}
    logits, seen = _run(model, variables, images, parts, added)
    outputs = {stage: seen.output(block, parts, logits) for stage, block in blocks.items()}
    for stage, value in outputs.items():
        if not isinstance(value, jax.Array):
            raise InputError(f"stage {stage} outputs no array; sow one by jaxnets.models.layers.sow_feature")
    return logits, outputs


def map_shapes(model: Any, variables: Mapping[str, Any], images: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes [N, H', W', C] of the stages that output maps, in order; nothing is computed."""
    parts = anatomy(model)

    def run(variables: Any, images: Any) -> dict[str, jax.Array]:
        logits, seen = _run(model, variables, images, parts, {})
        outputs = {stage: seen.output(stage, parts, logits) for stage in parts.stages}
        return {stage: value for stage, value in outputs.items() if isinstance(value, jax.Array)}

    shapes = jax.eval_shape(run, variables, images)
    return {stage: shapes[stage] for stage in parts.stages if stage in shapes and len(shapes[stage].shape) == 4}


@dataclass
class _Seen:
    """What a pass has shown: the last output and the number of calls of each module, and what stages have sown."""

    returned: dict[str, Any] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    sown: Mapping[str, jax.Array] = field(default_factory=dict)
    head_input: Any = None

    def last_module(self, stage: str, parts: Anatomy) -> str | None:
        """Of several modules the last one that is called."""
        return next((name for name in reversed(self.returned) if name in parts.stages[stage]), None)

    def output(self, stage: str, parts: Anatomy, logits: jax.Array) -> Any:
        """What the stage outputs; None if that is not known."""
        if stage == list(parts.stages)[-1]:
            return logits
        if stage in self.sown:
            return self.sown[stage]
        if stage == parts.head_inputs:
            return self.head_input
        module = self.last_module(stage, parts)
        return None if module is None else self.returned[module]


def _run(
    model: Any, variables: Mapping[str, Any], images: jax.Array, parts: Anatomy, added: Mapping[str, jax.Array]
) -> tuple[jax.Array, _Seen]:
    seen, to_input, to_call = _Seen(), None, {}
    if added:
        before: list[_Seen] = []
        jax.eval_shape(lambda own, inputs: before.append(_run(model, own, inputs, parts, {})[1]), variables, images)
        for stage, value in added.items():
            module = before[0].last_module(stage, parts)
            if stage in before[0].sown:
                continue  # sow_feature adds it
            if stage == parts.head_inputs:
                to_input = value
            elif module is not None:
                to_call[module, before[0].calls[module]] = value

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name != "__call__" or len(context.module.path) != 1:
            return call(*args, **kwargs)
        (name,) = context.module.path
        if name == parts.head and args:
            args = args if to_input is None else (args[0] + to_input, *args[1:])
            seen.head_input = args[0]
        outputs = call(*args, **kwargs)
        seen.calls[name] += 1
        if (name, seen.calls[name]) in to_call:
            outputs = outputs + to_call[name, seen.calls[name]]
        seen.returned[name] = outputs
        return outputs

    if added:
        variables = {**variables, ADDED: {"outputs": dict(added)}}
    with nn.intercept_methods(record):
        logits, sown = model.apply(variables, images, train=False, mutable=["features"])
    seen.sown = sown.get("features", {}).get("outputs", {})
    return logits, seen


def head_of(model: Any) -> str:
    """The name of the head's module, such as "fc"."""
    return anatomy(model).head


def head_inputs(model: Any) -> str:
    """The stage whose outputs [N, C] the head reads."""
    return anatomy(model).head_inputs


def blocks_of(model: Any, stage: str) -> list[str]:
    """The stages that `stage` names: itself, or its blocks. Raises InputError if there is none."""
    return anatomy(model).blocks(stage, type(model).__name__)
