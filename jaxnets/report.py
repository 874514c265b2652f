"""The report of a run: one self-contained HTML page from the files of the run."""

import base64
import csv
import html
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxnets.errors import InputError

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2433; max-width: 62rem; margin: 2.5rem auto;
  padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.lead { color: #5b6478; margin: 0 0 1.4rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem; }
.facts div { background: #f4f6fa; border-radius: .5rem; padding: .7rem .9rem; }
.facts b { display: block; font-size: 1.3rem; } .facts span { color: #5b6478; font-size: .85rem; }
.plots svg, .plots img { max-width: 100%; height: auto; }
.classes { max-height: 26rem; overflow: auto; } table { border-collapse: collapse; font-size: .9rem; }
td, th { padding: .15rem .9rem; text-align: right; } td:first-child, th:first-child { text-align: left; }
tr:last-child { border-top: 1px solid #5b6478; }
figure { display: inline-block; margin: 0 .9rem .9rem 0; text-align: center; font-size: .85rem; color: #5b6478; }
figure img { width: 84px; height: 84px; image-rendering: pixelated; border-radius: .3rem; display: block;
  margin: auto; }
pre { background: #f4f6fa; border-radius: .5rem; padding: 1rem; overflow-x: auto; font-size: .85rem; }
"""
_MAX_CLASSES_SHOWN = 40


def write_report(workdir: Path) -> Path:
    """Writes report.html to the workdir of a finished run and returns its path; InputError if a file is missing."""
    try:
        config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
        result = json.loads((workdir / "result.json").read_text(encoding="utf-8"))
        lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = [json.loads(line) for line in lines]
        with (workdir / "predictions.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            predictions = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{workdir} holds no finished run: {error.filename} ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{workdir} holds a damaged run ({error}); train it again in another workdir") from None
    sections = [
        f"<h1>{html.escape(result['arch'])} on {html.escape(Path(result['dataset']).name)}</h1>",
        f'<p class="lead">{result["num_params"]:,} parameters, {result["epochs"]} epochs, seed {config["seed"]}, '
        f"{html.escape(config['dtype'])}, {html.escape(result['device'])}, jax {html.escape(result['jax'])}</p>",
        _facts(result),
        "<h2>Learning</h2>",
        f'<div class="plots">{_curves(metrics)}</div>',
        _classes_section(result),
        _confusion_section(predictions, result["class_names"]),
        _mistakes_section(workdir, predictions),
        "<h2>Configuration</h2>",
        f"<pre>{html.escape(json.dumps(config, indent=2))}</pre>",
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(result['arch'])}: {result[_part(result) + '_accuracy']:.2%}</title>"
        f"<style>{_STYLE}</style></head>"
        f"<body>{''.join(sections)}</body></html>\n"
    )
    path = workdir / "report.html"
    path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def _part(result: dict[str, Any]) -> str:
    return str(result.get("judged_on", "test"))  # runs of earlier versions have none


def _facts(result: dict[str, Any]) -> str:
    waiting = result["waiting_for_data_seconds"] / max(result["training_seconds"], 1e-9)
    part = _part(result)
    accuracy, images = result[f"{part}_accuracy"], result[f"{part}_images"]
    wrong = round(images * (1 - accuracy))
    facts = {
        f"{part} accuracy": f"{accuracy:.2%}",
        f"top-5 {part} accuracy": f"{result[f'{part}_top5_accuracy']:.2%}",
        f"macro F1 of {part}": f"{result[f'{part}_macro_f1']:.2%}",
        f"wrong of {images} {part} images": str(wrong),
        "images/s in training": f"{result['train_images_per_second']:.0f}",
        "of the training time waiting for data": f"{waiting:.0%}",
        "s of compilation": f"{result['compile_seconds']:.1f}",
        "s in total": f"{result['seconds']:.0f}",
    }
    if part == "test" and "val_accuracy" in result:
        facts[f"val accuracy, the best, after epoch {result['best_epoch']}"] = f"{result['val_accuracy']:.2%}"
    if result["devices"] > 1:
        facts[f"devices by {result['parallel']}"] = str(result["devices"])
    if result.get("bad_images"):
        facts["bad images left out, see bad-images.csv"] = str(result["bad_images"])
    if result.get("blemished_images"):
        facts["damaged images used, see bad-images.csv"] = str(result["blemished_images"])
    return (
        '<div class="facts">' + "".join(f"<div><b>{v}</b><span>{k}</span></div>" for k, v in facts.items()) + "</div>"
    )


def _figure(columns: int, width: float, height: float) -> tuple[Any, Any]:
    # pyplot would need a display and keep figures alive.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _svg(figure: Any) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    # The browser has fonts for class names in any script; matplotlib has not, and warns.
    with rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _curves(metrics: Sequence[dict[str, Any]]) -> str:
    figure, axes = _figure(3, 11, 3.1)
    for axis, name in zip(axes, ("loss", "accuracy", "learning_rate"), strict=True):
        for split, colour in (("train", "#8aa4d6"), ("val", "#d1495b")):
            lines = [line for line in metrics if line["split"] == split and name in line]
            if lines:
                steps, values = [line["step"] for line in lines], [line[name] for line in lines]
                axis.plot(
                    steps, values, color=colour, label=split, marker="o" if split == "val" else None, markersize=3
                )
        axis.set_title(name.replace("_", " "), fontsize=11)
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if name != "learning_rate":
            axis.legend(frameon=False)
    return _svg(figure)


def _confusion_section(predictions: Sequence[dict[str, str]], names: Sequence[str]) -> str:
    if len(names) > _MAX_CLASSES_SHOWN:
        return ""
    counts = np.zeros((len(names), len(names)), int)
    for row in predictions:
        counts[names.index(row["class"]), names.index(row["predicted"])] += 1
    side = max(3.5, 0.45 * len(names))
    figure, (axis,) = _figure(1, side + 0.6, side)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "#1d2433"
            axis.text(column, row, str(count), ha="center", va="center", fontsize=9, color=colour)
    rotation = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 2 else {}
    axis.set_xticks(range(len(names)), names, parse_math=False, **rotation)
    axis.set_yticks(range(len(names)), names, parse_math=False)
    axis.set_xlabel("predicted")
    axis.set_ylabel("class")
    return f'<h2>Confusion matrix</h2><div class="plots">{_svg(figure)}</div>'


def _classes_section(result: dict[str, Any]) -> str:
    columns = ("precision", "recall", "f1")
    part = _part(result)
    macro = {"class": "unweighted mean", "support": result[f"{part}_images"]}
    macro |= {column: result[f"{part}_macro_{column}"] for column in columns}
    rows = []
    for row in [*result[f"{part}_per_class"], macro]:
        cells = "".join(f"<td>{row[column]:.2%}</td>" for column in columns)
        rows.append(f"<tr><td>{html.escape(row['class'])}</td>{cells}<td>{row['support']}</td></tr>")
    head = f"<tr><th>class</th><th>precision</th><th>recall</th><th>F1</th><th>{part} images</th></tr>"
    return f'<h2>Classes</h2><div class="classes"><table>{head}{"".join(rows)}</table></div>'


def _mistakes_section(workdir: Path, predictions: Sequence[dict[str, str]]) -> str:
    wrong = [row for row in predictions if row["class"] != row["predicted"]]
    if not wrong:
        return "<h2>Mistakes</h2><p>None: every image was classified correctly.</p>"
    figures = []
    for row in sorted(wrong, key=lambda row: -float(row["probability"])):
        file = workdir / "mistakes" / f"{row['index']}.png"
        if not file.exists():
            continue
        image = base64.b64encode(file.read_bytes()).decode()
        caption = html.escape(f"{row['class']}, predicted {row['predicted']} ({float(row['probability']):.0%})")
        figures.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{image}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f"<h2>Mistakes, the most confident first</h2><div>{''.join(figures)}</div>"
