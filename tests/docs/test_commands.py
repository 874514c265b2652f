"""Every command that the documentation shows is accepted by the parser of that command."""

import argparse
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from experiments.__main__ import COMMANDS
from jaxnets import list_models
from jaxnets.training.recipes import RECIPES
from tests.docs.pages import PAGES, ROOT, blocks, code_spans, name_of

# Programs that are no commands.
_PROGRAMS = ["studies.transfer_cost"]
_COMMAND = re.compile(r"(?:jaxnets (?=[a-z])|python -m experiments\.)([\w.-]+)(.*)")


class _Parsed(Exception):
    """Ends a command after it has read its options."""


def _parse(
    command: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Runs a command until its options are read. Returns its parser and the options; SystemExit if it refuses them."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, args: list[str] | None = None, namespace: None = None) -> None:
        parser.allow_abbrev = False
        raise _Parsed(parser, original(parser, args, namespace))

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr("sys.argv", [f"jaxnets {command}", *arguments])
        with pytest.raises(_Parsed) as parsed:
            import_module(f"experiments.{command}").main()
    return parsed.value.args  # type: ignore[return-value]


def _shell_lines(page: Path) -> Iterator[str]:
    """The simple commands of a page's shell blocks, and its inline code."""
    for block in blocks(page):
        if block.language == "yaml":
            yield from (" ".join(command.split()) for command in re.findall(r'"exec (.+?)"', block.code, re.DOTALL))
        elif block.language == "sh":
            lines = block.code.replace("\\\n", " ").splitlines()
            yield from (part.strip() for line in lines if line[:1] != "#" for part in line.split("&&"))
    yield from code_spans(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_accepted(page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for line in _shell_lines(page):
        match = _COMMAND.search(line)
        if match is None:
            continue
        command, rest = match[1].replace("-", "_"), match[2]
        assert command in (*COMMANDS, *_PROGRAMS), line
        if not rest.strip():  # The name of the command alone.
            continue
        arguments = [re.sub(r"\$[A-Z_]+", "0", word) for word in shlex.split(rest, comments=True)]
        try:
            _, options = _parse(command, arguments, monkeypatch)
        except SystemExit as end:
            if end.code == 0:  # --help
                continue
            pytest.fail(f"{name_of(page)}: {line}\n{capsys.readouterr().err}")
        arch, recipe = getattr(options, "arch", None), getattr(options, "recipe", None)
        assert arch is None or ":" in arch or arch in list_models(), line
        assert recipe is None or recipe in RECIPES, line


@pytest.fixture(scope="module")
def option_names() -> set[str]:
    """The options of all commands."""
    names: set[str] = set()
    required = {
        "summary": ["--arch", "x"],
        "duplicates": ["x"],
        "label_errors": ["x"],
        "neighbours": ["x", "x"],
        "inspect": ["x", "x"],
        "verify": ["x"],
        "convert": ["x", "--output", "x"],
        "embed": ["--output", "x"],
        "export": ["--output", "x"],
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        for command in (*COMMANDS, *_PROGRAMS):
            arguments = required.get(command, ["x"] if command in ("evaluate", "prepare", "report") else [])
            parser, _ = _parse(command, arguments, monkeypatch)
            names |= set(parser._option_string_actions)
    return names | {"--version"}


# A changelog names removed options too.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_options_in_the_text_exist(page: Path, option_names: set[str]) -> None:
    for span in code_spans(page):
        if span.startswith("--"):
            assert span.split()[0].partition("=")[0] in option_names, f"{name_of(page)}: {span}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_extras_and_modules_exist(page: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in _shell_lines(page):
        for names in re.findall(r"\.\[([\w,]+)\]", line):
            assert set(names.split(",")) <= extras.keys(), line
        for module in re.findall(r"python -m (tests\.[\w.]+)", line):
            assert find_spec(module), line
