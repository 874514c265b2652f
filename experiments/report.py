"""Write the report of a run again: python -m experiments.report WORKDIR..."""

from pathlib import Path

from experiments.command import parser_of, run
from jaxnets.report import write_report


def main() -> None:
    """Writes report.html, one self-contained page, to the workdir of each run."""
    parser = parser_of("report", main.__doc__)
    parser.add_argument(
        "workdirs", type=Path, nargs="+", metavar="workdir", help="folder of a run of experiments.train"
    )
    for workdir in parser.parse_args().workdirs:
        print(write_report(workdir))


if __name__ == "__main__":
    run(main)
