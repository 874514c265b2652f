"""The networks by name: counts of parameters, sizes that they take, and what is said of bad requests."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

import jaxnets
from tests.tiers import slow_except

# torchvision 0.29.1's counts; GoogLeNet without and with its two auxiliary heads.
TORCHVISION = {
    "alexnet": 61_100_840,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
}
# Summed by hand from the papers' tables.
PAPERS_IMAGENET = {"alexnet_2012": 60_965_224}
_DEFAULT = [(name, TORCHVISION[name]) for name in ("alexnet", "resnet18", "resnext50_32x4d")]
HEADS = {"googlenet": (6_624_904, 13_004_888), "googlenet_2014": (6_998_552, 13_378_280)}
PAPERS_CIFAR = {
    "resnet20_cifar": 269_722,
    "resnet32_cifar": 464_154,
    "resnet44_cifar": 658_586,
    "resnet56_cifar": 853_018,
    "resnet110_cifar": 1_727_962,
    "resnet1202_cifar": 19_421_274,
}
# As printed in the papers, in millions, where normalisation is left out of the count.
PAPERS_MILLIONS = {
    "resnet164_v2_cifar": 1.7,
    "resnet1001_v2_cifar": 10.2,
    "resnext29_8x64d_cifar": 34.4,
    "resnext29_16x64d_cifar": 68.1,
}
# With normalisation, summed by hand from the pre-activation paper's section 5.
PRE_ACTIVATION = {"resnet164_v2_cifar": 1_703_258, "resnet1001_v2_cifar": 10_327_706}
CARDINALITIES = ("1x64d", "2x40d", "4x24d", "8x14d", "32x4d")


@cache
def parameters(name: str, classes: int, aux_logits: bool | None = None) -> dict[tuple[str, ...], int]:
    options = {} if aux_logits is None else {"aux_logits": aux_logits}
    model = jaxnets.create_model(name, num_classes=classes, **options)
    images = jnp.zeros((2, 64, 80, 3))
    logits, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False))
    # The contract: logits alone, parameters and statistics in float32, no other collections.
    assert (logits.shape, logits.dtype) == ((2, classes), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert set(variables) <= {"params", "batch_stats"}
    return {path: math.prod(leaf.shape) for path, leaf in flatten_dict(variables["params"]).items()}


@pytest.mark.parametrize(("name", "count"), slow_except(_DEFAULT, (TORCHVISION | PAPERS_IMAGENET).items()))
def test_parameters_of_the_imagenet_networks(name: str, count: int) -> None:
    assert sum(parameters(name, 1000).values()) == count


@pytest.mark.parametrize(("name", "counts"), HEADS.items())
def test_parameters_with_and_without_auxiliary_heads(name: str, counts: tuple[int, int]) -> None:
    assert tuple(sum(parameters(name, 1000, aux_logits=heads).values()) for heads in (False, True)) == counts


@pytest.mark.parametrize(("name", "count"), slow_except([("resnet20_cifar", 269_722)], PAPERS_CIFAR.items()))
def test_parameters_of_the_cifar_networks(name: str, count: int) -> None:
    assert sum(parameters(name, 10).values()) == count
    plain = name.replace("resnet", "plain")
    if plain in jaxnets.list_models():
        assert sum(parameters(plain, 10).values()) == count


@pytest.mark.parametrize(("name", "millions"), PAPERS_MILLIONS.items())
def test_parameters_as_printed_in_the_papers(name: str, millions: float) -> None:
    counts = parameters(name, 10)
    without_norms = sum(count for (*modules, _), count in counts.items() if "bn" not in modules[-1])
    assert round(without_norms / 1e6, 1) == millions
    assert sum(counts.values()) == PRE_ACTIVATION.get(name, sum(counts.values()))


@pytest.mark.slow
def test_cardinality_is_bought_at_equal_complexity() -> None:
    counts = [sum(parameters(f"resnext50_{form}", 1000).values()) for form in CARDINALITIES]
    assert counts[0] == TORCHVISION["resnet50"]
    # Table 1 gives 25.5 M and 25.0 M for the two ends.
    assert all(24.9e6 < count < 25.7e6 for count in counts)


def test_every_name_is_counted_above_or_builds() -> None:
    names = jaxnets.list_models()
    assert len(names) == len(set(names)) == 34
    for name in names:
        assert parameters(name, 10 if "cifar" in name else 1000)


@pytest.mark.parametrize(
    "name",
    slow_except(["resnet50"], ["alexnet_2012", "googlenet", "resnet50", "resnet164_v2_cifar", "resnext50_32x4d"]),
)
def test_bfloat16_computes_in_bfloat16_with_parameters_in_float32(name: str) -> None:
    model = jaxnets.create_model(name, num_classes=7, dtype=jnp.bfloat16)
    images = jnp.zeros((2, 64, 64, 3))
    logits, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False))
    assert logits.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_list_models_takes_a_pattern() -> None:
    assert jaxnets.list_models("resnext50_*") == sorted(f"resnext50_{form}" for form in CARDINALITIES)
    assert jaxnets.list_models("vgg*") == []


def test_an_unknown_name_raises_with_the_nearest() -> None:
    with pytest.raises(jaxnets.InputError, match=r"unknown architecture 'resnet5'.*resnet50"):
        jaxnets.create_model("resnet5")


def test_an_unknown_option_raises_with_the_known() -> None:
    with pytest.raises(jaxnets.InputError, match=r"alexnet has no option aux_logits; it takes .*dropout_rate"):
        jaxnets.create_model("alexnet", aux_logits=True)
    for dtype in ("int32", "float64"):
        with pytest.raises(jaxnets.InputError, match=f"dtype={dtype}; expected float32.*jax_enable_x64"):
            jaxnets.create_model("alexnet", dtype=dtype)
    with pytest.raises(jaxnets.InputError, match="num_classes=0"):
        jaxnets.create_model("alexnet", num_classes=0)


@pytest.mark.parametrize(
    ("name", "smallest"),
    slow_except(
        [("alexnet", 63), ("googlenet_2014", 31), ("resnet20_cifar", 1)],
        {"alexnet": 63, "alexnet_2012": 63, "googlenet": 15, "googlenet_2014": 31, "resnet18": 1, "resnet20_cifar": 1,
         "resnet164_v2_cifar": 1, "resnext50_32x4d": 1, "resnext29_8x64d_cifar": 1}.items(),
    ),
)  # fmt: skip
def test_the_smallest_image(name: str, smallest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = jaxnets.create_model(name, num_classes=3)

    def apply(height: int, width: int) -> tuple[int, ...]:
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        images = jnp.zeros((2, height, width, 3))
        return jax.eval_shape(lambda: model.init_with_output(rngs, images, train=True)[0]).shape

    assert apply(smallest, smallest) == apply(smallest + 5, smallest) == (2, 3)
    if smallest > 1:
        with pytest.raises(jaxnets.InputError, match=f"the smallest that it can take is {smallest}x{smallest}"):
            apply(smallest, smallest - 1)
        # And the check is not too strict: without it a window would find no pixel.
        monkeypatch.setattr(f"{type(model).__module__}.check_call", lambda *arguments: arguments[2])
        with pytest.raises(jaxnets.InputError, match="does not fit a map"):
            apply(smallest, smallest - 1)


def test_images_must_be_normalised_floats() -> None:
    with pytest.raises(jaxnets.InputError, match="images of type uint8"):
        jaxnets.create_model("googlenet").init(jax.random.key(0), jnp.zeros((1, 64, 64, 3), jnp.uint8), train=False)


def test_images_must_have_four_axes() -> None:
    with pytest.raises(jaxnets.InputError, match=r"expected \[N, H, W, C\]"):
        jaxnets.create_model("resnet18").init(jax.random.key(0), jnp.zeros((224, 224, 3)), train=False)
