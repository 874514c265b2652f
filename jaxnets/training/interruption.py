"""SIGTERM and Ctrl-C: a run saves its state and ends within seconds."""

import os
import signal
import socket
import sys
import threading
import time
from types import FrameType, TracebackType

import jax

from jaxnets.training.parallel import Parallel

# Less than schedulers wait (Kubernetes and Slurm: 30 s by default), more than a step takes.
_SECONDS_TO_SAVE = 9.0
# Launchers signal a process and then its group; both signals are one request.
_SECONDS_OF_ONE_REQUEST = 1.0
_NOTHING_NEW = (
    "nothing was saved before the first step; give the same command again, with --resume if it has a --workdir"
)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """The run was asked to end, and its state is saved. `exit_code` is 128 plus the signal number: 143 or 130."""

    def __init__(self, signal_number: int | None) -> None:
        number = signal_number or signal.SIGTERM  # another process got the signal
        super().__init__(f"{_name(number)}: all is saved; the same command with --resume goes on")
        self.exit_code = 128 + number


class Interruption:
    """Watches for SIGTERM and Ctrl-C, also while compiled code runs. Use as a context manager in the main thread.

    While `can_save` is false, a signal ends the process at once, with a line that tells whether all is `saved`.
    Otherwise `requested` becomes the number of the
    signal, and the run has 9 s to save its state, to set `saved`, and to end. After that, or after a second signal, the
    process ends with its last checkpoint.
    """

    def __init__(self) -> None:
        self.can_save = False
        self.saved = False
        self.requested: int | None = None
        self._requested_at = 0.0
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "Interruption":
        # Python calls signal handlers between two instructions, so not during minutes of compilation; the wakeup socket
        # gets the number of the signal at once.
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = {number: signal.signal(number, _ignore) for number in _SIGNALS}
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="signals")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._writer.close()
        self._thread.join()
        self._reader.close()
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self) -> None:
        while True:
            received = self._reader.recv(1)
            if not received:
                return
            number = received[0]
            if number not in _SIGNALS:
                continue
            if not self.can_save:
                _end(number, str(Interrupted(number)) if self.saved else f"{_name(number)}: {_NOTHING_NEW}")
            if self.requested is not None:
                if time.monotonic() - self._requested_at < _SECONDS_OF_ONE_REQUEST:
                    continue
                self._end_with_checkpoint(number, "ended by a second signal")
            self.requested, self._requested_at = number, time.monotonic()
            print(f"\n{_name(number)}: saving ...", file=sys.stderr, flush=True)
            self._timer = threading.Timer(
                _SECONDS_TO_SAVE, self._end_with_checkpoint, (number, "could not save in time")
            )
            self._timer.daemon = True
            self._timer.start()

    def _end_with_checkpoint(self, number: int, reason: str) -> None:
        if self.saved:
            _end(number, str(Interrupted(number)))
        _end(number, f"{reason}; the last checkpoint is kept")


class Vote:
    """Tells all processes, after the same number of calls, whether any of them was asked to end."""

    def __init__(self, interruption: Interruption, parallel: Parallel) -> None:
        self._interruption = interruption
        self._parallel = parallel
        self._before: bool | jax.Array = False

    def __call__(self) -> bool:
        asked = self._interruption.requested is not None
        if self._parallel.process_count == 1:
            return asked
        # The answer of the call before, whose computation has finished by now.
        before, self._before = self._before, self._parallel.in_any_process(asked)
        return bool(before)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Does nothing: without a handler, Python would not write to the socket that the watching thread reads."""


def _name(number: int) -> str:
    return signal.Signals(number).name


def _end(number: int, line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(128 + number)
