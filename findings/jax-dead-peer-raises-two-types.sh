#!/usr/bin/env bash
# jax 0.10.2, two CPU processes: when the other process has died, the type of the error depends on the size of the program.
#
# A good guess: a failed collective operation raises jax.errors.JaxRuntimeError, from the call or from block_until_ready.
# Seen: a small program, which runs in the calling thread, raises a plain ValueError from the call; one that is
#   dispatched to another thread raises JaxRuntimeError from block_until_ready. Both messages begin with "UNKNOWN: Gloo
#   all-reduce failed". Code that catches JaxRuntimeError to save or restart misses the first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$folder"
cat >peer.py <<'PYTHON'
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

rank, port, side = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
mesh = Mesh(np.array(jax.devices()), ("x",))
shards, whole = NamedSharding(mesh, PartitionSpec("x")), NamedSharding(mesh, PartitionSpec())
step = jax.jit(lambda a: (a @ jnp.swapaxes(a, 1, 2)).sum(), out_shardings=whole)
rows = jax.make_array_from_process_local_data(shards, np.ones((1, side, side), np.float32))
for number in range(10):
    if rank == 1 and number == 3:
        os._exit(0)
    place = "the call"
    try:
        result = step(rows)
        place = "block_until_ready"
        result.block_until_ready()
    except Exception as error:
        print(f"{type(error).__name__} from {place}: {str(error)[:31]}", flush=True)
        os._exit(0)
PYTHON
seen=()
for side in 2 1500; do
  port=$("$folder/env/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  JAX_PLATFORMS=cpu "$folder/env/bin/python" peer.py 1 "$port" "$side" >other.log 2>&1 &
  seen+=("$(JAX_PLATFORMS=cpu "$folder/env/bin/python" peer.py 0 "$port" "$side" 2>log | tail -n 1)")
  wait
done
printf '%s\n' "${seen[@]}"
[ "${seen[0]}" = "ValueError from the call: UNKNOWN: Gloo all-reduce failed" ] || { echo "the small program fails in another way now" >&2; exit 1; }
[ "${seen[1]}" = "JaxRuntimeError from block_until_ready: UNKNOWN: Gloo all-reduce failed" ] || { echo "the large program fails in another way now" >&2; exit 1; }
