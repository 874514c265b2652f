"""Published files, downloaded once, going on where it broke off, and verified each time that they are used."""

import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from jaxnets.errors import InputError
from jaxnets.weights.catalogue import PublishedWeights

# Attempts in a row that bring nothing new, and the seconds that the wait between them grows by.
_ATTEMPTS = 5
_PAUSE = 1.0
_SECONDS_OF_SILENCE = 30.0
_CHUNK = 1 << 16


class _Failed(Exception):
    """The file can't be had from the server, for this reason."""

    def __init__(self, reason: object) -> None:
        # What servers and http.client say may be of several lines.
        super().__init__(" ".join(str(reason).split()) or type(reason).__name__)


class _Broken(_Failed):
    """A connection broke; the next may do better."""


class _Unreachable(_Broken):
    """There was no connection at all."""


def fetch(weights: PublishedWeights) -> Path:
    """The file of published weights in the cache, downloaded if it is missing there or is not as it was published.

    The cache is $JAXNETS_CACHE, else jaxnets in $XDG_CACHE_HOME, else ~/.cache/jaxnets. Raises InputError, with the
    address and the place for the file, where it can't be had.
    """
    path = cache_folder() / weights.file_name
    try:
        if path.exists() and _is_published(path, weights):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path) as part:
            if path.exists():
                if _is_published(path, weights):  # another process was first
                    return path
                _say(f"{path} is not as it was published; it is downloaded again")
            if not (_size(part) and _is_published(part, weights)):
                _say(f"downloading {weights.url} ({weights.megabytes:.0f} MB) to {path}")
                _download(weights.url, part)
                _check(part, weights)
            part.replace(path)
    except (_Failed, OSError) as error:
        reason = f"{error.filename or path}: {error.strerror}" if isinstance(error, OSError) else error
        raise InputError(
            f"can't download {weights.url} ({reason}); get it by other means and put it at {path}, or give the path of "
            "a copy as the weights (--weights PATH); JAXNETS_CACHE sets another folder"
        ) from None
    return path


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """For what can be made or got again: $JAXNETS_CACHE, else jaxnets in $XDG_CACHE_HOME, else ~/.cache/jaxnets."""
    folder = os.environ.get("JAXNETS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "jaxnets")
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError:
        raise InputError(f"{folder} is in no known home folder; set JAXNETS_CACHE to a folder to download to") from None


def _is_published(path: Path, weights: PublishedWeights) -> bool:
    return sha256_of(path).startswith(weights.sha256_prefix)


def _check(part: Path, weights: PublishedWeights) -> None:
    if (found := sha256_of(part)).startswith(weights.sha256_prefix):
        return
    part.unlink()
    raise _Failed(f"what came has SHA-256 {found[:8]}..., not {weights.sha256_prefix}..., and is deleted")


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """Waits while another process downloads the same file; gives where to download to."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        if _locked(lock.fileno(), path.name):
            yield path.with_name(f"{path.name}.part")
            return
    # Without locks each process has a file of its own, which no other goes on with.
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _locked(descriptor: int, name: str) -> bool:
    """Locks an open file until it is closed; False where there are no locks, on Windows and some network drives."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process, which downloads {name}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _download(url: str, part: Path) -> None:
    """Downloads what is missing of a file, in several attempts if need be."""
    before = most = _size(part)
    attempts = 0
    while True:
        try:
            return _go_on(url, part)
        except _Broken as error:
            # An attempt counts if it brought nothing new: from a server that always begins anew, too, this ends.
            attempts = 1 if _size(part) > most else attempts + 1
            most = max(most, _size(part))
            if attempts == _ATTEMPTS or (isinstance(error, _Unreachable) and most == before):
                raise
        time.sleep(_PAUSE * attempts)


def _go_on(url: str, part: Path) -> None:
    """Downloads what is missing of a file, over one connection. Raises _Broken unless all of it came."""
    have = _size(part)
    with _connected(url, part, have) as response:
        if response.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != have:
                part.unlink(missing_ok=True)
                raise _Broken(f"the server answered with {response.headers.get('Content-Range')}, not from byte {have}")
            total = int(found[2])
        else:
            have, total = 0, response.length or 0
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(
                desc=part.stem,
                initial=have,
                total=total or None,
                unit_scale=True,
                unit_divisor=1024,
                leave=False,
                disable=not sys.stderr.isatty(),
                dynamic_ncols=True,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}B/{total_fmt}B, {remaining} left",
            ) as bar,
        ):
            for chunk in _chunks(response):
                file.write(chunk)
                have += len(chunk)
                bar.update(len(chunk))
    if total and have != total:
        raise _Broken(f"the connection broke after {have} of {total} bytes")


def _connected(url: str, part: Path, have: int) -> http.client.HTTPResponse:
    """The server's answer to a request of what comes after the first `have` bytes."""
    headers = {"User-Agent": "jaxnets"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_SECONDS_OF_SILENCE)
    except urllib.error.HTTPError as error:
        error.close()
        if have and error.code == 416:  # nothing comes after them: they are too many, or all
            part.unlink()
            raise _Broken(f"the server has no {have} bytes") from None
        kind = _Broken if error.code >= 500 or error.code in (408, 429) else _Failed
        raise kind(f"HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _Unreachable(error.reason) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(error) from None


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read(_CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(error) from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
