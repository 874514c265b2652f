"""Writes weight_sweep.tar.xz: weight files as libraries save them, and what torch computes from each.

Needs torch, timm, lightning, accelerate and safetensors (made with 2.14.1, 1.0.31, 2.6.6, 1.15.0 and 0.8.0):
python -m tests.references.make_weight_sweep

The network is a ResNet-8 for small images, `tests.weights.small_resnet:resnet8`, with weights that compress well.
`expected.json` in the archive has an entry for each file: the logits of `IMAGES`, or the words of the refusal.
"""

import io
import json
import lzma
import tarfile
import tempfile
import warnings
from collections import Counter, OrderedDict, defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.references.sweep_libraries import by_accelerate, by_lightning, by_timm
from tests.references.sweep_parts import (
    IMAGES,
    ResNet8,
    Sweep,
    averaged,
    changed,
    namespace,
    network,
    safe,
    saved,
    training_state,
    without_checksums,
)

ARCHIVE = Path(__file__).with_name("weight_sweep.tar.xz")


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
