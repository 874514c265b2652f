"""Weights to another format: python -m experiments.convert SOURCE [--arch NAME] --output FILE."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.arguments import parser_of
from experiments.command import run
from experiments.loading import prepare_for
from experiments.output import check_output
from jaxnets.conversion import SUFFIXES, convert_run, convert_weights
from jaxnets.errors import InputError
from jaxnets.pretrained import describe
from jaxnets.training.checkpoint import CHECKPOINTS


def main() -> None:
    """Converts PyTorch weights to safetensors with metadata, and runs to state dicts with torchvision's names.

    The tensors of a file keep their values and types.
    """
    parser = parser_of("convert", main.__doc__)
    parser.add_argument(
        "source",
        help="a .pth, .pt or .safetensors file, a published name such as IMAGENET1K_V1, or the folder of a run",
    )
    parser.add_argument(
        "--arch", help="network of the weights, such as resnet50, or package.module:factory; a run knows it"
    )
    parser.add_argument("--output", type=Path, required=True, help=f"the file, ending in {', '.join(SUFFIXES)}")
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, default="best", help="checkpoint of a run (default: best)")
    parser.add_argument(
        "--weights-key",
        metavar="KEY",
        help="entry of a torch checkpoint to convert, such as model (default: the moving average, if there is one)",
    )
    known = parser.add_argument_group("metadata of the weights, if the file has none")
    known.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="text file with one class name per line (default: ImageNet's, or numbers)",
    )
    known.add_argument("--crop-size", type=int, help="image side in pixels for the network (default: 224; CIFAR: 32)")
    known.add_argument(
        "--resize-size",
        type=int,
        help="pixels of the short side before the crop (default: 256; CIFAR: 32)",
    )
    known.add_argument("--mean", type=float, nargs=3, metavar="X", help="of the channels, 0 to 1 (default: ImageNet's)")
    known.add_argument("--std", type=float, nargs=3, metavar="X", help="of the channels (default: ImageNet's)")
    known.add_argument("--interpolation", help="bilinear or bicubic (default: bilinear)")
    arguments = parser.parse_args()
    check_output(arguments.output, SUFFIXES)
    source = Path(arguments.source).expanduser()
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name in ("crop_size", "resize_size", "mean", "std", "interpolation")
        if (value := getattr(arguments, name)) is not None
    }
    if max(settings.get("mean", ()), default=0) > 1:
        raise InputError(f"mean={settings['mean']}; expected numbers from 0 to 1; divide those of pixels by 255")
    if source.is_dir():
        if arguments.weights_key:
            raise InputError(f"--weights-key {arguments.weights_key} is of a torch checkpoint; {source} is a run")
        if settings or arguments.class_names:
            raise InputError(
                "a run knows its classes and its preprocessing; leave out --class-names, --crop-size, --resize-size, "
                "--mean, --std and --interpolation"
            )
        prepare_for(source)
        arch, origin = convert_run(source, arguments.output, arguments.checkpoint, arguments.arch)
    elif arguments.arch is None:
        raise InputError(
            f"{arguments.source} needs the network of its weights; give it as --arch, such as --arch resnet50"
        )
    else:
        arch = arguments.arch
        weights = source if source.exists() else arguments.source
        preprocessing = (
            replace(describe(arch, weights, arguments.weights_key).preprocessing, **settings) if settings else None
        )
        names = _lines(arguments.class_names) if arguments.class_names else None
        origin = convert_weights(
            arch,
            weights,
            arguments.output,
            preprocessing=preprocessing,
            class_names=names,
            weights_key=arguments.weights_key,
        )
    size = arguments.output.stat().st_size / 1e6
    print(f"{arch}, {len(origin.class_names)} classes, {size:,.1f} MB in {arguments.output}")


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows put a mark of the byte order in front
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8; expected one class name per line") from None
    # Only line ends separate names: str.splitlines() also splits at control characters.
    names = [line.strip() for line in text.rstrip().split("\n")]
    if "" in names:
        raise InputError(f"line {names.index('') + 1} of {path} is empty; expected one class name per line")
    return names


if __name__ == "__main__":
    run(main)
