"""The command inspect, and its page."""

import base64
import io
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxnets
from experiments import inspect
from experiments.command import run
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.pretrained import Pretrained
from tests.experiments.commands import Refuses
from tests.training.networks import NETWORKS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three images, one of them in a folder that is no class; and a small network to inspect."""
    model = NETWORKS["small_resnet"](num_classes=10)
    variables = jaxnets.initial_variables(model, jax.random.key(0), image_size=16)
    classifier = Pretrained(model, variables, Preprocessing(16, 16), tuple("0123456789"))
    monkeypatch.setattr(inspect, "weights_of", lambda arguments: (arguments.arch, classifier))
    generator = np.random.default_rng(0)
    for name in ("3/a.png", "9/b.png", "<else>/c.png"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def arguments(*images: str) -> tuple[str, ...]:
    return ("--arch", "small", *images)


def test_the_page_shows_each_image_and_loads_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        sys, "argv", ["inspect", *arguments("3", "9/b.png", "<else>"), "--output", "page.html", "--stage", "layer1"]
    )
    run(inspect.main)
    assert capsys.readouterr().out == "3 images inspected in page.html\n"
    page = (folder / "page.html").read_text()
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(target.startswith("data:image/") for target in loaded)
    assert "<script" not in page
    assert "http" not in page
    assert "outputs of layer1.0, " in page
    assert "&lt;else&gt;/c.png" in page
    assert "<else>" not in page
    sections = page.split("<section>")[1:]
    assert len(sections) == 4  # the last one is of the filters
    assert [len(re.findall("<li>", section)) for section in sections[:3]] == [5, 5, 5]
    for section, known in zip(sections, (True, True, False), strict=False):
        verdicts = re.findall(r'<p class="(right|wrong)">', section)
        assert len(verdicts) == known
        # The labelled class has a map of its own if it is not among the best.
        assert section.count("<figcaption>Grad-CAM: ") in ((3, 4) if known else (3,))
        assert section.count("(its folder)</figcaption>") == known
        assert section.count("<figcaption>occlusion: ") == 1
        assert "layer2.0, " in section
    for target in loaded:
        Image.open(io.BytesIO(base64.b64decode(target.partition(",")[2]))).verify()


def test_what_is_wrong_is_refused_in_one_line(folder: Path, refuses: Refuses) -> None:
    (folder / "there.html").write_text("mine")
    (folder / "bad.png").write_bytes(b"no image")
    for words, given in (
        (("there.html exists already",), (*arguments("3"), "--output", "there.html")),
        (("page.txt", "ends in .html"), (*arguments("3"), "--output", "page.txt")),
        (("no stage 'layer7'",), (*arguments("3"), "--output", "x.html", "--stage", "layer7")),
        (("bad.png",), (*arguments("3", "bad.png"), "--output", "x.html")),
        (("51 images", "at most 50"), (*arguments(*51 * ["3"]), "--output", "x.html")),
        (("no images",), (*arguments(), "--output", "x.html")),
    ):
        refuses("inspect", *given, words=words, folder=folder)
    assert (folder / "there.html").read_text() == "mine"
    assert not (folder / "x.html").exists()
