"""The page of `jaxnets inspect`: what a network makes of images, as one self-contained HTML file."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxnets.inspection.class_maps import class_maps, map_stage
from jaxnets.inspection.figures import coloured, filter_pictures, grid, overlay
from jaxnets.inspection.layers import feature_maps, first_filters
from jaxnets.inspection.occlusion import occlusion
from jaxnets.models.features import map_shapes
from jaxnets.models.layers import param_dtype
from jaxnets.pretrained import Pretrained

TOP, MAPPED = 5, 3
_STAGES, _CHANNELS, _FILTERS = 12, 8, 256
# Pixels a side on the page.
_PICTURE_SIDE, _MAP_SIDE = 256, 40
_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2433; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .8rem; overflow-wrap: anywhere; }
.lead, figcaption, summary, .note { color: #4f586b; } .lead { margin: 0 0 1rem; } .note { font-size: .9rem; }
section { border-top: 1px solid #d8dde6; padding: 1.4rem 0; }
.row { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
figure { margin: 0; break-inside: avoid; } figcaption { font-size: .85rem; overflow-wrap: anywhere; }
figure img { width: 100%; display: block; border-radius: .3rem; image-rendering: pixelated; }
.photo img { image-rendering: auto; }
.bars { margin: 0 0 1.2rem; padding: 0; list-style: none; max-width: 36rem; }
.bars li { display: grid; grid-template-columns: minmax(0, 1fr) 4.5rem; gap: 0 .6rem; font-size: .95rem;
  padding: .15rem 0; break-inside: avoid; }
.bars b { font-weight: 500; overflow-wrap: anywhere; } .bars span { text-align: right; }
.bars i { grid-column: 1 / 3; height: .4rem; background: #e7ebf2; border-radius: .2rem; overflow: hidden; }
.bars i::before { content: ""; display: block; height: 100%; width: var(--share); background: #3b6fb6;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.wrong { color: #a3262f; } .right { color: #1f6b3a; }
details { margin-top: 1.2rem; } summary { cursor: pointer; }
.maps { display: grid; gap: .9rem; margin-top: .8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.filters { max-width: 26rem; }
@media print {
  body { margin: 0; max-width: none; font-size: 12px; } section { break-inside: auto; }
  details::details-content { content-visibility: visible; block-size: auto; }
  .row { grid-template-columns: repeat(6, 1fr); } .maps { grid-template-columns: repeat(2, 1fr); }
}
"""


class Picture(NamedTuple):
    """An image to inspect: its name, its pixels uint8 [H, W, 3] as the network sees them, and its class if known."""

    name: str
    pixels: np.ndarray
    label: int | None = None


def inspection_page(
    classifier: Pretrained,
    network: str,
    pictures: Sequence[Picture],
    *,
    stage: str | None = None,
    batch_size: int = 32,
    mapped: Callable[[int], None] = lambda count: None,
    covered: Callable[[int], None] = lambda count: None,
) -> str:
    """The HTML of a page that shows, for each picture, the best classes, Grad-CAM, occlusion and feature maps.

    `network` is its name. `stage` is the one whose maps Grad-CAM reads, by default the last with more than one pixel.
    `mapped` and `covered` get the number of pictures whose class maps and whose occlusion maps are computed.
    Raises InputError for an unknown stage or one without a map, and if the network's outputs are not finite.
    """
    model: Any = classifier.model
    variables, categories = classifier.variables, classifier.categories
    pixels = np.stack([picture.pixels for picture in pictures])
    images = np.asarray(classifier.preprocess.normalise(jnp.asarray(pixels), param_dtype(model.dtype)))
    stage = map_stage(model, variables, images.shape[1:3], stage)
    best = class_maps(
        model, variables, images, stage=stage, top=min(MAPPED, len(categories)), done=mapped, batch_size=batch_size
    )
    found = [
        dict(zip(classes.tolist(), maps, strict=True)) for classes, maps in zip(best.classes, best.maps, strict=True)
    ]
    missed = [i for i, picture in enumerate(pictures) if picture.label is not None and picture.label not in found[i]]
    if missed:
        labels = np.array([[pictures[i].label] for i in missed])
        maps = class_maps(model, variables, images[missed], labels, stage, batch_size=batch_size).maps
        for i, label, own in zip(missed, labels[:, 0].tolist(), maps[:, 0], strict=True):
            found[i][label] = own
    drops = occlusion(model, variables, images, best.classes[:, 0], done=covered, batch_size=batch_size)
    layers = _shown_stages(model, variables, images.shape[1:3])
    sections = []
    for i, picture in enumerate(pictures):
        outputs = feature_maps(model, variables, images[i : i + 1], layers)
        sections.append(_section(picture, best.probabilities[i], found[i], drops[i], outputs, categories))
    height, width = best.maps.shape[2:]
    return _page(
        network,
        f"<p>Grad-CAM shows where the outputs of {html.escape(stage)}, {height}x{width} pixels, speak for a class. The "
        "occlusion map covers one square after another and shows where that makes the best class less probable; it "
        "uses no gradients, so the two should agree. Bright is much, dark is nothing; each map has its own scale.</p>",
        _filters(model, variables),
        sections,
    )


