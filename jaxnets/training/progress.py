"""What a person sees while a run trains: a live bar on a terminal, one line an epoch elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from tqdm import tqdm

_SECONDS_A_LINE = 30


class Progress:
    """Progress through `steps` steps on standard error. Use as a context manager."""

    def __init__(self, steps: int) -> None:
        self._live = sys.stderr.isatty()
        self._bar = tqdm(
            total=steps,
            unit="step",
            disable=not self._live,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}, {remaining} left",
        )

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        self._bar.write(line, file=sys.stderr)

    def advance(self, epoch: int, epochs: int, metrics: Mapping[str, float], images_per_second: float) -> None:
        """Counts a step, and shows the metrics of the epoch so far."""
        self._bar.set_postfix_str(
            f"epoch {epoch}/{epochs}, loss {metrics['loss']:.3f}, accuracy {metrics['accuracy']:.1%}, "
            f"{images_per_second:.0f} images/s",
            refresh=False,
        )
        self._bar.update()

    def end_epoch(
        self,
        epoch: int,
        epochs: int,
        train: Mapping[str, float],
        test: Mapping[str, float],
        images_per_second: float,
        seconds_left: float,
    ) -> None:
        """Prints what an epoch brought."""
        self.say(
            f"epoch {epoch}/{epochs}: train loss {train['loss']:.3f}, train accuracy {train['accuracy']:.1%}, "
            f"test accuracy {test['accuracy']:.2%}, {images_per_second:.0f} images/s, {clock(seconds_left)} left"
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


@contextmanager
def counting(description: str, total: int) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """A bar on standard error for something counted up to `total`; a line now and then where that is no terminal.

    Gives `done(count)` and `say(line)`.
    """
    live = sys.stderr.isatty()
    bar = tqdm(
        total=total,
        desc=description,
        leave=False,
        disable=not live,
        dynamic_ncols=True,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left",
    )
    started = said = time.perf_counter()

    def done(count: int) -> None:
        nonlocal said
        bar.update(count - bar.n)
        now = time.perf_counter()
        if not live and now - said > _SECONDS_A_LINE and count < total:
            said = now
            say(f"{description}: {count:,} of {total:,}, {clock((now - started) / count * (total - count))} left")

    def say(line: str) -> None:
        bar.write(line, file=sys.stderr)

    with bar:
        yield done, say


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
