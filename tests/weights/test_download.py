"""Downloads from a local server that interrupts connections and sends errors and wrong data."""

import errno
import hashlib
import io
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError
from jaxnets.weights import download
from jaxnets.weights.catalogue import PublishedWeights
from jaxnets.weights.download import fetch, sha256_of

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = f"network-{SHA256[:8]}.pth"


class Server(ThreadingHTTPServer):
    """Serves `content`, and records the Range of each request and the number of bytes sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.log: list[tuple[str | None, int]] = []
        # For each of the next connections: the status, and the number of bytes after which it breaks or stalls.
        self.statuses: list[int] = []
        self.breaks: list[int] = []
        self.stalls: list[int] = []
        self.knows_ranges = True
        self.tells_length = True
        self.shift = 0
        # Bytes to send in place of a valid HTTP response.
        self.answer: bytes | None = None
        self.asked, self.may_answer, self.over = threading.Event(), threading.Event(), threading.Event()
        self.may_answer.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/{NAME}"

    @property
    def ranges(self) -> list[str | None]:
        return [asked for asked, _ in self.log]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.set()
        server.may_answer.wait(30)
        if server.answer is not None:
            server.log.append((asked, 0))
            self.wfile.write(server.answer)
            return None
        if server.statuses:
            server.log.append((asked, 0))
            return self.send_error(server.statuses.pop(0))
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.knows_ranges else 0
        size = len(server.content)
        if start >= size:
            server.log.append((asked, 0))
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            return self.end_headers()
        self.send_response(206 if asked and server.knows_ranges else 200)
        if asked and server.knows_ranges:
            start = max(0, start - server.shift)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if server.tells_length:
            self.send_header("Content-Length", str(size - start))
        body = server.content[start:]
        if server.breaks:
            body = body[: server.breaks.pop(0)]
        stalls = bool(server.stalls)
        if stalls:
            body = body[: server.stalls.pop(0)]
        server.log.append((asked, len(body)))  # before the client has the headers and may ask again
        self.end_headers()
        self.wfile.write(body)
        if stalls:
            self.wfile.flush()
            server.over.wait(20)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAXNETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "_PAUSE", 0.001)
    return tmp_path / "cache"


@pytest.fixture
def part(cache: Path) -> Path:
    """The path of an interrupted download."""
    cache.mkdir()
    return cache / f"{NAME}.part"


def weights_at(url: str) -> PublishedWeights:
    size = len(CONTENT) / 1024**2
    return PublishedWeights(
        "resnet18", "IMAGENET1K_V1", url, SHA256[:8], size, Preprocessing(224, 256), 69.8, 89.1, "https://..."
    )


@pytest.fixture
def weights(server: Server) -> PublishedWeights:
    return weights_at(server.url)


@pytest.fixture
def offline() -> PublishedWeights:
    """Weights at an address without a server."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    return weights_at(f"http://127.0.0.1:{port}/models/{NAME}")


def failure(weights: PublishedWeights, path: Path) -> str:
    """The error of `fetch`, which must be one line with the URL and the path for the file."""
    with pytest.raises(InputError) as raised:
        fetch(weights)
    line = str(raised.value)
    assert "\n" not in line
    assert weights.url in line
    assert f"copy it to {path}, or give the path of a copy as the weights (--weights PATH)" in line
    return line


