"""The layers of networks, against published counts, flax's own table, and the formula of the output size."""

import csv
import io
import sys
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxnets
from experiments import summary
from jaxnets.errors import InputError
from jaxnets.models.initialization import declaration
from jaxnets.summary import summarize
from tests.tiers import slow_except

# torchvision's documentation: parameters, and its GFLOPS, which are multiply-adds.
PUBLISHED = {
    "alexnet": (61_100_840, 0.714),
    "googlenet": (6_624_904, 1.498),
    "resnet18": (11_689_512, 1.814),
    "resnet34": (21_797_672, 3.664),
    "resnet50": (25_557_032, 4.089),
    "resnet101": (44_549_160, 7.801),
    "resnet152": (60_192_808, 11.514),
    "resnext50_32x4d": (25_028_904, 4.230),
    "resnext101_32x8d": (88_791_336, 16.414),
    "resnext101_64x4d": (83_455_272, 15.460),
    "wide_resnet50_2": (68_883_240, 11.398),
    "wide_resnet101_2": (126_886_696, 22.753),
}


@pytest.mark.parametrize("name", slow_except(["alexnet", "googlenet", "resnet50"], PUBLISHED))
def test_the_totals_are_the_published_ones(name: str) -> None:
    parameters, billions = PUBLISHED[name]
    total = summarize(jaxnets.create_model(name), 224).total()
    assert total.parameters == parameters
    assert total.multiply_adds / 1e9 == pytest.approx(billions, rel=1e-3)


class Plain(nn.Module):
    """Flax's own layers alone."""

    num_classes: int = 7
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(6, (5, 5), strides=2, padding=2, feature_group_count=3, name="stem")(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        x = nn.avg_pool(x, (2, 2), strides=(1, 1))
        return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))


def test_layers_of_flax_are_known() -> None:
    rows = {layer.name: layer for layer in summarize(Plain(), 21).layers}
    assert list(rows) == ["stem", "norm", "MaxPool", "AvgPool", "GlobalAvgPool", "head"]
    stem = rows["stem"]
    assert (stem.outputs, stem.window, stem.stride, stem.padding, stem.groups) == ((11, 11, 6), 5, 2, (2, 2), 3)
    assert stem.parameters == 5 * 5 * 1 * 6 + 6
    # Each output reads 25 pixels of the one channel of its group.
    assert stem.multiply_adds == 11 * 11 * 6 * 25
    assert stem.activations == 11 * 11 * 6 * 4
    assert stem.formula == "(21 - 5 + 2*2) / 2 + 1 = 11"
    assert rows["norm"].parameters == 12
    assert (rows["MaxPool"].outputs, rows["MaxPool"].formula) == ((6, 6, 6), "(11 - 3 + 2*1) / 2 + 1 = 6")
    assert rows["AvgPool"].outputs == (5, 5, 6)
    assert rows["head"].multiply_adds == 6 * 7


@pytest.mark.parametrize(
    "name",
    slow_except(["googlenet_2014"], ["alexnet_2012", "googlenet_2014", "resnet164_v2_cifar", "resnext29_8x64d_cifar"]),
)
def test_sizes_follow_from_one_another(name: str) -> None:
    """Each window's output has the size that its formula gives; parameters are those of the network."""
    options = {"aux_logits": False} if name == "googlenet_2014" else {}
    model = jaxnets.create_model(name, num_classes=10, **options)
    layers = summarize(model, 96).layers
    for layer in layers:
        if not layer.window:
            continue
        before, after = layer.padding
        exact = (layer.inputs[0] - layer.window + before + after) // layer.stride + 1
        assert layer.outputs[0] == exact, layer
        text, _, result = layer.formula.rpartition(" = ")
        rounded = {"f": int, "c": lambda value: -int(-value // 1)}.get(text[0], float)
        assert rounded(eval(text.removeprefix("floor").removeprefix("ceil"))) == int(result) == exact
    sizes = jax.tree.map(lambda leaf: leaf.size, declaration(model, 96).shapes["params"])
    assert sum(layer.parameters for layer in layers) == sum(jax.tree.leaves(sizes))


def test_stages_output_what_features_returns() -> None:
    model = jaxnets.create_model("googlenet")
    totals = {total.stage: total for total in summarize(model, 64).stages()}
    assert list(totals) == list(model.stages)
    variables = declaration(model, 64).shapes
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    stages = ["conv1", "inception3a", "inception5b", "pool", "fc"]
    maps = jax.eval_shape(partial(jaxnets.features, model, stages=stages), variables, images)
    assert {stage: totals[stage].outputs for stage in stages} == {name: map.shape[1:] for name, map in maps.items()}


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="smallest"):
        summarize(jaxnets.create_model("alexnet"), 32)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The rows of the command."""

    def call(*arguments: object) -> list[list[str]]:
        monkeypatch.setattr(sys, "argv", ["summary", *map(str, arguments), "--format", "csv"])
        summary.main()
        return list(csv.reader(io.StringIO(capsys.readouterr().out)))

    return call


def test_the_command_prints_layers_and_stages(rows: Any, capsys: pytest.CaptureFixture[str]) -> None:
    header, *layers, total = rows("--arch", "resnet20_cifar", "--num-classes", 10)
    assert header[:3] == ["layer", "kind", "output"]
    assert total[header.index("parameters")] == "269722"
    assert sum(int(row[header.index("multiply-adds")]) for row in layers) == int(total[header.index("multiply-adds")])
    header, *stages, total = rows("--arch", "resnet20_cifar", "--beside", "resnet32_cifar", "--num-classes", 10)
    assert [total[0], total[3], total[10]] == ["total", "269722", "464154"]
    assert len(stages) == 18  # conv1, 15 blocks of the deeper network, pool, fc; the shallower one has nine blocks
    beside = (
        "--arch",
        "resnet20_cifar",
        "--beside",
        "resnet20_cifar",
        "--num-classes",
        10,
        "--set",
        "stage_sizes=1,1,1",
    )
    wide = rows(*beside, "--stages")
    assert wide == rows(*beside)
    assert [row[:6] for row in wide[1:]][-1] == rows(*beside[:2], *beside[4:], "--stages")[-1]
    assert wide[-1][7:][3] == "269722"  # without the option
    sys.argv[-1] = "table"
    summary.main()
    printed = capsys.readouterr().out
    assert "resnet20_cifar stage_sizes=1,1,1, " in printed
