"""Downloads published weights once, resuming interrupted downloads, and verifies them at each use."""

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

# Attempts in a row without progress, and the seconds by which the pause between them grows.
_ATTEMPTS = 5
_PAUSE = 1.0
_TIMEOUT = 30.0
_CHUNK = 1 << 16


class _Failed(Exception):
    """The server does not provide the file, for this reason."""

    def __init__(self, reason: object) -> None:
        # Messages of servers and http.client may have several lines.
        super().__init__(" ".join(str(reason).split()) or type(reason).__name__)


class _Broken(_Failed):
    """A connection broke; another attempt may succeed."""


class _Unreachable(_Broken):
    """No connection could be made."""


def fetch(weights: PublishedWeights) -> Path:
    """Returns the cached file of published weights. Downloads it if it is missing or its checksum is wrong.

    The cache is `cache_folder()`. Raises InputError, with the file's URL and path, if the download fails.
    """
    path = cache_folder() / weights.file_name
    try:
        if path.exists() and _is_published(path, weights):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(path) as part:
            if path.exists():
                if _is_published(path, weights):  # another process was first
                    return path
                say(f"{path} does not match its published checksum; downloading it again")
            if not (_size(part) and _is_published(part, weights)):
                say(f"downloading {weights.url} ({weights.megabytes:.0f} MB) to {path}")
                _download(weights.url, part)
                _check(part, weights)
            part.replace(path)
    except (_Failed, OSError) as error:
        reason = f"{error.filename or path}: {error.strerror}" if isinstance(error, OSError) else error
        raise InputError(
            f"can't download {weights.url} ({reason}); download it elsewhere and copy it to {path}, or give the path "
            "of a copy as the weights (--weights PATH); JAXNETS_CACHE sets another folder"
        ) from None
    return path


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """The cache folder: $JAXNETS_CACHE, else jaxnets in $XDG_CACHE_HOME, else ~/.cache/jaxnets."""
    folder = os.environ.get("JAXNETS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "jaxnets")
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError:
        raise InputError(f"{folder}: the home folder is unknown; set JAXNETS_CACHE to a folder for downloads") from None


def _is_published(path: Path, weights: PublishedWeights) -> bool:
    return sha256_of(path).startswith(weights.sha256_prefix)


def _check(part: Path, weights: PublishedWeights) -> None:
    if (sha256 := sha256_of(part)).startswith(weights.sha256_prefix):
        return
    part.unlink()
    raise _Failed(f"the download has SHA-256 {sha256[:8]}..., expected {weights.sha256_prefix}..., and was deleted")


@contextmanager
def _exclusive(path: Path) -> Iterator[Path]:
    """Waits while another process downloads the same file. Yields the path to download to."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        if _locked(lock.fileno(), path.name):
            yield path.with_name(f"{path.name}.part")
            return
    # Without locks each process downloads to a separate file.
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _locked(descriptor: int, name: str) -> bool:
    """Locks an open file until it is closed. Returns False on systems without locks (Windows, some network drives)."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that downloads {name}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _download(url: str, part: Path) -> None:
    """Downloads the rest of a file, in several attempts if necessary."""
    before = most = _size(part)
    attempts = 0
    while True:
        try:
            return _resume(url, part)
        except _Broken as error:
            # Counts attempts without progress, which also ends if the server restarts the file each time.
            attempts = 1 if _size(part) > most else attempts + 1
            most = max(most, _size(part))
            if attempts == _ATTEMPTS or (isinstance(error, _Unreachable) and most == before):
                raise
        time.sleep(_PAUSE * attempts)


def _resume(url: str, part: Path) -> None:
    """Downloads the rest of a file over one connection. Raises _Broken if the connection ends early."""
    have = _size(part)
    with _connected(url, part, have) as response:
        if response.status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != have:
                part.unlink(missing_ok=True)
                content_range = response.headers.get("Content-Range")
                raise _Broken(f"the server's Content-Range is {content_range}; expected it to start at byte {have}")
            total = int(match[2])
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
    """Requests the file from byte `have` on."""
    headers = {"User-Agent": "jaxnets"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if have and error.code == 416:  # range not satisfiable: the server has no more than `have` bytes
            part.unlink()
            raise _Broken(f"the server's file has no bytes after {have}") from None
        error_type = _Broken if error.code >= 500 or error.code in (408, 429) else _Failed
        raise error_type(f"HTTP {error.code} {error.reason}") from None
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


def say(line: str) -> None:
    """Prints a line on standard error."""
    print(line, file=sys.stderr, flush=True)
