"""The choices that the papers make, each as one argument, and what each does."""

import functools
import operator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxnets
from jaxnets.models.googlenet import AuxiliaryHead
from jaxnets.models.layers import BatchNorm, Conv, Dense
from jaxnets.models.resnet import BasicBlock
from jaxnets.models.resnet_v2 import PreActivationBottleneck
from jaxnets.ops import local_response_norm
from tests.tiers import slow_except

KEY = jax.random.key(0)


def init(name: str, size: int = 64, **options: Any) -> tuple[nn.Module, Any, jax.Array]:
    model = jaxnets.create_model(name, num_classes=5, **options)
    images = jax.random.normal(KEY, (2, size, size, 3))
    return model, jax.jit(lambda key: model.init(key, images, train=False))(KEY), images


def init_part(name: str, *path: str, **options: Any) -> Any:
    """Freshly initialised parameters of a part of a network; XLA leaves out the work for the rest."""
    model = jaxnets.create_model(name, num_classes=5, **options)

    def part(key: jax.Array) -> Any:
        params = model.init(key, jnp.zeros((1, 64, 64, 3)), train=False)["params"]
        return functools.reduce(operator.getitem, path, params)

    return jax.jit(part)(KEY)


def trace(name: str, size: int, train: bool = False, **options: Any) -> Any:
    """Shapes of logits and of all that a call changes, found without computing."""
    model = jaxnets.create_model(name, num_classes=5, **options)

    def call() -> Any:
        images = jnp.zeros((2, size, size, 3))
        variables = model.init(KEY, images, train=False)
        return model.apply(
            variables, images, train=train, rngs={"dropout": KEY},
            mutable=["batch_stats", "aux_logits", "intermediates"], capture_intermediates=True,
        )  # fmt: skip

    return jax.eval_shape(call)


def block(inputs: jax.Array, **options: Any) -> tuple[BasicBlock, Any]:
    module = BasicBlock(
        filters=8, stride=2, groups=1, width_per_group=64, activation=nn.relu, conv=Conv,
        norm=partial(BatchNorm, train=False), **{"shortcut": "A", "zero_init_residual": False, **options},
    )  # fmt: skip
    return module, module.init(KEY, inputs)


def test_option_a_subsamples_and_pads_with_zeros() -> None:
    inputs = jax.random.normal(KEY, (2, 6, 6, 4))
    # With the residual's last scale at zero, only the shortcut is left.
    module, variables = block(inputs, zero_init_residual=True)
    expected = np.zeros((2, 3, 3, 8))
    expected[..., :4] = inputs[:, ::2, ::2]
    np.testing.assert_array_equal(module.apply(variables, inputs), np.maximum(expected, 0))


@pytest.mark.parametrize(("kind", "projected"), [("A", (False, False)), ("B", (True, False)), ("C", (True, True))])
def test_shortcuts_project_where_the_paper_says(kind: Any, projected: tuple[bool, bool]) -> None:
    shapes = ((2, 6, 6, 4), (2, 6, 6, 8))
    for shape, stride, expected in zip(shapes, (2, 1), projected, strict=True):
        module, variables = block(jnp.ones(shape), shortcut=kind)
        _, variables = module.clone(stride=stride).init_with_output(KEY, jnp.ones(shape))
        assert ("downsample_conv" in variables["params"]) == expected


def test_a_plain_block_has_no_shortcut() -> None:
    inputs = jax.random.normal(KEY, (2, 6, 6, 4))
    module, variables = block(inputs, zero_init_residual=True, shortcut="none")
    np.testing.assert_array_equal(module.apply(variables, inputs), np.zeros((2, 3, 3, 8)))


def test_an_unknown_shortcut_or_stem_is_refused() -> None:
    with pytest.raises(jaxnets.InputError, match="shortcut='D'"):
        trace("resnet18", 32, shortcut="D")
    with pytest.raises(jaxnets.InputError, match="stem='small'"):
        trace("resnet18", 32, stem="small")
    with pytest.raises(jaxnets.InputError, match="groups=2"):
        trace("resnet18", 32, groups=2)
    with pytest.raises(jaxnets.InputError, match="zero_init_residual needs a norm"):
        trace("resnet18", 32, norm=None, zero_init_residual=True)
    with pytest.raises(jaxnets.InputError, match="zero_init_residual needs shortcuts"):
        trace("resnet18", 32, shortcut="none", zero_init_residual=True)


