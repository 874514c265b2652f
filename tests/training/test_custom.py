"""A run with a network, an optimiser, metrics and hooks of the user's own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.errors import InputError
from jaxnets.training import Config, Hook, load_classifier, train
from jaxnets.training.interruption import Interrupted
from jaxnets.training.parallel import Parallel
from tests.training.networks import Stop, saved
from tests.training.tiny import PLAIN, Tiny

JIT = Parallel.choose("jit")
RECIPE = replace(PLAIN, epochs=2, batch_size=8, batch_norm="synchronised")


def colours(count: int) -> ArraySource:
    """Noise with seven labels that show in it."""
    random, labels = np.random.default_rng(count), np.arange(count) % 7
    noise = random.integers(0, 100, (count, 8, 8, 3)) + 20 * labels[:, None, None, None]
    return ArraySource(noise.astype(np.uint8), labels)


DATASET = Dataset("colours", tuple("abcdefg"), colours(32), colours(19), (0.5,) * 3, (0.3,) * 3, val=colours(17))
METRICS = {
    "margin": lambda logits, labels: logits.max(-1) - logits.min(-1),
    "shares": lambda logits, labels: jax.nn.one_hot(labels, 7),
}


def chain() -> Any:
    return optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.8))


class Notes(Hook):
    """Notes each call."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, Any]]] = []
        self.vals: list[tuple[int, Any, Any]] = []
        self.tests: list[tuple[int, Any, Any]] = []
        self.checkpoints: list[tuple[int, Path]] = []

    def after_step(self, step: int, metrics: dict[str, Any]) -> None:
        self.steps.append((step, metrics))

    def after_val(self, epoch: int, evaluation: Any, variables: Any) -> None:
        self.vals.append((epoch, evaluation, jax.device_get(variables)))

    def after_test(self, epoch: int, evaluation: Any, variables: Any) -> None:
        self.tests.append((epoch, evaluation, jax.device_get(variables)))

    def after_checkpoint(self, step: int, folder: Path) -> None:
        assert (
            folder / "metadata"
        ).exists()  # the last that orbax writes; a folder that is not complete has another name
        self.checkpoints.append((step, folder))


def run(workdir: Path, *hooks: Hook, parallel: Parallel = JIT, **options: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"model": Tiny(7), "optimizer": chain(), "metrics": METRICS, **options}
    config = Config("mine", RECIPE, log_every=1)
    return train(config, workdir, DATASET, hooks=hooks, parallel=parallel, **arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Notes]:
    workdir, notes = tmp_path_factory.mktemp("runs") / "run", Notes()
    return workdir, run(workdir, notes), notes


def lines(workdir: Path, split: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]


def test_metrics_are_in_all_results(finished: tuple[Path, dict[str, Any], Notes]) -> None:
    workdir, result, _ = finished
    assert result == json.loads((workdir / "result.json").read_text())
    assert (result["arch"], result["dataset"]) == ("mine", "colours")
    last = lines(workdir, "test")[-1]
    for name in ("accuracy", "top5_accuracy", "margin", "shares"):
        assert last[name] == result[f"test_{name}"]
    np.testing.assert_allclose(result["test_shares"], np.bincount(np.arange(19) % 7) / 19, rtol=1e-12)
    assert result["test_accuracy"] <= result["test_top5_accuracy"] <= 1
    assert [row["support"] for row in result["test_per_class"]] == np.bincount(np.arange(19) % 7).tolist()
    accuracy = sum(row["recall"] * row["support"] for row in result["test_per_class"]) / 19
    assert result["test_accuracy"] == pytest.approx(accuracy, rel=1e-12)
    # By hand, from what the checkpoint holds.
    classifier = load_classifier(workdir, model=Tiny(7))
    images = (DATASET.test.images / 255 - 0.5) / 0.3  # type: ignore[attr-defined]
    logits = np.asarray(classifier.model.apply(classifier.variables, jnp.asarray(images, jnp.float32), train=False))
    assert result["test_margin"] == pytest.approx(np.ptp(logits, axis=1).mean(), rel=1e-5)
    page = (workdir / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert f">{100 * result['test_top5_accuracy']:.1f} %</dd>" in page
    assert f">{100 * result['test_per_class'][3]['f1']:.1f} %</td>" in page


def test_the_progress_line_shows_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tmp_path / "run")
    printed = capsys.readouterr().err.splitlines()
    for part, start in (("val", f"epoch {result['best_epoch']}/2"), ("test", f"after epoch {result['best_epoch']}: ")):
        line = next(line for line in printed if line.startswith(start))
        margin = f"{part} margin {result[f'{part}_margin']:.4g}"
        assert f"{part} top-5 accuracy {result[f'{part}_top5_accuracy']:.1%}, {margin}" in line
        assert "shares" not in line


def test_hooks_see_each_step_test_and_checkpoint(finished: tuple[Path, dict[str, Any], Notes]) -> None:
    workdir, result, notes = finished
    assert [step for step, _ in notes.steps] == list(range(1, 9))
    for line, (_, metrics) in zip(lines(workdir, "train"), notes.steps, strict=True):
        assert {name: line[name] for name in metrics} == metrics
        assert "learning_rate" not in line
    assert [epoch for epoch, *_ in notes.vals] == [1, 2]
    best = result["best_epoch"]
    assert notes.vals[best - 1][1].metrics["loss"] == result["val_loss"]
    ((epoch, test, variables),) = notes.tests
    assert (epoch, test.metrics["loss"]) == (best, result["test_loss"])
    jax.tree.map(np.testing.assert_array_equal, variables, notes.vals[best - 1][2])
    jax.tree.map(np.testing.assert_array_equal, variables, load_classifier(workdir, model=Tiny(7)).variables)
    assert [step for step, _ in notes.checkpoints][-1] == 8
    assert len(notes.checkpoints) == len({folder for _, folder in notes.checkpoints})


