#!/usr/bin/env bash
# jax 0.10.2, CPU: a jitted step reads a NumPy batch after the call has returned, depending on the address of the batch.
#
# A good guess: the arguments are copied when the call returns, so that a loader may fill the same array with the next
#   batch; or a change is seen wherever the array lies.
# Seen: a batch of 64 KB at an address divisible by 64 is not copied, and the step uses the next batch, without a
#   warning. 16 bytes further on, where NumPy often places arrays too, it is copied, and the step uses its own. With
#   jax_cpu_enable_async_dispatch off, both use their own. From 100 KB on, one at the second address may be read late
#   too, in some calls and not in others.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 numpy==2.4.6
cat > "$folder/late.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_cpu_enable_async_dispatch", sys.argv[1] == "async")


@jax.jit
def step(weights, batch):
    """Sums rows of the batch, each after a product that takes a while."""

    def add_row(i, carry):
        weights, total = carry
        weights = jnp.tanh(weights @ weights)
        return weights, total + batch[i].sum() + 0 * weights.sum()

    return jax.lax.fori_loop(0, len(batch), add_row, (weights, 0.0))[1]


def batch_at(offset):
    """[16, 1024] of ones, in memory that begins `offset` bytes after a multiple of 64."""
    memory = np.empty(16 * 1024 * 4 + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    batch = memory[start : start + 16 * 1024 * 4].view(np.float32).reshape(16, 1024)
    batch[:] = 1
    return batch


weights = jnp.eye(1024)
step(weights, batch_at(0)).block_until_ready()  # compiled
seen = {}
for offset in (0, 16):
    batch = batch_at(offset)
    total = step(weights, batch)
    batch[:] = 2  # the loader's next batch
    seen[offset] = float(total)
print(f"jax {jax.__version__}, {sys.argv[1]}: a batch of ones has the sum 16384; seen at each offset: {seen}")
if sys.argv[1] == "async":
    assert seen[0] > 16384, "jax now copies an aligned batch before the call returns"
else:
    assert seen[0] == 16384
assert seen[16] == 16384, "jax now reads a batch late at any address"
PYTHON
for dispatch in async sync; do "$folder/env/bin/python" "$folder/late.py" "$dispatch"; done
