"""The report of one run."""

import shlex
from pathlib import Path

import numpy as np

from jaxnets.report import figures
from jaxnets.report.heat_maps import try_heat_maps
from jaxnets.report.judgement import accuracy_text, calibration_error, judgement
from jaxnets.report.page import escape, facts, paragraph, percent, plot, section, write_page
from jaxnets.report.run_files import RunFiles
from jaxnets.report.settings import settings_section

_COLOURS_OF_PARTS = {"train": 4, "val": 1, "test": 2}


def write_report(workdir: Path, output: Path | None = None, *, heat_maps: bool = False) -> Path:
    """Writes report.html to the workdir of a run, finished or not, or `output`, and returns the path.

    `heat_maps` also draws where the network looked in its worst mistakes, once; this loads the network. Raises
    InputError if the folder holds no run.
    """
    run = RunFiles.read(workdir)
    no_maps = try_heat_maps(run) if heat_maps else None
    sections = [_heading(run), _standing(run) if run.result is None else _facts(run), _curves(run), _gradients(run)]
    if run.answers is not None:
        sections += judgement(run, run.answers, no_maps=no_maps)
    else:
        missing = "predictions.csv is missing" if run.result else "these are judged at the end of the run"
        sections.append(section("Judgement", paragraph(f"No classes, confusions, calibration and images: {missing}.")))
    sections += [_bad_images(run), settings_section(run.config)]
    return write_page(output or workdir / "report.html", f"{run.title}: {accuracy_text(run)}", sections)


def axis_of(run: RunFiles) -> str:
    """What curves of the run are drawn over: "epoch", or "step" if no epoch is finished."""
    return "epoch" if run.ends else "step"


def curve_of(run: RunFiles, split: str, name: str) -> tuple[list[float], list[float]]:
    """The places and the values of a metric in the lines of a split, without values that are not finite."""
    lines = run.epochs if split == run.evaluated else [line for line in run.metrics if line["split"] == split]
    lines = [line for line in lines if line.get(name) is not None]
    # All epochs have about the same number of steps.
    epochs_a_step = max(run.ends.values()) / max(run.ends) if run.ends else 1
    return [line["step"] * epochs_a_step for line in lines], [line[name] for line in lines]


def _heading(run: RunFiles) -> str:
    config, result = run.config, run.result
    words = [f"seed {config['seed']}", str(config["dtype"])]
    if result:
        words = [f"{result['num_params']:,} parameters", f"{result['epochs']} epochs", *words, result["device"]]
        words.append(f"jax {result['jax']}")
    text = accuracy_text(run)
    number, _, interval = text.partition(" (")
    main = f"{run.part} accuracy <b>{number}</b>" + (f" ({escape(interval)}" if interval else "")
    if result is None:
        main = "<b>Not finished</b>"
    return (
        f'<header><h1>{escape(run.title)}</h1><p class="main">{main}</p>{paragraph(", ".join(words), "soft")}</header>'
    )


def _standing(run: RunFiles) -> str:
    epochs, of = max(run.ends.values(), default=0), run.config["recipe"]["epochs"]
    step = max((line["step"] for line in run.metrics), default=0)
    folder = run.path / "checkpoints"
    numbers = sorted(int(one.name) for one in folder.iterdir() if one.name.isdecimal()) if folder.is_dir() else []
    values = {"epochs finished": f"{epochs} of {of}", "last step in the log": f"{step:,}"}
    if run.epochs:
        best = max(run.epochs, key=lambda line: line["accuracy"] or 0)
        values[f"best {run.evaluated} accuracy, after epoch {best['epoch']}"] = percent(best["accuracy"] or 0)
    values["last checkpoint"] = str(numbers[-1]) if numbers else "none"
    begins = "goes on from the last checkpoint" if numbers else "begins it from the start, as it has no checkpoint"
    command = f"jaxnets train --workdir {shlex.quote(str(run.path))} --resume"
    return (
        facts(values)
        + paragraph(f"The run is still in progress, or was stopped. If it was stopped, this {begins}:")
        + f"<pre>{escape(command)}</pre>"
    )


def _facts(run: RunFiles) -> str:
    result, part = run.result or {}, run.part
    images = run.number("images")
    values = {f"wrong of {images:,} {part} images": f"{round(images * (1 - run.number('accuracy'))):,}"}
    if len(run.class_names) > 5:
        values[f"top-5 {part} accuracy"] = percent(run.number("top5_accuracy"))
    values[f"macro F1 of {part}"] = percent(run.number("macro_f1"))
    if run.answers is not None:
        values["expected calibration error"] = percent(calibration_error(run.answers))
    best = result.get(f"best_{run.evaluated}_accuracy")
    if best is not None and (part != run.evaluated or best > run.number("accuracy")):
        values[f"best {run.evaluated} accuracy, after epoch {result['best_epoch']}"] = percent(best)
    waiting = result["waiting_for_data_seconds"] / max(result["training_seconds"], 1e-9)
    values |= {
        "training images": f"{result['train_images']:,}",
        "images/s in training": f"{result['train_images_per_second']:,.0f}",
        "of the training time waiting for data": f"{100 * waiting:.0f}\N{NO-BREAK SPACE}%",
        "s of compilation": f"{result['compile_seconds']:,.1f}",
        "s in total": f"{result['seconds']:,.0f}",
    }
    if result["devices"] > 1:
        values[f"devices by {result['parallel']}"] = str(result["devices"])
    return facts(values)


def _curves(run: RunFiles) -> str:
    axis = axis_of(run)
    drawings = []
    for name in ("loss", "accuracy", "learning_rate"):
        lines = []
        for split in dict.fromkeys(("train", run.evaluated)):
            x, y = curve_of(run, split, name)
            if x:
                lines.append(figures.Curve(split, x, y, _COLOURS_OF_PARTS[split], split != "train"))
        if lines:
            legend = name != "learning_rate"
            drawings.append(plot(figures.curves(name.replace("_", " "), lines, axis, legend=legend)))
    if not drawings:
        return section("Learning", paragraph("Nothing is logged yet: no step was finished."))
    return section("Learning", f'<div class="plots">{"".join(drawings)}</div>')


def _gradients(run: RunFiles) -> str:
    """The norms of the gradients by layer, if the run has logged them."""
    lines = [line for line in run.metrics if line.get("gradient_norms")]
    if not lines:
        return ""
    layers = list(lines[0]["gradient_norms"])
    # What is not finite is null in the file.
    norms = np.array([[line["gradient_norms"].get(layer) for layer in layers] for line in lines], float)
    told = paragraph(
        "The logarithm of the norm of each layer's gradient, from the first layer at the top to the last, before the "
        "gradients are clipped. Rows that stay much darker than others belong to layers that hardly learn."
    )
    drawing = plot(figures.gradient_map(norms, [line["step"] for line in lines], layers))
    return section("Gradients", told + drawing)


def _bad_images(run: RunFiles) -> str:
    file = run.path / "bad-images.csv"
    if not file.exists():
        return ""
    result = run.result or {}
    counts = {"left out": result.get("bad_images"), "damaged but used": result.get("blemished_images")}
    told = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    return section("Bad images", paragraph(f"{told + '; s' if told else 'S'}ee {file}"))