def test_zero_init_residual_starts_every_block_as_its_shortcut() -> None:
    for name, zeroed in (("layer1_0", True), ("layer2_1", True), ("layer1_0", False)):
        block_params = init_part("resnet50", name, stage_sizes=(1, 2), zero_init_residual=zeroed)
        assert block_params["bn3"]["scale"].any() != zeroed
        assert block_params["bn2"]["scale"].all()


def test_the_small_stem_keeps_the_resolution() -> None:
    for stem, size in (("cifar", 32), ("imagenet", 8)):
        _, state = trace("resnet18", 32, stem=stem)
        assert state["intermediates"]["layer1_0"]["__call__"][0].shape == (2, size, size, 64)


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "resnet164_v2_cifar"])
def test_without_a_norm_the_convolutions_have_biases(name: str) -> None:
    model = jaxnets.create_model(name, norm=None)
    variables = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((2, 32, 32, 3)), train=False))
    assert set(variables) == {"params"}
    paths = flatten_dict(variables["params"])
    assert {path[:-1] for path in paths if path[-1] == "kernel"} == {path[:-1] for path in paths if path[-1] == "bias"}


@pytest.mark.parametrize(
    ("name", "calls"),
    # Convolutions and hidden dense layers with an activation after them: the depth in the papers' count, less the last,
    # and two more in each auxiliary head.
    slow_except(
        [("alexnet", 7), ("resnet20_cifar", 19)],
        {"alexnet": 7, "alexnet_2012": 7, "googlenet": 57 + 2 * 2, "resnet18": 17, "resnet50": 49, "resnet20_cifar": 19,
         "resnet164_v2_cifar": 163, "resnext50_32x4d": 49}.items(),
    ),
)  # fmt: skip
def test_the_activation_is_the_chosen_one_everywhere(name: str, calls: int) -> None:
    seen = []

    def activation(x: jax.Array) -> jax.Array:
        seen.append(x.shape)
        return jnp.tanh(x)

    model = jaxnets.create_model(name, activation=activation)
    jaxpr = jax.make_jaxpr(lambda: model.init_with_output(KEY, jnp.zeros((1, 64, 64, 3)), train=False)[0])()
    assert len(seen) == calls
    assert "relu" not in str(jaxpr).replace("relu=False", "")


def test_auxiliary_heads_only_speak_in_training() -> None:
    for train, heads, expected in ((True, True, [(2, 5), (2, 5)]), (False, True, []), (True, False, [])):
        logits, updates = trace("googlenet", 64, train=train, aux_logits=heads)
        assert logits.shape == (2, 5)
        assert [head.shape for head in jax.tree.leaves(updates.get("aux_logits", {}))] == expected


@pytest.mark.parametrize("name", slow_except(["alexnet"], ["alexnet", "alexnet_2012"]))
@pytest.mark.slow
def test_dropout_acts_in_training_alone_and_can_be_turned_off(name: str) -> None:
    model, variables, images = init(name, hidden_features=32)

    @partial(jax.jit, static_argnums=0)
    def apply(module: nn.Module, variables: Any, images: jax.Array, seed: int) -> jax.Array:
        return module.apply(variables, images, train=True, rngs={"dropout": jax.random.key(seed)})

    def logits(module: nn.Module, seed: int) -> jax.Array:
        return apply(module, variables, images, seed)

    still = jax.jit(partial(model.apply, train=False))(variables, images)
    assert not np.array_equal(logits(model, 1), logits(model, 2))
    np.testing.assert_array_equal(logits(model.clone(dropout_rate=0.0), 1), still)


@pytest.mark.parametrize(("name", "rate"), [("googlenet", 0.2), ("googlenet_2014", 0.4)])
def test_googlenet_drops_once_before_its_last_layer_and_once_a_head(name: str, rate: float) -> None:
    model = jaxnets.create_model(name)
    assert (model.dropout_rate, model.aux_dropout_rate) == (rate, 0.7)
    _, state = trace(name, 64, train=True)
    assert state["intermediates"]["Dropout_0"]["__call__"][0].shape == (2, 1024)
    assert all("Dropout_0" in state["intermediates"][head] for head in ("aux1", "aux2"))


