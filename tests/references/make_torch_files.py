"""Writes torch_files/: small files of weights as torch and safetensors write them, and what they hold (expected.npz).

Needs torch and safetensors (made with 2.14.1 and 0.8.0):  python -m tests.references.make_torch_files
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).with_name("torch_files")


def dtypes() -> dict[str, torch.Tensor]:
    """Every supported type, one number and none, infinities and NaN."""
    values = torch.arange(-6, 6).reshape(3, 4)
    tensors = {
        str(dtype).removeprefix("torch."): (values.abs() if dtype is torch.uint8 else values).to(dtype)
        for dtype in (
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
            *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        )
    }
    tensors["scalar"] = torch.tensor(3.5)
    tensors["empty"] = torch.zeros(0, 3)
    tensors["special"] = torch.tensor([float("inf"), float("-inf"), float("nan"), -0.0, 1e-45])
    return tensors


def layouts() -> dict[str, torch.Tensor]:
    """Tensors that do not lie in their storages from end to end, or share them."""
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    half = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    return {
        "base": base,
        "same": base,
        "permuted": base.permute(2, 0, 1),
        "sliced": base[1:, ::2, 1:4],
        "row": base[2, 3],
        "expanded": torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1).expand(3, 5),
        "transposed_half": half.T,
        "channels_last": torch.arange(48, dtype=torch.float32)
        .reshape(2, 2, 3, 4)
        .to(memory_format=torch.channels_last),
    }


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        OrderedDict(conv=torch.nn.Conv2d(3, 4, 3, bias=False), bn=torch.nn.BatchNorm2d(4), fc=torch.nn.Linear(4, 2))
    )


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model.fc(model.bn(model.conv(torch.randn(2, 3, 8, 8))).mean((2, 3))).sum().backward()
    optimizer.step()
    return model, optimizer


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    model, optimizer = trained()
    parallel = torch.nn.DataParallel(network())
    checkpoint = {
        "epoch": 3,
        "arch": "tiny",
        "best": 0.5,
        "state_dict": parallel.state_dict(),
        "optimizer": optimizer.state_dict(),
        "done": None,
        "sizes": (1, [2.0, True]),
    }
    compiled = {f"module._orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    parameters = OrderedDict(model.named_parameters())
    contents: dict[str, tuple[Any, dict[str, torch.Tensor]]] = {
        "dtypes": (dtypes(), dtypes()),
        "layouts": (layouts(), layouts()),
        "module": (model.state_dict(), model.state_dict()),
        "parameters": (parameters, parameters),
        "checkpoint": (checkpoint, network().state_dict()),
        "compiled": ({"model": compiled, "step": 7}, model.state_dict()),
    }
    expected = {}
    for name, (value, tensors) in contents.items():
        torch.save(value, FOLDER / f"{name}.zip.pth")
        torch.save(value, FOLDER / f"{name}.stream.pth", _use_new_zipfile_serialization=False)
        for key, tensor in tensors.items():
            tensor = tensor.detach()
            bits = tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor
            expected[f"{name}/{tensor.dtype}/{key}".replace("torch.", "")] = np.array(bits.numpy(), order="C")
    torch.save(model.state_dict(), FOLDER / "module.protocol4.pth", pickle_protocol=4)
    save_file({k: v.contiguous() for k, v in dtypes().items()}, FOLDER / "dtypes.safetensors", {"about": "types"})
    save_file(parallel.state_dict(), FOLDER / "checkpoint.safetensors")
    np.savez_compressed(FOLDER / "expected.npz", **expected)


if __name__ == "__main__":
    main()
