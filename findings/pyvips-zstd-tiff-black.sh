#!/usr/bin/env bash
# pyvips-binary 8.18.7: a TIFF compressed with Zstandard is read as black, without an exception.
#
# A good guess: a decoder that lacks a compression raises, as pyvips does for unknown formats.
# Seen: the wheel's libtiff has no Zstandard. `new_from_buffer(...).numpy()` returns an array of the right shape and type,
#   all zeros: by default pyvips carries on after errors in the pixels (fail_on="none"). With fail_on="error" it raises
#   "ZSTD compression support is not configured".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pyvips==3.2.0 pyvips-binary==8.18.7 pillow==13.0.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import io

import numpy as np
import pyvips
from PIL import Image

pixels = np.random.default_rng(0).integers(1, 256, (13, 18), np.uint8)
file = io.BytesIO()
Image.fromarray(pixels).save(file, "TIFF", compression="zstd")
assert (np.asarray(Image.open(file)) == pixels).all()
read = pyvips.Image.new_from_buffer(file.getvalue(), "").numpy()
version = ".".join(str(pyvips.version(part)) for part in range(3))
print(f"libvips {version}: shape {read.shape}, largest value {read.max()} instead of {pixels.max()}")
assert read.shape == pixels.shape, "libvips now gives another shape"
assert read.max() == 0, "libvips now reads Zstandard"
try:
    pyvips.Image.new_from_buffer(file.getvalue(), "", fail_on="error").numpy()
    raise SystemExit('fail_on="error" no longer raises')
except pyvips.Error as error:
    message = str(error).strip().splitlines()[-1].strip()
    print(f'with fail_on="error": {message}')
    assert "ZSTD compression support is not configured" in message
PYTHON