@pytest.mark.parametrize(
    ("name", "dropped"),
    # torchvision drops the inputs of the first two dense layers, the paper (section 4.2) their outputs.
    [("alexnet", {"fc1": True, "fc2": True, "fc3": False}), ("alexnet_2012", {"fc1": False, "fc2": True, "fc3": True})],
)
@pytest.mark.slow
def test_alexnet_drops_before_or_after_its_hidden_dense_layers(name: str, dropped: dict[str, bool]) -> None:
    model, variables, images = init(name, hidden_features=32)
    inputs = {}

    def record(call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, Dense) and context.method_name == "__call__":
            inputs[context.module.name] = arguments[0]
        return call(*arguments, **keywords)

    with nn.intercept_methods(record):
        model.clone(dropout_rate=1.0).apply(variables, images, train=True, rngs={"dropout": KEY})
    assert {layer: not value.any() for layer, value in inputs.items()} == dropped


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012"])
def test_alexnet_can_be_narrow(name: str) -> None:
    def shapes(**options: Any) -> dict[str, tuple[int, ...]]:
        model = jaxnets.create_model(name, num_classes=5, **options)
        params = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 64, 64, 3)), train=False))["params"]
        return {layer: leaves["kernel"].shape for layer, leaves in params.items()}

    wide = shapes()
    assert shapes(hidden_features=32) == wide | {"fc1": (9216, 32), "fc2": (32, 32), "fc3": (32, 5)}
    assert wide == shapes(hidden_features=4096)
    narrow = shapes(hidden_features=4096, num_filters={"alexnet": 8, "alexnet_2012": 12}[name])
    for layer in ("conv1", "conv2", "conv3", "conv4", "conv5"):  # an eighth of the channels, but three colours
        *window, channels, features = wide[layer]
        assert narrow[layer] == (*window, channels if layer == "conv1" else channels // 8, features // 8)
    assert narrow["fc1"] == (9216 // 8, 4096)


def test_alexnet_2012_normalises_responses_after_the_first_two_layers() -> None:
    calls = []

    def lrn(x: jax.Array) -> jax.Array:
        calls.append(x.shape)
        return local_response_norm(x)

    model = jaxnets.create_model("alexnet_2012", lrn=lrn)
    jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 224, 224, 3)), train=False))
    assert calls == [(1, 55, 55, 96), (1, 27, 27, 256)]


@pytest.mark.slow
def test_alexnet_2012_starts_as_the_paper_says() -> None:
    _, variables, _ = init("alexnet_2012", hidden_features=512)
    for name, layer in variables["params"].items():
        expected = 1.0 if name in ("conv2", "conv4", "conv5", "fc1", "fc2") else 0.0
        np.testing.assert_array_equal(layer["bias"], np.full_like(layer["bias"], expected))
        assert 0.0095 < layer["kernel"].std() < 0.0105


def test_initial_deviations_are_torchvisions() -> None:
    conv3 = init_part("alexnet", "conv3")
    bound = (192 * 3 * 3) ** -0.5
    assert np.abs(conv3["kernel"]).max() == pytest.approx(bound, rel=1e-3)
    assert np.abs(conv3["bias"]).max() == pytest.approx(bound, rel=0.05)
    # He, fan out: sqrt(2 / (features * 3 * 3)), with groups too.
    for name, features in (("resnet18", 128), ("resnext50_32x4d", 256)):
        conv = "conv1" if name == "resnet18" else "conv2"
        kernel = init_part(name, "layer2_0", conv, "kernel", stage_sizes=(1, 1))
        assert kernel.std() == pytest.approx((2 / (features * 9)) ** 0.5, rel=0.02)
    assert init_part("googlenet", "inception3a", "branch2_1", "conv", "kernel").std() == pytest.approx(0.01, rel=0.02)
    fc = init_part("resnet18", "fc", stage_sizes=(1, 1, 1, 1))
    assert 0.5 * 512**-0.5 < np.abs(fc["bias"]).max() <= np.abs(fc["kernel"]).max() <= 512**-0.5
    # He, fan in, for the paper's CIFAR networks.
    kernel = init_part("resnet20_cifar", "layer3_0", "conv1", "kernel")
    assert kernel.std() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.02)


