#!/usr/bin/env bash
# optax 0.2.8: softmax_cross_entropy_with_integer_labels takes the label -1 for the last class; -100 and K give NaN.
#
# A good guess: -1, which data sets give to images without a label, is refused, ignored or NaN, as a label beyond the last
#   class is. In PyTorch, cross_entropy raises for -1, and ignores -100.
# Seen: with three classes, the loss of label -1 is that of label 2, so unlabelled images train the last class. The labels
#   3 and -100 give NaN.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
import optax

loss = optax.softmax_cross_entropy_with_integer_labels
logits = jnp.array([[1.0, 2.0, 5.0]])
for name, function in (("eager", loss), ("jit", jax.jit(loss))):
    losses = {label: float(function(logits, jnp.array([label]))[0]) for label in (0, 1, 2, -1, -2, 3, -100)}
    print(f"optax {optax.__version__}, {name}: {losses}")
    assert losses[-1] == losses[2] and losses[-2] == losses[1], "optax now treats negative labels in another way"
    assert np.isnan([losses[3], losses[-100]]).all(), "optax now treats labels beyond the classes in another way"
    assert losses[0] > losses[1] > losses[2]
PYTHON
