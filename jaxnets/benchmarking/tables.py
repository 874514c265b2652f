"""The tables of docs/performance.md: what is measured, and how a row reads.

A table is a list of jobs, a function that measures one, and columns that read its results. New rows are jobs or
entries of `TABLES`; what `benchmark_step` can't measure needs a subclass of `Table` with its own `measure`.
"""

import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxnets.benchmarking import step
from jaxnets.benchmarking.environment import environment
from jaxnets.benchmarking.worker import Job
from jaxnets.errors import InputError

BEGIN, END = "<!-- jaxnets benchmark --table: begin -->", "<!-- jaxnets benchmark --table: end -->"
_TORCH_SETTINGS = ("eager", "channels_last")

# What a row measured: the results of `benchmark_step`, by the peer, "" for none.
Row = Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class Column:
    """`cell` reads the results of a row; without the `peer` there is no such column."""

    title: str
    cell: Callable[[Row], str]
    peer: str = ""


@dataclass(frozen=True)
class Table:
    """`jobs` are measured one after the other, each against each of the `peers` that are installed."""

    name: str
    title: str
    jobs: tuple[Job, ...]
    peers: tuple[str, ...]
    columns: tuple[Column, ...]

    def measure(self, job: Job, rounds: int, peers: Sequence[str], done: Callable[[int], None]) -> Row:
        """The results of a row; `done` is called with the number of measurements so far."""
        results: dict[str, dict[str, Any]] = {}
        before = 0
        for peer in [peer for peer in self.peers if peer in peers] or [""]:
            settings = _TORCH_SETTINGS if peer == "torch" else ()
            results[peer] = step.benchmark_step(
                job,
                rounds=rounds,
                peer=peer or None,
                peer_settings=settings,
                done=partial(_shifted, done, before),
            )
            before += step.measurements(rounds, peer or None, settings)
        return results

    def measurements(self, rounds: int, peers: Sequence[str]) -> int:
        """The last value that `done` gets for one row."""
        of_table = [peer for peer in self.peers if peer in peers] or [""]
        settings = {peer: _TORCH_SETTINGS if peer == "torch" else () for peer in of_table}
        return sum(step.measurements(rounds, peer or None, settings[peer]) for peer in of_table)

    def head(self, peers: Sequence[str]) -> list[str]:
        """The title, and the first two lines in Markdown."""
        titles = [column.title for column in self._columns(peers)]
        return [f"### {self.title}", "", _line(titles), _line(["---"] * len(titles))]

    def row(self, results: Row, peers: Sequence[str]) -> str:
        """One line in Markdown."""
        return _line([column.cell(results) for column in self._columns(peers)])

    def _columns(self, peers: Sequence[str]) -> list[Column]:
        return [column for column in self.columns if not column.peer or column.peer in peers]


def _shifted(done: Callable[[int], None], before: int, count: int) -> None:
    done(before + count)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _own(results: Row) -> dict[str, Any]:
    return next(iter(results.values()))


def _range(ratio: float, spread: Sequence[float]) -> str:
    return f"{ratio:.2f} ({spread[0]:.2f} to {spread[1]:.2f})"


def _ratio_to(peer: str) -> Callable[[Row], str]:
    return lambda results: _range(results[peer]["ratio"], results[peer]["ratio_spread"])


def _memory(result: Mapping[str, Any], prefix: str = "") -> str:
    peak, imports = (result[f"{prefix}{name}_memory_bytes"] / 1e9 for name in ("peak", "import"))
    return f"{peak:.2f} ({imports:.2f})"


def _milliseconds_a_layer(results: Row) -> str:
    own = _own(results)
    layers = int("".join(filter(str.isdigit, own["arch"].partition("_")[0])))
    return f"{1e3 * own['step_seconds'] / layers:.1f}"


_NETWORK = (
    Column("network", lambda results: f"`{_own(results)['arch']}`"),
    Column("pixels, batch", lambda results: f"{_own(results)['image_size']}, {_own(results)['batch_size']}"),
)
_RATE = Column("jaxnets, images/s", lambda results: f"{_own(results)['images_per_second']:.1f}")
_MEMORY = Column("memory (after imports), GB", lambda results: _memory(_own(results)))
_COMPILED = Column("compile time", lambda results: f"{_own(results)['compile_seconds']:.1f} s")

_TRAINED = (
    ("resnet50", 224, 8), ("resnet50", 64, 16), ("resnext50_32x4d", 224, 8), ("resnext50_32x4d", 64, 16),
    ("resnet18", 224, 8), ("googlenet", 224, 8), ("alexnet", 224, 16),
)  # fmt: skip

_ANSWERING = ("resnet50", "resnet18", "googlenet", "resnext50_32x4d")

