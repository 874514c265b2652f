"""What the networks name for jax.checkpoint: enough to keep little, and to repeat no convolution."""

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import jaxnets
from jaxnets.models.layers import KEPT_OUTPUTS, Conv
from tests.tiers import slow_except

KEY = jax.random.key(0)
CASES = {
    "resnet18": (32, {"stage_sizes": (1, 1), "num_filters": 8, "stochastic_depth_rate": 0.5}),
    "resnext29_8x64d_cifar": (8, {"stage_sizes": (1, 1), "num_filters": 8, "width_per_group": 16}),
    "alexnet_2012": (64, {"hidden_features": 64}),
}


def keep(*names: str) -> Callable[..., Any]:
    return partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(*names))


def network(name: str, **more: Any) -> tuple[Any, Any, jax.Array]:
    size, options = CASES[name]
    model = jaxnets.create_model(name, num_classes=5, **options, **more)
    images = jax.random.normal(KEY, (8, size, size, 3))
    return model, jax.eval_shape(lambda: model.init(KEY, images, train=False)), images


def loss_of(model: Any, variables: Any, images: jax.Array) -> Callable[[Any], Any]:
    """As the training step has it, what does not change held by the function."""

    def loss(params: Any) -> Any:
        logits, updates = model.apply(
            {**variables, "params": params}, images, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"]
        )
        return jnp.sin(logits).mean(), updates

    return loss


def step(wrap: Callable[..., Any], model: Any) -> Callable[[Any, jax.Array], Any]:
    def gradients(variables: Any, images: jax.Array) -> Any:
        loss = wrap(loss_of(model, variables, images))
        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    return gradients


def size_of(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def kept_bytes(wrap: Callable[..., Any], model: Any, variables: Any, images: jax.Array) -> int:
    """All that the backward pass holds, parameters included."""

    def backward(variables: Any, images: jax.Array) -> Any:
        return jax.vjp(wrap(loss_of(model, variables, images)), variables["params"], has_aux=True)[1]

    return size_of(jax.eval_shape(backward, variables, images))


def convolutions(model: Any, variables: Any, images: jax.Array) -> list[jax.ShapeDtypeStruct]:
    outputs = []

    def record(call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        result = call(*arguments, **keywords)
        if isinstance(context.module, Conv) and context.method_name == "__call__":
            outputs.append(jax.ShapeDtypeStruct(result.shape, result.dtype))
        return result

    with nn.intercept_methods(record):
        jax.eval_shape(partial(model.apply, train=False), variables, images)
    return outputs


def lowered(wrap: Callable[..., Any], model: Any, variables: Any, images: jax.Array) -> dict[str, list[int]]:
    """Convolutions and matrix products in a step's program for each platform."""
    traced = jax.jit(step(wrap, model)).trace(variables, images)
    programs = {platform: traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cuda", "cpu")}
    return {
        platform: [program.count(f"stablehlo.{operation}") for operation in ("convolution", "dot_general")]
        for platform, program in programs.items()
    }


@pytest.mark.parametrize("name", slow_except(["resnet18"], CASES))
def test_little_is_kept_and_no_convolution_repeated(name: str) -> None:
    case = network(name)
    whole = kept_bytes(lambda loss: loss, *case)
    # The convolutions' outputs, what was there before, and small change.
    outputs, before = size_of(convolutions(*case)), size_of(case[1]) + size_of(case[2])
    limit = outputs + before + 2**15
    for names in (("convolution",), KEPT_OUTPUTS):
        assert outputs < kept_bytes(keep(*names), *case) < limit
    assert whole - before > 1.9 * outputs  # of each convolution, and of each activation
    plain, thrifty, bare = (lowered(wrap, *case) for wrap in (lambda loss: loss, keep(*KEPT_OUTPUTS), keep()))
    for platform, (count, products) in plain.items():
        assert count == thrifty[platform][0] < bare[platform][0]
        # Pooling to a size is two products as well.
        assert thrifty[platform][1] <= products + 2 * (name == "alexnet_2012")


@pytest.mark.slow
def test_the_gradients_are_the_same() -> None:
    model, shapes, images = network("resnext29_8x64d_cifar", stochastic_depth_rate=0.5, dropout_rate=0.5)
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(random.uniform(-0.1, 0.2, leaf.shape), leaf.dtype), shapes)
    expected, actual = (
        jax.jit(step(wrap, model))(variables, images) for wrap in (lambda loss: loss, keep(*KEPT_OUTPUTS))
    )
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(1e-3, np.abs(other).max()))
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(expected[1]))


def primitives(jaxpr: Any) -> Counter[str]:
    """How often each primitive occurs in a program, within others too."""
    counts: Counter[str] = Counter()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        counts[equation.primitive.name] += 1
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=is_program)
        counts.update(sum((primitives(value) for value in inner if is_program(value)), Counter()))
    return counts


def is_program(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def test_the_replicas_agree_on_statistics_once() -> None:
    model, variables, images = network("resnet18", axis_name="replicas")

    def sums(wrap: Callable[..., Any]) -> int:
        program = jax.make_jaxpr(step(wrap, model), axis_env=[("replicas", 4)])(variables, images)
        return sum(count for name, count in primitives(program).items() if name.startswith("psum"))

    assert sums(lambda loss: loss) == sums(keep(*KEPT_OUTPUTS)) < sums(keep("convolution"))
