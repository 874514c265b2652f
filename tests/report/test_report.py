"""The pages of reports."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxnets.errors import InputError
from jaxnets.report import heat_maps as maps
from jaxnets.report import write_comparison, write_report
from jaxnets.report.figures import gradient_map
from jaxnets.report.page import check_replaceable
from jaxnets.report.run_files import RunFiles
from tests.report.browser import find_browser, visit
from tests.report.runs import as_of_an_earlier_version, write_run

NAMES = ("cat", "dog <i>", "µ-worm")
_VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """The elements and the text of a page; fails at tags that do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data.replace("\N{NO-BREAK SPACE}", " ") + "\n"

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def check_page(path: Path) -> Page:
    """What holds for each page: it is small and alone, and its images have words."""
    page = Page(path)
    assert path.stat().st_size < 3e6
    assert page.of("html") == [{"lang": "en"}]
    assert not page.of("script")
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            target = attributes.get(name) or "#"
            assert target.startswith(("data:", "#")), (tag, target[:80])
        for width in re.findall(r"(?:^|[; ])(?:min-)?width:\s*([0-9.]+)px", attributes.get("style") or ""):
            assert float(width) <= 390, (tag, attributes)
        assert float(re.sub("[^0-9.]", "", attributes.get("width") or "0") or 0) <= 390 or tag in ("image", "rect")
    assert "@import" not in page.html
    assert all("data:" in target for target in re.findall(r"url\(([^#)]*)\)", page.html) if target)
    assert all(image.get("alt") for image in page.of("img"))
    assert all(image.get("aria-label") or image.get("aria-hidden") for image in page.of("svg"))
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(then - now <= 1 for now, then in pairwise(headings))
    return page


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", NAMES)


def test_the_report_of_a_run(run: Path) -> None:
    page = check_page(write_report(run))
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    right = sum(row["class"] == row["predicted"] for row in rows)
    assert f"test accuracy \n{100 * right / 400:.1f} %" in page.text
    assert f"\n{400 - right}\nwrong of 400 test images" in page.text
    for title in ("Learning", "Classes", "Confusions", "Calibration", "Worst mistakes", "Most typical images"):
        assert f"\n{title}\n" in page.text
    # The matrix, by counting.
    for own in NAMES:
        counts = [sum(row["class"] == own and row["predicted"] == guess for row in rows) for guess in NAMES]
        assert "\n".join([own, *map(str, counts)]) in page.text
    # The surest mistake comes first.
    wrong = [row for row in rows if row["class"] != row["predicted"]]
    worst = max(wrong, key=lambda row: float(row["probability"]))
    caption = f"{worst['class']}, predicted {worst['predicted']} ({100 * float(worst['probability']):.1f} %)"
    alts = [(image["alt"] or "").replace("\N{NO-BREAK SPACE}", " ") for image in page.of("img")]
    assert alts[0] == caption
    assert len(alts) == 24 + 3
    assert f"jaxnets report {run}" in page.text


def test_the_number_is_named_by_its_part(tmp_path: Path) -> None:
    page = check_page(write_report(write_run(tmp_path / "run", NAMES, part="val")))
    assert "\nval accuracy \n" in page.text
    assert "\ntest accuracy" not in page.text
    assert "wrong of 400 val images" in page.text


@pytest.mark.parametrize(("classes", "side"), [(2, 16), (10, 16), (100, 224), (1000, 16)])
def test_any_number_of_classes(classes: int, side: int, tmp_path: Path) -> None:
    """Pictures of noise are the largest there are."""
    names = tuple(f"class {i}" for i in range(classes))
    run = write_run(tmp_path / "run", names, images=3000, side=side, epochs=300)
    page = check_page(write_report(run))
    # All classes are in the table, and if they are many, the one with the lowest F1 comes first.
    cells = re.findall(r'<th scope="row">(class \d+)</th><td class="bar"', page.html)
    assert len(set(cells)) == classes
    rows = json.loads((run / "result.json").read_text())["test_per_class"]
    first = min(rows, key=lambda row: row["f1"]) if classes > 20 else rows[0]
    assert cells[0] == first["class"]


def test_a_run_without_mistakes(tmp_path: Path) -> None:
    page = check_page(write_report(write_run(tmp_path / "run", NAMES, wrong=0.0)))
    assert "every test image was classified correctly" in page.text


def test_settings_that_differ_come_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", NAMES, learning_rate=0.0123)
    page = check_page(write_report(run))
    start = page.text.index("These differ from the defaults:")
    shown = page.text[start : page.text.index("settings", page.text.index("All ", start))]
    assert "learning_rate\n0.0123\n0.001\npeak learning rate" in shown
    assert "momentum" not in shown
    assert page.of("details") == [{}]


