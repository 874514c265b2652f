"""What a study is: claims with their criteria, stated before anything is measured, a measurement, and figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.studies.lab import Lab

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "not decided here"
Measured = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """A claim of the course, and the criterion that decides it.

    `number` says what `value` computes from the measurements of one seed, with its unit. The claim holds if that number
    is above (or below) the bound for every seed, and does not hold if it is so for none. Otherwise it is not decided,
    and `scale` says what would decide it. With `margin`, a number that is no further than that from the bound decides
    nothing: chance alone could put it on either side. `value` is None for what this machine can't measure.
    """

    name: str
    text: str
    number: str
    value: Callable[[Measured], float | None]
    above: float | None = None
    below: float | None = None
    scale: str = "more seeds and longer runs"
    margin: float = 0.0

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            raise ValueError(f"{self.name}: give one of above and below")

    @property
    def criterion(self) -> str:
        """The criterion in words."""
        bound = f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"
        return f"{self.number}: {bound}" + (f" by more than {self.margin:g}" if self.margin else "")

    def judge(self, measured: Sequence[Measured]) -> "Verdict":
        """The verdict from the measurements of each seed."""
        values = [float(value) for value in map(self.value, measured) if value is not None]
        beyond = [value - self.above if self.above is not None else (self.below or 0.0) - value for value in values]
        known = len(values) == len(measured)
        met = known and all(distance > self.margin for distance in beyond)
        missed = known and all(distance <= -self.margin for distance in beyond)
        return Verdict(self, HOLDS if met else FAILS if missed else UNDECIDED, values)


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds, with its number for each seed."""

    claim: Claim
    verdict: str
    values: list[float]

    @property
    def mean(self) -> float | None:
        """The mean of the number over the seeds; None if it was not measured."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def deviation(self) -> float:
        """The standard deviation of the number over the seeds; 0 for one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON."""
        claim = self.claim
        return {
            "claim": claim.name,
            "text": claim.text,
            "criterion": claim.criterion,
            "number": claim.number,
            "values": self.values,
            "mean": self.mean,
            "deviation": self.deviation,
            "verdict": self.verdict,
            "scale": claim.scale if self.verdict == UNDECIDED else None,
        }


@dataclass(frozen=True)
class Drawing:
    """A figure, with what it shows (`alt`, for those who can't see it) and what to see in it (`caption`)."""

    name: str
    figure: "Figure"
    alt: str
    caption: str


@dataclass(frozen=True)
class Table:
    """A table, whose first column names the rows."""

    name: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | int]]


@dataclass(frozen=True)
class Study:
    """A few claims that one measurement decides.

    `measure(lab, settings)` measures with the seed of the lab, and returns JSON; `draw(measured)` gets the measurements
    of all seeds. `quick` and `full` are the settings of either scale. `why` explains the claims in three sentences;
    `source` names the papers and their sections. The texts in Chinese are in chinese/NAME.json. `harder` studies read
    Fashion-MNIST where it is found, as digits are too easy for them. `exact` studies don't depend on the seed: they are
    measured once. `seconds` is the time on two CPU cores at quick scale; it weighs the progress display.
    """

    name: str
    title: str
    why: str
    source: str
    claims: tuple[Claim, ...]
    measure: Callable[["Lab", Any], dict[str, Any]]
    draw: Callable[[Sequence[Measured]], Sequence[Drawing | Table]]
    quick: Any
    full: Any
    seconds: float
    harder: bool = False
    exact: bool = False

    def judge(self, measured: Sequence[Measured]) -> list[Verdict]:
        """The verdict of each claim."""
        return [claim.judge(measured) for claim in self.claims]
