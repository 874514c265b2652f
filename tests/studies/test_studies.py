"""What all studies share: verdicts, resumption, the page, texts in both languages, and the command."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import study as command
from experiments.studies import STUDIES, load_study, page, running
from experiments.studies.data import drawn, labels_of, study_data, subset
from experiments.studies.drawing import dots, new_figure
from experiments.studies.lab import Lab
from experiments.studies.markdown import markdown
from experiments.studies.page import results_in
from experiments.studies.study import FAILS, HOLDS, UNDECIDED, Claim, Drawing, Measured, Study, Table
from jaxnets.errors import InputError
from jaxnets.training import Config, Recipe, train
from jaxnets.training.parallel import Parallel

CLAIM = Claim("large", "It is large.", "size", lambda one: one["size"], above=1.0)


@dataclass(frozen=True)
class Settings:
    sizes: tuple[float, ...] = (2.0, 3.0, 4.0)


def measure(lab: Lab, settings: Settings) -> dict[str, Any]:
    return {"size": lab.kept("size", lambda: settings.sizes[lab.seed])}


def draw(measured: Sequence[Measured]) -> list[Drawing | Table]:
    figure, axis = new_figure()
    dots(axis, {"size": [one["size"] for one in measured]})
    return [Drawing("sizes", figure, "three <sizes>", "Sizes."), Table("rows", "Rows.", ("seed", "size"), [["0", 2]])]


STUDY = Study(
    name="convolution",
    title="Sizes & seeds",
    why="Because.",
    source="nowhere",
    claims=(CLAIM,),
    measure=measure,
    draw=draw,
    quick=Settings(),
    full=Settings((5.0, 6.0, 7.0)),
    seconds=1,
)


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "title": "标题",
        "why": "因为。",
        "claims": {"large": "很大。"},
        "figures": {"sizes": "尺寸。", "rows": "行。"},
    }
    monkeypatch.setattr(page, "chinese_texts", lambda name: texts)


@pytest.mark.parametrize(
    ("values", "verdict"), [([2, 1.1, 9], HOLDS), ([1.0, 0.5, -3], FAILS), ([2, 0.9, 9], UNDECIDED)]
)
def test_a_claim_holds_if_each_seed_meets_its_criterion(values: list[float], verdict: str) -> None:
    below = Claim("small", "It is small.", "size", lambda one: -one["size"], below=-1.0)
    for claim in (CLAIM, below):
        found = claim.judge([{"size": value} for value in values])
        assert found.verdict == verdict
        assert abs(found.mean) == pytest.approx(abs(sum(values) / 3))
        assert found.deviation == pytest.approx(np.std(values, ddof=1))


@pytest.mark.usefixtures("texts")
def test_what_the_machine_cannot_measure_is_not_decided(tmp_path: Path) -> None:
    claim = replace(CLAIM, value=lambda one: None, scale="a GPU")
    (result,) = running.run_studies([replace(STUDY, claims=(claim,))], tmp_path)
    (verdict,) = result["verdicts"]
    assert (verdict["verdict"], verdict["values"], verdict["mean"]) == (UNDECIDED, [], None)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Measured: nothing on this machine. It would take a GPU." in text
    assert "| nothing | **not decided here**; it would take a GPU |" in markdown(results_in(tmp_path), "images")


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([1.6, 2, 9], HOLDS), ([1.6, 1.4, 9], UNDECIDED), ([1.2, 0.8, 0.9], UNDECIDED), ([0.5, 0.4, -3], FAILS)],
)
def test_numbers_within_the_margin_decide_nothing(values: list[float], verdict: str) -> None:
    below = Claim("small", "It is small.", "size", lambda one: -one["size"], below=-1.0, margin=0.5)
    for claim in (replace(CLAIM, margin=0.5), below):
        assert claim.judge([{"size": value} for value in values]).verdict == verdict
        assert claim.criterion.endswith("by more than 0.5")


@pytest.mark.parametrize("bounds", [{}, {"above": 1.0, "below": 2.0}])
def test_a_claim_has_one_bound(bounds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="one of above and below"):
        Claim("both", "", "", lambda one: 0.0, **bounds)


@pytest.mark.usefixtures("texts")
def test_results_figures_and_page(tmp_path: Path) -> None:
    (result,) = running.run_studies([STUDY], tmp_path)
    assert json.loads(json.dumps(result)) == {
        key: value for key, value in _written(tmp_path).items() if key != "figures"
    }
    assert result["verdicts"][0]["values"] == [2.0, 3.0, 4.0]
    assert (tmp_path / "convolution" / "sizes.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    for expected in (
        "Sizes &amp; seeds",
        "很大。",
        "因为。",
        "✓ Holds",
        "3 ± 1 (2, 3, 4)",
        "three &lt;sizes&gt;",
        "<table>",
    ):
        assert expected in text
    assert "http" not in text.replace("http://www.w3.org", "")


def _written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "convolution" / "result.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@pytest.mark.usefixtures("texts")
def test_a_stopped_study_continues_and_other_settings_are_measured(tmp_path: Path) -> None:
    calls: list[tuple[int, Any]] = []

    def counted(lab: Lab, settings: Settings) -> dict[str, Any]:
        calls.append((lab.seed, settings))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(lab, settings)

    study = replace(STUDY, measure=counted)
    with pytest.raises(KeyboardInterrupt):
        running.run_studies([study], tmp_path)
    running.run_studies([study], tmp_path)
    assert [seed for seed, _ in calls] == [0, 1, 2, 2]
    running.run_studies([study], tmp_path, full=True)
    assert [seed for seed, _ in calls] == [0, 1, 2, 2, 0, 1, 2]
    assert _written(tmp_path)["verdicts"][0]["values"] == [5.0, 6.0, 7.0]
    running.run_studies([study], tmp_path)
    assert len(calls) == 7
    assert _written(tmp_path)["verdicts"][0]["values"] == [2.0, 3.0, 4.0]


def test_a_page_of_the_user_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(InputError, match="is not a report of jaxnets"):
        running.run_studies([STUDY], tmp_path)
    assert (tmp_path / "index.html").read_text() == "mine"


@pytest.mark.usefixtures("small_networks")
def test_the_lab_trains_as_train_does(tmp_path: Path) -> None:
    recipe = Recipe(image_size=8, epochs=2, batch_size=64, optimizer="momentum", learning_rate=0.02, weight_decay=0.0)
    config = Config("tiny_resnet", recipe, seed=3, log_every=1, log_gradients=True)
    data = subset(study_data("digits"), 0, 256, 100)
    trained = Lab(data, 3).train(replace(config, seed=0))
    train(config, tmp_path / "run", data, parallel=Parallel.choose("jit"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["split"] == "train"]
    assert trained.val_accuracies == [line["accuracy"] for line in lines if line["split"] == "val"]
    assert trained.losses == pytest.approx(
        [np.mean([line["loss"] for line in part]) for part in (steps[:4], steps[4:])]
    )
    last = [line["loss"] for line in lines if line["split"] == "val"][-1]
    assert trained.on("val").metrics["loss"] == pytest.approx(last, rel=1e-6)
    assert trained.gradient_norms.shape == (8, len(trained.layers))


@pytest.mark.usefixtures("small_networks")
def test_runs_at_several_rates_share_a_program() -> None:
    recipe = Recipe(image_size=8, epochs=1, batch_size=64, optimizer="momentum", learning_rate=0.02, weight_decay=0.0)
    config, lab = Config("tiny_resnet", recipe), Lab(subset(study_data("digits"), 0, 128, 10), 0)
    runs = [lab.train(replace(config, recipe=replace(recipe, learning_rate=rate))) for rate in (0.02, 0.06, 0.02)]
    assert len(lab._programs._compiled) == 1
    assert runs[0].losses == runs[2].losses != runs[1].losses
    assert [run.run.contents.config.recipe.learning_rate for run in runs] == [0.02, 0.06, 0.02]
    np.testing.assert_allclose(runs[1].run.rates, 3 * runs[0].run.rates, rtol=1e-6)


def test_a_subset_has_each_class_equally_often() -> None:
    data = study_data("digits")
    first, other = (subset(data, seed, 55, 20) for seed in (0, 1))
    for part, size in (("train", 55), ("val", 20), ("test", 20)):
        counts = np.bincount(labels_of(first.parts[part]), minlength=10)
        assert counts.sum() == size
        assert counts.max() - counts.min() <= 1
    assert not np.array_equal(labels_of(first.train), labels_of(other.train))
    assert subset(data, 0, 55, val=False).val is None
    whole = drawn(data.train, None, np.random.default_rng(0))
    assert whole is data.train


@pytest.mark.parametrize("name", STUDIES)
def test_texts_in_chinese_are_complete(name: str) -> None:
    study, texts = load_study(name), page.chinese_texts(name)
    assert set(texts) == {"title", "why", "claims", "figures"}
    assert set(texts["claims"]) == {claim.name for claim in study.claims}
    assert len(re.findall(r"(?<!et al)\.(?=\s+[A-Z\[1]|$)", study.why)) == texts["why"].count("。") == 3
    for text in (texts["title"], texts["why"], *texts["claims"].values(), *texts["figures"].values()):
        assert any("\u4e00" <= character <= "\u9fff" for character in text), text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["batchnorm"], "unknown study batchnorm; expected some of .*; did you mean batch_norm?"),
        (["--seeds", "0"], "--seeds 0; expected at least 1"),
        (["layout", "--dataset", "./nowhere"], "no such folder"),
    ],
)
def test_mistakes(arguments: list[str], line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["study", *arguments])
    with pytest.raises(InputError, match=line.replace("?", r"\?")):
        command.main()
    assert not list(tmp_path.iterdir())
