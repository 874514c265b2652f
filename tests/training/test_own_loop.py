"""The loop of docs/training-loop.md: it is short, and trains as `train()` does."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from jaxnets.data.datasets import load_dataset
from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.training import Config, Hook, Parallel, Recipe, train

PAGE = Path(__file__).parents[2] / "docs" / "training-loop.md"
MOST_LINES = 30
IMAGES = 384  # twelve steps


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_loop_is_short() -> None:
    lines = [line for line in blocks()[1].splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= MOST_LINES
    assert max(map(len, blocks()[1].splitlines())) <= 120


class Losses(Hook):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_step(self, step: int, metrics: dict[str, Any]) -> None:
        self.losses.append(metrics["loss"])


@pytest.mark.usefixtures("small_networks", "float64")
@pytest.mark.slow
def test_the_loop_has_the_losses_of_train(tmp_path: Path) -> None:
    data, loop, *_ = blocks()
    # Rounding grows tenfold every two steps, so the comparison is in float64.
    for before, after in (
        ("resnet20_cifar", "small_resnet"),
        ("jnp.bfloat16", "jnp.float64"),
        ("jnp.float32", "jnp.float64"),
        ("normalise(images)", "normalise(images, jnp.float64)"),
        ("normalise(images[:1])", "normalise(images[:1], jnp.float64)"),
    ):
        assert before in loop
        loop = loop.replace(before, after)
    page: dict[str, Any] = {}
    exec(data, page)
    page["images"], page["labels"] = page["images"][:IMAGES], page["labels"][:IMAGES]
    exec(loop, page)
    losses = [float(metrics["loss"]) for metrics in page["history"]]
    assert len(page["mesh"].devices) == len(jax.devices()) == 8
    assert len(losses) == 12

    digits = load_dataset("digits")
    source = ArraySource(digits.train.images[:IMAGES], digits.train.labels[:IMAGES])  # type: ignore[attr-defined]
    dataset = Dataset("digits", digits.class_names, source, digits.test, digits.mean, digits.std)
    recipe = Recipe(
        image_size=16,
        epochs=1,
        batch_size=32,
        optimizer="sgd",
        learning_rate=1.0,
        weight_decay=0.0,
        label_smoothing=0.0,
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05, momentum=0.9, nesterov=True))
    hook = Losses()
    config = Config("small_resnet", recipe, dtype="float64")
    train(config, tmp_path, dataset, optimizer=optimizer, hooks=[hook], parallel=Parallel.choose("jit"))
    assert losses[0] - losses[-1] > 0.03
    np.testing.assert_allclose(losses, hook.losses, rtol=0, atol=1e-9)
