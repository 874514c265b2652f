"""Writes torch_formats/: small files of torch.save and safetensors, and expected.npz with their tensors.

Needs torch and safetensors (made with 2.14.1 and 0.8.0):  python -m tests.references.make_torch_formats
"""

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

FOLDER = Path(__file__).parent / "torch_formats"
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def every_dtype() -> dict[str, torch.Tensor]:
    tensors = {}
    for name in DTYPES:
        dtype = getattr(torch, name)
        values = torch.randn(3, 5, dtype=torch.float64) * 50
        if name in ("uint8", "bool"):
            values = values.relu()
        tensors[name] = values.to(dtype)
        tensors[f"{name}.none"] = torch.zeros(2, 0, 3, dtype=dtype)
        tensors[f"{name}.single"] = torch.ones((), dtype=dtype)
    for name in ("float64", "float32", "float16", "bfloat16"):
        tensors[name][0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    return tensors


def views() -> dict[str, torch.Tensor]:
    base = torch.arange(120, dtype=torch.float32).reshape(4, 5, 6)
    halves = torch.arange(24).to(torch.bfloat16).reshape(4, 6)
    return {
        "whole": base,
        "transposed": base.permute(2, 0, 1),
        "sliced": base[1:3, ::2, 1:4],
        "column": base[:, 2, 3],
        "single": base[3, 4, 5],
        "none": base[2:2],
        "expanded": torch.tensor([[1.5], [2.5]]).expand(2, 7),
        "expanded_single": torch.tensor(3, dtype=torch.int16).expand(3, 2),
        "windows": torch.arange(10).unfold(0, 4, 2),
        "halves.transposed": halves.T,
        "halves.sliced": halves[1:, 3:],
        "bools.transposed": (base[0] > 11).T,
        "tied.weight": halves,
        "tied.weight_again": halves,
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }


def network() -> torch.nn.Module:
    layers = (torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    model = torch.nn.Sequential(OrderedDict(zip(("conv", "bn", "flat", "fc"), layers, strict=True)))
    model(torch.randn(2, 3, 3, 3))
    return model


def checkpoint(model: torch.nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model(torch.randn(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    return {
        "epoch": 7,
        "arch": "réseau",
        "best_acc1": torch.tensor(0.5),
        "history": [(0, 1.5), (1, None)],
        "dtype": torch.float32,
        "size": torch.Size([3, 4]),
        "large": 1 << 40,
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


def main() -> None:
    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    model = network()
    saved = checkpoint(model)
    dtypes, viewed = every_dtype(), views()
    contents: dict[str, tuple[Any, dict[str, torch.Tensor]]] = {
        "dtypes": (dtypes, dtypes),
        "views": (viewed, viewed),
        "module": (model.state_dict(), model.state_dict()),
        "parameters": (dict(model.named_parameters()), dict(model.named_parameters())),
        "parallel": (torch.nn.DataParallel(model).state_dict(), model.state_dict()),
        "wrapped": ({f"module._orig_mod.module.{k}": v for k, v in model.state_dict().items()}, model.state_dict()),
        "partly_wrapped": (partly := {"module.a": torch.ones(2), "b": torch.zeros(1)}, partly),
        "checkpoint": (saved, saved["state_dict"]),
        "nested": ({"epoch": 3, "model": saved["state_dict"], "lr": 0.1}, saved["state_dict"]),
    }
    expected = {}
    for name, (value, tensors) in contents.items():
        torch.save(value, FOLDER / f"{name}.pth")
        torch.save(value, FOLDER / f"{name}.legacy.pth", _use_new_zipfile_serialization=False)
        for key, tensor in tensors.items():
            expected[f"{name}/{key}"] = as_array(tensor)
    # Pickle protocol 2 has no opcode for bytes, and would call a function.
    saved["raw"] = b"\0\1"
    for protocol in (3, 4, 5):
        torch.save(saved, FOLDER / f"checkpoint.protocol{protocol}.pth", pickle_protocol=protocol)
        torch.save(
            saved,
            FOLDER / f"checkpoint.legacy.protocol{protocol}.pth",
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=False,
        )
    safetensors.torch.save_file(dtypes, FOLDER / "dtypes.safetensors", {"format": "pt", "what": "every dtype, ü"})
    safetensors.torch.save_file(model.state_dict(), FOLDER / "module.safetensors")
    np.savez_compressed(FOLDER / "expected.npz", **expected)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor as an array; bfloat16 as its bits in uint16, which no other tensor has."""
    tensor = tensor.detach().contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
