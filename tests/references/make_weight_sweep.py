"""Writes weight_sweep.tar.xz: weight files as libraries save them, and what torch computes from each.

Needs torch, timm, lightning, accelerate and safetensors (made with 2.14.1, 1.0.31, 2.6.6, 1.15.0 and 0.8.0):
python -m tests.references.make_weight_sweep

The network is a ResNet-8 for small images, `tests.weights.small_resnet:resnet8`, with weights that compress well.
`expected.json` in the archive has an entry for each file: the logits of `IMAGES`, or the words of the refusal.
"""

import argparse
import copy
import io
import json
import lzma
import tarfile
import tempfile
import warnings
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

ARCHIVE = Path(__file__).with_name("weight_sweep.tar.xz")
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


def bare(sweep: Sweep, plain: ResNet8) -> None:
    """State dicts by torch and safetensors alone."""
    state = plain.state_dict()
    sweep.read("torch/zip.pth", saved(state), plain)
    sweep.read("torch/stream.pth", saved(state, _use_new_zipfile_serialization=False), plain)
    sweep.read("torch/protocol4.pt", saved(state, pickle_protocol=4), plain)
    sweep.read("torch/protocol5.pt", saved(state, pickle_protocol=5), plain)
    sweep.read("torch/dict.pth", saved(dict(state)), plain)
    sweep.read("torch/defaultdict.pth", saved(defaultdict(list, state)), plain)
    sweep.read("torch/no_checksums.pth", without_checksums(state), plain)
    sweep.read("torch/no_checksums_args.pth", without_checksums({"model": state, "args": namespace("resnet8")}), plain)
    floats = {name: value for name, value in state.items() if value.is_floating_point()}
    sweep.read("torch/no_counters.pth", saved(floats), plain)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        typed = {name: value.to(dtype) for name, value in floats.items()}
        sweep.read(f"torch/{str(dtype)[6:]}.pth", saved(typed), plain)
    parameters = OrderedDict((name, nn.Parameter(value)) for name, value in floats.items())
    sweep.read("torch/parameters.pth", saved(parameters), plain)
    parameters["conv1.weight"].tag = "first"
    sweep.read("torch/parameter_with_attributes.pth", saved(parameters), plain)
    tagged = changed(plain, "conv1.weight", state["conv1.weight"].clone())
    tagged["conv1.weight"].tag = "first"
    sweep.read("torch/tensor_with_attributes.pth", saved(tagged), plain)
    last = {
        name: value.to(memory_format=torch.channels_last) if value.ndim == 4 else value for name, value in state.items()
    }
    sweep.read("torch/channels_last.pth", saved(last), plain)
    sweep.read(
        "torch/beside_numbers.pth", saved({**state, "epoch": 3, "args": namespace("x"), "classes": {"a", "b"}}), plain
    )
    sweep.read("safetensors/plain.safetensors", safe(state), plain)
    sweep.read("safetensors/foreign_arch.safetensors", safe(state, {"format": "pt", "arch": "my_net"}), plain)
    sweep.read("safetensors/float16.safetensors", safe({name: value.half() for name, value in floats.items()}), plain)
    sweep.refuse("safetensors/key.safetensors", safe(state), "key.safetensors", "no keys", key="model")
    sweep.refuse("torch/no_such_key.pth", saved({"model": state}), "no weights under the key ema", "model", key="ema")
    sweep.refuse("torch/module.pth", saved(plain), "contains a", "ResNet8", "state_dict()")
    sweep.refuse("torch/module_in_checkpoint.pth", saved({"model": plain, "epoch": 3}), "no tensors", "ResNet8")
    arrays = {name: value.numpy() for name, value in state.items()}
    sweep.refuse("torch/numpy_arrays.pth", saved(arrays), "no tensors", "numpy.ndarray")


