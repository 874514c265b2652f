"""Opens files of named tensors in torch's formats and in safetensors. The content determines the format."""

import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxnets.errors import InputError
from jaxnets.weights.pickles import Tensor, kind_of, shown
from jaxnets.weights.safetensors_file import SafetensorsFile
from jaxnets.weights.tensors import Spec, shown_path
from jaxnets.weights.torch_file import TorchFile

# Keys of the state dict in checkpoints.
_KEYS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
# Prefixes that torch's wrappers (DataParallel, compile) add to every name.
_PREFIXES = ("module.", "_orig_mod.")
_IN_TAR = (b"storages\0", b"tensors\0", b"pickle\0")


class TensorFile(Mapping[str, np.ndarray]):
    """An open file of tensors. Each access reads a tensor and may raise InputError.

    `specs` has the dtypes and shapes. Only safetensors files have `metadata`.
    """

    def __init__(
        self,
        path: Path,
        specs: dict[str, Spec],
        metadata: dict[str, str],
        read: Callable[[str], np.ndarray],
        opened: ExitStack,
    ) -> None:
        self.path, self.specs, self.metadata = path, specs, metadata
        self._read, self._opened = read, opened

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.specs:
            raise KeyError(name)
        with _errors_of(self.path, name):
            return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def open_tensors(path: Path) -> TensorFile:
    """Opens a safetensors file, or a file of torch.save with a state dict or a checkpoint that contains one.

    Removes prefixes that torch's wrappers add to every name. Runs no code from the file. Raises InputError, before any
    tensor is read, if the file is unreadable or damaged, or has other content.
    """
    with _errors_of(path), ExitStack() as opened:
        file = opened.enter_context(_regular_file(path))
        if _is_safetensors(file):
            reader = SafetensorsFile(file, path)
            specs, metadata, read = reader.specs, reader.metadata, reader.read
        else:
            torch_file = TorchFile(file)
            tensors = _state_dict(torch_file.value)
            specs, metadata = torch_file.check(tensors), {}

            def read(name: str) -> np.ndarray:
                return torch_file.read(tensors[name])

        if not specs:
            raise InputError("has no tensors")
        names = dict(zip(_unwrapped(specs), specs, strict=True))
        return TensorFile(
            path,
            {name: specs[names[name]] for name in names},
            metadata,
            lambda name: read(names[name]),
            opened.pop_all(),
        )


@contextmanager
def _errors_of(path: Path, tensor: str | None = None) -> Iterator[None]:
    subject = shown_path(path) if tensor is None else f"{shown_path(path)} has a tensor {shown(tensor)} that"
    try:
        yield
    except InputError as error:
        raise InputError(f"{subject} {error}") from None
    except OSError as error:
        raise InputError(f"{subject} can't be read ({error.strerror or error})") from None
    except MemoryError:
        raise InputError(f"{subject} does not fit into the available memory") from None


def _regular_file(path: Path) -> BinaryIO:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise InputError("is a folder; expected a file of weights")
    if not stat.S_ISREG(mode):
        raise InputError("is a device or a pipe; expected a file of weights")
    return path.open("rb")


def _is_safetensors(file: BinaryIO) -> bool:
    """Whether the file is in safetensors format rather than torch's. Raises InputError if it is in neither."""
    head = file.read(512)
    if not head:
        raise InputError("is empty; expected weights")
    if head.startswith(b"version https://git-lfs"):
        raise InputError("is a git-lfs pointer, not the file itself; fetch the file with git lfs pull")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and b"\0" not in head[:8]:
        raise InputError("is a web page, not weights; download the file again")
    if head[257:262] == b"ustar" or head.startswith(_IN_TAR):
        raise InputError("is in torch's tar format of 2016; load it with torch.load and save it with torch.save")
    if head[8:9] == b"{":
        return True
    if head.startswith((b"PK\3\4", b"\x80")):
        return False
    raise InputError("is not a file of weights; expected torch's format or safetensors")


def _state_dict(value: Any) -> dict[str, Tensor]:
    if not isinstance(value, dict):
        raise InputError(f"contains a {kind_of(value)}; expected a dictionary of tensors")
    if not value or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        nested = next((key for key in _KEYS if isinstance(value.get(key), dict)), None)
        if nested is None and not any(isinstance(tensor, Tensor) for tensor in value.values()):
            raise InputError(f"has no tensors; expected a state dict, or one under the key {', '.join(_KEYS)}")
        value = value if nested is None else value[nested]
    for name, tensor in value.items():
        if type(name) is not str:
            raise InputError(f"has a tensor with the name {shown(repr(name))}; expected text")
        if not isinstance(tensor, Tensor):
            raise InputError(f"has an entry {shown(name)} of type {kind_of(tensor)}; expected only tensors")
    return value


def _unwrapped(names: Iterable[str]) -> list[str]:
    names = list(names)
    # All names share the prefixes that the smallest and the largest name share. Each name is sliced once, as it may
    # have millions of prefixes.
    first, last, end = min(names), max(names), 0
    while prefix := next((p for p in _PREFIXES if first.startswith(p, end) and last.startswith(p, end)), None):
        end += len(prefix)
    return [name[end:] for name in names]
