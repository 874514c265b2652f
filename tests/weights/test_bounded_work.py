"""Small files can't cause unbounded work or memory, and writers refuse invalid input."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxnets.errors import InputError
from jaxnets.weights.safetensors_file import write_safetensors
from jaxnets.weights.tensor_file import open_tensors
from jaxnets.weights.tensors import Spec
from jaxnets.weights.torch_file import write_torch_file
from tests.weights.test_hostile_weights import archive, entry, integer, name, safe, state, storage, tensor, text, work

REBUILD, SIZE, ORDERED = name("torch._utils._rebuild_tensor_v2"), name("torch.Size"), name("collections.OrderedDict")


def beside(junk: bytes) -> bytes:
    """A checkpoint with a list followed by a valid state dict."""
    return archive(b"\x80\2}(" + text("junk") + b"](" + junk + b"e" + text("model") + state(a=tensor())[2:-1] + b"u.")


def again(arguments: bytes, function: bytes) -> bytes:
    """The same call of memoized values, 200,000 times."""
    return arguments + b"q\1" + function + b"q\2" + b"h\2h\1R" * 200_000


def pairs(count: int) -> bytes:
    return b"](" + b"".join(b"J" + struct.pack("<I", i) + b"N\x86" for i in range(count)) + b"e\x85"


def sides(count: int, first: bytes = b"") -> bytes:
    """A tuple of integers of 500 bits."""
    return b"(" + first + integer(1 << 500) + b"q\5" + b"h\5" * count + b"tq\6"


def shaped(size: bytes) -> bytes:
    return archive(state(a=REBUILD + b"(" + storage() + b"K\0" + size + b"h\6\x89NtR"))


ZEROS = b"(" + storage() + b"K\0(" + b"K\0" * 200_000 + b"tq\3h\3\x89Nt"
LONG_SHAPE = b'{"a":{"dtype":"F32","shape":[0' + b",9223372036854775807" * 190_000 + b'],"data_offsets":[0,0]}}'


def bombs() -> dict[str, tuple[bytes, str]]:
    """Small files whose reading would be long or large, and what is said of each."""
    return {
        "an OrderedDict copied": (beside(again(pairs(60_000), ORDERED)), "copies more than"),
        "a torch.Size copied": (beside(again(b"](" + b"K\1" * 200_000 + b"e\x85", SIZE)), "200000 dimensions"),
        "a shape looked at again": (beside(again(ZEROS, REBUILD)), "200000 dimensions"),
        "long names joined": (
            beside(text("x" * 500_000) + b"q\1" + b"h\1h\1\x93" * 200_000),
            "names of 1000000 characters",
        ),
        "names joined": (
            beside(text("x" * 490) + b"q\1" + b"h\1h\1\x93" * 300_000),
            "names of 1677",
        ),
        "a dict looked at again": (
            archive(
                b"\x80\2}("
                + text("no")
                + b"}("
                + b"".join(b"J" + struct.pack("<I", i) + b"N" for i in range(200_000))
                + b"uq\1"
                + b"".join(b"J" + struct.pack("<I", i) + b"h\1" for i in range(100_000))
                + b"u."
            ),
            "has no tensors",
        ),
        "many arguments": (beside(again(b"(" + b"N" * 200_000 + b"t", REBUILD)), "with 200000 arguments"),
        "a product of sides": (shaped(sides(400_000)), "400001 dimensions"),
        "a product with 0": (shaped(sides(400_000, b"K\0")), "400002 dimensions"),
        "a product of sides, safetensors": (safe(LONG_SHAPE, b""), "190001 dimensions"),
    }


@pytest.mark.slow
def test_small_files_take_little_time_and_memory(tmp_path: Path) -> None:
    (folder := tmp_path / "files").mkdir()
    files = bombs()
    for number, (data, _) in enumerate(files.values()):
        (folder / f"{number}").write_bytes(data)
    wrapped = "module." * 500_000
    (folder / "fine.zip").write_bytes(archive(state(**{"module." * 2_000_000 + "a": tensor()})))
    (folder / "fine.safe").write_bytes(safe({f"{wrapped}a": entry()}))
    results = {result["file"]: result for result in work("files", folder, cwd=tmp_path)}
    for form in ("zip", "safe"):
        assert results[f"fine.{form}"]["outcome"] == "accepted", results[f"fine.{form}"]["message"][:300]
    for number, (kind, (_, reason)) in enumerate(files.items()):
        assert results[f"{number}"]["outcome"] == "refused", (kind, results[f"{number}"])
        assert reason in results[f"{number}"]["message"], (kind, results[f"{number}"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["module.a", "module.b"], ["a", "b"]),
        (["module.module.a", "module.b"], ["module.a", "b"]),
        (["_orig_mod.module.a", "_orig_mod.module.module.b"], ["a", "module.b"]),
        (["module.a", "_orig_mod.a"], ["module.a", "_orig_mod.a"]),
        (["module.a", "module", "module.b"], ["module.a", "module", "module.b"]),
        (["modules.a", "module.b"], ["modules.a", "module.b"]),
    ],
)
def test_prefixes_are_removed_together(names: list[str], expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(archive(state(**{key: tensor() for key in names})))
    with open_tensors(tmp_path / "a") as tensors:
        assert list(tensors) == expected


def test_an_empty_tensor_may_have_any_offset(tmp_path: Path) -> None:
    """In torch, the slice [3:, 3:] of a 3 x 4 tensor begins at 15."""
    (tmp_path / "a").write_bytes(archive(state(a=tensor((0, 1), (4, 1), 15), b=tensor())))
    with open_tensors(tmp_path / "a") as tensors:
        assert tensors["a"].shape == (0, 1)


def pth(path: Path, specs: dict[str, Spec]) -> None:
    write_torch_file(path, specs, lambda key: np.ones(specs[key].shape, specs[key].dtype))


def safetensors(path: Path, specs: dict[str, Spec]) -> None:
    write_safetensors(path, specs, lambda key: np.ones(specs[key].shape, specs[key].dtype), {})


FLOATS = {"a": Spec(np.dtype(np.float32), (2,))}
Write = Callable[[Path, dict[str, Spec]], None]


@pytest.mark.parametrize("write", [pth, safetensors])
def test_unwritable_paths_are_reported(write: Write, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "taken.new").mkdir()
    (tmp_path / "folder").mkdir()
    for place, reason in (
        ("file/a", "Not a directory"),
        ("taken", "Is a directory"),
        ("folder", "Is a directory"),
        ("x" * 253, "File name too long"),
        ("none/a", "No such file or directory"),
    ):
        with pytest.raises(InputError, match=rf"{place} can't be written \({reason}\)"):
            write(tmp_path / place, FLOATS)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "taken.new"]
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("write", [pth, safetensors])
def test_tensors_that_a_format_lacks_are_not_written(write: Write, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tensor a has type >f4; expected one of float64"):
        write(tmp_path / "a", {"a": Spec(np.dtype(">f4"), (2,))})
    with pytest.raises(InputError, match=r"the name of tensor '\\ud800' is not Unicode"):
        write(tmp_path / "a", {"\ud800": FLOATS["a"]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [pth, safetensors])
def test_files_without_tensors_are_refused(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "a", {})
    with pytest.raises(InputError, match="a has no tensors"):
        open_tensors(tmp_path / "a")


def test_an_empty_state_dict_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(archive(state(state_dict=b"}")))
    with pytest.raises(InputError, match="a has no tensors"):
        open_tensors(tmp_path / "a")


def test_messages_have_one_line_for_any_file_name(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\nb\xff"))
    path.write_bytes(b"nonsense")
    for act in (lambda: open_tensors(path), lambda: pth(path / "a", FLOATS)):
        with pytest.raises(InputError) as raised:
            act()
        assert str(raised.value).isprintable()
        assert r"a\nb" in str(raised.value)


def test_the_length_of_a_header_may_look_like_another_format(tmp_path: Path) -> None:
    """The bytes of the length may equal the first bytes of a pickle, a zip archive or a web page."""
    for length in (0x80, 0x4B50, 0x3C):
        header = json.dumps({"a": entry()}, separators=(",", ":")).encode()
        (tmp_path / "a").write_bytes(safe(header.ljust(length)))
        with open_tensors(tmp_path / "a") as tensors:
            assert tensors["a"].tolist() == [0, 0, 0, 0]
