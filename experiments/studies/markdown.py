"""Writes docs/laboratory.md and its figures from results: python -m experiments.studies.markdown RESULTS DOCS."""

import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

from PIL import Image

from experiments.command import run
from experiments.studies.page import results_in
from experiments.studies.study import UNDECIDED
from jaxnets.errors import InputError

_HEAD = """# The laboratory

After this page you know which claims about these networks hold on real images, by which numbers, and can run each of
them again.

```sh
jaxnets study
```

measures all of them on a CPU in about a quarter of an hour, without a network connection, and writes
`runs/studies/index.html`: the claims in English and Chinese, the figures, the verdicts and the reasons. `jaxnets study
residual` runs one study. A study that was stopped continues where it was. `--full` runs larger networks, for a GPU, and
`--dataset` takes any data set. `result.json` of each study holds the numbers of each seed.

Each claim has a number and a bound; pilot runs with one or two seeds set the sizes of the networks and some of the
bounds. A claim holds if the number is beyond the bound for every seed, and does not hold if it is so for none.
Otherwise it is not decided at this scale.
"""


def markdown(results: list[dict[str, Any]], images: str) -> str:
    """The page for results; `images` is the folder of the figures, relative to the page."""
    first, seeds = results[0], max(result["seeds"] for result in results)
    lines = [
        _HEAD,
        f"The numbers below are from {seeds} seeds on {first['device']}, with jax {first['jax']}.",
    ]
    for result in results:
        lines += [f"\n## {result['title']}\n", f"```sh\n{result['command']}\n```\n"]
        lines += ["| claim | number | measured | verdict |", "|---|---|---|---|", *map(_row, result["verdicts"]), ""]
        for figure in result["figures"]:
            if "rows" not in figure:
                lines += [
                    f"![{figure['alt']}]({images}/{result['study']}-{figure['name']}.png)\n",
                    f"{_wrapped(figure['caption'])}\n",
                ]
        source = f"Source: {result['source']}. Data: {result['dataset']}."
        lines += [f"{_wrapped(result['why'])}\n", _wrapped(source)]
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> str:
    return fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _row(verdict: Mapping[str, Any]) -> str:
    measured = f"{verdict['mean']:.3g}" if verdict["values"] else "nothing"
    if len(verdict["values"]) > 1:
        measured += f" ± {verdict['deviation']:.2g}"
    decided = f"; it would take {verdict['scale']}" if verdict["verdict"] == UNDECIDED else ""
    return f"| {verdict['text']} | {verdict['criterion']} | {measured} | **{verdict['verdict']}**{decided} |"


def main() -> None:
    """Writes laboratory.md to the folder of the documentation, and the figures to images/laboratory in it."""
    if len(sys.argv) != 3:
        raise InputError("expected the folder of the results and that of the documentation")
    results_folder, docs = map(Path, sys.argv[1:])
    results = results_in(results_folder)
    if not results:
        raise InputError(f"{results_folder} has no results; run jaxnets study --output {results_folder}")
    images = docs / "images" / "laboratory"
    images.mkdir(parents=True, exist_ok=True)
    for result in results:
        for figure in result["figures"]:
            if "rows" not in figure:
                with Image.open(results_folder / result["study"] / f"{figure['name']}.png") as image:
                    # A tenth of the size, for drawings.
                    small = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
                small.save(images / f"{result['study']}-{figure['name']}.png", optimize=True)
    (docs / "laboratory.md").write_text(markdown(results, "images/laboratory"), encoding="utf-8")


if __name__ == "__main__":
    run(main)
