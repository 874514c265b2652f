#!/usr/bin/env bash
# scikit-learn 1.9.1: of equal scores, top_k_accuracy_score ranks the class with the higher index first.
#
# A good guess: top_k_accuracy_score(k=1) equals the accuracy of scores.argmax(axis=1), which takes the lower index.
# Seen: the two disagree on every tie. With scores equal for all classes, argmax predicts class 0, and
#   top_k_accuracy_score(k=1) counts only the last class as right. An untrained network with zero logits, or scores
#   rounded to bfloat16, has such ties.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check scikit-learn==1.9.1 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import numpy as np
import sklearn
from sklearn.metrics import accuracy_score, top_k_accuracy_score

labels = np.array([0, 0, 0, 1, 2, 2])
scores = np.zeros((6, 3))
top1 = top_k_accuracy_score(labels, scores, k=1)
accuracy = accuracy_score(labels, scores.argmax(axis=1))
print(f"scikit-learn {sklearn.__version__}: top-1 {top1:.3f}, accuracy of argmax {accuracy:.3f}")
assert (round(top1, 3), accuracy) == (0.333, 0.5), "scikit-learn now ranks ties in another way"

scores[:, 0] = 1  # without a tie for the first place both agree
assert top_k_accuracy_score(labels, scores, k=1) == accuracy_score(labels, scores.argmax(axis=1)) == 0.5
PYTHON
