"""The frame, the style and the small parts of a report's page."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from jaxnets.errors import InputError

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --soft: #566075; --ground: #fff; --card: #f2f4f8; --line: #c5cbd8;
  --bar: #cfe0f7; --heat: 31 95 173; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; --soft: #a9b2c4; --ground: #14171e; --card: #1f2430;
  --line: #3b4354; --bar: #23406b; --heat: 77 148 235; } .plot svg { filter: invert(1) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 66rem;
  margin: 0 auto; padding: 1.5rem 1rem 3rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } p { margin: .4rem 0 .8rem; max-width: 44rem; }
.soft, figcaption { color: var(--soft); } .main { font-size: 1.15rem; } .main b { font-size: 1.5rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.facts div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }
.facts dt { color: var(--soft); font-size: .85rem; line-height: 1.3; } .facts dd { font-size: 1.25rem; margin: 0;
  font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: .8rem; }
.plots.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; } .plot svg { display: block; width: 100%; height: auto; } .single { max-width: 34rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: .9rem .8rem; }
.gallery.pairs { grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); }
.gallery .images { display: flex; gap: 2px; } .gallery img { flex: 1 1 0; min-width: 0; width: 100%; aspect-ratio: 1;
  object-fit: contain; background: var(--card); border-radius: .3rem; } img.small { image-rendering: pixelated; }
figcaption { font-size: .85rem; line-height: 1.3; margin-top: .25rem; }
.scroll { overflow: auto; max-height: 30rem; } table { border-collapse: collapse; font-size: .9rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
td, th { padding: .2rem .7rem; text-align: right; font-weight: 400; overflow-wrap: normal; }
thead th { font-weight: 600; vertical-align: bottom; background: var(--ground); position: sticky; top: 0; z-index: 1; }
tbody th, th:first-child, .text { text-align: left; } tbody tr { border-top: 1px solid var(--line); }
tbody th { min-width: 4rem; max-width: 14rem; overflow-wrap: break-word; } td.text { min-width: 5rem; }
td.bar { background: linear-gradient(90deg, var(--bar) var(--v), transparent var(--v)); }
.matrix td { padding: .1rem; min-width: 2.1rem; height: 2.1rem; text-align: center; border: 1px solid var(--ground);
  background: rgb(var(--heat) / var(--v)); } .matrix td.dark { color: #fff; }
.matrix tbody th { max-width: 9rem; position: sticky; left: 0; background: var(--ground); }
.matrix tr { border: 0; } .matrix thead th { text-align: center; padding: .3rem .2rem; }
.matrix thead th.long span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 10rem;
  display: inline-block; text-align: left; } .scroll.whole { max-height: none; } .matrix thead th { position: static; }
@media (max-width: 30rem) { td, th { padding: .2rem .4rem; } table { font-size: .85rem; } }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; margin: .4rem 0 .8rem; }
.legend svg { width: 2rem; height: .8rem; margin-right: .4rem; vertical-align: middle; }
pre { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; white-space: pre-wrap; font-size: .85rem; }
summary { cursor: pointer; } :focus-visible { outline: 2px solid #2b6fd4; outline-offset: 2px; }
@media print { :root { font-size: 11px; color-scheme: light; --ink: #000; --soft: #444; --ground: #fff; --card: #f2f4f8;
  --line: #bbb; --bar: #cfe0f7; --heat: 31 95 173; } .plot svg { filter: none; } body { max-width: none; padding: 0;
  font-size: 1rem; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .scroll { max-height: none; overflow: visible; } thead th, .matrix tbody th { position: static; }
  .matrix td { min-width: 1.4rem; height: 1.4rem; } .facts { grid-template-columns: repeat(5, 1fr); }
  .plots, .plots.wide { grid-template-columns: repeat(3, 1fr); } .gallery { grid-template-columns: repeat(8, 1fr); }
  .gallery.pairs { grid-template-columns: repeat(5, 1fr); } h2 { break-after: avoid; }
  figure, tr, .facts div { break-inside: avoid; } }
"""
# Written to each page, so that a page is replaced and a file of the user is not.
_MARK = '<meta name="generator" content="jaxnets report">'
_THUMBNAIL = 160
_PIXELATED = 64
_TEXT = ' class="text"'


