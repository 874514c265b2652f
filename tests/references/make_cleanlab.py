"""Writes cleanlab.npz, the label errors that cleanlab 2.9.0 finds: python -m tests.references.make_cleanlab.

Needs cleanlab and pytest, jaxnets and scikit-learn: the data are those of tests/inspection/test_label_errors.py.
"""

from pathlib import Path

import numpy as np
from cleanlab.count import compute_confident_joint
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

from tests.inspection.test_label_errors import noisy


def main() -> None:
    arrays = {}
    for seed in (0, 1):
        probabilities, labels = noisy(seed)
        arrays[f"probabilities{seed}"] = probabilities[:3]
        # Offset of the diagonal left out: the paper has none.
        joint = compute_confident_joint(labels, probabilities, calibrate=False)
        issues = find_label_issues(labels, probabilities, filter_by="confident_learning", n_jobs=1)
        arrays[f"joint{seed}"], arrays[f"issues{seed}"] = joint, issues
        for name, method in (("margin", "normalized_margin"), ("self_confidence", "self_confidence")):
            arrays[f"{name}{seed}"] = get_label_quality_scores(labels, probabilities, method=method)
    np.savez_compressed(Path(__file__).with_name("cleanlab.npz"), **arrays)


if __name__ == "__main__":
    main()
