"""Writes jaxnets/data/digits.npz: scikit-learn's scanned digits as grey levels from 0 to 255, with a fixed split.

Needs scikit-learn (made with 1.9.1): python -m tests.references.make_digits
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

FILE = Path(__file__).parents[2] / "jaxnets" / "data" / "digits.npz"


def main() -> None:
    """Writes the file. The split is stratified by class."""
    scanned = load_digits()
    images = np.round(scanned.images * (255 / 16)).astype(np.uint8)
    labels = scanned.target.astype(np.uint8)
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    np.savez_compressed(
        FILE,
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
    )


if __name__ == "__main__":
    main()
