#!/usr/bin/env bash
# flax 0.12.8: from_bytes(target, data) checks the names of the target, but neither the shapes nor the types of its arrays.
#
# A good guess: a target with arrays of other shapes or types is refused, as a target with other names is.
# Seen: the result has the shapes and the types of the file, without a warning. A head of 10 classes is read into a network
#   of 1000, and fails, or broadcasts, later. An array in the place of a dictionary is refused.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check flax==0.12.8 jax==0.10.2 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import flax
import numpy as np
from flax import serialization

saved = serialization.to_bytes({"kernel": np.zeros((4, 10), np.float16), "bias": np.zeros(1, np.int32)})
target = {"kernel": np.ones((4, 1000), np.float32), "bias": np.ones(1000, np.float32)}
read = serialization.from_bytes(target, saved)
seen = {name: (array.shape, str(array.dtype)) for name, array in read.items()}
print(f"flax {flax.__version__}: read into float32 [4, 1000] and [1000]: {seen}")
assert seen == {"kernel": ((4, 10), "float16"), "bias": ((1,), "int32")}, "flax now checks shapes or types"
try:
    serialization.from_bytes({"weight": target["kernel"], "bias": target["bias"]}, saved)
except ValueError:
    pass
else:
    raise AssertionError("flax no longer checks names")
PYTHON
