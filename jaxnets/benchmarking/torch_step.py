"""The peer: measures torchvision's network of the same name and prints one JSON object.

Run it by its path, without jaxnets: python torch_step.py measure|check JSON, with the keys that `main` reads.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.fusion import fuse_conv_bn_eval

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MIN_STEPS = 3
Step = Callable[[], Any]


def main(task: str, job: dict[str, Any]) -> dict[str, Any]:
    """Returns the results of a task for a job: arch, mode, image_size, batch_size, dtype, seconds, platform, cores, ...

    "measure" returns images_per_second, compile_seconds, the memory and torch's version. "check" returns the logits,
    and in training the loss, from the weights and inputs in `folder`.
    """
    torch.set_num_threads(job["cores"])
    if job["platform"] != "cpu" and not torch.cuda.is_available():
        raise RuntimeError(
            f"JAX runs on {job['platform']}, but torch finds no GPU; set JAX_PLATFORMS=cpu, or fix torch"
        )
    device = torch.device("cpu" if job["platform"] == "cpu" else "cuda")
    if task == "check":
        return _check(job, device)
    # As JAX by default: float32 products in TF32 on GPUs that have it.
    torch.set_float32_matmul_precision("high")
    import_memory = _host_memory_bytes()
    step = _training(job, device) if job["mode"] == "train" else _inference(job, device)
    started = time.perf_counter()
    if job["setting"] == "onnxruntime":
        with TemporaryDirectory() as folder:
            step = _onnxruntime(step, job, Path(folder))
    for _ in range(job["warm_up_steps"]):
        step()
    _wait(device)
    warm = time.perf_counter() - started
    rate = _steps_per_second(step, job["seconds"], device)
    compiles = job["setting"] in ("compile", "onnxruntime")
    return {
        "images_per_second": rate * job["batch_size"],
        "compile_seconds": max(0.0, warm - job["warm_up_steps"] / rate) if compiles else 0.0,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else _host_memory_bytes(),
        "import_memory_bytes": import_memory,
        "torch": torch.__version__,
    }


def _host_memory_bytes() -> int:
    """As `jaxnets.benchmarking.machine.host_memory_bytes`."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    import resource  # missing on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _check(job: dict[str, Any], device: torch.device) -> dict[str, Any]:
    torch.backends.cudnn.allow_tf32 = False
    folder = Path(job["folder"])
    with np.load(folder / "weights.npz") as file:
        state = {name: torch.from_numpy(file[name]) for name in file.files}
    with np.load(folder / "inputs.npz") as file:
        images, training_images = (
            torch.from_numpy(file[name]).permute(0, 3, 1, 2).contiguous().to(device)
            for name in ("images", "training_images")
        )
        labels = torch.from_numpy(file["labels"]).to(device)
    model = _network(job["arch"])
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise RuntimeError(f"torchvision's {job['arch']} has other tensors: {[*missing, *unexpected][:4]}")
    model.to(device).eval()
    if job["mode"] == "inference":
        fold(model)
    with torch.inference_mode():
        if job["setting"] == "onnxruntime":
            with TemporaryDirectory() as temporary:
                logits = _session(model, images, job["cores"], Path(temporary))()
        else:
            logits = model(images).cpu().numpy()
        model.train()
        loss = float(_loss(model(training_images), labels)) if job["with_loss"] else None
    return {"logits": logits.tolist(), "loss": loss}


def _network(arch: str) -> nn.Module:
    # GoogLeNet's initialisation in torchvision is slow.
    options = {"init_weights": False} if arch == "googlenet" else {}
    return torchvision.models.get_model(arch, weights=None, **options)


def fold(model: nn.Module) -> None:
    """Folds each BatchNorm into the convolution before it, in place, and removes auxiliary heads."""
    for name in ("aux1", "aux2"):
        if hasattr(model, name):
            setattr(model, name, None)
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())


def _loss(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy, plus 0.3 times that of each auxiliary head."""
    logits, *heads = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    loss = cross_entropy(logits.float(), labels)
    for head in heads:
        loss = loss + 0.3 * cross_entropy(head.float(), labels)
    return loss


def _format(job: dict[str, Any]) -> torch.memory_format:
    return torch.channels_last if job["setting"] in ("channels_last", "compile") else torch.contiguous_format


def _training(job: dict[str, Any], device: torch.device) -> Step:
    layout = _format(job)
    model = _network(job["arch"]).to(device).to(memory_format=layout).train()
    random = np.random.default_rng(0)
    shape = (job["batch_size"], 3, job["image_size"], job["image_size"])
    pixels = torch.from_numpy(random.integers(0, 256, shape, np.uint8)).to(device).contiguous(memory_format=layout)
    mean, std = (255 * torch.tensor(channels, device=device)[:, None, None] for channels in (_MEAN, _STD))
    # On the CPU, preprocessing is not measured.
    images = pixels if device.type == "cuda" else ((pixels - mean) / std).contiguous(memory_format=layout)
    labels = torch.arange(job["batch_size"], device=device) % 1000
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=job["dtype"] == "bfloat16"):
            if images.dtype == torch.uint8:
                images = (images - mean) / std
            return _loss(model(images), labels)

    forward: Any = torch.compile(loss_of) if job["setting"] == "compile" else loss_of

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        forward(images, labels).backward()
        optimizer.step()

    return step


def _inference(job: dict[str, Any], device: torch.device) -> Step:
    dtype = getattr(torch, job["dtype"])
    model = _network(job["arch"]).eval()
    fold(model)
    model.to(device, dtype).to(memory_format=_format(job))
    shape = (job["batch_size"], 3, job["image_size"], job["image_size"])
    images = torch.from_numpy(np.random.default_rng(0).normal(size=shape)).to(device, dtype)
    images = images.contiguous(memory_format=_format(job))
    if job["setting"] == "onnxruntime":
        return lambda: (model, images)
    forward: Any = torch.compile(model) if job["setting"] == "compile" else model

    def step() -> Any:
        with torch.inference_mode():
            return forward(images)

    return step


def _onnxruntime(network: Step, job: dict[str, Any], folder: Path) -> Step:
    model, images = network()
    return _session(model, images, job["cores"], folder)


def _session(model: nn.Module, images: torch.Tensor, cores: int, folder: Path) -> Step:
    """Exports the model for images of this shape and returns a step of onnxruntime on the CPU."""
    onnxruntime: Any = import_module("onnxruntime")
    path = folder / "model.onnx"
    torch.onnx.export(model, (images,), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (model_input,) = session.get_inputs()
    feed = {model_input.name: images.numpy()}
    return lambda: session.run(None, feed)[0]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _steps_per_second(step: Step, seconds: float, device: torch.device) -> float:
    """Measures steps per second as `jaxnets.benchmarking.machine.steps_per_second` does."""
    steps = 1
    while True:
        started = time.perf_counter()
        for _ in range(steps):
            step()
        _wait(device)
        elapsed = time.perf_counter() - started
        if steps >= _MIN_STEPS and elapsed >= 0.8 * seconds:
            return steps / elapsed
        steps = max(_MIN_STEPS, math.ceil(seconds * steps / elapsed))


if __name__ == "__main__":
    try:
        print("\n" + json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))))
    except Exception as error:
        # The first line of a compiler's message is usually the most informative.
        first = (str(error).strip() or "no message").splitlines()[0]
        print(f"{type(error).__name__}: {first}", file=sys.stderr)
        sys.exit(1)
