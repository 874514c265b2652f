"""A contact sheet: one self-contained HTML page of pictures with captions."""

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxnets.data.decoding import open_image, pixels_of
from jaxnets.data.sources import Source

_SIDE = 150
# Pictures up to this side are enlarged with sharp pixels, and stored without loss.
_SMALL = 64
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.45 system-ui, sans-serif; color: #1d2433; max-width: 75rem; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 1.8rem 0 .6rem; }
p { color: #5b6478; margin: 0 0 1rem; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--width)), 1fr)); gap: .8rem; }
.card { background: #f4f6fa; border-radius: .5rem; padding: .7rem; break-inside: avoid; font-size: .85rem; }
.pictures { display: flex; flex-wrap: wrap; gap: .5rem; margin-bottom: .4rem; }
.pictures img { width: 120px; height: 120px; object-fit: contain; background: #fff; border-radius: .3rem; }
.small { image-rendering: pixelated; }
.card div { overflow-wrap: anywhere; } .card div:first-of-type + div { font-weight: 600; }
"""


class Card(NamedTuple):
    """Images, as sources and indices, and the lines below them; the first line is bold."""

    images: Sequence[tuple[Source, int]]
    lines: Sequence[str]


def contact_sheet(title: str, lead: str, sections: Sequence[tuple[str, Sequence[Card]]]) -> str:
    """The HTML of a page with sections of cards, each with its heading. Sections without cards are left out."""
    most = max((len(card.images) for _, cards in sections for card in cards), default=1)
    parts = [f"<h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>"]
    for heading, cards in sections:
        if cards:
            parts.append(f'<h2>{html.escape(heading)}</h2><div class="cards">{"".join(map(_card, cards))}</div>')
    width = min(most, 3) * 8.2 + 1.4
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body style="--width: {width:.1f}rem">'
        f"{''.join(parts)}</body></html>\n"
    )


def _card(card: Card) -> str:
    pictures = "".join(_picture(source, index) for source, index in card.images)
    lines = "".join(f"<div>{html.escape(line)}</div>" for line in card.lines)
    return f'<div class="card"><div class="pictures">{pictures}</div>{lines}</div>'


def _picture(source: Source, index: int) -> str:
    image = Image.fromarray(np.ascontiguousarray(pixels_of(open_image(source[index].image))))
    small = max(image.size) <= _SMALL
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if small else "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    css = ' class="small"' if small else ""
    kind = "png" if small else "jpeg"
    return f'<img{css} alt="{html.escape(source.where(index))}" src="data:image/{kind};base64,{data}">'
