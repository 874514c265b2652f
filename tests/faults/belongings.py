"""What a user has at hand when a mistake is made: photos, runs, weights, records, and files of other kinds."""

import atexit
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from jaxnets.conversion import convert_run
from jaxnets.data.division import Division
from jaxnets.data.folder import load_folder
from jaxnets.data.records import write_records
from jaxnets.training.config import Config
from jaxnets.training.loop import train
from jaxnets.training.parallel import Parallel
from jaxnets.training.recipes import recipe_for

ARCH = "tests.weights.small_resnet:resnet8"
_SIDE = 8


def photos(root: Path, parts: tuple[str, ...], classes: tuple[str, ...], count: int = 6) -> None:
    """PNG files of noise in class folders; `parts` may be (".",)."""
    random = np.random.default_rng(len(classes))
    for part in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")


@cache
def _made() -> Path:
    """The folder with all of it, made once in a process."""
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    photos(root / "photos", ("train", "val"), ("cat", "dog", "owl"))
    photos(root / "other", ("train", "val"), ("cat", "dog", "wolf"))
    photos(root / "one-class", (".",), ("cat",))
    photos(root / "few", (".",), ("cat", "dog"), 1)
    photos(root / "twice", ("color", "grey"), ("cat", "dog"))
    photos(root / "gap", ("train", "val"), ("cat", "dog"))
    shutil.rmtree(root / "gap" / "val" / "dog")
    photos(root / "hollow", (".",), ("cat", "dog"))
    shutil.rmtree(root / "hollow" / "dog")
    (root / "hollow" / "dog").mkdir()
    photos(root / "damaged", (".",), ("cat", "dog"))
    (root / "damaged" / "dog" / "3.png").write_bytes((root / "damaged" / "dog" / "3.png").read_bytes()[:80])
    (root / "empty").mkdir()
    shutil.copy(root / "photos" / "train" / "cat" / "0.png", root / "image.png")
    (root / "text.png").write_text("no image")
    (root / "text.pth").write_text("no weights")
    (root / "two.txt").write_text("cat\ndog\n")
    (root / "no-header.csv").write_text("0.png,cat\n1.png,dog\n")
    (root / "gone.csv").write_text("path,label\n0.png,cat\n1.png,dog\n")
    (root / "weights.csv").write_text("class,weight\ncat,1\ndog,2\n")
    (root / "settings.json").write_text('{"arch": "resnet50", "recipe": {"learning_rat": 1}}')
    for name in ("there.csv", "there.npz", "full/there"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("mine")
    config = Config(ARCH, recipe_for(ARCH, "photos"), str(root / "photos"))
    _train(root / "run", root / "photos")
    (root / "begun").mkdir()
    (root / "begun" / "config.json").write_text(config.to_json())
    convert_run(root / "run", root / "weights.safetensors", "best")
    cut = (root / "weights.safetensors").read_bytes()
    (root / "cut.safetensors").write_bytes(cut[: len(cut) // 2])
    write_records(load_folder(root / "photos", Division()), root / "records", _SIDE, lambda _: None)
    shutil.copytree(root / "records", root / "unfinished")
    (root / "unfinished" / "records.json").rename(root / "unfinished" / "started.json")
    return root


def _train(workdir: Path, dataset: Path) -> None:
    recipe = replace(recipe_for(ARCH, "photos"), image_size=_SIDE, crop_pct=1.0, epochs=1, batch_size=18)
    train(Config(ARCH, recipe, str(dataset)), workdir, parallel=Parallel.choose("jit"))


def belongings(folder: Path) -> None:
    """Copies all into a folder."""
    shutil.copytree(_made(), folder, dirs_exist_ok=True)
