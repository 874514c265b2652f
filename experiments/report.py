"""Write the report of a run, or compare runs: python -m experiments.report RUN... [--output FILE.html]."""

from contextlib import suppress
from pathlib import Path

from experiments.arguments import parser_of
from experiments.command import run
from experiments.loading import prepare_for
from experiments.output import check_folder_of
from jaxnets.errors import InputError
from jaxnets.report import check_replaceable, write_comparison, write_report

_COMPARISON = Path("comparison.html")


def main() -> None:
    """Writes the report of a run, finished or not, as one self-contained page; of several runs, one page on all."""
    parser = parser_of("report", main.__doc__)
    parser.add_argument("workdirs", type=Path, nargs="+", metavar="run", help="folder of a run of jaxnets train")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.html",
        help=f"the page (default: report.html in the folder of a run, {_COMPARISON} for several runs)",
    )
    arguments = parser.parse_args()
    workdirs, output = arguments.workdirs, arguments.output
    if output is not None and output.suffix.lower() != ".html":
        raise InputError(f"--output {output}; expected a name that ends in .html")
    if output is not None:
        check_folder_of(output)
    if len(workdirs) == 1:
        if output is not None:
            check_replaceable(output)
        with suppress(InputError):  # a run of another version has a report, if no heat maps
            prepare_for(workdirs[0])
        print(write_report(workdirs[0], output, heat_maps=True))
    else:
        output = output or _COMPARISON
        check_replaceable(output)
        print(write_comparison(workdirs, output))


if __name__ == "__main__":
    run(main)
