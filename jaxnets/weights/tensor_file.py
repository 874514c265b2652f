"""Any file of weights as a mapping of names to arrays, each read when it is asked for."""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from jaxnets.errors import InputError
from jaxnets.weights.pickles import TensorRef
from jaxnets.weights.safetensors_file import SafetensorsFile
from jaxnets.weights.torch_file import Spec, TorchFile, dtype_of

# Where checkpoints of training keep the state dict among other things, the likeliest first.
_NESTED = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
# What DataParallel and torch.compile put before all names.
_PREFIXES = ("module.", "_orig_mod.")


class TensorFile(Mapping[str, np.ndarray]):
    """The tensors of a file, with their `specs` and, of safetensors, `metadata`. Use as a context manager.

    Raises InputError, naming the file, the tensor and the reason, for whatever is wrong with either.
    """

    def __init__(
        self, path: Path, specs: dict[str, Spec], read: Callable[[str], np.ndarray], metadata: dict[str, str]
    ) -> None:
        self.path = path
        self.specs = specs
        self.metadata = metadata
        self._read = read
        self._stack = ExitStack()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.specs:
            raise KeyError(name)
        return _explained(self.path, lambda: self._read(name), f"tensor {name!a}: ")

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def open_tensors(path: Path) -> TensorFile:
    """The tensors of a .pth or .pt file of torch, zip or older, or of a .safetensors file; its contents say which.

    The state dict may lie in a dict under a usual name, and all of its names begin with "module." or "_orig_mod.".
    """
    return _explained(path, lambda: _open(path))


def _open(path: Path) -> TensorFile:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError("it is a folder, not a file" if stat.S_ISDIR(status.st_mode) else "it is not a regular file")
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise InputError("it is empty")
    # First, as the length before the brace may be any eight bytes, also those that another format begins with.
    if start[8:9] == b"{":
        return _open_safetensors(path, status.st_size, int.from_bytes(start[:8], "little"))
    if start.startswith((b"PK", b"\x80")):
        return _open_torch(path, status.st_size)
    if start[257:262] == b"ustar":
        raise InputError("it is in the tar format of torch before 0.1.9; load and save it again with torch")
    if start.startswith(b"version https://git-lfs"):
        raise InputError("it is a pointer of git-lfs, not the file itself; fetch that with git lfs pull")
    if start.lstrip()[:1] == b"<":
        raise InputError("it is a web page, not weights; download the file itself")
    raise InputError("it is neither a file of torch nor safetensors")


def _open_safetensors(path: Path, size: int, header: int) -> TensorFile:
    if 8 + header > size:
        raise InputError(f"its header should have {header:,} bytes, the file has {size:,}; is it cut short?")
    tensors = SafetensorsFile(path)
    names = _without_prefixes(list(tensors.specs))
    specs = {new: tensors.specs[old] for new, old in names.items()}
    return TensorFile(path, specs, lambda name: tensors.read(names[name]), tensors.metadata)


def _open_torch(path: Path, size: int) -> TensorFile:
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        torch_file = TorchFile.open(file, size)
        state = _state_dict(torch_file.contents)
        for name, tensor in state.items():
            try:
                torch_file.check(tensor)
            except InputError as error:
                raise InputError(f"tensor {name!a}: {error}") from None
        names = _without_prefixes(list(state))
        tensors = {new: state[old] for new, old in names.items()}
        specs = {name: Spec(dtype_of(ref.storage.dtype), ref.shape) for name, ref in tensors.items()}
        found = TensorFile(path, specs, lambda name: torch_file.read(tensors[name]), {})
        found._stack = stack.pop_all()
    return found


def _state_dict(contents: Any) -> dict[str, TensorRef]:
    if not isinstance(contents, dict):
        raise InputError(f"it holds a {type(contents).__name__}, not a state dict; save model.state_dict()")
    if not all(isinstance(value, TensorRef) for value in contents.values()):
        nested = [contents[name] for name in _NESTED if isinstance(contents.get(name), dict)]
        contents = nested[0] if nested else contents
    if not contents:
        raise InputError("it holds no tensors")
    for name, value in contents.items():
        if not isinstance(name, str):
            raise InputError(f"its state dict has {name!a} for a name; expected text")
        if not isinstance(value, TensorRef):
            raise InputError(f"its entry {name!a} is a {type(value).__name__.lstrip('_')}, not a tensor")
    return contents


def _without_prefixes(names: list[str]) -> dict[str, str]:
    """The names without what all of them begin with, to what they were."""
    found = {name: name for name in names}
    while prefix := next((p for p in _PREFIXES if found and all(name.startswith(p) for name in found)), None):
        found = {name.removeprefix(prefix): old for name, old in found.items()}
    return found


def _explained(path: Path, act: Callable[[], Any], prefix: str = "") -> Any:
    """What `act` gives. What it raises becomes one InputError: parsers raise many types for files that are damaged."""
    try:
        return act()
    except InputError as error:
        reason = str(error)
    except OSError as error:
        reason = f"it can't be read ({error.strerror or error})"
    except Exception as error:
        reason = f"it is damaged ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]})"
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    raise InputError(f"{shown}: {prefix}{reason}")
