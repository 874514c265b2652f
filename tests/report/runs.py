"""Folders of runs with random answers, without training."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxnets.evaluation import class_scores
from jaxnets.training.config import Config
from jaxnets.training.recipes import recipe_for


def write_run(
    workdir: Path,
    names: tuple[str, ...],
    *,
    images: int = 400,
    wrong: float = 0.2,
    seed: int = 0,
    epochs: int = 5,
    side: int = 32,
    part: str = "test",
    **settings: Any,
) -> Path:
    """A finished run of today's format: each image is classified wrongly with probability `wrong`."""
    random = np.random.default_rng(seed)
    workdir.mkdir(parents=True)
    recipe = {**asdict(recipe_for("resnet20_cifar", "digits")), **settings}
    config = {**asdict(Config("resnet20_cifar", recipe_for("resnet20_cifar", "digits"))), "recipe": recipe}
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "classes.json").write_text(json.dumps(names))

    labels = np.arange(images) % len(names)
    shifts = random.integers(1, len(names), images)
    predicted = np.where(random.random(images) < wrong, (labels + shifts) % len(names), labels)
    confidence = random.uniform(0.3, 1, images)
    accuracy = float(np.mean(labels == predicted))
    write_metrics(workdir, epochs, accuracy)
    with (workdir / "predictions.csv").open("w", newline="", errors="surrogateescape") as file:
        rows = csv.writer(file)
        rows.writerow(("part", "index", "image", "class", "predicted", "probability", "class_probability"))
        for i, (own, guess, share) in enumerate(zip(labels, predicted, confidence, strict=True)):
            rows.writerow((part, i, f"image {i}", names[own], names[guess], f"{share:.6f}", "0.1"))
    for folder in ("mistakes", "samples"):
        (workdir / folder).mkdir()

    def picture(path: Path) -> None:
        Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).save(path)

    wrongly = np.flatnonzero(labels != predicted)
    for i in wrongly[np.argsort(-confidence[wrongly])][:24]:
        picture(workdir / "mistakes" / f"{i}.png")
    for label in range(min(100, len(names))):
        picture(workdir / "samples" / f"class-{label}.png")
    scores = {"accuracy": accuracy, "loss": 0.7, "top5_accuracy": 0.9, "images": images}
    classes = class_scores(labels, predicted, len(names))
    scores |= {f"macro_{name}": float(classes.macro(name)) for name in ("precision", "recall", "f1")}
    scores["per_class"] = classes.per_class(names)
    result = {f"{part}_{name}": value for name, value in scores.items()}
    result |= {
        "arch": "resnet20_cifar", "dataset": "digits", "num_params": 269_722, "epochs": epochs, "steps": 20 * epochs,
        "train_images": 1437, "bad_images": 0, "blemished_images": 0, "best_val_accuracy": 0.8, "best_epoch": epochs,
        "train_images_per_second": 100.0, "training_seconds": 50.0, "waiting_for_data_seconds": 1.0,
        "device": "cpu: cpu", "devices": 1, "parallel": "jit", "jax": "0.10", "class_names": list(names),
        "compile_seconds": 3.0, "seconds": 60.0, "judged_on": part, "test_accuracy": result.get("test_accuracy"),
    }  # fmt: skip
    (workdir / "result.json").write_text(json.dumps(result))
    return workdir


def write_metrics(workdir: Path, epochs: int, accuracy: float) -> None:
    """20 steps an epoch, each logged; val after each epoch, test at the end."""
    lines = []
    for step in range(1, 20 * epochs + 1):
        share = step / (20 * epochs)
        train = {"loss": 2.5 - 2 * share, "accuracy": accuracy * share, "learning_rate": 0.001 * (1 - share)}
        lines.append({"split": "train", "step": step, "epoch": 1 + (step - 1) // 20, **train})
        if step % 20 == 0:
            val = {"loss": 2.6 - 2 * share, "accuracy": accuracy * share}
            lines.append({"split": "val", "step": step, "epoch": step // 20, **val})
    lines.append({"split": "test", "step": 20 * epochs, "epoch": epochs, "loss": 0.7, "accuracy": accuracy})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def as_of_an_earlier_version(workdir: Path) -> Path:
    """The same run in the former format: one part "test", tested after each epoch; predictions.csv without parts."""
    config = json.loads((workdir / "config.json").read_text())
    config["a_setting_that_is_gone"] = 3
    (workdir / "config.json").write_text(json.dumps(config))
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()][:-1]
    lines = [{**line, "split": "test" if line["split"] == "val" else "train"} for line in lines]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = json.loads((workdir / "result.json").read_text())
    del result["judged_on"]
    result["best_test_accuracy"] = result.pop("best_val_accuracy")
    (workdir / "result.json").write_text(json.dumps(result))
    with (workdir / "predictions.csv").open(newline="") as file:
        rows = [row[1:-1] for row in csv.reader(file)]
    with (workdir / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return workdir
