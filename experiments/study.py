"""Runs studies: python -m experiments.studies [NAME...]."""

import difflib
from pathlib import Path

from experiments.arguments import parser_of
from experiments.command import run
from experiments.output import check_new_folder_of
from experiments.studies import STUDIES, load_study
from experiments.studies.page import INDEX
from experiments.studies.running import run_studies
from jaxnets.errors import InputError


def main() -> None:
    """Runs studies of the claims about these networks: measures, draws figures, decides each claim, and writes one
    HTML page. A study that was stopped continues where it was.
    """
    parser = parser_of("study", main.__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"studies (default: all): {', '.join(STUDIES)}")
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--quick", action="store_true", help="small networks, a few minutes a study (default)")
    scale.add_argument("--full", action="store_true", help="the papers' networks where possible, for a GPU")
    parser.add_argument(
        "--dataset",
        metavar="NAME|FOLDER",
        help="data set, as for train (default: digits; for studies that need harder images Fashion-MNIST, if Debian's "
        "package dataset-fashion-mnist or TFDS has it)",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each measurement (default: 3)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder of results, figures and the page (default: runs/studies, runs/studies-full)",
    )
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        raise InputError(f"--seeds {arguments.seeds}; expected at least 1")
    for name in arguments.names:
        if name not in STUDIES:
            near = difflib.get_close_matches(name, STUDIES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"unknown study {name}; expected some of {', '.join(STUDIES)}{hint}")
    folder = arguments.output or Path("runs", "studies-full" if arguments.full else "studies")
    check_new_folder_of(folder)
    names = [name for name in STUDIES if name in arguments.names or not arguments.names]
    run_studies(
        list(map(load_study, names)),
        folder,
        full=arguments.full,
        seeds=arguments.seeds,
        dataset=arguments.dataset,
    )
    print(folder / INDEX)


if __name__ == "__main__":
    run(main)