def test_googlenet_2014_has_true_5x5_and_lrn_where_the_paper_has_it() -> None:
    calls = []

    def lrn(x: jax.Array) -> jax.Array:
        calls.append(x.shape)
        return local_response_norm(x)

    model = jaxnets.create_model("googlenet_2014", lrn=lrn)
    variables = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 224, 224, 3)), train=False))
    assert calls == [(1, 56, 56, 64), (1, 56, 56, 192)]
    assert variables["params"]["inception3a"]["branch3_1"]["conv"]["kernel"].shape == (5, 5, 16, 32)


def test_googlenet_2014_pools_for_its_heads_as_the_paper_does() -> None:
    def first_pooled(size: int) -> tuple[float, ...]:
        head = AuxiliaryHead(
            5, unit=lambda *_, **__: lambda x: x, dense=lambda *_, **__: lambda x: x, activation=lambda x: x,
            bias_init=None, dropout_rate=0.0, pool_window=5, train=False,
        )  # fmt: skip
        ramp = jnp.broadcast_to(jnp.arange(float(size))[None, :, None, None], (1, size, size, 1))
        return tuple(np.asarray(head.init_with_output(KEY, ramp)[0]).reshape(4, 4)[:, 0])

    # 14 px: windows of 5 with stride 3; elsewhere the adaptive windows.
    # A fifth is rounded, and so are sums of such.
    assert first_pooled(14) == pytest.approx((2.0, 5.0, 8.0, 11.0), rel=1e-6)
    assert first_pooled(8) == (0.5, 2.5, 4.5, 6.5)
    assert first_pooled(4) == (0.0, 1.0, 2.0, 3.0)


def test_googlenet_2014_starts_as_the_reference_model() -> None:
    conv = init_part("googlenet_2014", "inception4a", "branch3_0", "conv")
    assert np.abs(conv["kernel"]).max() == pytest.approx((3 / 480) ** 0.5, rel=0.02)
    np.testing.assert_array_equal(conv["bias"], np.full(16, 0.2, np.float32))
    np.testing.assert_array_equal(init_part("googlenet_2014", "aux1", "fc1", "bias"), np.full(1024, 0.2, np.float32))
    for path in (("fc",), ("aux2", "fc2")):
        assert not init_part("googlenet_2014", *path, "bias").any()


@pytest.mark.parametrize("changes", [False, True])
def test_pre_activation_blocks_carry_their_input_uninterrupted(changes: bool) -> None:
    inputs = jax.random.normal(KEY, (2, 6, 6, 16))
    module = PreActivationBottleneck(
        filters=8 if changes else 4, stride=2 if changes else 1, activation=nn.relu, conv=Conv,
        norm=partial(BatchNorm, train=False),
    )  # fmt: skip
    variables = module.init(KEY, inputs)
    params = variables["params"]
    params["bn1"]["bias"] += 0.3
    params["conv3"]["kernel"] *= 0
    expected = inputs
    if changes:
        # The projection starts from the activated input (the statistics are those of a fresh network).
        activated = np.maximum(inputs / np.sqrt(1 + 1e-5) + 0.3, 0)
        expected = activated[:, ::2, ::2] @ params["downsample_conv"]["kernel"][0, 0]
        assert params["conv1"]["kernel"].shape == (1, 1, 16, 8)
    np.testing.assert_allclose(module.apply(variables, inputs), expected, atol=1e-5)


def test_pre_activation_networks_end_with_a_norm_and_subsample_first() -> None:
    _, state = trace("resnet164_v2_cifar", 32, stage_sizes=(1, 1))
    seen = state["intermediates"]
    assert seen["bn1"]["__call__"][0].shape == (2, 16, 16, 128)
    # The stride is on the first 1x1.
    assert seen["layer2_0"]["conv1"]["__call__"][0].shape == (2, 16, 16, 32)


def test_batch_norm_over_replicas_initialises_outside_of_them() -> None:
    model = jaxnets.create_model("resnet20_cifar", axis_name="replicas", stage_sizes=(1,))
    jax.eval_shape(lambda: model.init(KEY, jnp.zeros((2, 8, 8, 3)), train=True))
