#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: save() of a step before the latest one writes nothing and raises nothing; it returns False.
#
# A good guess: after a run is restored from its best checkpoint, say step 10 of 20, the training that goes on from there
#   is saved at steps 11, 12, ..., or save() raises because step 20 is later.
# Seen: save(11) beside steps 10 and 20 returns False and writes nothing, and so does every step up to 20. The latest
#   step remains 20 with the old values, and step 21 is saved again. (A step that exists raises StepAlreadyExistsError.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 numpy==2.4.6
"$folder/env/bin/python" - "$folder/checkpoints" <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import orbax.checkpoint as ocp


def save(manager, step):
    result = manager.save(step, args=ocp.args.StandardSave({"weights": np.full(3, step)}))
    manager.wait_until_finished()
    return result


with ocp.CheckpointManager(sys.argv[1]) as manager:
    assert save(manager, 10)
    assert save(manager, 20)
    results = {step: save(manager, step) for step in (11, 19, 21)}
    print(f"orbax-checkpoint {version('orbax-checkpoint')}: save() returned {results}; steps {manager.all_steps()}")
    assert results == {11: False, 19: False, 21: True}, "orbax now saves earlier steps, or raises"
    assert list(manager.all_steps()) == [10, 20, 21]
PYTHON
