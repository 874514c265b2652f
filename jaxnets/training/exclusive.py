"""A folder that one run uses at a time."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from jaxnets.errors import InputError

LOCK = ".jaxnets-lock"
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)


class Exclusive:
    """The lock of an existing folder, from creation to `release()` or the end of the process, however it ends.

    Another process, or another thread, that asks for it meanwhile gets an InputError. On systems without locks
    (Windows, some network drives) every process gets it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._descriptor = self._locked()

    def release(self, *, remove: bool = False) -> None:
        """Lets others have the folder; with `remove`, the file of the lock is removed."""
        if remove:
            with suppress(OSError):
                self._path.unlink()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _locked(self) -> int | None:
        try:
            import fcntl
        except ImportError:
            return None
        while True:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # the run that had the lock has removed the folder
                self._path.parent.mkdir(parents=True, exist_ok=True)
                continue
            except OSError as error:
                if error.errno not in _NO_RIGHT:
                    raise InputError(f"{self._path} can't be opened ({error.strerror})") from None
                try:
                    descriptor = os.open(self._path, os.O_RDONLY)  # of another user; a lock needs no right to write
                except OSError:
                    return None  # a folder that can't be written is refused, with the reason, when the run writes to it
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise InputError(
                    f"another run is using {self._path.parent}; wait for its end, or give another --workdir"
                ) from None
            except OSError:
                os.close(descriptor)
                return None
            with suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    return descriptor
            os.close(descriptor)  # the process that had the lock has removed its file
