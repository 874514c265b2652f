"""Features of images: python -m experiments.embed (WORKDIR | --arch NAME) FOLDER --output FILE.npz."""

from pathlib import Path

import numpy as np

from experiments.command import add_weights, images_of, parser_of, run, weights_of
from jaxnets.errors import InputError
from jaxnets.models.features import blocks_of, head_inputs
from jaxnets.training.evaluation import FeatureExtractor
from jaxnets.training.progress import counting


def main() -> None:
    """Writes features of images, by default the inputs of the classifier layer, to an .npz file.

    The file holds "embeddings" [N, ...], "images" [N] (their paths) and "stage".
    """
    parser = parser_of("embed", main.__doc__)
    add_weights(parser, images=True)
    parser.add_argument("--output", type=Path, required=True, help="the .npz file")
    parser.add_argument("--stage", help="such as layer3 or fc2 (default: the inputs of the classifier layer)")
    arguments = parser.parse_args()
    output: Path = arguments.output
    if output.suffix != ".npz":
        raise InputError(f"--output {output}; expected a name that ends in .npz")
    if output.exists():
        raise InputError(f"--output {output} exists already; give another name or remove it")
    images = images_of(arguments)
    _, classifier = weights_of(arguments)
    stage = arguments.stage or head_inputs(classifier.model)
    blocks_of(classifier.model, stage)
    size = min(arguments.batch_size, len(images))
    extract = FeatureExtractor(classifier.model, classifier.preprocess, stage, size)
    with counting("embedding", len(images)) as (done, _):
        embeddings, _ = extract(classifier.variables, images, done)
    names = np.array([images.where(index) for index in range(len(images))])
    new = output.with_name(f"{output.name}.new")
    with new.open("wb") as file:
        np.savez(file, embeddings=embeddings, images=names, stage=np.array(stage))
    new.replace(output)
    print(f"{len(names)} embeddings {list(embeddings.shape[1:])} of {stage} in {output}")


if __name__ == "__main__":
    run(main)
