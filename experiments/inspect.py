"""Look inside a network: python -m experiments.inspect (WORKDIR | --arch NAME) IMAGE... [--output FILE.html]."""

from pathlib import Path

import numpy as np

from experiments.arguments import add_weights, parser_of
from experiments.command import run
from experiments.loading import images_of, weights_of
from experiments.output import check_output, write_page
from jaxnets.data.sources import Source
from jaxnets.errors import InputError
from jaxnets.inspection.page import Picture, inspection_page
from jaxnets.models.features import blocks_of
from jaxnets.pretrained import Pretrained
from jaxnets.training.progress import counting
from jaxnets.weights.catalogue import labels_by_name

_MAX_IMAGES = 50


def main() -> None:
    """Writes a page that shows what a network makes of images.

    For each image: the best classes, Grad-CAM maps of them, an occlusion map of the best, and the feature maps of the
    stages; and the filters of the first convolution. If an image's folder has the name of a class, it is taken for the
    image's class.
    """
    parser = parser_of("inspect", main.__doc__)
    add_weights(parser, images=True)
    parser.add_argument("--output", type=Path, default=Path("inspect.html"), help="the page (default: inspect.html)")
    parser.add_argument("--stage", help="stage that Grad-CAM reads, such as layer3 (default: the last one with a map)")
    arguments = parser.parse_args()
    output: Path = arguments.output
    check_output(output, (".html",))
    images = images_of(arguments)
    if len(images) > _MAX_IMAGES:
        raise InputError(f"{len(images)} images; a page shows at most {_MAX_IMAGES}, name fewer")
    network, classifier = weights_of(arguments)
    if arguments.stage is not None:
        blocks_of(classifier.model, arguments.stage)
    pictures = [_picture(images, index, classifier) for index in range(len(images))]
    count = len(pictures)
    with counting("inspecting", 2 * count) as (done, _):
        page = inspection_page(
            classifier,
            network,
            pictures,
            stage=arguments.stage,
            batch_size=arguments.batch_size,
            mapped=done,
            covered=lambda images: done(count + images),
        )
    write_page(output, page)
    print(f"{count} images inspected in {output}" if count > 1 else f"1 image inspected in {output}")


def _picture(images: Source, index: int, classifier: Pretrained) -> Picture:
    where = images.where(index)
    try:
        pixels = np.array(classifier.preprocess.pixels(images[index].image))
    except InputError as error:
        raise InputError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from None
    folder = Path(where).parent.name
    return Picture(where, pixels, labels_by_name(classifier.categories).get(folder))


if __name__ == "__main__":
    run(main)
