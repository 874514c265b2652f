"""Files of tensors by name, in torch's formats or safetensors, which is told by their content."""

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

# Where checkpoints have the state dict, with other things beside it.
_KEYS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
# What torch's wrappers of a network put before every name.
_PREFIXES = ("module.", "_orig_mod.")
_IN_TAR = (b"storages\0", b"tensors\0", b"pickle\0")


class TensorFile(Mapping[str, np.ndarray]):
    """An open file, whose tensors are read when they are asked for, each time. Raises InputError where they can't be.

    `specs` has their types and shapes; `metadata` is empty but for safetensors.
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
    """Opens weights: a state dict that torch.save wrote, alone or within a checkpoint, or a safetensors file.

    A prefix that torch's wrappers gave every name is taken off. Nothing in the file is run. Raises InputError for a
    file that can't be read, that is damaged, or that holds something else, before a tensor is read.
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
            raise InputError("holds no tensors")
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
    which = shown_path(path) if tensor is None else f"{shown_path(path)} has a tensor {shown(tensor)} that"
    try:
        yield
    except InputError as error:
        raise InputError(f"{which} {error}") from None
    except OSError as error:
        raise InputError(f"{which} can't be read ({error.strerror or error})") from None
    except MemoryError:
        raise InputError(f"{which} does not fit into the memory that is left") from None


def _regular_file(path: Path) -> BinaryIO:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise InputError("is a folder; expected a file of weights")
    if not stat.S_ISREG(mode):
        raise InputError("is a device or a pipe; expected a file of weights")
    return path.open("rb")


def _is_safetensors(file: BinaryIO) -> bool:
    """Whether it is, or else may be torch's. Raises InputError for what is neither."""
    head = file.read(512)
    if not head:
        raise InputError("is empty; expected weights")
    if head.startswith(b"version https://git-lfs"):
        raise InputError("is a pointer of git-lfs, not the file itself; fetch it with git lfs pull")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and b"\0" not in head[:8]:
        raise InputError("is a web page, not weights; download the file again")
    if head[257:262] == b"ustar" or head.startswith(_IN_TAR):
        raise InputError("is in torch's tar format of 2016; load it with torch.load and save it with torch.save")
    if head[8:9] == b"{":
        return True
    if head.startswith((b"PK\3\4", b"\x80")):
        return False
    raise InputError("is no file of torch, nor of safetensors; expected weights in one of them")


def _state_dict(value: Any) -> dict[str, Tensor]:
    if not isinstance(value, dict):
        raise InputError(f"holds a {kind_of(value)}; expected a dictionary of tensors")
    if not value or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        nested = next((key for key in _KEYS if isinstance(value.get(key), dict)), None)
        if nested is None and not any(isinstance(tensor, Tensor) for tensor in value.values()):
            raise InputError(f"holds no tensors by name, neither as such nor as {', '.join(_KEYS)}")
        value = value if nested is None else value[nested]
    for name, tensor in value.items():
        if type(name) is not str:
            raise InputError(f"holds a tensor with the name {shown(repr(name))}; expected text")
        if not isinstance(tensor, Tensor):
            raise InputError(f"holds {shown(name)}, which is a {kind_of(tensor)}; expected only tensors beside it")
    return value


def _unwrapped(names: Iterable[str]) -> list[str]:
    names = list(names)
    # What the first and the last in order share, all share. A name may have millions of prefixes, so it is cut once.
    first, last, end = min(names), max(names), 0
    while prefix := next((p for p in _PREFIXES if first.startswith(p, end) and last.startswith(p, end)), None):
        end += len(prefix)
    return [name[end:] for name in names]