def values(sweep: Sweep, plain: ResNet8) -> None:
    """Values that no network can use."""
    for name, value, word in (("nan", float("nan"), "not finite"), ("infinity", float("inf"), "not finite")):
        sweep.refuse(
            f"values/{name}.pth",
            saved(changed(plain, "layer1.0.conv1.weight", value, 5)),
            "layer1.0.conv1.weight",
            word,
        )
        sweep.refuse(
            f"values/{name}_variance.pth", saved(changed(plain, "bn1.running_var", value, 5)), "bn1.running_var", word
        )
        sweep.refuse(f"values/{name}.safetensors", safe(changed(plain, "fc.bias", value, 5)), "fc.bias", word)
    half = {
        name: value.half() if value.is_floating_point() else value
        for name, value in changed(plain, "fc.weight", float("nan"), 3).items()
    }
    sweep.refuse("values/nan_float16.pth", saved(half), "fc.weight", "not finite")
    brain = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in changed(plain, "fc.weight", float("inf"), 3).items()
    }
    sweep.refuse("values/infinity_bfloat16.pth", saved(brain), "fc.weight", "not finite")
    sweep.refuse(
        "values/negative_variance.pth",
        saved(changed(plain, "layer2.0.bn1.running_var", -0.5, 3)),
        "layer2.0.bn1.running_var",
        "negative variances",
    )
    double = plain.fc.weight.detach().double() * 1e300
    sweep.refuse(
        "values/beyond_float32.pth",
        saved(changed(plain, "fc.weight", double)),
        "fc.weight",
        "beyond the range of float32",
    )
    conv = plain.state_dict()["layer3.0.conv2.weight"]
    weight = "layer3.0.conv2.weight"
    kinds: dict[str, tuple[Any, str]] = {
        "int8": (conv.char(), "int8"),
        "uint16": (conv.abs().to(torch.uint16), "torch.uint16"),
        "float8": (conv.to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        "complex": (conv.to(torch.complex64), "complex64"),
        "conjugated": (conv.to(torch.complex64).conj(), "conjugated tensor"),
        "sparse": (conv.to_sparse(), "sparse tensor"),
        "quantised": (torch.quantize_per_tensor(conv, 0.125, 0, torch.qint8), "quantised tensor of qint8"),
        "meta": (conv.to("meta"), "meta device"),
        "subclass": (conv.as_subclass(Marked), "tensor of class"),
        "array": (conv.numpy(), "numpy.ndarray"),
        "none": (None, "NoneType"),
    }
    for name, (tensor, word) in kinds.items():
        sweep.refuse(f"values/{name}.pth", saved(changed(plain, weight, tensor)), weight, word)
    sweep.refuse(
        "values/head_int8.pth",
        saved(changed(plain, "fc.weight", plain.state_dict()["fc.weight"].char())),
        "fc.weight",
        "int8",
    )


class Marked(torch.Tensor):
    """A tensor of another class."""


def references(sweep: Sweep, plain: ResNet8, average: ResNet8) -> None:
    """Checkpoints of torchvision's references, of torch's AveragedModel and of common training scripts."""
    state = plain.state_dict()
    wrapped = averaged(average).state_dict()
    both = {"model": state, **training_state(plain), "args": namespace("resnet8"), "model_ema": wrapped}
    sweep.read(
        "references/model.pth", saved({"model": state, **training_state(plain), "args": namespace("resnet8")}), plain
    )
    sweep.read("references/model_ema.pth", saved(both), average)
    sweep.read("references/model_ema_key.pth", saved(both), average, "model_ema")
    sweep.read("references/model_key.pth", saved(both), plain, "model")
    sweep.read("references/stream.pth", saved(both, _use_new_zipfile_serialization=False), average)
    sweep.read("references/averaged_model.pth", saved(wrapped), average)
    parallel = nn.DataParallel(average)
    sweep.read("references/averaged_parallel.pth", saved(averaged(parallel).state_dict()), average)
    sweep.read(
        "references/parallel.pth", saved({"state_dict": nn.DataParallel(plain).state_dict(), "arch": "resnet8"}), plain
    )
    sweep.read("references/compiled.pth", saved({"state_dict": {f"_orig_mod.{n}": v for n, v in state.items()}}), plain)
    others = {
        "counter": Counter([1, 2, 2]),
        "set": {1, 2},
        "frozenset": frozenset("ab"),
        "numpy": np.float64(0.5),
        "array": np.arange(3),
        "dtype": torch.float16,
        "numpy_dtype": np.dtype("float32"),
        "device": torch.device("cuda", 0),
        "size": torch.Size([1, 2]),
        "slice": slice(1, 2),
        "keys": {("a", 1): 0, 0.5: 1, 1 << 40: 2},
        "date": datetime(2024, 1, 2),
        "path": Path("a"),
        "function": np.mean,
        "complex": 1 + 2j,
        "bytes": bytearray(b"ab"),
        "generator": torch.get_rng_state()[:8].clone(),
        "sparse": torch.eye(2).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8),
        "storage": torch.ones(2).untyped_storage(),
    }
    for protocol in (2, 4, 5):
        checkpoint = {"state_dict": state, **others}
        sweep.read(f"references/others_protocol{protocol}.pth", saved(checkpoint, pickle_protocol=protocol), plain)
    sweep.read(
        "references/others_stream.pth",
        saved({"state_dict": state, **others}, _use_new_zipfile_serialization=False),
        plain,
    )
    sweep.refuse(
        "references/says_resnetblur50.pth",
        saved({"model": state, "args": namespace("resnetblur50")}),
        "resnetblur50",
        "something else",
    )
    mm = {f"backbone.{n}" if not n.startswith("fc.") else f"head.{n}": v for n, v in state.items()}
    sweep.read("references/mmpretrain.pth", saved({"meta": {"epoch": 3}, "state_dict": mm, "message_hub": {}}), plain)
    swapped = {f"module.{n}": v for n, v in state.items()} | {"steps": torch.tensor(3)}
    mm_average = {"state_dict": average.state_dict(), "ema_state_dict": swapped, "message_hub": {}}
    sweep.read("references/mmengine_ema.pth", saved(mm_average), average)
    sweep.read("references/mmengine_ema_key.pth", saved(mm_average), plain, "ema_state_dict")


