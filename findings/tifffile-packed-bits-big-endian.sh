#!/usr/bin/env bash
# tifffile 2026.3.3: with bitspersample=12 and byteorder=">", imwrite stores other values than those given.
#
# A good guess: `byteorder` changes how the file is stored, and not what is read back, as for 8 and 16 bits.
# Seen: 10, 12 and 14 bits are read back right from a little-endian file, and wrong from a big-endian one, by tifffile
#   itself. Values are swapped bytewise before they are packed to 12 bits, so that the wrong bits are dropped. A correct
#   big-endian file, put together by hand, is read right: the fault is in writing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check tifffile==2026.3.3 imagecodecs==2026.3.6 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import io

import numpy as np
import tifffile

seen = {}
for bits in (8, 10, 12, 14, 16):
    pixels = np.arange(13 * 18).reshape(13, 18).astype(np.uint8 if bits == 8 else np.uint16) << max(bits - 8, 0)
    for order in "<>":
        file = io.BytesIO()
        tifffile.imwrite(file, pixels, photometric="minisblack", bitspersample=bits, byteorder=order)
        read = tifffile.imread(io.BytesIO(file.getvalue()))
        assert read.shape == pixels.shape
        seen[order, bits] = bool((read == pixels).all())
print(f"tifffile {tifffile.__version__}: read as written, by byte order and bits: {seen}")
wrong = {key for key, right in seen.items() if not right}
assert wrong == {(">", 10), (">", 12), (">", 14)}, "tifffile now writes other files right or wrong"

# The file that the big-endian one should be: packed bits have no byte order.
bits = np.unpackbits(pixels.astype(">u2").view(np.uint8).reshape(13, 18, 2), axis=-1)[..., :12].reshape(13, -1)
file = io.BytesIO()
tifffile.imwrite(file, (pixels >> 4), photometric="minisblack", bitspersample=12, byteorder=">")
data = file.getvalue()
strip = tifffile.TiffFile(io.BytesIO(data)).pages[0].dataoffsets[0]
good = np.packbits(bits, axis=-1).tobytes()
assert (tifffile.imread(io.BytesIO(data[:strip] + good + data[strip + len(good) :])) == pixels >> 4).all()
PYTHON
