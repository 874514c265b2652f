"""The page of the studies: one self-contained HTML file on all results in a folder."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.studies.study import FAILS, HOLDS, UNDECIDED
from jaxnets.report.page import check_replaceable, details, escape, paragraph, plot, section, table, write_page

INDEX = "index.html"
_SIGNS = {HOLDS: "✓", FAILS: "✗", UNDECIDED: "?"}
_CHINESE_TEXTS = Path(__file__).parent / "chinese"
_CHINESE = {HOLDS: "成立", FAILS: "不成立", UNDECIDED: "此处尚无定论"}
_STYLE = """<style>
.zh { color: var(--soft); } .claim { border-left: .3rem solid var(--line); padding: .1rem 0 .1rem .9rem;
  margin: 1rem 0; break-inside: avoid; } .claim p { margin: .2rem 0; } .claim.holds { border-color: #009e73; }
.claim.fails { border-color: #d55e00; } .verdict { font-weight: 600; } .claims { padding-left: 1.2rem; }
nav li { margin: .5rem 0; } nav ul { list-style: none; padding-left: .4rem; }
.plots.studies { grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); }
.plots.studies figure { max-width: 46rem; }
@media print { .plots.studies { grid-template-columns: repeat(2, 1fr); } }
</style>"""


def results_in(folder: Path) -> list[dict[str, Any]]:
    """The results of the studies in a folder, in the order of the studies."""
    from experiments.studies import STUDIES

    files = (folder / name / "result.json" for name in STUDIES)
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]


def write_index(folder: Path) -> Path:
    """Writes the page on all results in a folder, and returns its path."""
    path, results = folder / INDEX, results_in(folder)
    check_replaceable(path)
    sections = [_STYLE, *_head(results), *(_study(result, folder) for result in results)]
    return write_page(path, "The laboratory of jaxnets", sections)


def chinese_texts(name: str) -> dict[str, Any]:
    """The texts of a study in Chinese: title, why, claims and figures by their names."""
    texts: dict[str, Any] = json.loads((_CHINESE_TEXTS / f"{name}.json").read_text(encoding="utf-8"))
    return texts


def chinese(text: str, style: str = "zh") -> str:
    """A paragraph in Chinese."""
    return f'<p class="{style}" lang="zh">{escape(text)}</p>'


def _head(results: list[dict[str, Any]]) -> Iterable[str]:
    verdicts = [verdict for result in results for verdict in result["verdicts"]]
    counts = {name: sum(verdict["verdict"] == name for verdict in verdicts) for name in _SIGNS}
    yield "<h1>The laboratory</h1>"
    yield paragraph(
        f"{len(verdicts)} claims about AlexNet, GoogLeNet, ResNet and ResNeXt, each measured on real images: "
        f"{counts[HOLDS]} hold, {counts[FAILS]} do not hold, {counts[UNDECIDED]} are not decided at this scale. Each "
        "claim is stated with its criterion; pilot runs with one or two seeds set the sizes of the networks and some "
        "of the bounds. A claim holds only if its criterion is met for every seed."
    )
    yield chinese(
        f"关于 AlexNet、GoogLeNet、ResNet 和 ResNeXt 的 {len(verdicts)} 个论断，均在真实图像上测量："
        f"{counts[HOLDS]} 个成立，{counts[FAILS]} 个不成立，{counts[UNDECIDED]} 个在此规模下尚无定论。"
        "每个论断都写明判据；网络规模和部分判据由一两个随机种子的预备实验确定。"
        "只有每个随机种子都满足判据，论断才算成立。"
    )
    yield "<nav><ul>"
    for result in results:
        signs = " ".join(_SIGNS[verdict["verdict"]] for verdict in result["verdicts"])
        yield (
            f'<li><a href="#{result["study"]}">{escape(result["title"])}</a> '
            f'<span class="zh" lang="zh">{escape(chinese_texts(result["study"])["title"])}</span> '
            f'<span class="soft" aria-hidden="true">{signs}</span></li>'
        )
    yield "</ul></nav>"


def _study(result: Mapping[str, Any], folder: Path) -> str:
    place, in_chinese = folder / result["study"], chinese_texts(result["study"])
    figures, tables = "", ""
    for drawn in result["figures"]:
        caption = f"{drawn['caption']} {in_chinese['figures'][drawn['name']]}"
        if "rows" in drawn:
            tables += paragraph(caption, "soft") + table(drawn["head"], drawn["rows"], drawn["caption"])
        else:
            figures += plot((place / f"{drawn['name']}.svg").read_text(encoding="utf-8"), caption)
    seeds = "exact" if result["exact"] else f"{result['seeds']} seeds"
    settings = ", ".join(f"{name} {_text(value)}" for name, value in result["settings"].items())
    facts = f"{result['dataset']}, {seeds}, {result['seconds']:.0f} s on {result['device']}; jax {result['jax']}"
    return section(
        f"{result['title']} · {in_chinese['title']}",
        f'<a id="{result["study"]}"></a>',
        *(_claim(verdict, in_chinese["claims"][verdict["claim"]]) for verdict in result["verdicts"]),
        f'<div class="plots studies">{figures}</div>',
        tables,
        "<h3>Why · 为什么</h3>",
        paragraph(result["why"]),
        chinese(in_chinese["why"]),
        paragraph(f"Source: {result['source']}.", "soft"),
        f"<pre>{escape(result['command'])}</pre>",
        details("Data and settings", paragraph(f"{facts}. {settings}", "soft")),
    )


def _claim(verdict: Mapping[str, Any], in_chinese: str) -> str:
    name = verdict["verdict"]
    style = {HOLDS: "holds", FAILS: "fails"}.get(name, "open")
    values = verdict["values"]
    numbers = f"{verdict['mean']:.3g}" if values else "nothing on this machine"
    if len(values) > 1:
        numbers += f" ± {verdict['deviation']:.2g} ({', '.join(f'{value:.3g}' for value in values)})"
    criterion = f"Criterion: {verdict['criterion']}" + (", for every seed." if len(values) > 1 else ".")
    decided = "" if verdict["scale"] is None else f" It would take {verdict['scale']}."
    return (
        f'<div class="claim {style}"><p><span class="verdict">{_SIGNS[name]} {name.capitalize()} · '
        f'<span lang="zh">{_CHINESE[name]}</span></span></p>'
        f"{paragraph(verdict['text'])}{chinese(in_chinese)}"
        f"{paragraph(f'{criterion} Measured: {numbers}.{decided}', 'soft')}</div>"
    )


def _text(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
