"""Stochastic depth, as Huang et al. 2016 and torchvision's StochasticDepth in mode "row" have it."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnets
from jaxnets.models.layers import BatchNorm, Conv, Dropout
from jaxnets.models.resnet import BasicBlock, Bottleneck
from jaxnets.models.resnet_v2 import PreActivationBottleneck
from jaxnets.models.resnext import SplitTransformAddBlock
from tests.models.test_layers import dropouts
from tests.tiers import slow_except

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("name", "stages"),
    [("resnet50", (3, 4, 6, 3)), ("resnext50_32x4d", (3, 4, 6, 3)), ("resnet20_cifar", (3, 3, 3)),
     ("resnet164_v2_cifar", (2, 1, 3))],
)  # fmt: skip
def test_the_rate_grows_in_a_line_over_the_blocks(name: str, stages: tuple[int, ...]) -> None:
    *blocks, (_, last) = dropouts(name, stage_sizes=stages, stochastic_depth_rate=0.3, axis_name="replicas")
    names = [f"layer{stage + 1}_{i}" for stage, size in enumerate(stages) for i in range(size)]
    assert [place for place, _ in blocks] == [f"{block}/Dropout_0" for block in names]
    expected = [0.3 * (i + 1) / len(names) for i in range(len(names))]
    np.testing.assert_allclose([module.rate for _, module in blocks], expected, rtol=1e-12)
    assert all(module.whole_images and module.train and module.axis_name == "replicas" for _, module in blocks)
    assert last.rate == 0


@pytest.mark.parametrize(
    ("form", "stride"),
    slow_except([(Bottleneck, 1)], [(BasicBlock, 2), (Bottleneck, 1), (SplitTransformAddBlock, 2),
                                    (PreActivationBottleneck, 1), (PreActivationBottleneck, 2)]),
)  # fmt: skip
def test_an_image_keeps_its_scaled_residual_or_its_shortcut_alone(form: Any, stride: int) -> None:
    rate, count = 0.4, 400
    options: dict[str, Any] = {"filters": 4, "stride": stride, "activation": jnp.tanh, "conv": Conv}
    options["norm"] = partial(BatchNorm, train=False)
    if form is not PreActivationBottleneck:
        # No activation after the sum, so that the residual can be told from the shortcut.
        options |= {"groups": 1, "width_per_group": 64, "shortcut": "B", "zero_init_residual": False}
        options["activation"] = lambda x: x
    inputs = jax.random.normal(KEY, (count, 3, 3, 4 * form.expansion))
    dropped = partial(Dropout, train=True, whole_images=True)
    variables = form(**options).init(KEY, inputs)

    def call(rate: float) -> np.ndarray:
        module = form(**options, drop=dropped)
        return np.asarray(module.apply(variables, inputs, rate, rngs={"dropout": KEY}))

    full, shortcut, outputs = (call(value) for value in (0.0, 1.0, rate))
    if stride == 1:
        np.testing.assert_allclose(shortcut, inputs, rtol=0, atol=1e-6)
    scaled = shortcut + (full - shortcut) / (1 - rate)
    kept = np.array([np.abs(outputs[i] - scaled[i]).max() < 1e-4 for i in range(count)])
    for i in range(count):
        np.testing.assert_allclose(outputs[i], scaled[i] if kept[i] else shortcut[i], rtol=0, atol=1e-4)
    assert np.abs(full - shortcut).max((1, 2, 3)).min() > 1e-2
    assert abs(kept.mean() - (1 - rate)) < 5 * (rate * (1 - rate) / count) ** 0.5


@pytest.mark.slow
def test_each_image_and_block_has_its_own_fate() -> None:
    options = {"num_filters": 4, "stage_sizes": (1, 2), "stochastic_depth_rate": 0.75}
    model = jaxnets.create_model("resnet20_cifar", num_classes=5, **options)
    images = jax.random.normal(KEY, (600, 4, 4, 3))
    variables = jax.jit(lambda: model.init(KEY, images[:1], train=False))()

    @partial(jax.jit, static_argnames="train")
    def seen(train: bool) -> Any:
        _, state = model.apply(
            variables, images, train=train, rngs={"dropout": KEY}, mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: module.name in ("Dropout_0", "bn2"),
        )  # fmt: skip
        return state["intermediates"]

    state, still = seen(True), seen(False)
    fates = []
    for block, rate in (("layer1_0", 0.25), ("layer2_0", 0.5), ("layer2_1", 0.75)):
        before, after = (np.asarray(state[block][layer]["__call__"][0]) for layer in ("bn2", "Dropout_0"))
        kept = after.any((1, 2, 3))
        np.testing.assert_allclose(after, before * kept[:, None, None, None] / (1 - rate), rtol=1e-5, atol=1e-6)
        assert abs(kept.mean() - (1 - rate)) < 5 * (rate * (1 - rate) / 600) ** 0.5
        fates.append(kept)
        np.testing.assert_array_equal(still[block]["Dropout_0"]["__call__"][0], still[block]["bn2"]["__call__"][0])
    assert np.abs(np.corrcoef(fates) - np.eye(3)).max() < 5 / 600**0.5


@pytest.mark.parametrize("name", ["resnet18", "resnet164_v2_cifar"])
@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_outside_0_to_1_is_refused(name: str, rate: float) -> None:
    model = jaxnets.create_model(name, stochastic_depth_rate=rate)
    with pytest.raises(jaxnets.InputError, match=f"stochastic_depth_rate={rate}"):
        jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))


def test_plain_networks_refuse_it() -> None:
    def init(model: nn.Module) -> Any:
        return jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))

    for name in ("plain18", "plain20_cifar"):
        with pytest.raises(jaxnets.InputError, match="needs shortcuts"):
            init(jaxnets.create_model(name, stochastic_depth_rate=0.1))
        assert init(jaxnets.create_model(name, dropout_rate=0.1))