def _shown_stages(model: Any, variables: Any, side: tuple[int, int]) -> list[str]:
    """The stages with maps, of blocks such as layer1.0 and layer1.1 the last one; a dozen of them if there are more."""
    shape = jax.ShapeDtypeStruct((1, *side, 3), param_dtype(model.dtype))
    last = {name.partition(".")[0]: name for name in map_shapes(model, variables, shape)}
    names = list(last.values())
    if len(names) <= _STAGES:
        return names
    return [names[i] for i in np.linspace(0, len(names) - 1, _STAGES).round().astype(int)]


def _section(
    picture: Picture,
    probabilities: np.ndarray,
    maps: Mapping[int, np.ndarray],
    drops: np.ndarray,
    outputs: Mapping[str, np.ndarray],
    categories: Sequence[str],
) -> str:
    order = np.argsort(-probabilities, kind="stable")[:TOP].tolist()
    shown = _shown(picture.pixels)
    figures = [_figure(shown, "the image as the network sees it", photo=True)]
    for label, heat in maps.items():
        caption = f"{categories[label]}, {_percent(probabilities[label])}" + (
            " (its folder)" if label == picture.label else ""
        )
        figures.append(_figure(overlay(shown, heat), f"Grad-CAM: {caption}", photo=True))
    drop = f"occlusion: {categories[order[0]]}, at most {_percent(max(drops.max(), 0))} less"
    figures.append(_figure(overlay(shown, np.maximum(drops, 0)), drop, photo=True))
    bars = "".join(
        f"<li><b>{html.escape(categories[label])}</b><span>{_percent(probabilities[label])}</span>"
        f'<i style="--share:{100 * probabilities[label]:.2f}%"></i></li>'
        for label in order
    )
    channels = "".join(_channels(name, values[0]) for name, values in outputs.items())
    return (
        f"<section><h2>{html.escape(picture.name)}</h2>{_verdict(picture, order[0], categories)}"
        f'<ul class="bars">{bars}</ul><div class="row">{"".join(figures)}</div>'
        f"<details><summary>Feature maps of the stages: the {_CHANNELS} channels with the highest mean</summary>"
        f'<div class="maps">{channels}</div></details></section>'
    )


def _verdict(picture: Picture, best: int, categories: Sequence[str]) -> str:
    if picture.label is None:
        return ""
    if picture.label == best:
        return f'<p class="right">Right: its folder is {html.escape(categories[best])}.</p>'
    names = html.escape(categories[picture.label]), html.escape(categories[best])
    return f'<p class="wrong">Wrong: its folder is {names[0]}, the most probable class is {names[1]}.</p>'


def _channels(name: str, values: np.ndarray) -> str:
    """The channels of a map [h, w, C] with the highest mean, in one row and on one scale."""
    height, width, count = values.shape
    chosen = np.sort(np.argsort(-values.mean(axis=(0, 1)), kind="stable")[:_CHANNELS])
    side = max(height, width)
    reduced = [_reduced(values[..., channel], min(1, _MAP_SIDE / side)) for channel in chosen]
    sheet = grid(coloured(np.stack(reduced)), _CHANNELS)
    numbers = ", ".join(map(str, chosen.tolist()))
    return _figure(sheet, f"{name}, {height}x{width}x{count}: channels {numbers}")


def _filters(model: Any, variables: Any) -> str:
    filters = first_filters(model, variables)
    count, height, width, channels = filters.shape
    side = max(1, round(2 * _MAP_SIDE / 3 / max(height, width)))
    sheet = grid(filter_pictures(filters[:_FILTERS]).repeat(side, axis=1).repeat(side, axis=2), gap=2)
    shown = f"the first {_FILTERS} of {count}" if count > _FILTERS else f"all {count}"
    caption = f"{shown} filters of the first convolution, {height}x{width}x{channels}; grey is 0"
    return f'<div class="filters">{_figure(sheet, caption)}</div>'


def _shown(pixels: np.ndarray) -> np.ndarray:
    """The pixels enlarged by a whole factor, or reduced, to about the size of the page's pictures."""
    height, width, _ = pixels.shape
    factor = _PICTURE_SIDE // max(height, width)
    if factor > 1:
        return pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    if max(height, width) <= _PICTURE_SIDE:
        return pixels
    scale = _PICTURE_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _reduced(values: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return values.astype(np.float32)
    size = (max(1, round(values.shape[1] * scale)), max(1, round(values.shape[0] * scale)))
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BOX))


def _figure(pixels: np.ndarray, caption: str, *, photo: bool = False) -> str:
    image, file = Image.fromarray(pixels), io.BytesIO()
    if photo:
        image.save(file, "JPEG", quality=85)
    else:
        image.quantize(256, Image.Quantize.FASTOCTREE).save(file, "PNG", optimize=True)
    kind, text = ("jpeg", "photo") if photo else ("png", "sheet")
    data = base64.b64encode(file.getvalue()).decode()
    escaped = html.escape(caption)
    return (
        f'<figure class="{text}"><img alt="{escaped}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{escaped}</figcaption></figure>"
    )


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _page(network: str, note: str, filters: str, sections: Sequence[str]) -> str:
    title = html.escape(network)
    images = "1 image" if len(sections) == 1 else f"{len(sections)} images"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}: {images} inspected</title><style>{_STYLE}</style></head><body>"
        f'<h1>{title}</h1><p class="lead">{images} inspected</p><div class="note">{note}</div>'
        f"{''.join(sections)}<section><h2>First filters</h2>{filters}</section></body></html>\n"
    )