def by_timm(sweep: Sweep, plain: ResNet8, average: ResNet8) -> None:
    """Checkpoints of timm's training script and of its exports."""
    import timm.utils
    from timm.models import save_for_hf

    def checkpoint(name: str, with_average: bool) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            ema = timm.utils.ModelEmaV3(plain) if with_average else None
            if ema is not None:
                ema.module.load_state_dict(average.state_dict())
            optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5)
            with tempfile.TemporaryDirectory() as folder:
                saver = timm.utils.CheckpointSaver(
                    plain, optimizer, namespace(name), ema, checkpoint_dir=folder, recovery_dir=folder
                )
                saver.save_checkpoint(3, 0.5)
                (Path(folder) / "last.pth.tar").rename(path)

        return write

    sweep.read("timm/last.pth.tar", checkpoint("resnet8", False), plain)
    sweep.read("timm/ema.pth.tar", checkpoint("resnet8", True), average)
    sweep.read("timm/ema_key.pth.tar", checkpoint("resnet8", True), plain, "state_dict")
    sweep.refuse("timm/resnetaa50.pth.tar", checkpoint("resnetaa50", True), "resnetaa50", "something else")

    def hub(architecture: str, file: str) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            plain.pretrained_cfg = {
                "architecture": architecture,
                "num_classes": CLASSES,
                "input_size": (3, 16, 16),
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
                "interpolation": "bicubic",
                "crop_pct": 1.0,
            }
            plain.num_classes, plain.num_features = CLASSES, 64
            save_for_hf(plain, path.parent, safe_serialization="both")
            assert path.name == file

        return write

    for architecture in ("resnet8", "resnetaa50"):
        for file in ("model.safetensors", "pytorch_model.bin"):
            name = f"timm/{architecture}/{file}"
            if architecture == "resnet8":
                sweep.read(name, hub(architecture, file), plain)
            else:
                sweep.refuse(name, hub(architecture, file), "resnetaa50", "something else")


