"""Links lead somewhere, and the README stays short."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, blocks, code_spans, links, name_of

# How names of folders in users' runs and data sets begin.
_OF_USERS = (
    *("runs/", "train/", "val/", "test/", "Training/", "Testing/", "seg_", "training_set/", "test_set/"),
    *("color/", "grayscale/", "fold", "images_"),
)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        assert target.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)} links to {link}"


def test_every_page_is_linked() -> None:
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in links(page)}
    assert set(PAGES) - {ROOT / "README.md"} <= linked


def test_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= 8192


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_fenced_and_name_their_language(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("```") for line in lines) == 2 * len(blocks(page))
    assert all(block.language in ("python", "sh", "yaml", "text") for block in blocks(page))
    indented = [line for before, line in zip(["", *lines], lines, strict=False) if not before and line[:4] == "    "]
    assert not [line for line in indented if line.split()[0] in ("jaxnets", "python", "pip", "import")]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_in_the_text_exist(page: Path) -> None:
    folder = ROOT
    for span in code_spans(page):
        if not re.fullmatch(r"[\w./]+(\.py|/)", span) or span.startswith(_OF_USERS):
            continue
        # A path in jaxnets/, or near the file that was named before.
        places = [ROOT / span, ROOT / "jaxnets" / span, folder / span, folder.parent / span]
        found = [place for place in places if place.exists()]
        written_by_a_run = span in ("samples/", "mistakes/", "checkpoints/")
        assert found or written_by_a_run, f"{name_of(page)} names {span}"
        if found:
            folder = found[0].parent
