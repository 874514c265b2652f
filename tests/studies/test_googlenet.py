"""The study of GoogLeNet counts what other networks have, and notices branches and heads without effect."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike

from experiments.studies import googlenet_runs as study
from experiments.studies.data import study_data
from experiments.studies.googlenet import STUDY
from experiments.studies.googlenet_costs import counts
from experiments.studies.googlenet_runs import BRANCHES, Settings, first_norms, without_branch
from experiments.studies.lab import Lab
from experiments.studies.study import FAILS, HOLDS
from jaxnets.models import googlenet
from jaxnets.models.googlenet import AuxiliaryHead, ConvUnit, Inception
from jaxnets.models.initialization import initial_variables
from jaxnets.models.layers import BatchNorm, Dense
from jaxnets.ops import max_pool
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe

pytestmark = pytest.mark.slow

WIDTHS = (8, 8, 8, 8, 8, 8)


class Tiny(nn.Module):
    """Two blocks, the first with an auxiliary classifier.

    With `vanishing`, the second has weights of 0.01 without norm, through which gradients vanish. With `blind`, the
    outputs of the pooling branches are not used.
    """

    num_classes: int = 10
    aux_logits: bool = True
    blind: bool = False
    vanishing: bool = True
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    stages: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "conv1": ("conv1",),
        "inception3a": ("inception3a", "aux1"),
        "inception5b": ("inception5b",),
        "pool": (),
        "fc": ("fc",),
    }
    auxiliary_heads: ClassVar[Mapping[str, str]] = {"aux1": "fc2"}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        unit = partial(ConvUnit, train=train, norm=BatchNorm, axis_name=self.axis_name, dtype=self.dtype)
        last = partial(unit, norm=None) if self.vanishing else unit
        x = max_pool(unit(8, 3, padding=1, name="conv1")(images), 2, stride=2)
        x = Inception(WIDTHS, unit=unit, branch3_window=5, name="inception3a")(x)
        x = x.at[..., -8:].set(0) if self.blind else x
        if self.aux_logits and (train or self.is_initializing()):
            head = partial(AuxiliaryHead, self.num_classes, unit, Dense, nn.relu, None, 0.0, None, train)
            head(self.axis_name, name="aux1")(x)
        x = Inception(WIDTHS, unit=last, branch3_window=5, name="inception5b")(x)
        x = x.at[..., -8:].set(0) if self.blind else x
        return Dense(self.num_classes, name="fc")(x.mean(axis=(1, 2)))


class Naive(Inception):
    """A block whose 3x3 and 5x5 convolutions read its input."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        one, _, three, _, five, projection = self.widths
        outputs = [
            self.unit(one, 1, name="branch1")(inputs),
            self.unit(three, 3, padding=1, name="branch2_1")(inputs),
            self.unit(five, 5, padding=2, name="branch3_1")(inputs),
            self.unit(projection, 1, name="branch4_1")(max_pool(inputs, 3, stride=1, padding=1)),
        ]
        return jnp.concatenate(outputs, axis=-1)


@pytest.fixture(autouse=True)
def clear_counts() -> Iterator[None]:
    counts.cache_clear()
    yield
    counts.cache_clear()


