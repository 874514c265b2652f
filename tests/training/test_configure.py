"""Configurations from a command line, a Python call and a config.json."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from experiments.train import parse
from jaxnets import InputError
from jaxnets.training.config import Config
from jaxnets.training.configure import configure, override, read_settings
from jaxnets.training.recipe import Recipe
from jaxnets.training.recipes import RECIPES, recipe_for
from tests.training.tiny import GREYS


def test_a_data_set_object_gets_the_recipe_of_photos() -> None:
    config = configure({"arch": "resnet18", "dataset": GREYS})
    assert (config.recipe, config.dataset) == (recipe_for("resnet18", "photos"), "greys")
    assert config.recipe != recipe_for("resnet18")


def test_settings_of_python_are_those_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    typed = (
        "--arch googlenet --dataset photos --data-dir data --epochs 3 --lr 1 --batch-size 8 --seed 4 --dtype bfloat16 "
        "--train-image-sizes 64 96 --dropout-rate 0.5 --remat --set lrn=local_response_norm --set aux_logits=false"
    )
    settings = {
        "arch": "googlenet", "dataset": Path("photos"), "data_dir": "data", "epochs": 3, "lr": 1,
        "batch_size": 8, "seed": 4, "dtype": "bfloat16", "train_image_sizes": [64, 96], "dropout_rate": 0.5,
        "remat": True, "network_options": {"lrn": "local_response_norm", "aux_logits": False},
    }  # fmt: skip
    config = configure(settings)
    assert config == parse(typed.split())[0]
    assert config.dataset == str(tmp_path / "photos")
    assert type(config.recipe.learning_rate) is float
    assert config.network_options == {"lrn": "local_response_norm", "aux_logits": False}


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'; did you mean epochs?"),
        ({"rate": 0.1}, "unknown setting 'rate'; did you mean "),
        ({"zzqx": 3}, "unknown setting 'zzqx'; jaxnets train --help lists all"),
        ({"epochs": "3"}, "epochs='3'; expected a whole number"),
        ({"epochs": 3.0}, "epochs=3.0; expected a whole number"),
        ({"epochs": True}, "epochs=True; expected a whole number"),
        ({"flip": "often"}, "flip='often'; expected a number"),
        ({"remat": 1}, "remat=1; expected true or false"),
        ({"optimizer": 3}, "optimizer=3; expected a text"),
        ({"train_image_sizes": [64.5]}, "train_image_sizes=[64.5]; expected a list of numbers"),
        ({"network_options": ["groups=2"]}, "network_options=['groups=2']; expected names with values"),
        ({"network_options": {"grups": 2}}, "has no option grups; it has stage_sizes"),
        ({"arch": 18}, "arch=18; expected a text"),
        ({"epochs": 0}, "epochs=0; expected a number of at least 1"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as raised:
        configure({"arch": "resnet18", **settings})
    assert str(raised.value).startswith(line) or line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_settings_of_the_recipe_may_be_given_as_options() -> None:
    as_option = configure({"arch": "resnet18", "network_options": {"dropout_rate": "0.25"}})
    assert as_option == configure({"arch": "resnet18", "dropout_rate": 0.25})
    assert as_option.network_options == {}
    with pytest.raises(InputError, match=r"dropout_rate is given as 0.5 and, as an option, as 0.25"):
        configure({"arch": "resnet18", "dropout_rate": 0.5, "network_options": {"dropout_rate": 0.25}})


CONFIG = Config(
    "resnext29_8x64d_cifar",
    replace(RECIPES["torchvision_v2"], epochs=33, dropout_rate=0.1, train_image_sizes=(16, 24)),
    "photos",
    seed=7,
    dtype="bfloat16",
    network_options={"groups": 4, "stage_sizes": [1, 1], "activation": "gelu"},
)


def test_a_configuration_that_is_read_is_the_one_that_was_written(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(CONFIG.to_json())
    assert Config.read(file) == CONFIG
    assert parse(["--config", str(file)])[0] == CONFIG
    typed = ["--config", str(file), "--lr", "0.25", "--seed", "1", "--set", "groups=2", "--set", "shortcut=C"]
    assert parse(typed)[0] == replace(
        CONFIG,
        recipe=replace(CONFIG.recipe, learning_rate=0.25),
        seed=1,
        network_options={**CONFIG.network_options, "groups": 2, "shortcut": "C"},
    )
    assert parse(["--config", str(file), "--recipe", "fast"])[0].recipe == RECIPES["fast"]


def test_a_file_may_have_some_of_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"arch": "resnet18", "recipe": {"epochs": 3}}))
    assert parse(["--config", str(file)])[0] == Config("resnet18", replace(recipe_for("resnet18"), epochs=3))


def test_a_run_of_an_earlier_version_has_no_options(tmp_path: Path) -> None:
    before = json.loads(replace(CONFIG, network_options={}).to_json())
    del before["network_options"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    assert Config.read(tmp_path / "config.json") == replace(CONFIG, network_options={})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"arch": "resnet18", "epoch": 3}', "unknown setting 'epoch'; did you mean epochs?"),
        ('{"recipe": {"seed": 3}}', "unknown setting 'seed'"),
        ('{"recipe": {"epochs": "three"}}', "epochs='three'; expected a whole number"),
        ('{"seed": null}', "seed=None; expected a whole number"),
        ('{"recipe": "fast"}', "holds no configuration"),
        ("[]", "holds no configuration"),
        ("{", "is no JSON file"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(InputError) as raised:
        parse(["--config", str(file)])
    assert str(raised.value).startswith(str(file))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_setting_can_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    settings = read_settings(tmp_path / "config.json")
    assert set(settings) == {f.name for f in (*fields(Config), *fields(Recipe))} - {"recipe"}
    assert override(settings, {}) == settings
