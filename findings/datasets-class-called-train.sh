#!/usr/bin/env bash
# datasets 5.2.0: load_dataset("imagefolder") takes a class folder called "train" for the split, and leaves the others out.
#
# A good guess: the folders bus, car and train are three classes, as for torchvision's ImageFolder.
# Seen: the result has the images of the folder "train" alone, without labels, and without a warning. CIFAR-100 and COCO
#   have a class "train". With the folder called "tram", all the images and three classes are read.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pillow==13.0.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/env/bin/python" - <<'PYTHON'
from pathlib import Path

import datasets
from PIL import Image

seen = {}
for last in ["tram", "train"]:
    for name in ["bus", "car", last]:
        (Path(f"with-{last}") / name).mkdir(parents=True)
        for shade in range(3):
            Image.new("RGB", (8, 8), (shade, 0, 0)).save(Path(f"with-{last}") / name / f"{shade}.png")
    data = datasets.load_dataset("imagefolder", data_dir=f"with-{last}")
    seen[last] = {split: (len(part), sorted(part.features)) for split, part in data.items()}
print(f"datasets {datasets.__version__}: {seen}")
assert seen["tram"] == {"train": (9, ["image", "label"])}, "three classes are no longer read as such"
assert seen["train"] == {"train": (3, ["image"])}, "a class called train is now read in another way"
PYTHON