def by_lightning(sweep: Sweep, plain: ResNet8, average: ResNet8) -> None:
    """Checkpoints of Lightning's trainer."""
    import lightning
    from lightning.pytorch.callbacks import EMAWeightAveraging

    class Plain(lightning.LightningModule):
        """A module with the network under `attribute`."""

        def __init__(self, attribute: str, network: nn.Module, arch: str = "resnet8") -> None:
            super().__init__()
            self.save_hyperparameters({"arch": arch, "lr": 0.5})
            setattr(self, attribute, network)
            self.attribute = attribute

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return getattr(self, self.attribute)(batch[0]).sum() * 0

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    def trained(attribute: str, network: nn.Module, path: Path, callbacks: list[Any], **more: Any) -> None:
        module = Plain(attribute, copy.deepcopy(network), **more)
        module.eval()
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(1, 3, 16, 16)))
        with tempfile.TemporaryDirectory() as folder:
            trainer = lightning.Trainer(
                accelerator="cpu",
                default_root_dir=folder,
                max_steps=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=callbacks,
            )
            trainer.fit(module, data)
            trainer.save_checkpoint(path)

    for attribute in ("model", "net", "network", "backbone"):
        sweep.read(f"lightning/{attribute}.ckpt", lambda path, a=attribute: trained(a, plain, path, []), plain)
    sweep.refuse(
        "lightning/says_resnetaa50.ckpt",
        lambda path: trained("model", plain, path, [], arch="resnetaa50"),
        "resnetaa50",
    )

    def with_average(path: Path) -> None:
        class Averaging(EMAWeightAveraging):
            """Takes other weights for the average, so that both differ."""

            def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
                self._average_model.module.model.load_state_dict(average.state_dict())
                super().on_save_checkpoint(trainer, module, checkpoint)

        trained("model", plain, path, [Averaging(decay=0.5)])

    sweep.read("lightning/ema.ckpt", with_average, average)
    sweep.read("lightning/ema_key.ckpt", with_average, plain, "current_model_state")


def by_accelerate(sweep: Sweep, plain: ResNet8) -> None:
    """Models and states of accelerate."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)

    def model(path: Path) -> None:
        accelerator.save_model(plain, path.parent, safe_serialization=path.suffix == ".safetensors")

    sweep.read("accelerate/safe/model.safetensors", model, plain)
    sweep.read("accelerate/torch/pytorch_model.bin", model, plain)
    sweep.read("accelerate/saved.pth", lambda path: accelerator.save(plain.state_dict(), path), plain)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    plain, average = network(1), network(2)
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(Path(folder))
        bare(sweep, plain)
        values(sweep, plain)
        references(sweep, plain, average)
        by_lightning(sweep, plain, average)
        by_accelerate(sweep, plain)
        by_timm(sweep, plain, average)
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                info = archive.gettarinfo(path, str(path.relative_to(folder)))
                info.uid = info.gid = info.mtime = 0
                info.uname = info.gname = ""
                with path.open("rb") as file:
                    archive.addfile(info, file)
            text = json.dumps({"images": IMAGES.tolist(), "files": sweep.expected}).encode()
            info = tarfile.TarInfo("expected.json")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
        ARCHIVE.write_bytes(lzma.compress(data.getvalue(), preset=9))
        size, packed = len(data.getvalue()) / 1e6, ARCHIVE.stat().st_size / 1e6
        print(f"{len(sweep.expected)} files, {size:.1f} MB, packed {packed:.2f} MB")


if __name__ == "__main__":
    main()
