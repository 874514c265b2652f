"""Whole commands against a script with torchvision: python -m jaxnets.benchmarking.commands ARCH PHOTOS.

PHOTOS holds a folder of images for each class. Both sides predict, embed and evaluate the same photos from the same
file of weights, in turns; what counts is the time from the start of a process to its end. Prints seconds of both and
the median of the ratios with their range, a line for each command.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jaxnets.data.pipeline import available_cores
from jaxnets.errors import InputError
from jaxnets.models.registry import create_model
from jaxnets.training.progress import counting

_TASKS = ("predict", "embed", "evaluate")
_SCRIPT = Path(__file__).with_name("torchvision_commands.py")


def main() -> None:
    """Measures, and prints a line of JSON for each command."""
    parser = argparse.ArgumentParser(prog="python -m jaxnets.benchmarking.commands", description=main.__doc__)
    parser.add_argument("arch")
    parser.add_argument("photos", type=Path, help="folder with a folder of images for each class")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds {arguments.rounds}; expected at least 1")
    classes = sorted(path for path in arguments.photos.glob("*") if path.is_dir())
    if len(classes) < 2:
        parser.error(f"{arguments.photos} has {len(classes)} folders; expected one of images for each class")
    try:
        create_model(arguments.arch)
        with TemporaryDirectory() as folder, counting("measuring", arguments.rounds * len(_TASKS)) as (done, _):
            results = measure(arguments.arch, classes, Path(folder), arguments.rounds, done)
        for result in results:
            print(json.dumps(result))
    except InputError as error:
        parser.error(str(error))


def measure(
    arch: str, classes: Sequence[Path], folder: Path, rounds: int, done: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Seconds of each command and of torchvision on the images in `classes`, which are folders.

    Writes to the empty `folder`. `done` is called with the number of commands measured so far.
    """
    photos = folder / "test"
    # The classes of a file of weights without metadata are called 0, 1, ...
    for part in ("test", "train"):
        (folder / part).mkdir()
        for number, path in enumerate(classes):
            (folder / part / str(number)).symlink_to(path.resolve(), target_is_directory=True)
    weights = folder / "weights.pth"
    peer = [arch, str(weights), str(photos), str(available_cores())]
    _seconds([sys.executable, str(_SCRIPT), "save", *peer])
    outputs = [folder / "predictions.csv", folder / "features.npz"]
    options = {
        "predict": [str(photos), "--output", str(outputs[0])],
        "embed": [str(photos), "--output", str(outputs[1])],
        "evaluate": ["--dataset", str(folder)],
    }
    seconds: dict[str, list[tuple[float, float]]] = {task: [] for task in _TASKS}
    for number in range(rounds):
        for place, task in enumerate(_TASKS, 1):
            for output in outputs:
                output.unlink(missing_ok=True)
            own = [sys.executable, "-m", f"experiments.{task}", "--arch", arch, "--weights", str(weights)]
            own += options[task]
            seconds[task].append((_seconds(own), _seconds([sys.executable, str(_SCRIPT), task, *peer])))
            done(number * len(_TASKS) + place)
    return [_result(task, arch, pairs) for task, pairs in seconds.items()]


def _result(task: str, arch: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    ratios = [theirs / ours for ours, theirs in pairs]
    return {
        "command": task,
        "arch": arch,
        "seconds": statistics.median(ours for ours, _ in pairs),
        "peer_seconds": statistics.median(theirs for _, theirs in pairs),
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
    }


def _seconds(command: Sequence[str]) -> float:
    started = time.perf_counter()
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        last = (finished.stderr.strip() or "no message").splitlines()[-1]
        hint = "; install it with pip install 'jaxnets[peer]'" if "No module named 'torch" in last else ""
        raise InputError(f"{Path(command[1]).name} {command[2]} failed: {last}{hint}")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
