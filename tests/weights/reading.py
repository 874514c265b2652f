"""Reads files in a process of its own, with little memory and time, where nothing may be executed.

python -m tests.weights.reading hostile FOLDER: each file of a folder; prints a JSON line of what became of it.
python -m tests.weights.reading mutated FOLDER COUNT SCRATCH: so many mutations of its files, one by one at SCRATCH.
"""

import json
import resource
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from jaxnets.errors import InputError
from jaxnets.weights.tensor_file import open_tensors

_MEMORY = 512 << 20
_SECONDS = 5
_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class", "import")
_FORBIDDEN += ("exec", "compile", "socket.connect", "os.remove", "shutil.rmtree", "ctypes.dlopen")


class Executed(BaseException):
    """Something ran, or was about to; not an Exception, so that nobody swallows it."""


class TooSlow(BaseException):
    """A file took more than its time."""


def restrict() -> None:
    import encodings.cp437  # noqa: F401  of zip archives

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def refuse(event: str, arguments: Any) -> None:
        if event in _FORBIDDEN:
            raise Executed(f"{event} {str(arguments)[:100]}")

    def stop(*_: Any) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, stop)
    sys.addaudithook(refuse)


def attempt(path: Path) -> dict[str, Any]:
    """What becomes of a file: "read" with a digest of it, "refused" with the message, or what should not be."""
    signal.alarm(_SECONDS)
    started = time.perf_counter()
    try:
        with open_tensors(path) as tensors:
            digest = sha256()
            for name, spec in sorted(tensors.specs.items()):
                array = tensors[name]
                digest.update(f"{name} {spec}".encode() + array.tobytes())
                if (array.dtype, array.shape) != spec or not isinstance(name, str):
                    return {"outcome": "inconsistent", "message": name}
        outcome, message = "read", digest.hexdigest()
    except InputError as error:
        outcome, message = "refused", str(error)
    except BaseException as error:
        outcome, message = f"raised {type(error).__name__}", str(error)[:200]
    finally:
        signal.alarm(0)
    return {"outcome": outcome, "message": message, "seconds": time.perf_counter() - started}


def mutated(data: bytes, others: list[bytes], random: np.random.Generator) -> bytes:
    """The bytes with one to four changes: bits, numbers, ranges, cuts, insertions, pieces of other files."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 5)):
        place = int(random.integers(len(changed) + 1))
        length = int(2 ** random.uniform(0, 9))
        match random.integers(8):
            case 0 | 1:
                for spot in random.integers(len(changed), size=random.integers(1, 8)) if changed else ():
                    changed[spot] ^= 1 << int(random.integers(8))
            case 2:
                changed[place : place + 4] = int(random.choice([0, 1, 255, 1 << 31, (1 << 32) - 1])).to_bytes(
                    4, "little"
                )
            case 3:
                changed[place : place + length] = bytes(len(changed[place : place + length]))
            case 4:
                del changed[place : place + length]
            case 5:
                del changed[place:]
            case 6:
                changed[place:place] = random.bytes(length)
            case 7:
                other = others[int(random.integers(len(others)))]
                start = int(random.integers(len(other)))
                changed[place : place + length] = other[start : start + length]
    return bytes(changed)


def main() -> None:
    folder = Path(sys.argv[2])
    if sys.argv[1] == "hostile":
        restrict()
        for path in sorted(folder.iterdir()):
            print(json.dumps({"file": path.name, **attempt(path)}), flush=True)
        return
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".pth", ".safetensors")]
    contents = [path.read_bytes() for path in files]
    random, path = np.random.default_rng(0), Path(sys.argv[4])
    restrict()
    for number in range(int(sys.argv[3])):
        data = contents[number % len(contents)]
        while (changed := mutated(data, contents, random)) == data:
            pass
        path.write_bytes(changed)
        print(json.dumps({"file": f"{number} of {files[number % len(files)].name}", **attempt(path)}), flush=True)


if __name__ == "__main__":
    main()