def test_the_optimiser_is_the_chain(finished: tuple[Path, dict[str, Any], Notes], tmp_path: Path) -> None:
    """The same steps as a loop with optax alone."""
    from jaxnets.data.batches import epoch_order
    from jaxnets.models.initialization import initial_variables

    model, optimizer = Tiny(7), chain()
    variables = initial_variables(model, jax.random.key(0), 8)
    params, batch_stats = variables["params"], variables["batch_stats"]
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params: Any, batch_stats: Any, opt_state: Any, images: Any, labels: Any) -> Any:
        def loss_of(params: Any) -> Any:
            logits, new = model.apply(
                {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new["batch_stats"]

        (loss, batch_stats_), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), batch_stats_, opt_state, loss

    for number, (_, metrics) in enumerate(finished[2].steps):
        batch = np.concatenate([epoch_order(0, epoch, 32) for epoch in range(2)])[8 * number : 8 * number + 8]
        images = jnp.asarray((DATASET.train.images[batch] / 255 - 0.5) / 0.3, jnp.float32)  # type: ignore[attr-defined]
        labels = DATASET.train.labels[batch]  # type: ignore[attr-defined]
        params, batch_stats, opt_state, loss = step(params, batch_stats, opt_state, images, labels)
        assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
@pytest.mark.slow
def test_metrics_are_the_same_on_several_devices(
    kind: str, finished: tuple[Path, dict[str, Any], Notes], tmp_path: Path
) -> None:
    notes = Notes()
    result = run(tmp_path / "run", notes, parallel=Parallel.choose(kind, jax.devices()[:4]))
    for name in ("test_loss", "test_margin", "test_shares", "test_top5_accuracy"):
        np.testing.assert_allclose(result[name], finished[1][name], rtol=1e-4, err_msg=name)
    assert [step for step, _ in notes.steps] == list(range(1, 9))


@pytest.mark.slow
def test_several_steps_a_call_report_each_step(finished: tuple[Path, dict[str, Any], Notes], tmp_path: Path) -> None:
    notes = Notes()
    run(tmp_path / "run", notes, steps_per_call=3)
    for (step, metrics), (expected_step, expected) in zip(notes.steps, finished[2].steps, strict=True):
        assert step == expected_step
        np.testing.assert_allclose(metrics["shares"], expected["shares"], rtol=1e-12)
        np.testing.assert_allclose(metrics["margin"], expected["margin"], rtol=1e-4)


def test_a_run_resumes_with_the_same_parts_only(finished: tuple[Path, dict[str, Any], Notes], tmp_path: Path) -> None:
    workdir, notes = tmp_path / "run", Notes()
    with pytest.raises(Interrupted):
        run(workdir, notes, interruption=Stop(3))
    assert notes.checkpoints[-1][0] == 3
    for options, words in (
        ({"optimizer": optax.adam(1e-3)}, r"optimizer=one with \d+ numbers in \d+ arrays, now it has one with"),
        ({"optimizer": None}, "optimizer=one with .*, now it has None; give the same"),
        ({"metrics": {"margin": METRICS["margin"]}}, "metrics=top5_accuracy, margin, shares, now it has top5_accuracy"),
    ):
        with pytest.raises(InputError, match=words):
            run(workdir, resume=True, **options)
    run(workdir, notes, resume=True)
    assert [step for step, _ in notes.steps] == list(range(1, 9))
    actual, expected = saved(workdir), saved(finished[0])
    for name, array in expected.items():
        assert actual[name].tobytes() == array.tobytes(), name
    assert [line["margin"] for line in lines(workdir, "train")] == [
        line["margin"] for line in lines(finished[0], "train")
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": Tiny(5)}, "model returned 5 classes for num_classes=7"),
        ({"model": Tiny(7, dtype=jnp.bfloat16)}, "computes in bfloat16, but the run has dtype=float32"),
        ({"model": Tiny}, r"expected a flax\.linen module"),
        ({"metrics": {"mean": lambda logits, labels: logits.mean()}}, r"metric 'mean' returned \[\]"),
    ],
)
def test_unfit_parts_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        run(tmp_path / "run", **changes)


def test_a_classifier_needs_its_network(finished: tuple[Path, dict[str, Any], Notes]) -> None:
    with pytest.raises(InputError, match=r"its network .*Tiny was given to train\(\); give it to load_classifier"):
        load_classifier(finished[0])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"metrics": [len]}, "metrics=.*; expected a mapping of names to functions"),
        ({"metrics": {"margin": 1}}, "metrics=.*; expected a mapping of names to functions"),
        ({"hooks": Hook()}, "hooks=.*; expected a sequence of instances"),
        ({"hooks": [Hook]}, "hooks=.*; expected a sequence of instances"),
    ],
)
def test_parts_of_another_kind_are_refused_at_once(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        train(Config("resnet20_cifar", RECIPE), tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