def test_a_file_is_downloaded_once(
    server: Server, weights: PublishedWeights, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fetch(weights)
    assert path == cache / NAME
    assert path.read_bytes() == CONTENT
    assert server.log == [(None, len(CONTENT))]
    assert sorted(file.name for file in cache.iterdir()) == [NAME, f"{NAME}.lock"]
    assert capsys.readouterr().err == f"downloading {server.url} (0 MB) to {path}\n"
    assert fetch(weights) == path
    assert len(server.log) == 1
    assert capsys.readouterr().err == ""


def test_where_the_cache_is(weights: PublishedWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert fetch(weights) == tmp_path / "cache" / NAME
    monkeypatch.delenv("JAXNETS_CACHE")
    assert fetch(weights) == tmp_path / "xdg" / "jaxnets" / NAME
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fetch(weights) == tmp_path / "home" / ".cache" / "jaxnets" / NAME
    monkeypatch.setenv("JAXNETS_CACHE", "~/there")
    assert fetch(weights) == tmp_path / "home" / "there" / NAME


def test_a_missing_home_folder_is_reported(weights: PublishedWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("JAXNETS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(InputError, match=r"~/.cache/jaxnets: the home folder is unknown; set JAXNETS_CACHE"):
        fetch(weights)


def test_a_cached_file_needs_neither_network_nor_write_permission(offline: PublishedWeights, cache: Path) -> None:
    cache.mkdir()
    (cache / NAME).write_bytes(CONTENT)
    assert fetch(offline).read_bytes() == CONTENT
    assert [file.name for file in cache.iterdir()] == [NAME]


def test_an_interrupted_download_resumes(server: Server, weights: PublishedWeights, part: Path) -> None:
    part.write_bytes(CONTENT[:123_456])
    assert fetch(weights).read_bytes() == CONTENT
    assert server.log == [("bytes=123456-", len(CONTENT) - 123_456)]
    assert not part.exists()


def test_a_complete_part_is_used(offline: PublishedWeights, part: Path) -> None:
    part.write_bytes(CONTENT)
    assert fetch(offline).read_bytes() == CONTENT
    assert not part.exists()


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 1], ids=["as long", "longer"])
def test_a_wrong_part_of_full_length_is_downloaded_again(
    server: Server, weights: PublishedWeights, part: Path, size: int
) -> None:
    part.write_bytes(b"x" * size)
    assert fetch(weights).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={size}-", None]


def test_without_range_support_the_download_restarts(server: Server, weights: PublishedWeights, part: Path) -> None:
    server.knows_ranges = False
    part.write_bytes(b"x" * 1000)
    assert fetch(weights).read_bytes() == CONTENT
    assert server.log == [("bytes=1000-", len(CONTENT))]


def test_a_wrong_range_is_not_appended(server: Server, weights: PublishedWeights, part: Path) -> None:
    server.shift = 10
    part.write_bytes(CONTENT[:1000])
    assert fetch(weights).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-", None]


def test_a_broken_connection_is_resumed(server: Server, weights: PublishedWeights) -> None:
    server.breaks = [100_000, 50_000, 1]
    assert fetch(weights).read_bytes() == CONTENT
    assert server.log == [
        (None, 100_000),
        ("bytes=100000-", 50_000),
        ("bytes=150000-", 1),
        ("bytes=150001-", 149_999),
    ]


def test_any_number_of_interruptions_is_allowed_while_bytes_arrive(server: Server, weights: PublishedWeights) -> None:
    server.breaks = [10_000] * (3 * download._ATTEMPTS)
    assert fetch(weights).read_bytes() == CONTENT
    assert len(server.log) == 3 * download._ATTEMPTS + 1


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_it_gives_up_without_progress(
    server: Server, weights: PublishedWeights, cache: Path, knows_ranges: bool
) -> None:
    server.knows_ranges = knows_ranges
    server.breaks = [5000] + [0 if knows_ranges else 5000] * 100
    assert "broke after 5000 of 300000 bytes" in failure(weights, cache / NAME)
    # The first attempt made progress, the following ones did not.
    assert len(server.log) == download._ATTEMPTS
    assert (cache / f"{NAME}.part").read_bytes() == CONTENT[:5000]


def test_a_stalled_connection_is_replaced(
    server: Server, weights: PublishedWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_TIMEOUT", 0.2)
    server.stalls = [2 * download._CHUNK]
    started = time.monotonic()
    assert fetch(weights).read_bytes() == CONTENT
    assert time.monotonic() - started < 10
    assert server.ranges == [None, f"bytes={2 * download._CHUNK}-"]


def test_a_file_with_a_wrong_checksum_is_not_kept(server: Server, weights: PublishedWeights, cache: Path) -> None:
    server.content = CONTENT[:-1] + b"?"
    found = hashlib.sha256(server.content).hexdigest()
    assert f"SHA-256 {found[:8]}..., expected {SHA256[:8]}..." in failure(weights, cache / NAME)
    assert [file.name for file in cache.iterdir()] == [f"{NAME}.lock"]


def test_an_interruption_without_a_content_length_is_detected(
    server: Server, weights: PublishedWeights, cache: Path
) -> None:
    server.tells_length = False
    server.breaks = [1000]
    assert "SHA-256" in failure(weights, cache / NAME)
    assert fetch(weights).read_bytes() == CONTENT


@pytest.mark.parametrize("damaged", [CONTENT[:-1] + b"?", CONTENT[:-1], b""], ids=["changed", "cut", "empty"])
def test_a_damaged_cached_file_is_downloaded_again(
    server: Server,
    weights: PublishedWeights,
    offline: PublishedWeights,
    cache: Path,
    damaged: bytes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = fetch(weights)
    path.write_bytes(damaged)
    capsys.readouterr()
    assert fetch(weights).read_bytes() == CONTENT
    assert server.log == [(None, len(CONTENT))] * 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{path} does not match its published checksum; downloading it again"
    assert len(lines) == 2

    path.write_bytes(damaged)
    failure(offline, path)
    assert path.read_bytes() == damaged  # a failed download keeps the file


def test_a_missing_file_is_requested_once(server: Server, weights: PublishedWeights, cache: Path) -> None:
    server.statuses = [404] * 10
    assert "(HTTP 404 Not Found)" in failure(weights, cache / NAME)
    assert len(server.log) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"no HTTP\r\n\r\n", "(no HTTP)"),
        (b"HTTP/1.0 206 Partial Content\r\n\r\nxyz", "Content-Range is None; expected it to start at byte 0"),
        (b"HTTP/1.0 302 Found\r\nLocation: /models/network.pth\r\n\r\n", "infinite loop"),
        (b"HTTP/1.0 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "not allowed"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: many\r\n\r\nxyz", "SHA-256"),
    ],
    ids=["no HTTP", "part unasked for", "circle", "file", "no length"],
)
def test_an_invalid_response_is_reported_in_one_line(
    server: Server, weights: PublishedWeights, cache: Path, answer: bytes, reason: str
) -> None:
    server.answer = answer
    assert reason in failure(weights, cache / NAME)


def test_a_busy_server_is_retried(server: Server, weights: PublishedWeights, cache: Path) -> None:
    server.statuses = [503, 429, 500]
    assert fetch(weights).read_bytes() == CONTENT
    server.statuses = [503] * 10
    (cache / NAME).unlink()
    assert "(HTTP 503 Service Unavailable)" in failure(weights, cache / NAME)
    assert len(server.log) == 4 + download._ATTEMPTS


def test_no_server(offline: PublishedWeights, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PAUSE", 100.0)  # fails without waiting
    assert "Connection refused" in failure(offline, cache / NAME)


def test_no_network(weights: PublishedWeights, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(download, "_PAUSE", 100.0)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "Name or service not known" in failure(weights, cache / NAME)


def test_a_short_network_failure_is_retried(
    server: Server, weights: PublishedWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    urlopen, requests = download.urllib.request.urlopen, []

    def gone(*args: Any, **options: Any) -> Any:
        requests.append(args)
        if len(requests) == 2:
            raise urllib.error.URLError(OSError(errno.ENETUNREACH, "Network is unreachable"))
        return urlopen(*args, **options)

    monkeypatch.setattr(download.urllib.request, "urlopen", gone)
    server.breaks = [100_000]
    assert fetch(weights).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]
    assert len(requests) == 3


def test_a_cache_that_is_not_a_folder(weights: PublishedWeights, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file")
    assert f"{cache}: File exists" in failure(weights, cache / NAME)
    monkeypatch.setenv("JAXNETS_CACHE", str(cache / "below"))
    assert f"{cache / 'below'}: Not a directory" in failure(weights, cache / "below" / NAME)


def test_a_full_disk(server: Server, weights: PublishedWeights, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, chunk: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    open_ = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *mode: Full() if path == part else open_(path, *mode))
    assert "No space left on device" in failure(weights, part.with_suffix(""))
    assert len(server.log) == 1


def test_threads_share_one_download(server: Server, weights: PublishedWeights) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(fetch, [weights] * 4))
    assert [path.read_bytes() for path in paths] == [CONTENT] * 4
    assert len(server.log) == 1


def test_without_locks_downloads_are_separate(
    server: Server, weights: PublishedWeights, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    server.breaks = [1000, 1000]
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(fetch, [weights] * 4))
    assert [path.read_bytes() for path in paths] == [CONTENT] * 4
    assert sorted(file.name for file in cache.iterdir()) == [NAME, f"{NAME}.lock"]


@pytest.mark.slow
def test_a_process_waits_for_the_download_of_another(server: Server, cache: Path) -> None:
    code = (
        "from jaxnets.weights.download import fetch; from tests.weights.test_download import weights_at\n"
        f"print(fetch(weights_at({server.url!r})))"
    )

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    server.may_answer.clear()
    server.breaks = [1000]
    first = start()
    assert server.asked.wait(60)
    second = start()
    assert second.stderr is not None
    assert second.stderr.readline() == f"waiting for another process that downloads {NAME}\n"
    server.may_answer.set()
    for process in (first, second):
        assert process.communicate(timeout=60)[0] == f"{cache / NAME}\n"
    assert (cache / NAME).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-"]


def test_a_terminal_shows_a_progress_bar(
    server: Server, weights: PublishedWeights, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    part.write_bytes(CONTENT[:150_000])
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fetch(replace(weights, megabytes=97.8))
    shown = terminal.getvalue()
    assert f"downloading {server.url} (98 MB) to" in shown
    assert f"{NAME}:  50%" in shown
    assert "146kB/293kB" in shown
    assert "left" in shown


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
