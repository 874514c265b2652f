"""Whether a checkpoint could not be read because it is damaged, or for another reason."""

import errno
from collections.abc import Collection, Sequence
from pathlib import Path

import jax

from jaxnets.errors import InputError, first_line
from jaxnets.weights.file_checksums import DamagedError, check_files

# Errors of the system that say nothing about the contents of a file, by number and in tensorstore's words.
_NO_MEMORY = ({errno.ENOMEM}, ("RESOURCE_EXHAUSTED", "out of memory", "Cannot allocate memory"))
_NO_RIGHT = ({errno.EACCES, errno.EPERM}, ("PERMISSION_DENIED", "Permission denied"))
_NOT_NOW = (
    {
        *(errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EROFS, errno.EDQUOT),
        *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
    },
    ("UNAVAILABLE", "DEADLINE_EXCEEDED", "Too many open files", "Stale file handle", "Input/output error"),
)


def damage_of(error: Exception, folder: Path) -> DamagedError:
    """What is damaged in a checkpoint that was not read because of `error`.

    Raises InputError if the cause is another one, such as memory or permissions.
    """
    if isinstance(error, InputError):
        raise error
    try:
        if not isinstance(error, DamagedError):
            _check_cause(error, folder)
        as_written = check_files(folder)
    except DamagedError as damage:
        return damage
    except OSError as cause:
        _check_cause(cause, folder)
        as_written = False
    reason = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, DamagedError):
        return error
    if as_written:
        raise InputError(
            f"{folder} can't be read ({reason}), but its files are as they were written; use the versions of jaxnets "
            "and orbax that wrote it"
        ) from None
    return DamagedError(reason)


def _check_cause(error: Exception, folder: Path) -> None:
    """Raises InputError if `error` is due to memory, permissions or the like."""
    number, text = error.errno if isinstance(error, OSError) else None, str(error)

    def is_one_of(numbers: Collection[int], words: Sequence[str]) -> bool:
        return number in numbers or any(word in text for word in words)

    if is_one_of(*_NO_MEMORY) or isinstance(error, MemoryError):
        advice = "the memory is full; end other programs"
    elif is_one_of(*_NO_RIGHT):
        advice = "check the permissions"
    elif is_one_of(*_NOT_NOW) or isinstance(error, jax.errors.JaxRuntimeError):
        advice = "check the system, and try again"
    else:
        return
    reason = first_line(error) or type(error).__name__
    raise InputError(f"{folder} can't be read now ({reason}); {advice}") from None
