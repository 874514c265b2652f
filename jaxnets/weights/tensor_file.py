"""Opens files of named tensors in torch's formats and in safetensors. The content determines the format."""

import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxnets.errors import InputError
from jaxnets.weights.pickle_values import shown
from jaxnets.weights.safetensors_file import SafetensorsFile
from jaxnets.weights.state_dicts import architectures_named, find_state_dict, without_prefix
from jaxnets.weights.tensors import Spec, shown_path
from jaxnets.weights.torch_file import TorchFile

_IN_TAR = (b"storages\0", b"tensors\0", b"pickle\0")


class About(NamedTuple):
    """What a file says beside its tensors.

    `metadata` is that of safetensors. `architectures` are the names of networks that the file gives. `others` are
    entries of the state dict that are no tensors, with their types. `choice` says which of several sets of weights was
    read.
    """

    metadata: dict[str, str]
    architectures: list[str]
    others: dict[str, Any]
    choice: str | None


class TensorFile(Mapping[str, np.ndarray]):
    """An open file of tensors. Each access reads a tensor and may raise InputError.

    `specs` has the dtypes and shapes.
    """

    def __init__(
        self, path: Path, specs: dict[str, Spec], about: About, read: Callable[[str], np.ndarray], opened: ExitStack
    ) -> None:
        self.path, self.specs, self.about = path, specs, about
        self._read, self._opened = read, opened

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of a safetensors file."""
        return self.about.metadata

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


def open_tensors(path: Path, key: str | None = None, head: str | None = None) -> TensorFile:
    """Opens a safetensors file, or a file of torch.save with a state dict or a checkpoint that contains one.

    `key` is that of the state dict in a checkpoint; without it, a moving average is preferred to plain weights. Removes
    prefixes that wrappers add to every name, unless there is a tensor `head`, that of the network. Runs no code from
    the file. Raises InputError, before any tensor is read, if the file is unreadable or damaged, or has other content.
    """
    read: Callable[[str], np.ndarray]
    with _errors_of(path), ExitStack() as opened:
        file = opened.enter_context(_regular_file(path))
        if _is_safetensors(file):
            if key is not None:
                raise InputError(f"is a safetensors file, which has no keys of state dicts; leave out the key {key}")
            reader = SafetensorsFile(file, path)
            specs, read = reader.specs, reader.read
            named = [reader.metadata[name] for name in ("architecture", "arch") if name in reader.metadata]
            about = About(reader.metadata, named, {}, None)
        else:
            specs, about, read = _open_torch(TorchFile(file), key)
        if not specs:
            raise InputError("has no tensors")
        # The modules of a network may have the names of wrappers.
        short = _unchanged if head in specs else without_prefix(specs)
        names = {short(name): name for name in specs}
        about = about._replace(others={short(name): value for name, value in about.others.items()})
        return TensorFile(
            path, {name: specs[names[name]] for name in names}, about, lambda name: read(names[name]), opened.pop_all()
        )


def _open_torch(file: TorchFile, key: str | None) -> tuple[dict[str, Spec], About, Callable[[str], np.ndarray]]:
    found = find_state_dict(file.value, key)
    choice = None
    if key is not None and not (found.is_average or found.other_key):
        choice = f"read the weights under {key}"
    elif found.is_average:
        choice = f"read the moving average of the weights{f' ({found.key})' if found.key else ''}"
    elif found.other_key:
        choice = f"read the weights without averaging ({found.key})"
    if choice and found.other_key:
        what = "the weights without averaging" if found.is_average else "their moving average"
        choice += f"; weights_key {found.other_key} (--weights-key) reads {what}"
    elif found.unread:
        choice = f"read the weights without averaging ({found.key}); {found.unread} has no tensors of the same names"
    about = About({}, architectures_named(file.value), found.others, choice)
    return file.check(found.tensors), about, lambda name: file.read(found.tensors[name])


def _unchanged(name: str) -> str:
    return name


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
