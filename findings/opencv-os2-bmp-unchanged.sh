#!/usr/bin/env bash
# opencv-python-headless 5.0.0.93: IMREAD_UNCHANGED returns a colour BMP with the header of OS/2 as grey.
#
# A good guess: IMREAD_UNCHANGED returns three channels for a BMP with 24 bits per pixel, since IMREAD_COLOR returns its
#   colours and the flag is for files as they are.
# Seen: a BMP with the 12-byte header (BITMAPCOREHEADER), which Pillow also reads, gets the shape [H, W], with the
#   colours mixed to grey. The same pixels with the 40-byte header get [H, W, 3]. So a check of `image.ndim` takes a
#   colour image for a grey one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check opencv-python-headless==5.0.0.93 numpy==2.4.6 pillow==13.0.0
"$folder/env/bin/python" - <<'PYTHON'
import io
import struct

import cv2
import numpy as np
from PIL import Image

bgr = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
rows = bgr[::-1].tobytes()  # 24 bytes a row, so no padding
core = struct.pack("<2sIHHI", b"BM", 26 + len(rows), 0, 0, 26) + struct.pack("<IHHHH", 12, 8, 5, 1, 24) + rows
usual = struct.pack("<2sIHHI", b"BM", 54 + len(rows), 0, 0, 54)
usual += struct.pack("<IiiHHIIiiII", 40, 8, 5, 1, 24, 0, len(rows), 2835, 2835, 0, 0) + rows
for data in (core, usual):
    assert (np.asarray(Image.open(io.BytesIO(data)))[..., ::-1] == bgr).all()
    assert (cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) == bgr).all()
shapes = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).shape for data in (core, usual)]
print(f"OpenCV {cv2.__version__}: IMREAD_UNCHANGED gives {shapes[0]} with the header of OS/2, {shapes[1]} with the usual one")
assert shapes == [(5, 8), (5, 8, 3)], "OpenCV now reads the two alike"
PYTHON