TABLES = (
    Table(
        "training",
        "Training against PyTorch",
        tuple(Job(*row) for row in _TRAINED),
        ("torch",),
        (
            *_NETWORK,
            _RATE,
            Column("PyTorch, images/s", lambda results: f"{results['torch']['peer_images_per_second']:.1f}", "torch"),
            Column("ratio (range)", _ratio_to("torch"), "torch"),
            _MEMORY,
            Column("PyTorch's memory, GB", lambda results: _memory(results["torch"], "peer_"), "torch"),
            Column("ratio", lambda results: f"{results['torch']['memory_ratio']:.2f}", "torch"),
            _COMPILED,
            Column("share of arithmetic", lambda results: f"{_own(results)['percent_of_arithmetic']:.0f} %"),
        ),
    ),
    Table(
        "inference",
        "Inference against onnxruntime",
        tuple(Job(arch, 224, batch, "inference") for arch in _ANSWERING for batch in (8, 1)),
        ("onnxruntime",),
        (
            *_NETWORK,
            _RATE,
            Column(
                "onnxruntime, images/s",
                lambda results: f"{results['onnxruntime']['peer_images_per_second']:.1f}",
                "onnxruntime",
            ),
            Column("ratio (range)", _ratio_to("onnxruntime"), "onnxruntime"),
            _MEMORY,
            Column("onnxruntime's memory, GB", lambda results: _memory(results["onnxruntime"], "peer_"), "onnxruntime"),
        ),
    ),
    Table(
        "depth",
        "Training at a thousand layers",
        (Job("resnet1202_cifar", 32, 32), Job("resnet110_cifar", 32, 32)),
        (),
        (
            *_NETWORK,
            Column("step", lambda results: f"{_own(results)['step_seconds']:.2f} s"),
            Column("per layer", lambda results: f"{_milliseconds_a_layer(results)} ms"),
            _MEMORY,
            _COMPILED,
            Column("first step after", lambda results: f"{_own(results)['first_step_seconds']:.1f} s"),
        ),
    ),
)


def chosen(**fields: Any) -> list[Table]:
    """The tables with the rows whose jobs have these fields; None stands for any value."""

    def fits(job: Job) -> bool:
        return all(value is None or getattr(job, name) == value for name, value in fields.items())

    tables = [replace(table, jobs=tuple(filter(fits, table.jobs))) for table in TABLES]
    if not any(table.jobs for table in tables):
        given = ", ".join(f"{name}={value}" for name, value in fields.items() if value is not None)
        raise InputError(f"no table has a row with {given}; leave --table out to measure it")
    return [table for table in tables if table.jobs]


class Results:
    """What was measured, in a file with one JSON object a line.

    Rows that are there are not measured again, unless the machine, the versions, the commit or the number of rounds
    are others.
    """

    def __init__(self, file: Path, rounds: int) -> None:
        self.peers = tuple(peer for peer in step.PEERS if all(map(find_spec, step.PACKAGES[peer])))
        self.environment = environment()
        self._file, self._rounds = file, rounds
        try:
            lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
            entries = [json.loads(line) for line in lines]
            self._known = {line["key"]: line["row"] for line in entries if line["environment"] == self.environment}
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"--table {file} has no results of this command; give another name or remove it") from None

    def left(self, tables: Sequence[Table]) -> int:
        """The number of measurements that `markdown` makes."""
        missing = [table for table in tables for job in table.jobs if self._key(table, job) not in self._known]
        return sum(table.measurements(self._rounds, self.peers) for table in missing)

    def markdown(self, tables: Sequence[Table], done: Callable[[int], None] = lambda count: None) -> Iterator[str]:
        """Measures what is missing, and yields the lines as they come.

        `done` is called with the number of measurements so far.
        """
        count = 0
        for table in tables:
            yield from table.head(self.peers)
            for job in table.jobs:
                key = self._key(table, job)
                if key not in self._known:
                    row = table.measure(job, self._rounds, self.peers, partial(_shifted, done, count))
                    count += table.measurements(self._rounds, self.peers)
                    with self._file.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps({"environment": self.environment, "key": key, "row": row}) + "\n")
                    self._known[key] = row
                yield table.row(self._known[key], self.peers)
            yield ""
        day = datetime.datetime.now(datetime.UTC).date().isoformat()
        facts = [f"{name} {value}" for name, value in self.environment.items() if value]
        yield f"{day}, medians of {self._rounds} rounds in turns: {', '.join(facts)}."

    def _key(self, table: Table, job: Job) -> str:
        return json.dumps([table.name, asdict(job), self._rounds, self.peers])


def write_to_page(page: Path, lines: Sequence[str] | None) -> None:
    """Replaces what stands between the two marks of a page; None only checks that it has them, else InputError."""
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {page}: {error.strerror}; give a page that has the line {BEGIN}") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"--output {page} lacks the lines {BEGIN} and {END}; add them where the tables belong")
    if lines is not None:
        page.write_text("\n".join([f"{before}{BEGIN}", "", *lines, "", f"{END}{after}"]), encoding="utf-8")
