"""Prepares data once: python -m experiments.prepare NAME, or python -m experiments.prepare SOURCE --output DIR."""

import argparse
from dataclasses import fields
from pathlib import Path

from experiments.arguments import add_division, add_folders, parser_of
from experiments.command import run
from experiments.output import check_new_folder_of
from jaxnets.data.datasets import absolute, is_path, load_dataset
from jaxnets.data.division import Division
from jaxnets.data.records import check_target, write_records
from jaxnets.data.tfds import prepare_tfds
from jaxnets.data.verification import ON_BAD_IMAGE, verify, write_bad_images
from jaxnets.errors import InputError
from jaxnets.training.progress import counting

_DIVISION = {setting.name for setting in fields(Division)}


def main() -> None:
    """Downloads a TFDS data set, or converts it to ArrayRecord. With --output, writes any data set as raw records of
    reduced size, which are several times faster to read. Run an interrupted command again to resume it.
    """
    parser = parser_of("prepare", main.__doc__)
    parser.add_argument("source", help="folder of images, digits, or the name of a TFDS data set")
    parser.add_argument("--data-dir", type=Path, help="folder of TFDS data sets (default: that of TFDS)")
    parser.add_argument("--output", type=Path, help="folder for the records (a value of train's --dataset)")
    parser.add_argument("--size", type=int, default=256, help="short side of the records in pixels (default: 256)")
    add_division(parser)
    add_folders(parser)
    parser.add_argument(
        "--on-bad-image",
        choices=ON_BAD_IMAGE,
        default="error",
        help="stop at a bad image (default), skip it, or stop at any damage (strict)",
    )
    arguments = parser.parse_args()
    for name in ("data_dir", "output"):
        if getattr(arguments, name) is not None:
            setattr(arguments, name, getattr(arguments, name).expanduser())
    if arguments.source != "digits" and not is_path(arguments.source):
        outcome = prepare_tfds(arguments.source, arguments.data_dir)
        print(f"{arguments.source}: {outcome}")
    elif arguments.output is None:
        raise InputError(f"nothing to do for {arguments.source}; give --output DIR to write it as records")
    if arguments.output is not None:
        write(arguments)


def write(arguments: argparse.Namespace) -> None:
    """Writes the records."""
    check_new_folder_of(arguments.output)
    check_target(arguments.output, arguments.size)
    source = Path(absolute(arguments.source)).resolve()
    if is_path(arguments.source) and arguments.output.resolve().is_relative_to(source):
        raise InputError(f"--output {arguments.output} is inside the source {source}; give a folder outside of it")
    dataset = load_dataset(
        absolute(arguments.source),
        data_dir=arguments.data_dir,
        division=Division(**{name: value for name, value in vars(arguments).items() if name in _DIVISION}),
        train_folder=arguments.train_folder,
        val_folder=arguments.val_folder,
        test_folder=arguments.test_folder,
    )
    count = sum(map(len, dataset.parts.values()))
    with counting("checking images", count) as (done, say):
        for line in (*dataset.warnings, dataset.summary()):
            say(line)
        dataset, bad_images = verify(dataset, arguments.on_bad_image, done, say)
    num_skipped = sum(not image.used for image in bad_images)
    count -= num_skipped
    with counting("writing records", count) as (done, _):
        written = write_records(dataset, arguments.output, arguments.size, done)
    if bad_images:
        write_bad_images(arguments.output, bad_images)
    megabytes = sum(path.stat().st_size for path in arguments.output.iterdir()) / 1e6
    skipped = f", {num_skipped} bad images skipped (bad-images.csv)" if num_skipped else ""
    print(
        f"{count} images, {megabytes:,.0f} MB in {arguments.output}{skipped}"
        f"{'' if written else ' (already complete)'}; train with --dataset {arguments.output}"
    )


if __name__ == "__main__":
    run(main)
