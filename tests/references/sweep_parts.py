"""The network of the sweep of weight files in torch, and what its writers share."""

import argparse
import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

CLASSES = 10
IMAGES = np.random.default_rng(0).integers(-8, 9, (2, 16, 16, 3)).astype(np.float32) / 4


class Block(nn.Module):
    """A basic block with torchvision's names; its shortcut has no weights (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return (y + functional.pad(shortcut, (0, 0, 0, 0, 0, self.added))).relu()


class ResNet8(nn.Module):
    """The ResNet of CIFAR with one block a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2))
        self.layer3 = nn.Sequential(Block(32, 64, 2))
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn1(self.conv1(x)).relu()
        return self.fc(self.layer3(self.layer2(self.layer1(y))).mean((2, 3)))


def network(seed: int) -> ResNet8:
    """A network whose weights are few different numbers, exact in float16 and bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    model = ResNet8().eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            values = torch.randint(-2, 3, tensor.shape, generator=generator) / 8.0
            if "bn" in name and name.endswith(("weight", "running_var")):
                values = values.abs() + 0.75
            tensor.copy_(values)
        else:
            tensor.fill_(7)
    return model


class Sweep:
    """Files in a folder, with what is expected of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expected: dict[str, dict[str, Any]] = {}
        self._logits: dict[int, list[Any]] = {}

    def read(self, name: str, write: Callable[[Path], None], model: nn.Module, key: str | None = None) -> None:
        """A file that is read as the weights of `model`, in torch's own arithmetic."""
        if id(model) not in self._logits:
            with torch.no_grad():
                images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
                self._logits[id(model)] = copy.deepcopy(model).eval()(images).tolist()
        self._add(name, write, {"logits": self._logits[id(model)], "key": key})

    def refuse(self, name: str, write: Callable[[Path], None], *words: str, key: str | None = None) -> None:
        """A file that is refused with these words."""
        self._add(name, write, {"refused": list(words), "key": key})

    def _add(self, name: str, write: Callable[[Path], None], expected: dict[str, Any]) -> None:
        assert name not in self.expected, name
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write(path)
        self.expected[name] = expected


def saved(value: Any, **options: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path, **options)


def without_checksums(value: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.serialization.set_crc32_options(False)
        torch.save(value, path)
        torch.serialization.set_crc32_options(True)

    return write


def safe(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Callable[[Path], None]:
    import safetensors.torch

    return lambda path: safetensors.torch.save_file(tensors, path, metadata)


def changed(model: nn.Module, name: str, value: Any, at: Any = None) -> dict[str, Any]:
    """The state dict with another tensor, or with one other value in a tensor."""
    state = OrderedDict(copy.deepcopy(model.state_dict()))
    if at is None:
        state[name] = value
    else:
        state[name].view(-1)[at] = value
    return state


def namespace(model: str) -> argparse.Namespace:
    return argparse.Namespace(model=model, lr=0.1, device=torch.device("cpu"), output_dir=Path("out"))


def training_state(model: nn.Module) -> dict[str, Any]:
    """What torchvision's references save beside the weights, with few values."""
    head = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5, momentum=0.5)
    head(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60, 60])
    return {"optimizer": optimizer.state_dict(), "lr_scheduler": scheduler.state_dict(), "epoch": 3}


def averaged(model: nn.Module) -> nn.Module:
    """AveragedModel as torchvision's references use it."""

    def ema(average: Any, current: Any, count: Any) -> Any:
        return average * 0.5 + current * 0.5

    return torch.optim.swa_utils.AveragedModel(model, "cpu", ema, use_buffers=True)