def write_page(path: Path, title: str, sections: Iterable[str]) -> Path:
    """Writes one self-contained page and returns its path; InputError if another file has the name."""
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{_MARK}'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head>\n<body><main>'
        f"{''.join(sections)}</main></body></html>\n"
    )
    # An interrupted run may have to end while it writes its report.
    new = path.with_name(f"{path.name}.new")
    new.write_text(page, encoding="utf-8", errors="backslashreplace")
    return new.replace(path)


def check_replaceable(path: Path) -> None:
    """Raises InputError if a file that is no report has the name."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of an .html file as --output")
    if path.exists() and _MARK.encode() not in path.read_bytes()[:1000]:
        raise InputError(f"{path} exists and is not a report of jaxnets; give another --output")


def escape(text: object) -> str:
    """Text as HTML."""
    return html.escape(str(text))


def percent(share: float) -> str:
    """A share in percent, to one decimal."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def section(title: str, *parts: str) -> str:
    """A part of the page under a heading."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>\n"


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{style}">{escape(text)}</p>' if style else f"<p>{escape(text)}</p>"


def facts(values: Mapping[str, str]) -> str:
    """Numbers, by their names, as a grid."""
    cells = "".join(f"<div><dd>{escape(value)}</dd><dt>{escape(name)}</dt></div>" for name, value in values.items())
    return f'<dl class="facts">{cells}</dl>'


def table(head: Sequence[str], rows: Sequence[Sequence[object]], label: str) -> str:
    """A table in a box that scrolls. Its first column names the rows; floats are shares, shown with a bar."""
    texts = [bool(rows) and isinstance(cell, str) for cell in (rows[0] if rows else head)]
    names = "".join(
        f'<th scope="col"{_TEXT if is_text else ""}>{escape(name)}</th>'
        for name, is_text in zip(head, texts, strict=True)
    )
    lines = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(map(_cell, rest))}</tr>' for first, *rest in rows
    )
    return box(f"<table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>", label)


def _cell(value: object) -> str:
    match value:
        case float():
            return f'<td class="bar" style="--v:{100 * value:.0f}%">{percent(value)}</td>'
        case int():
            return f"<td>{value:,}</td>"
        case _:
            return f"<td{_TEXT}>{escape(value)}</td>"


def box(content: str, label: str, style: str = "") -> str:
    """A box that scrolls, with the keyboard too."""
    return f'<div class="scroll {style}" role="region" tabindex="0" aria-label="{escape(label)}">{content}</div>'


def plot(svg: str, caption: str = "", style: str = "") -> str:
    """A drawing with its caption."""
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="plot {style}">{svg}{text}</figure>'


def details(summary: str, content: str) -> str:
    """Content that is folded away."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def gallery(pictures: Iterable[tuple[Sequence[Path], str]]) -> str:
    """Files of images with their captions. Images of one caption stand side by side."""
    figures, most = [], 1
    for files, caption in pictures:
        most = max(most, len(files))
        images = "".join(
            _image(file, caption if not place else f"heat map of {caption}") for place, file in enumerate(files)
        )
        figures.append(f'<figure><div class="images">{images}</div><figcaption>{escape(caption)}</figcaption></figure>')
    return f'<div class="gallery{" pairs" if most > 1 else ""}">{"".join(figures)}</div>'


def _image(file: Path, alt: str) -> str:
    data, format, style = file.read_bytes(), "png", ""
    with Image.open(io.BytesIO(data)) as image:
        side = max(image.size)
        if side > _THUMBNAIL:
            thumbnail = image.convert("RGB")
            thumbnail.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            thumbnail.save(buffer, "JPEG", quality=80)
            data, format = buffer.getvalue(), "jpeg"
        elif side <= _PIXELATED:
            style = ' class="small"'
    return f'<img{style} alt="{escape(alt)}" src="data:image/{format};base64,{base64.b64encode(data).decode()}">'
