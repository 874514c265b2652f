#!/usr/bin/env bash
# torch 2.14.1: whether a strict load accepts the same tensors depends on an attribute of the dictionary.
#
# A good guess: load_state_dict(strict=True) accepts or refuses a state dict by the names and shapes of its tensors, so an
#   OrderedDict and a dict with the same tensors do the same.
# Seen: without its counters `num_batches_tracked`, the state dict of a BatchNorm is refused as an OrderedDict that still
#   has the attribute `_metadata` of state_dict(), and accepted as dict(...) of the same tensors, which lost it. The version
#   in `_metadata` decides. torch.save keeps the attribute, safetensors does not, so converting a file repairs or hides it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6 safetensors==0.8.0
cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import safetensors.torch
import torch


def accepts(state):
    try:
        torch.nn.BatchNorm2d(2).load_state_dict(state, strict=True)
    except RuntimeError as error:
        assert "num_batches_tracked" in str(error), error
        return False
    return True


state = torch.nn.BatchNorm2d(2).state_dict()
del state["num_batches_tracked"]
torch.save(state, "a.pth")
safetensors.torch.save_file(state, "a.safetensors")
seen = {
    "OrderedDict": accepts(state),
    "dict": accepts(dict(state)),
    "torch.save": accepts(torch.load("a.pth")),
    "safetensors": accepts(safetensors.torch.load_file("a.safetensors")),
}
print(f"torch {torch.__version__}: a strict load of the same tensors: {seen}")
expected = {"OrderedDict": False, "dict": True, "torch.save": False, "safetensors": True}
assert seen == expected, "a strict load no longer depends on the metadata"
PYTHON
