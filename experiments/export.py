"""A classifier as a portable program: python -m experiments.export (WORKDIR | --arch NAME) --output FILE."""

from pathlib import Path

from experiments.arguments import add_weights, parser_of
from experiments.command import run
from experiments.loading import weights_of
from experiments.output import check_output
from jaxnets.errors import InputError
from jaxnets.export import PLATFORMS, check_installed, write_export


def main() -> None:
    """Writes a StableHLO program with its weights, for batches of any size, and FILE.json, which describes its input.

    The program is compared with the model first. `jax.export.deserialize(data).call(images)` runs it.
    """
    parser = parser_of("export", main.__doc__)
    add_weights(parser)
    parser.add_argument("--output", type=Path, required=True, help="the file, such as resnet50.stablehlo")
    arguments = parser.parse_args()
    output: Path = arguments.output
    for path in (output, output.with_name(f"{output.name}.json")):
        check_output(path)
    if len(arguments.paths) > (arguments.arch is None):
        raise InputError(f"{arguments.paths[-1]}: one classifier at a time; give the folder of a run, or --arch")
    check_installed()
    arch, classifier = weights_of(arguments)
    size = write_export(classifier, arch, output)
    side = classifier.preprocess.crop_size
    print(
        f"{arch}, {size / 1e6:,.1f} MB, in {output}: uint8 [batch, {side}, {side}, 3] -> logits "
        f"[batch, {len(classifier.categories)}], on {', '.join(PLATFORMS)}"
    )


if __name__ == "__main__":
    run(main)
