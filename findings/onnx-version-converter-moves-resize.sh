#!/usr/bin/env bash
# onnx 1.23.2: converting a model from opset 10 to 11 changes what Resize computes.
#
# A good guess: version_converter keeps the results, and adds the attributes whose defaults changed.
# Seen: Resize of opset 10 reads the pixel at x / scale (asymmetric). Opset 11 has this as an attribute, and its default is
#   half_pixel. The converter doesn't write the attribute, so the converted model samples at shifted positions. The model
#   is valid and has the same shapes, and onnxruntime 1.32.0 gives other numbers without a warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, version_converter


def run(model):
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.array([[[[0, 1]]]], np.float32)})[0].ravel().tolist()


graph = helper.make_graph(
    [helper.make_node("Resize", ["x", "scales"], ["y"], mode="linear")],
    "resize",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 1, 2])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 4])],
    [helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, 1, 2])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=8)
before, after = run(model), run(version_converter.convert_version(model, 11))
print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}: opset 10 {before}, converted to 11 {after}")
assert before == [0, 0.5, 1, 1], "Resize of opset 10 computes something else"
assert after == [0, 0.25, 0.75, 1], "the converter now changes the results in another way, or keeps them"
PYTHON
