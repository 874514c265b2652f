"""The console command: `jaxnets COMMAND ...` is the same as `python -m experiments.COMMAND ...`."""

import difflib
import os
import sys
from importlib import import_module

from experiments import end_quietly

COMMANDS = {
    "train": "Train a network, from scratch or from pretrained weights.",
    "find_lr": "Find a learning rate for a training run.",
    "evaluate": "Judge a trained network on a data set.",
    "predict": "Classify images.",
    "embed": "Write the features of images to a file.",
    "inspect": "Show what a network sees in images, on an HTML page.",
    "list": "List the networks, with their sizes and published weights.",
    "summary": "List the layers of a network, with shapes, parameters and multiply-adds.",
    "neighbours": "List the training images that are most similar to other images.",
    "duplicates": "Find images that a data set holds twice, in one part or in two.",
    "label_errors": "List images whose label is probably wrong, and the hardest ones.",
    "convert": "Convert weights between PyTorch files, safetensors and runs.",
    "export": "Write a network and its weights as a StableHLO program.",
    "prepare": "Download a data set, or resize images once for faster training.",
    "verify": "Check that checkpoints, prepared records and weight files are not damaged.",
    "benchmark": "Measure the speed of training, inference or reading data.",
    "study": "Measure and draw claims about these networks, on one HTML page.",
    "report": "Write the HTML report of a run, or compare several.",
}


def usage() -> str:
    """The text of `jaxnets --help`."""
    lines = [
        "usage: jaxnets COMMAND [options]",
        "       jaxnets --version",
        "",
        "Train and use AlexNet, GoogLeNet, ResNet and ResNeXt in JAX.",
        "",
        "commands:",
        *(f"  {name.replace('_', '-'):13}{line}" for name, line in COMMANDS.items()),
        "",
        "jaxnets COMMAND --help lists the options of a command.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs the command that the first argument names. Exits with code 2 if there is no such command."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        from jaxnets import __version__

        print(f"jaxnets {__version__}")
        return
    name = name.replace("-", "_")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0].replace('_', '-')}?" if near else "jaxnets --help lists the commands"
        print(f"error: unknown command {sys.argv[1]}; {hint}", file=sys.stderr)
        sys.exit(2)
    # --arch package.module:factory also finds modules in the current folder, as with `python -m`. The folder comes
    # last, so that a folder called experiments or jaxnets in it hides nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    sys.argv = [f"jaxnets {name.replace('_', '-')}", *arguments]
    end_quietly()
    from experiments.command import run

    run(import_module(f"experiments.{name}").main)


if __name__ == "__main__":
    main()