def test_a_run_of_an_earlier_version(run: Path) -> None:
    page = check_page(write_report(as_of_an_earlier_version(run)))
    assert "\ntest accuracy \n" in page.text
    assert "Images of each class" in page.text
    assert "a_setting_that_is_gone" in page.text
    assert RunFiles.read(run).evaluated == "test"


def test_a_run_without_a_result(run: Path) -> None:
    for file in ("result.json", "predictions.csv"):
        (run / file).unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    # Two epochs and a half; the last line was cut short.
    (run / "metrics.jsonl").write_text("".join(lines[:52]) + lines[52][:30])
    (run / "checkpoints" / "42").mkdir(parents=True)
    page = check_page(write_report(run))
    assert "\n2 of 15\nepochs finished" in page.text
    assert "\n50\nlast step in the log" in page.text
    assert "\n42\nlast checkpoint" in page.text
    assert f"jaxnets train --workdir {run} --resume" in page.text
    assert "judged at the end of the run" in page.text
    assert len(page.of("svg")) == 3


def test_a_run_that_has_only_begun(run: Path) -> None:
    for file in ("result.json", "predictions.csv", "metrics.jsonl", "classes.json"):
        (run / file).unlink()
    page = check_page(write_report(run))
    assert "\n0 of 15\nepochs finished" in page.text
    assert "no step was finished" in page.text
    assert "begins it from the start" in page.text


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        write_report(tmp_path)
    (run / "result.json").write_text("{")
    with pytest.raises(InputError, match="holds a damaged run"):
        write_report(run)


def test_heat_maps_are_drawn_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def draw(files: RunFiles) -> None:
        drawn.append(files.path)
        for file in maps.mistakes_of(files).values():
            Image.new("RGB", (16, 16)).save(maps.heat_map_of(file))

    monkeypatch.setattr(maps, "draw_heat_maps", draw)
    page = check_page(write_report(run, heat_maps=True))
    assert drawn == [run]
    alts = [image["alt"] or "" for image in page.of("img")]
    assert sum(alt.startswith("heat map of ") for alt in alts) == 24
    # A report without them, as at the end of a run, uses those that are there.
    assert len(check_page(write_report(run)).of("img")) == len(alts)


def test_a_report_says_why_there_are_no_heat_maps(run: Path) -> None:
    page = check_page(write_report(run, heat_maps=True))
    assert "There are no heat maps: " in page.text
    assert "holds a finished run, but not its checkpoints; restore them" in page.text


def exact_p(first: int, second: int) -> float:
    """Twice the probability of at most the smaller count in fair throws, by Pascal's triangle."""
    row = [1]
    for _ in range(first + second):
        row = [a + b for a, b in zip([0, *row], [*row, 0], strict=True)]
    return min(1.0, 2 * sum(row[: min(first, second) + 1]) / sum(row))


def test_three_runs_on_one_page(tmp_path: Path) -> None:
    settings: tuple[dict[str, Any], ...] = ({}, {"learning_rate": 0.02}, {"learning_rate": 0.02, "optimizer": "sgd"})
    runs = [
        write_run(tmp_path / name, NAMES, seed=seed, wrong=0.1 + 0.1 * seed, **chosen)
        for seed, (name, chosen) in enumerate(zip(("first", "second", "third"), settings, strict=True))
    ]
    page = check_page(write_comparison(runs, tmp_path / "all.html"))
    right = [RunFiles.read(run).answers.right for run in runs]  # type: ignore[union-attr]
    for name, answers in zip(("first", "second", "third"), right, strict=True):
        assert re.search(f"\n{name}\n400 test images\n{100 * answers.mean():.1f} % \\(", page.text)
    for (i, one), (j, other) in (((0, "first"), (1, "second")), ((1, "second"), (2, "third"))):
        alone = int((right[i] & ~right[j]).sum()), int((~right[i] & right[j]).sum())
        p = exact_p(*alone)
        shown = f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"
        points = f"{100 * (right[i].mean() - right[j].mean()):+.1f} points"
        assert f"{one} and {other}\n{points}\n{alone[0]}\n{alone[1]}\n{shown}\n" in page.text
    assert "learning_rate\n0.001\n0.02\n0.02\n" in page.text
    assert "\nmomentum\n" not in page.text
    assert len([label for svg in page.of("svg") if (label := svg.get("aria-label"))]) == 4


def test_images_are_matched_by_name(tmp_path: Path) -> None:
    """The same answers in another order differ in nothing."""
    first = write_run(tmp_path / "first", NAMES)
    second = tmp_path / "second"
    shutil.copytree(first, second)
    head, *rows = (second / "predictions.csv").read_text().splitlines()
    (second / "predictions.csv").write_text("\n".join([head, *np.random.default_rng(1).permutation(rows)]) + "\n")
    page = check_page(write_comparison([first, second], tmp_path / "all.html"))
    assert "first and second\n+0.0 points\n0\n0\n1.000\nno" in page.text
    assert "All settings are the same" in page.text