def test_costs_are_those_of_a_network_without_reductions(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counts(224)
    assert found["googlenet"][0] == 6_998_552  # from table 1 of the paper
    assert found["flattened"][0] - found["googlenet"][0] == (7 * 7 - 1) * 1024 * 1000
    assert found["classifier"] == [(1024 + 1) * 1000, 1024 * 1000]
    assert found["alexnet"][0] == (9216 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000
    assert all(_claim(name).judge([{"counts": found}]).verdict == HOLDS for name in ("reductions", "average-pooling"))
    monkeypatch.setattr(googlenet, "Inception", Naive)
    counts.cache_clear()
    naive = counts(224)
    assert naive["googlenet"] == found["unreduced"]
    assert _claim("reductions").judge([{"counts": naive}]).verdict == FAILS


def test_average_pooling_saves_nothing_on_a_map_of_one_pixel() -> None:
    assert _claim("average-pooling").judge([{"counts": counts(32)}]).verdict == FAILS


def _claim(name: str) -> Any:
    (claim,) = (claim for claim in STUDY.claims if claim.name == name)
    return claim


def _verdicts(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], aux_weight: float = 0.3, epochs: int = 1
) -> dict[str, str]:
    monkeypatch.setattr(study, "counts", lambda size: {"googlenet": [1, 1], "unreduced": [1, 1], "flattened": [1, 1]})
    settings = Settings(
        image_size=8, images=640, test_images=300, epochs=epochs, batch_size=64, learning_rate=0.05, map_size=16,
        arch=f"{__name__}:Tiny", normalised={}, trained=options, aux_weight=aux_weight,
    )  # fmt: skip
    measured = STUDY.measure(Lab(study_data("digits"), 0), settings)
    return {verdict.claim.name: verdict.verdict for verdict in STUDY.judge([measured])}


@pytest.mark.parametrize(("blind", "verdict"), [(False, HOLDS), (True, FAILS)])
def test_a_branch_without_effect_turns_the_verdict(monkeypatch: pytest.MonkeyPatch, blind: bool, verdict: str) -> None:
    monkeypatch.setattr(study, "BRANCHES", {"pooling": BRANCHES["pooling"]})
    found = _verdicts(monkeypatch, {"vanishing": False, "blind": blind}, epochs=6)
    assert found["scales"] == verdict


@pytest.mark.parametrize(("aux_weight", "verdict"), [(0.3, HOLDS), (0.0, FAILS)])
def test_heads_without_weight_turn_the_verdict(
    monkeypatch: pytest.MonkeyPatch, aux_weight: float, verdict: str
) -> None:
    found = _verdicts(monkeypatch, {}, aux_weight)
    assert found["auxiliary-gradients"] == verdict
    if not aux_weight:
        assert found["auxiliary-start"] == found["auxiliary-accuracy"] == FAILS


def test_norms_of_gradients_are_those_of_the_sum_of_all_losses() -> None:
    recipe = Recipe(
        image_size=8, epochs=1, batch_size=16, optimizer="momentum", learning_rate=0.1, weight_decay=0.0, aux_weight=0.3
    )
    config, data = Config(f"{__name__}:Tiny", recipe, seed=3, dtype="float64"), study_data("digits")
    with jax.enable_x64(True):
        norms = first_norms(config, data)
        preprocessing = recipe.preprocessing(data.mean, data.std)
        images = jnp.stack([preprocessing(data.train[index].image, np.float64) for index in range(16)])
        labels = jnp.array([data.train[index].label for index in range(16)])
        network = config.create_model(10)
        variables = initial_variables(network, jax.random.key(3), 8)

        @partial(jax.jit, static_argnames="weight")
        def gradients(params: Any, weight: float) -> Any:
            def loss(params: Any) -> jax.Array:
                logits, updates = network.apply(
                    {**variables, "params": params}, images, train=True, mutable=["batch_stats", "aux_logits"]
                )
                (head,) = jax.tree.leaves(updates["aux_logits"])
                own, auxiliary = (
                    optax.softmax_cross_entropy_with_integer_labels(each, labels) for each in (logits, head)
                )
                return own.mean() + weight * auxiliary.mean()

            return jax.grad(loss)(params)

        for side, weight in (("with", 0.3), ("without", 0.0)):
            found = gradients(variables["params"], weight)
            for stage in ("conv1", "inception3a", "fc"):
                assert norms[side][stage] == pytest.approx(np.linalg.norm(ravel_pytree(found[stage])[0]), rel=1e-5)
    assert norms["with"]["fc"] == pytest.approx(norms["without"]["fc"], rel=1e-9)


def test_a_branch_without_weights_outputs_zeros() -> None:
    model = Tiny(vanishing=False)
    keys = jax.random.split(jax.random.key(0), 2)
    images = jax.random.normal(keys[0], (3, 8, 8, 3))
    variables = model.init(keys[1], images)
    # Running means that are not 0, as after training; below 0, so that outputs are not.
    variables = {**variables, "batch_stats": jax.tree.map(lambda stats: stats - 0.3, variables["batch_stats"])}
    logits = model.apply(variables, images)
    for branch in BRANCHES.values():

        def silence(call: Any, args: Any, kwargs: Any, context: Any, branch: str = branch) -> Any:
            outputs = call(*args, **kwargs)
            return outputs * 0 if context.module.name == branch else outputs

        with nn.intercept_methods(silence):
            expected = model.apply(variables, images)
        assert not np.allclose(expected, logits, rtol=1e-3)
        np.testing.assert_allclose(model.apply(without_branch(variables, branch), images), expected, rtol=1e-6)
