"""What a network's stages put out, and which of its modules make them."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxnets.errors import InputError


def features(
    model: Any, variables: Mapping[str, Any], images: jax.Array, stages: Sequence[str]
) -> dict[str, jax.Array]:
    """Outputs, in evaluation, of the stages of a network, for normalised images [N, H, W, 3].

    Maps are [N, H', W', C]; "pool", where a network has it, and dense layers are [N, C]; the last stage's are the
    logits. `model.stages` names all, in their order; "layer4" stands for the last block of that name. Maps are taken
    after activation and normalisation, before pooling. Under `jax.jit` nothing beyond the last of them is computed.
    Raises InputError for a stage that the network lacks.
    """
    names = {stage: blocks_of(model, stage)[-1] for stage in stages}
    logits, sown = model.apply(variables, images, train=False, mutable=["features"])
    outputs = {**sown["features"]["outputs"], list(model.stages)[-1]: logits}
    return {stage: outputs[name] for stage, name in names.items()}


def head_of(model: Any) -> str:
    """The name of the classifier's module, such as "fc"."""
    (name,) = list(model.stages.values())[-1]
    return name


def head_inputs(model: Any) -> str:
    """The stage whose outputs [N, C] the classifier reads."""
    return list(model.stages)[-2]


def blocks_of(model: Any, stage: str) -> list[str]:
    """The stages that `stage` means: itself, or the blocks of that name; InputError where there is none."""
    found = [name for name in model.stages if name == stage or name.startswith(f"{stage}.")]
    if not found:
        raise InputError(f"{type(model).__name__} has no stage {stage!r}; it has {', '.join(model.stages)}")
    return found
