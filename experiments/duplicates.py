"""Images that a data set holds twice: python -m experiments.duplicates (DATASET | RUN) [--output FILE.csv|.html]."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from experiments.arguments import parser_of
from experiments.command import run
from experiments.loading import readable
from experiments.output import LISTS, check_output, write_page, write_rows
from jaxnets.data.datasets import load_dataset
from jaxnets.data.sources import Dataset, Source
from jaxnets.inspection.duplicates import Pair, find_duplicates
from jaxnets.inspection.sheet import Card, contact_sheet
from jaxnets.training.config import Config
from jaxnets.training.progress import counting
from jaxnets.training.run_data import load_data_of, warn_of_other_images
from jaxnets.weights.runs import read_contents

_PRINTED, _DRAWN = 20, 100
COLUMNS = ("part", "index", "image", "class", "other_part", "other_index", "other_image", "other_class")


def main() -> None:
    """Finds images that a data set holds twice: those in two parts first, which make tests too good.

    It finds images with the same pixels, and copies that were resized, recompressed, slightly cropped, brightened or
    mirrored. It needs no trained network.
    """
    parser = parser_of("duplicates", main.__doc__)
    parser.add_argument("data", help="folder, or name of a data set, or folder of a run, for the data set of the run")
    parser.add_argument("--data-dir", help="where TFDS keeps its data sets (default: that of TFDS, or of the run)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write all pairs to a .csv file, or the first 100 to an .html page"
    )
    arguments = parser.parse_args()
    check_output(arguments.output, LISTS)
    dataset, fingerprints = _dataset(arguments.data, arguments.data_dir)
    parts = dataset.parts
    count = sum(map(len, parts.values()))
    sources: dict[str, Source] = {}
    with counting("checking images", count) as (done, say):
        for line in (*dataset.warnings, dataset.summary()):
            say(line)
        before = 0
        for part, source in parts.items():
            sources[part] = readable(source, len(dataset.class_names), partial(_done_after, done, before), say)
            before += len(source)
            if fingerprints is not None:
                warn_of_other_images(fingerprints, part, sources[part], say)
    with counting("comparing images", count) as (done, _):
        pairs = find_duplicates(sources, done)
    across = [pair for pair in pairs if pair.part != pair.other_part]
    print(f"{len(across)} pairs of duplicates across parts, {len(pairs) - len(across)} within a part")
    for pair in pairs[:_PRINTED]:
        print(f"{_how(pair)}  {_place(pair, sources)}  {_other_place(pair, sources)}")
    if len(pairs) > _PRINTED:
        rest = "" if arguments.output else "; --output FILE.csv lists all"
        print(f"... and {len(pairs) - _PRINTED} more{rest}")
    if arguments.output is None:
        return
    if arguments.output.suffix.lower() == ".csv":
        write_rows(arguments.output, (*COLUMNS, "exact", "mirrored", "similarity"), _rows(pairs, sources, dataset))
    else:
        write_page(arguments.output, _page(pairs, sources, dataset))
    print(f"written to {arguments.output}")


def _done_after(done: Callable[[int], None], before: int, count: int) -> None:
    done(before + count)


def _dataset(data: str, data_dir: str | None) -> tuple[Dataset, dict[str, str] | None]:
    """The data set, and the fingerprints of a run's parts; None without a checkpoint that holds them."""
    workdir = Path(data).expanduser()
    if (workdir / "config.json").is_file():
        config = Config.read(workdir / "config.json")
        contents = read_contents(workdir)
        dataset = load_data_of(replace(config, data_dir=data_dir or config.data_dir))
        return dataset, None if contents is None else contents["fingerprints"]
    return load_dataset(data, data_dir=data_dir), None


def _rows(pairs: list[Pair], sources: dict[str, Source], dataset: Dataset) -> list[tuple[object, ...]]:
    def columns(part: str, index: int) -> tuple[object, ...]:
        return part, index, sources[part].where(index), dataset.class_names[sources[part][index].label]

    return [
        (
            *columns(pair.part, pair.index),
            *columns(pair.other_part, pair.other_index),
            "yes" if pair.exact else "no",
            "yes" if pair.mirrored else "no",
            f"{pair.similarity:.4f}",
        )
        for pair in pairs
    ]


def _page(pairs: list[Pair], sources: dict[str, Source], dataset: Dataset) -> str:
    def card(pair: Pair) -> Card:
        one, other = (sources[pair.part], pair.index), (sources[pair.other_part], pair.other_index)
        names = [dataset.class_names[source[index].label] for source, index in (one, other)]
        classes = names[0] if names[0] == names[1] else f"labelled {names[0]} and {names[1]}"
        return Card([one, other], [f"{_how(pair)}, {classes}", _place(pair, sources), _other_place(pair, sources)])

    across = sum(pair.part != pair.other_part for pair in pairs)
    shown = pairs[:_DRAWN]
    lead = (
        f"{across} pairs across parts, {len(pairs) - across} within a part"
        f"{f'; the first {_DRAWN} are shown' if len(pairs) > _DRAWN else ''}. An image that is "
        "both trained and tested on makes the test too good: remove it from one of the parts."
    )
    sections = [
        ("Across parts", [card(pair) for pair in shown if pair.part != pair.other_part]),
        ("Within a part", [card(pair) for pair in shown if pair.part == pair.other_part]),
    ]
    return contact_sheet(f"Duplicates in {dataset.name}", lead, sections)


def _how(pair: Pair) -> str:
    if pair.exact:
        return "same pixels     "
    return f"{'mirrored' if pair.mirrored else 'similar '} ({pair.similarity:.3f})"


def _place(pair: Pair, sources: dict[str, Source]) -> str:
    return f"{pair.part}: {sources[pair.part].where(pair.index)}"


def _other_place(pair: Pair, sources: dict[str, Source]) -> str:
    return f"{pair.other_part}: {sources[pair.other_part].where(pair.other_index)}"


if __name__ == "__main__":
    run(main)
