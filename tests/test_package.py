"""What importing costs and brings."""

import subprocess
import sys


def test_main_paths_import_neither_tensorflow_nor_torch() -> None:
    code = (
        "import sys, jaxnets, jaxnets.report, jaxnets.weights;"
        "import experiments.train, experiments.evaluate, experiments.predict;"
        "print([name for name in ('tensorflow', 'torch', 'torchvision', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
