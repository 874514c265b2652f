"""What importing costs and brings."""

import subprocess
import sys


def test_main_paths_import_nothing_heavy_that_they_may_do_without() -> None:
    code = (
        "import sys, jaxnets, jaxnets.report, jaxnets.weights;"
        "import experiments.train, experiments.evaluate, experiments.predict;"
        "heavy = ('tensorflow', 'torch', 'torchvision', 'matplotlib', 'orbax');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
