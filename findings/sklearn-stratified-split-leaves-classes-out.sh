#!/usr/bin/env bash
# scikit-learn 1.9.1: train_test_split(stratify=labels) can leave most of the classes out of the test set.
#
# A good guess: a stratified test set has each class. It is refused if it is smaller than the number of classes ("The
#   test_size = 15 should be greater or equal to the number of classes = 16"), so one that is larger has room for all.
# Seen: with one class of 60 samples and 15 classes of 2, a test set of 18 has no sample of 9 of the 16 classes, for
#   each seed and without a warning: the large class takes 12 places, and the other 6 go to some of the small ones.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check scikit-learn==1.9.1 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import warnings

import numpy as np
import sklearn
from sklearn.model_selection import train_test_split

warnings.simplefilter("error")
labels = np.repeat(np.arange(16), [60] + [2] * 15)
for seed in range(10):
    _, test = train_test_split(labels, test_size=18, stratify=labels, random_state=seed)
    counts = np.bincount(test, minlength=16)
    missing = int((counts == 0).sum())
    print(f"scikit-learn {sklearn.__version__}, seed {seed}: {counts[0]} of class 0, {missing} of 16 classes missing")
    assert (len(test), counts[0], missing) == (18, 12, 9), "scikit-learn now divides the classes in another way"

try:
    train_test_split(labels, test_size=15, stratify=labels)
except ValueError as error:
    print(error)
    assert "should be greater or equal to the number of classes = 16" in str(error)
else:
    raise AssertionError("scikit-learn now accepts fewer test samples than classes")
PYTHON
