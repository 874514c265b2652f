"""Opens files in a separate process with little memory and time, and reports any attempt to run code.

python hostile_worker.py ROOT files FOLDER              each file of a folder
python hostile_worker.py ROOT mutations FOLDER COUNT [FIRST]    COUNT changes of its files, from number FIRST

Prints a line of JSON for each file: the outcome, and the message or the fault.
"""

import hashlib
import io
import json
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any

# Importing jaxnets itself would import jax, which reserves gigabytes of address space.
for name in ("jaxnets", "jaxnets.weights"):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [str(Path(sys.argv[1], *name.split(".")))]
sys.path.insert(0, sys.argv[1])

from jaxnets.errors import InputError  # noqa: E402
from jaxnets.weights import torch_file  # noqa: E402
from jaxnets.weights.tensor_file import open_tensors  # noqa: E402

# Of processor time, which other programs on the machine do not change.
MEMORY, SECONDS = 400 << 20, 5
# Reading a file must not cause any of these events, nor open another file.
FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "pickle.find_class",
    "marshal.",
    "ctypes.",
    "socket.",
    "subprocess.",
    "shutil.",
)
FORBIDDEN += ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.remove", "os.rename", "os.mkdir")
FORBIDDEN += ("mmap.", "tempfile.", "code.", "object.__", "builtins.input", "builtins.breakpoint")


class Fault(BaseException):
    """An exception that readers must not catch."""


class Watch:
    """Whether a file is being read, and the forbidden events meanwhile."""

    path: str | None = None
    faults: list[str] = []  # noqa: RUF012  there is one


def on_event(event: str, arguments: tuple) -> None:
    if Watch.path is None:
        return
    opens_another = event == "open" and (str(arguments[0]) != Watch.path or "r" not in (arguments[1] or "r"))
    if event.startswith(FORBIDDEN) or opens_another:
        fault = f"{event} {arguments!r}"[:200]
        Watch.faults.append(fault)
        raise Fault(fault)


def on_alarm(*_: Any) -> None:
    Watch.faults.append(f"took more than {SECONDS} s")
    raise Fault("too slow")


def outcome_of(path: Path) -> dict[str, Any]:
    """Opens a file and reads every tensor."""
    started, Watch.path = time.process_time(), str(path)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        outcome, message = "accepted", digest_of(path)
    except InputError as error:
        outcome, message = "refused", str(error)
    except BaseException as error:
        outcome, message = "failed", f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        Watch.path = None
    if Watch.faults:
        outcome, message = "failed", "; ".join(Watch.faults)
        Watch.faults.clear()
    return {"outcome": outcome, "message": message, "seconds": time.process_time() - started}


def digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open_tensors(path) as tensors:
        for name in sorted(tensors):
            array, spec = tensors[name], tensors.specs[name]
            assert type(name) is str
            assert (array.dtype, array.shape) == spec
            assert array.flags.c_contiguous
            # Reads every byte.
            digest.update(f"{name!r} {spec}".encode() + array.tobytes())
        assert all(type(text) is str for item in tensors.metadata.items() for text in item)
    return digest.hexdigest()


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at, length = chance.randrange(len(changed) + 1), int(2 ** chance.uniform(0, 10))
        match chance.choice(("bits", "byte", "number", "cut", "insert", "splice", "zeros", "remove", "repeat")):
            case "bits":
                for _ in range(chance.randint(1, 4)):
                    if changed:
                        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            case "byte":
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case "number":
                number = chance.choice((0, 1, 2, 0x7F, 0xFF, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1, 1 << 63))
                width = chance.choice((1, 2, 4, 8))
                changed[at : at + width] = number.to_bytes(8, chance.choice(("little", "big")))[:width]
            case "cut":
                del changed[at:]
            case "insert":
                changed[at:at] = chance.randbytes(min(length, 64))
            case "splice":
                other = chance.choice(others)
                start = chance.randrange(len(other))
                changed[at : at + length] = other[start : start + length]
            case "zeros":
                changed[at : at + length] = bytes(len(changed[at : at + length]))
            case "remove":
                del changed[at : at + length]
            case "repeat":
                changed[at:at] = changed[at : at + length]
    return bytes(changed)


def repacked(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """The archive with a changed pickle and the right checksum."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(target, "w") as changed:
        for entry in archive.infolist():
            content = archive.read(entry)
            changed.writestr(entry.filename, mutated(content, others, chance) if "pkl" in entry.filename else content)
    return target.getvalue()


def main() -> None:
    _, _, what, folder, *count = sys.argv
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix != ".npz")
    warnings.simplefilter("ignore")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    signal.signal(signal.SIGPROF, on_alarm)
    sys.addaudithook(on_event)
    if what == "files":
        for path in paths:
            print(json.dumps({"file": path.name, **outcome_of(path)}), flush=True)
        return
    contents = [path.read_bytes() for path in paths]
    pickles = [content for content in contents if content[:1] == b"\x80"]
    originals = [outcome_of(path) for path in paths]
    assert all(original["outcome"] == "accepted" for original in originals), originals
    if os.environ.get("JAXNETS_TESTS_WITH_PLAIN_PICKLE"):  # a test sees that it fails then
        torch_file.read_pickle = lambda file, _: types.SimpleNamespace(value=pickle.load(file), storages={})
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "changed.pth")
        first = int(count[1]) if len(count) > 1 else 0
        for number in range(first, first + int(count[0])):
            chance = random.Random(number)
            base = number % len(contents)
            is_zip = contents[base][:2] == b"PK"
            repack = is_zip and chance.random() < 0.6
            change = repacked if repack else mutated
            path.write_bytes(change(contents[base], pickles if repack else contents, chance))
            result = outcome_of(path)
            result["same"] = result["message"] == originals[base]["message"]
            kind = "repacked" if repack else "zip" if is_zip else "stream" if contents[base][:1] == b"\x80" else "safe"
            print(json.dumps({"file": f"{number}, of {paths[base].name}", "kind": kind, **result}), flush=True)


if __name__ == "__main__":
    main()
