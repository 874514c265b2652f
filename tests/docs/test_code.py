"""Every Python block of the documentation runs.

The blocks of a page share one namespace and run in an empty folder, in their order. A block that can't run here has the
comment `<!-- not run: REASON -->` on the line before it, and is only compiled.
"""

from copy import deepcopy
from pathlib import Path

import pytest

from jaxnets.models import registry
from tests.docs.pages import PAGES, blocks, name_of
from tests.tiers import slow_except

_WITH_CODE = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]
_SLOW = [page for page in _WITH_CODE if name_of(page) in ("docs/training-loop.md", "docs/data.md")]


@pytest.mark.parametrize(
    "page", slow_except([page for page in _WITH_CODE if page not in _SLOW], _WITH_CODE), ids=name_of
)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A network that a page registers is not known to other tests.
    monkeypatch.setattr(registry, "_FAMILIES", deepcopy(registry._FAMILIES))
    namespace = {"__name__": page.stem}
    for block in blocks(page):
        if block.language != "python":
            continue
        # Empty lines in front, so that a traceback shows the line of the page.
        program = compile("\n" * (block.line - 1) + block.code, str(page), "exec", dont_inherit=True)
        if not block.not_run:
            exec(program, namespace)
