"""Get data ready once: python -m experiments.prepare NAME, or python -m experiments.prepare SOURCE --output DIR."""

import argparse
from pathlib import Path

from experiments.command import program, run
from jaxnets.data.datasets import absolute, is_path, load_dataset
from jaxnets.data.records import write_records
from jaxnets.data.tfds import prepare_tfds
from jaxnets.data.verification import ON_BAD_IMAGE, verify, write_bad_images
from jaxnets.errors import InputError
from jaxnets.training.progress import counting


def main() -> None:
    """Downloads a TFDS data set, or converts it to ArrayRecord; with --output, writes any data set as small raw records
    that train several times faster. A command that was cut off goes on when it is given again.
    """
    parser = argparse.ArgumentParser(prog=program("prepare"), description=main.__doc__)
    parser.add_argument("source", help="folder of images, digits, or the name of a TFDS data set")
    parser.add_argument("--data-dir", type=Path, help="where TFDS keeps its data sets (default: its own choice)")
    parser.add_argument("--output", type=Path, help="folder for the records, to be given to train as --dataset")
    parser.add_argument("--size", type=int, default=256, help="short side of the records in pixels (default: 256)")
    parser.add_argument("--test-share", type=float, default=0.2, help="share held out where there are no test images")
    parser.add_argument("--on-bad-image", choices=ON_BAD_IMAGE, default="error", help="stop at one, or leave it out")
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
    source = Path(absolute(arguments.source)).resolve()
    if is_path(arguments.source) and arguments.output.resolve().is_relative_to(source):
        raise InputError(f"--output {arguments.output} lies in the source {source}; give one elsewhere")
    dataset = load_dataset(absolute(arguments.source), data_dir=arguments.data_dir, test_share=arguments.test_share)
    count = len(dataset.train) + len(dataset.test)
    with counting("checking images", count) as (done, say):
        dataset, bad_images = verify(dataset, arguments.on_bad_image, done, say)
    count -= len(bad_images)
    with counting("writing records", count) as (done, _):
        anew = write_records(dataset, arguments.output, arguments.size, done)
    if bad_images:
        write_bad_images(arguments.output, bad_images)
    megabytes = sum(path.stat().st_size for path in arguments.output.iterdir()) / 1e6
    left_out = f", {len(bad_images)} bad images left out (bad-images.csv)" if bad_images else ""
    print(
        f"{count} images, {megabytes:,.0f} MB in {arguments.output}{left_out}"
        f"{'' if anew else ' (nothing was left to do)'}; train with --dataset {arguments.output}"
    )


if __name__ == "__main__":
    run(main)
