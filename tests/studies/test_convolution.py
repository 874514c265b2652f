"""The study of convolution counts what a loop over the layers counts, and notices networks that break its claims."""

from dataclasses import replace
from typing import Any

import jax
import pytest

from experiments.studies import convolution
from experiments.studies.convolution import STUDY, Settings
from experiments.studies.data import study_data
from experiments.studies.lab import Lab
from experiments.studies.study import FAILS, HOLDS
from jaxnets.models.registry import create_model
from jaxnets.summary import Summary, summarize

SMALL = Settings(networks=("alexnet", "alexnet_2012"), image_size=224)


def verdicts(settings: Settings = SMALL) -> dict[str, str]:
    measured = STUDY.measure(Lab(study_data("digits"), 0), settings)
    return {verdict.claim.name: verdict.verdict for verdict in STUDY.judge([measured])}


def test_the_claims_of_alexnet_hold_but_that_on_the_stride_of_pooling() -> None:
    found = verdicts()
    assert found.pop("window-is-stride") == FAILS  # section 3.4 of the paper: overlapping pooling
    assert set(found.values()) == {HOLDS}


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"groups": 1}, "channels"),
        ({"stride": 3}, "size-formula"),
        ({"parameters": 7}, "pooling"),
        ({"multiply_adds": 2_000_000}, "multiply-adds"),
    ],
)
def test_a_wrong_layer_turns_the_verdict(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], claim: str) -> None:
    def wrong(*arguments: Any) -> Summary:
        summary = summarize(*arguments)
        layers = tuple(replace(layer, **change) if layer.window else layer for layer in summary.layers)
        return replace(summary, layers=layers)

    monkeypatch.setattr(convolution, "summarize", wrong)
    assert verdicts()[claim] == FAILS


def test_factors_are_those_of_the_arrays() -> None:
    measured = STUDY.measure(Lab(study_data("digits"), 0), replace(SMALL, networks=("alexnet",)))
    model = create_model("alexnet")
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jax.numpy.zeros((1, 224, 224, 3)), train=False))[
        "params"
    ]
    maps = {"conv1": (224 * 224 * 3, 55 * 55 * 64), "conv5": (13 * 13 * 256, 13 * 13 * 256)}
    for name, (inputs, outputs) in maps.items():
        own = sum(leaf.size for leaf in jax.tree.leaves(params[name]))
        assert any(factor == pytest.approx(inputs * outputs / own, rel=1e-12) for factor in measured["factors"])
