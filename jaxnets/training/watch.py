"""Watches the processes of a run: if one is dead or stopped, all end, and say which one it was and in which step."""

import os
import sys
import threading
import time
from contextlib import suppress
from itertools import count
from types import TracebackType
from typing import Any

from jaxnets.errors import InputError
from jaxnets.training.interruption import Interrupted
from jaxnets.training.parallel import Parallel

# Below half of `parallel.SECONDS_OF_SILENCE`, after which JAX gives up on process 0, with a page of its own.
_SECONDS_OF_SILENCE = 12.0
_SECONDS_BETWEEN_BEATS = 0.5
# Process 0 ends last: without it JAX ends the others at once.
_SECONDS_OF_PROCESS_0 = 3.0
_SECONDS_OF_A_CALL = 60
_DONE = "done"
_NAME = "jaxnets/process/"


class Watch:
    """Watches the other processes of a run while it is entered; does nothing with one process.

    Each process writes its step twice a second to the store of JAX's coordination service, by a thread of its own, so a
    long compilation is no silence. When a process is silent for 12 s, the others end with one line and exit code 1. If
    JAX has no such store any more, its own heartbeats end the processes within 30 s, without a line of this kind.
    """

    def __init__(self, parallel: Parallel) -> None:
        self._rank, self._count = parallel.process_index, parallel.process_count
        self._step = 0
        self._left, self._writing = threading.Event(), threading.Lock()
        self._store: Any = _store() if self._count > 1 else None
        self._last_word = f"jaxnets/last-word/{self._rank}/{time.time_ns()}"
        # Of each process, what it wrote last, and when it was first seen here.
        self._seen: dict[int, tuple[str, float]] = {}

    def at(self, step: int) -> None:
        """Tells the others how many steps this process has taken."""
        self._step = step

    def __enter__(self) -> "Watch":
        if self._store is not None:
            self._seen[0] = ("", time.monotonic())  # its store has not been reached yet
            tasks = [self._beat, self._look] + [self._wait_for_process_0] * (self._rank > 0)
            self._threads = [threading.Thread(target=task, daemon=True) for task in tasks]
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._store is None:
            return
        failed = error is not None and not isinstance(error, InputError | Interrupted | KeyboardInterrupt)
        if failed:
            # A collective operation fails at once when a process dies; which one it was is known after its silence.
            self._left.wait(_SECONDS_OF_SILENCE + _SECONDS_OF_PROCESS_0 + 4)
        with self._writing:  # no step may be written after the last word
            self._left.set()
            if not failed:
                self._write(_NAME + str(self._rank), _DONE)
                self._write(self._last_word, _DONE)
        # A call that is still waiting when JAX leaves the store would end this process.
        for thread in self._threads:
            thread.join(2)

    def _beat(self) -> None:
        for number in count():
            with self._writing:
                if self._left.is_set():
                    return
                self._write(_NAME + str(self._rank), f"{number} {self._step}")
            self._read()
            self._left.wait(_SECONDS_BETWEEN_BEATS)

    def _write(self, name: str, text: str) -> None:
        with suppress(Exception):  # of several types, when process 0 is dead
            self._store.key_value_set(name, text, allow_overwrite=True)

    def _read(self) -> None:
        """Notes what is new; without process 0 there is nothing to read, so it is silent then."""
        try:
            texts = {int(name.rpartition("/")[2]): text for name, text in self._store.key_value_dir_get(_NAME)}
        except Exception:  # of several types, when process 0 is dead
            return
        now = time.monotonic()
        for rank, text in texts.items():
            if self._seen.get(rank, ("", 0.0))[0] != text:
                self._seen[rank] = (text, now)

    def _look(self) -> None:
        while not self._left.wait(_SECONDS_BETWEEN_BEATS):
            for rank, (text, since) in sorted(self._seen.copy().items()):
                if rank != self._rank and text != _DONE and time.monotonic() - since > _SECONDS_OF_SILENCE:
                    self._end(rank, text, since)

    def _wait_for_process_0(self) -> None:
        """Notices at once when process 0, which has the store, dies: JAX then ends this one in a moment."""
        while not self._left.is_set():
            try:
                self._store.blocking_key_value_get(self._last_word, 1000 * _SECONDS_OF_A_CALL)
            except Exception as error:  # of several types
                if "UNAVAILABLE" in str(error) and not self._left.is_set():
                    self._end(0, *self._seen[0])

    def _end(self, rank: int, text: str, since: float) -> None:
        silent = time.monotonic() - since
        step = int(text.split()[1]) if text else self._step
        line = (
            f"error: process {rank} of {self._count} has not answered for {silent:.0f} s, after step {step:,}: it is "
            "dead or stopped, so all processes end; the same command with --resume goes on from the last checkpoint"
        )
        print(f"\n{line}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        if self._rank == 0:
            time.sleep(_SECONDS_OF_PROCESS_0)
        os._exit(1)


def _store() -> Any:
    """The key-value store of JAX's coordination service; None if this version has none of this form."""
    try:
        from jax._src.distributed import global_state

        client: Any = global_state.client
        for text in ("first", "second"):
            client.key_value_set("jaxnets/self-test/0", text, allow_overwrite=True)
        return client if client.key_value_dir_get("jaxnets/self-test/") == [("jaxnets/self-test/0", "second")] else None
    except Exception:  # whatever a later version raises
        return None
