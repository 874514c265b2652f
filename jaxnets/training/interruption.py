"""SIGTERM and Ctrl-C: a run saves what it has and ends, within seconds, whatever it is doing."""

import os
import signal
import socket
import sys
import threading
import time
from types import FrameType, TracebackType

import jax

from jaxnets.training.parallel import Parallel

# Between what people and schedulers wait for (Kubernetes and Slurm: 30 s by default) and what a step may take.
_SECONDS_TO_SAVE = 9.0
# Launchers signal a process and then its whole group: that is one request.
_SECONDS_OF_ONE_REQUEST = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """The run was asked to end, and its state is saved. `exit_code` is 128 and the signal's number: 143 or 130."""

    def __init__(self, signal_number: int | None) -> None:
        number = signal_number or signal.SIGTERM  # of another process
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Interruption:
    """Notices SIGTERM and Ctrl-C, even while compiled code runs. Use as a context manager, in the main thread.

    Before `can_save` is set there is nothing to lose, and the process ends at once. Afterwards `requested` holds the
    signal's number; the run is expected to save and end. If it has not within 9 s, or if there is a second signal, the
    process ends with what was saved before.
    """

    def __init__(self) -> None:
        self.can_save = False
        self.requested: int | None = None
        self._requested_at = 0.0
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "Interruption":
        # Python runs its handlers between two instructions, so not during minutes of compiling; the number of a signal
        # arrives in the socket at once.
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
                _end(number, "")
            if self.requested is not None:
                if time.monotonic() - self._requested_at < _SECONDS_OF_ONE_REQUEST:
                    continue
                _end(number, "ended by a second signal; what was saved before is kept")
            self.requested, self._requested_at = number, time.monotonic()
            print(f"\n{signal.Signals(number).name}: saving ...", file=sys.stderr, flush=True)
            self._timer = threading.Timer(
                _SECONDS_TO_SAVE, _end, (number, "could not save in time; the checkpoint before is kept")
            )
            self._timer.daemon = True
            self._timer.start()


class Vote:
    """Whether any process was asked to end; all of them hear it after the same number of calls."""

    def __init__(self, interruption: Interruption, parallel: Parallel) -> None:
        self._interruption = interruption
        self._parallel = parallel
        self._before: bool | jax.Array = False

    def __call__(self) -> bool:
        asked = self._interruption.requested is not None
        if self._parallel.process_count == 1:
            return asked
        # What was asked before the last call: by now the processes have told each other.
        before, self._before = self._before, self._parallel.anywhere(asked)
        return bool(before)


def _ignore(number: int, frame: FrameType | None) -> None:
    """The watching thread has seen it; without a handler there would be no number in the socket."""


def _end(number: int, line: str) -> None:
    print(line or "interrupted", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(128 + number)
