"""Links lead somewhere, and the README stays short."""

from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, blocks, links, name_of


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
    assert not [line for line in indented if any(word in line for word in ("jaxnets", "python", "pip install"))]
