"""The help pages of all commands."""

import re
import sys
from importlib import import_module

import pytest

from experiments.__main__ import COMMANDS
from jaxnets.training.recipes import recipe_for


def page(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The help of a command, 80 columns wide."""
    with pytest.raises(SystemExit) as ended:
        import_module(f"experiments.{command.replace('-', '_')}").main()
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_page_says_what_happens_without_an_option(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", [f"jaxnets {command}", "--help"])
    text = page(command, capsys)
    after_usage = text.split("\n\n", 1)[1]
    assert max(map(len, after_usage.splitlines())) < 80
    assert not re.search(r"\b(None|SUPPRESS)\b|%%|==", text)
    # An option: its line and those below it, up to the next option.
    options = re.split(r"\n  (?=-)|\n\n", after_usage)
    for option in (option for option in options if option.startswith("-")):
        flags = option.split()[0]
        words = " ".join(option.split())
        takes_a_value = re.match(r"(-\S+, )?--\S+ (?:[A-Z{\[])", option)
        if takes_a_value and flags not in NEEDED:
            assert re.search(r"default|\[[^\]]+\]$", words), option


# What has no default: what must be given, what is not there unless it is given, or what the usage line explains.
NEEDED = {
    *("--arch", "--output", "--beside", "--set", "--config", "--peer", "--profile", "--data", "--coordinator"),
    *("--train-folder", "--val-folder", "--test-folder", "--fold", "--group-by", "--tta", "--plot"),
}


def test_the_settings_of_a_recipe_are_shown_with_the_values_of_a_resnet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["jaxnets train", "--help"])
    words = " ".join(page("train", capsys).split())
    recipe = recipe_for("resnet50", "photos")
    assert f"passes over the training images [{recipe.epochs}]" in words
    assert f"peak learning rate [{recipe.learning_rate:g}]" in words
    assert (
        "after the warm-up: constant, step, multi_step, exponential, linear, cosine, polynomial, one_cycle [cosine]"
        in words
    )
    assert "each for an equal number of epochs; none: image_size [none]" in words
    assert "to save memory [off]" in words
