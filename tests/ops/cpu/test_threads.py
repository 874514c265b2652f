"""Where OpenMP's threads run: a core each, if they are as many as the cores, and the results are the same."""

import json
import os
import platform
import subprocess
import sys

import pytest

from jaxnets.ops.cpu.availability import SWITCH
from tests.ops.cpu.test_engine import pytestmark as pytestmark

_SCRIPT = """
import json, os
os.sched_setaffinity(0, range(os.cpu_count()))
import jax, jax.numpy as jnp
from jaxnets.ops import conv2d

images = jax.random.normal(jax.random.key(0), (8, 14, 14, 64))
kernel = jax.random.normal(jax.random.key(1), (3, 3, 64, 64))
gradient = jax.jit(jax.grad(lambda kernel: jnp.square(conv2d(images, kernel, padding=1)).sum()))(kernel)
def lines_of(path):
    return open(path).readlines() if os.path.exists(path) else []

places = {}
for thread in map(int, os.listdir("/proc/self/task")):
    core = os.sched_getaffinity(thread)
    if len(core) == 1:
        places[thread] = [*core]
print(json.dumps({
    "allowed": sorted(os.sched_getaffinity(0)),
    "cores": sorted(sum(places.values(), [])),
    "main": len(os.sched_getaffinity(0)),
    "gradient": gradient.tobytes().hex(),
    "slices": [line for thread in places for line in lines_of(f"/proc/self/task/{thread}/sched") if "slice" in line],
}))
"""


def placed(**environment: str) -> dict:
    before = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    command = [sys.executable, "-c", _SCRIPT]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, env={**before, **environment})
    found = json.loads(finished.stdout)
    if len(found["allowed"]) < 2:
        pytest.skip("needs two cores")
    return found


def test_each_thread_has_a_core_and_the_main_thread_all() -> None:
    found = placed()
    assert (found["cores"], found["main"]) == (found["allowed"], len(found["allowed"]))
    without = placed(**{SWITCH: "placed_threads"})
    assert without["cores"] == []
    assert found["gradient"] == without["gradient"]


@pytest.mark.parametrize("setting", [{"OMP_NUM_THREADS": "1"}, {"OMP_PROC_BIND": "false"}, {SWITCH: "placed_threads"}])
def test_fewer_threads_and_those_of_the_user_stay_where_they_are(setting: dict[str, str]) -> None:
    assert placed(**setting)["cores"] == []


@pytest.mark.skipif(
    tuple(map(int, platform.release().split(".")[:2])) < (6, 12) if platform.system() == "Linux" else True,
    reason="needs Linux 6.12",
)
def test_slices_are_short() -> None:
    found = placed()
    if not found["slices"]:
        pytest.skip("this kernel does not show its slices")
    assert len(found["slices"]) == len(found["allowed"])
    assert all(line.split()[-1] == "100000" for line in found["slices"])
