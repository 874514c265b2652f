"""Programs compiled for a GPU: cuDNN computes all convolutions, and activations stay in bfloat16."""

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.cuda
BATCH_SIZE = 128
FORWARD_AND_BY_INPUTS = ("convForward", "convBiasActivationForward", "convBackwardInput")


def program(arch: str, mode: str) -> str:
    if not any(find_spec(f"jax_{plugin}_plugin") for plugin in ("cuda12", "cuda13")):
        pytest.skip("no packages of jax[cuda12] or jax[cuda13]")
    command = [sys.executable, "-m", "tests.gpu_program", arch, mode, str(BATCH_SIZE)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout


def cudnn_calls(text: str, *kinds: str) -> int:
    return sum(text.count(f'custom_call_target="__cudnn${kind}"') for kind in kinds)


@pytest.mark.parametrize(("arch", "convolutions"), [("resnet50", 53), ("resnext50_32x4d", 53), ("alexnet", 5)])
def test_training(arch: str, convolutions: int) -> None:
    text = program(arch, "train")
    # Forward, and the input gradients of all but the first; some of these compile to forward convolutions.
    assert cudnn_calls(text, *FORWARD_AND_BY_INPUTS) == 2 * convolutions - 1
    assert cudnn_calls(text, "convBackwardFilter") == convolutions
    assert not re.findall(r" (?:convolution|scatter|select-and-scatter|reduce-window)\(", text)
    # Arrays between fusions. Fusions may use float32 internally.
    entry = text[text.index("\nENTRY") :]
    written = re.findall(rf" = \(?f32\[{BATCH_SIZE},\d+,\d+,\d+\]", entry)
    assert not written


@pytest.mark.parametrize(("arch", "convolutions"), [("resnet50", 53), ("googlenet", 57)])
def test_inference_fuses_biases_and_activations_into_convolutions(arch: str, convolutions: int) -> None:
    text = program(arch, "inference")
    assert cudnn_calls(text, "convBiasActivationForward") == convolutions
    assert cudnn_calls(text, "convForward") == 0
