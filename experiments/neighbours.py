"""The most similar training images: python -m experiments.neighbours RUN IMAGE... [--k 5]."""

from pathlib import Path

import numpy as np

from experiments.arguments import add_classifier, parser_of
from experiments.command import run
from experiments.loading import check_there, classifier_of, readable
from experiments.output import LISTS, check_output, write_page, write_rows
from jaxnets.data.folder import named_images
from jaxnets.errors import InputError
from jaxnets.inspection.neighbours import nearest
from jaxnets.inspection.sheet import Card, contact_sheet
from jaxnets.models.features import blocks_of, head_inputs
from jaxnets.training.evaluation import FeatureExtractor
from jaxnets.training.progress import counting
from jaxnets.training.run_data import load_data_of, warn_of_other_images

COLUMNS = ("image", "rank", "similarity", "index", "neighbour", "class")


def main() -> None:
    """Lists the training images of a run that are most similar to other images, by the run's features."""
    parser = parser_of("neighbours", main.__doc__)
    add_classifier(parser)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files, and folders of them")
    parser.add_argument("--k", type=int, default=5, help="neighbours of each image (default: 5)")
    parser.add_argument("--stage", help="stage of the network, such as layer3 (default: the inputs of the classifier)")
    parser.add_argument("--batch-size", type=int, default=128, help="images computed at once (default: 128)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a .csv file, or an .html page with the pictures")
    arguments = parser.parse_args()
    check_output(arguments.output, LISTS)
    for flag, number in (("--k", arguments.k), ("--batch-size", arguments.batch_size)):
        if number < 1:
            raise InputError(f"{flag} {number}; expected at least 1")
    check_there(arguments.images)
    images = named_images(arguments.images)
    trained = classifier_of(arguments)
    stage = arguments.stage or head_inputs(trained.model)
    blocks_of(trained.model, stage)
    dataset = load_data_of(trained.config)
    trained.check_classes(dataset.class_names)
    train = dataset.judged("train")
    with counting("checking images", len(train)) as (done, say):
        train = readable(train, len(dataset.class_names), done, say)
        warn_of_other_images(trained.fingerprints, "train", train, say)
    extract = FeatureExtractor(trained.model, trained.preprocessing, stage, arguments.batch_size)
    with counting("computing features", len(images) + len(train)) as (done, _):
        queries, _ = extract(trained.variables, images, done)
        features, labels = extract(trained.variables, train, lambda count: done(len(images) + count))
    indices, similarities = nearest(queries, features, arguments.k)
    names = np.array(trained.class_names)[labels[indices]]
    rows = [
        (
            images.where(row),
            rank + 1,
            f"{similarities[row, rank]:.4f}",
            index,
            train.where(index),
            str(names[row, rank]),
        )
        for row in range(len(images))
        for rank, index in enumerate(indices[row].tolist())
    ]
    for image, rank, similarity, _, neighbour, name in rows:
        if rank == 1:
            print(image)
        print(f"  {similarity}  {name}  {neighbour}")
    if arguments.output is None:
        return
    if arguments.output.suffix.lower() == ".csv":
        write_rows(arguments.output, COLUMNS, rows)
    else:
        count = indices.shape[1]
        cards = [
            Card([(train, index)], [name, similarity, neighbour]) for _, _, similarity, index, neighbour, name in rows
        ]
        sections = [
            (images.where(row), [Card([(images, row)], ["the image"]), *cards[row * count : (row + 1) * count]])
            for row in range(len(images))
        ]
        lead = f"Training images of {dataset.name} by the cosine similarity of the features of {stage}, nearest first."
        write_page(arguments.output, contact_sheet("The most similar training images", lead, sections))
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    run(main)
