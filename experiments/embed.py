"""Features of images: python -m experiments.embed (WORKDIR | --arch NAME) FOLDER --output FILE.npz [--plot FILE]."""

from pathlib import Path

import numpy as np

from experiments.arguments import add_weights, parser_of
from experiments.command import run
from experiments.loading import fastest_weights_of, images_of
from experiments.output import FIGURES, check_output, replacing, write_figure
from jaxnets.data.folder import class_order
from jaxnets.errors import InputError
from jaxnets.inspection.embedding import draw_embedding, principal_components, require_umap, umap_embedding
from jaxnets.models.features import blocks_of, head_inputs
from jaxnets.training.evaluation import FeatureExtractor
from jaxnets.training.progress import counting


def main() -> None:
    """Writes features of images, by default the inputs of the classifier layer, to an .npz file.

    The file holds "embeddings" [N, ...], "images" [N] (their paths) and "stage". With --plot, the features are also
    drawn in two dimensions, coloured by the folders of the images.
    """
    parser = parser_of("embed", main.__doc__)
    add_weights(parser, images=True)
    parser.add_argument("--output", type=Path, required=True, help="the .npz file")
    parser.add_argument("--stage", help="such as layer3 or fc2 (default: the inputs of the classifier layer)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a figure of the features, .png or .svg")
    parser.add_argument(
        "--method",
        choices=("pca", "umap"),
        help="two dimensions by principal components (default) or UMAP",
    )
    arguments = parser.parse_args()
    output: Path = arguments.output
    check_output(output, (".npz",))
    check_output(arguments.plot, FIGURES, "--plot")
    if arguments.method is not None and arguments.plot is None:
        raise InputError(f"--method {arguments.method} is for the figure; give --plot FILE.png")
    if arguments.method == "umap":
        require_umap()
    images = images_of(arguments)
    _, classifier = fastest_weights_of(arguments, len(images))
    stage = arguments.stage or head_inputs(classifier.model)
    blocks_of(classifier.model, stage)
    size = min(arguments.batch_size, len(images))
    extract = FeatureExtractor(classifier.model, classifier.preprocess, stage, size)
    with counting("embedding", len(images)) as (done, _):
        embeddings, _ = extract(classifier.variables, images, done)
    names = np.array([images.where(index) for index in range(len(images))])
    with replacing(output) as new, new.open("wb") as file:
        np.savez(file, embeddings=embeddings, images=names, stage=np.array(stage))
    print(f"{len(names)} embeddings {list(embeddings.shape[1:])} of {stage} in {output}")
    if arguments.plot is not None:
        _plot(arguments.plot, embeddings, names, stage, arguments.method or "pca")


def _plot(path: Path, embeddings: np.ndarray, names: np.ndarray, stage: str, method: str) -> None:
    folders = [Path(name).absolute().parent.name for name in names]
    classes = class_order(sorted(set(folders)))
    labels = np.array([classes.index(folder) for folder in folders])
    if method == "umap":
        points, axes = umap_embedding(embeddings), ["UMAP 1", "UMAP 2"]
    else:
        points, shares = principal_components(embeddings)
        axes = [f"component {number}: {share:.0%} of the variance" for number, share in enumerate(shares, 1)]
    figure = draw_embedding(points, labels, classes, axes=axes, title=f"features of {stage}, {len(names)} images")
    write_figure(path, figure)


if __name__ == "__main__":
    run(main)