def test_runs_on_other_images_are_not_compared(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", NAMES),
        write_run(tmp_path / "b", NAMES, images=300),
        write_run(tmp_path / "c", NAMES, part="val"),
        write_run(tmp_path / "d", NAMES[::-1]),
        write_run(tmp_path / "e", NAMES),
    ]
    (runs[4] / "result.json").unlink()
    text = check_page(write_comparison(runs, tmp_path / "all.html")).text
    assert "a and b are not compared: they were judged on different images (300 of 400 are the same)" in text
    assert "a and c are not compared: one was judged on test, the other on val" in text
    assert "a and d are not compared: their images have the same names, but other classes" in text
    assert "as they have no predictions.csv: e." in text
    assert "points" not in text
    with pytest.raises(InputError, match="a run is given twice"):
        write_comparison([runs[0], runs[0]], tmp_path / "all.html")


def test_only_reports_are_replaced(run: Path, tmp_path: Path) -> None:
    check_replaceable(tmp_path / "new.html")
    check_replaceable(write_report(run, tmp_path / "page.html"))
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(InputError, match="is not a report of jaxnets"):
        check_replaceable(tmp_path / "mine.html")
    with pytest.raises(InputError, match="is a folder"):
        check_replaceable(run)


# In a frame, as windows are not narrower than 500 px. The sizes and what loads are written into the page.
_MEASURE = """
const frame = document.createElement('iframe'), page = document.documentElement.outerHTML;
frame.style.cssText = 'width:WIDTHpx;height:900px;border:0';
frame.srcdoc = page.replace(/<script>[^]*<\\/script>/, '');
frame.onload = () => {
  const inner = frame.contentDocument, loaded = performance.getEntriesByType('resource').map(entry => entry.name);
  const broken = [...inner.images].filter(image => !image.naturalWidth).length;
  document.title = `measured ${inner.documentElement.scrollWidth} ${broken} ${loaded.filter(
    name => !/^(data|file|about):/.test(name)).length}`;
};
document.body.replaceChildren(frame);
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_pages_in_a_browser(width: int, tmp_path: Path) -> None:
    """No page is wider than its window, logs anything, lacks an image or loads anything."""
    browser = find_browser()
    if browser is None:
        pytest.skip("needs Chromium or Chrome")
    long_names = tuple(f"a rather long name of the class number {i}" for i in range(12))
    runs = [write_run(tmp_path / name, long_names, side=64, seed=i) for i, name in enumerate(("x" * 60, "b", "c"))]
    unfinished = write_run(tmp_path / "unfinished", NAMES)
    (unfinished / "result.json").unlink()
    many = write_run(tmp_path / "many", tuple(f"class {i}" for i in range(100)), images=3000)
    pages = [write_report(run) for run in (runs[0], unfinished, many)]
    pages.append(write_comparison(runs, tmp_path / "all.html"))
    for path in pages:
        document, log = visit(browser, path.read_text(), tmp_path, _MEASURE.replace("WIDTH", str(width)))
        (measured,) = re.findall(r"<title>measured (\d+) (\d+) (\d+)</title>", document)
        assert tuple(map(int, measured)) == (width, 0, 0)
        assert "CONSOLE" not in log


def test_gradients_that_are_logged_are_drawn_by_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", NAMES)
    assert "Gradients" not in check_page(write_report(run)).text
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    layers, random, expected = ("conv1", "layer1_0/conv<1>", "fc"), np.random.default_rng(0), []
    for number, line in enumerate(line for line in lines if line["split"] == "train"):
        if number % 2:  # as if the setting had been changed in between
            continue
        norms = random.uniform(0.1, 2, 3).tolist()
        line["gradient_norms"] = dict(zip(layers, norms, strict=True))
        expected.append((line["step"], norms))
    # A norm that is not finite is null in the file.
    expected[0][1][2] = np.nan
    lines[0]["gradient_norms"]["fc"] = None
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = []

    def draw(norms: np.ndarray, steps: list[int], names: list[str]) -> str:
        drawn.append((norms, steps, names))
        return gradient_map(norms, steps, names)

    monkeypatch.setattr("jaxnets.report.figures.gradient_map", draw)
    page = check_page(write_report(run))
    ((norms, steps, names),) = drawn
    assert tuple(names) == layers
    assert steps == [step for step, _ in expected]
    np.testing.assert_array_equal(norms, [row for _, row in expected])
    assert "Gradients" in page.text
    labels = [svg.get("aria-label") or "" for svg in page.of("svg")]
    assert f"Norms of the gradients of 3 layers over {len(expected)} logged steps" in (*labels, *page.text.splitlines())
