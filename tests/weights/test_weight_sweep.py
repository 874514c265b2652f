"""Weight files as torch, torchvision's references, timm, safetensors, Lightning and accelerate write them.

`tests.references.make_weight_sweep` writes them and computes the logits by torch. Each file is read right, or
refused in one line.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxnets.errors import InputError
from jaxnets.pretrained import load_pretrained
from jaxnets.weights import file_origin

ARCHIVE = Path(__file__).parents[1] / "references" / "weight_sweep.tar.xz"
ARCH = "tests.weights.small_resnet:resnet8"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((folder / "expected.json").read_text())
    return contents


def test_the_sweep_covers_the_writers(folder: Path, expected: dict[str, Any]) -> None:
    files = expected["files"]
    assert len(files) >= 60
    assert {name.partition("/")[0] for name in files} == {
        *("torch", "values", "references", "safetensors", "timm", "lightning", "accelerate"),
    }
    assert all((folder / name).is_file() for name in files)
    logits = {json.dumps(file["logits"]) for file in files.values() if "logits" in file}
    plain, average = (np.array(json.loads(text)) for text in logits)  # two sets of weights
    assert np.abs(plain - average).max() > 1


def test_each_file_is_read_right_or_refused_in_one_line(
    folder: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_origin, "_LOOK_ALIKES", dict.fromkeys(("resnetaa50", "resnetblur50"), ARCH))
    images = np.array(expected["images"], np.float32)
    apply: Any = None
    faults = []
    for name, file in expected["files"].items():
        try:
            loaded = load_pretrained(ARCH, folder / name, weights_key=file["key"])
        except InputError as error:
            message = str(error)
            missing = [
                word for word in (Path(name).name, *file.get("refused", ["(to be read)"])) if word not in message
            ]
            if missing or "\n" in message:
                faults.append((name, missing, message))
            continue
        if "refused" in file:
            faults.append((name, file["refused"], "read"))
            continue
        apply = apply or jax.jit(lambda variables, model=loaded.model: model.apply(variables, images, train=False))
        logits = np.asarray(apply(loaded.variables))
        wanted = np.array(file["logits"])
        if not np.abs(logits - wanted).max() <= 1e-5 * np.abs(wanted).max():
            faults.append((name, "logits", float(np.abs(logits - wanted).max())))
    assert not faults, "\n".join(map(str, faults))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("references/model_ema.pth", ("model_ema.pth: read the moving average", "(model_ema)", "weights_key model ")),
        ("references/model_key.pth", ("read the weights without averaging (model)", "weights_key model_ema ")),
        ("lightning/ema.ckpt", ("read the moving average", "(state_dict)", "weights_key current_model_state ")),
        ("references/mmengine_ema.pth", ("read the moving average", "(state_dict)", "weights_key ema_state_dict ")),
        ("references/averaged_model.pth", ("read the moving average of the weights\n",)),
        ("references/model.pth", ()),
    ],
)
def test_the_choice_is_said(
    file: str, words: tuple[str, ...], folder: Path, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    load_pretrained(ARCH, folder / file, weights_key="model" if file == "references/model_key.pth" else None)
    lines = capsys.readouterr().err.splitlines(keepends=True)
    said = "".join(line for line in lines if "it does not say its preprocessing" not in line)
    assert said.count("\n") == bool(words)
    assert all(word in said for word in words), said
