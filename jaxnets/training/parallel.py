"""Several devices and processes; no other module knows of them.

A step function is written for one replica, with an `axis_name` for collective operations. `Parallel.wrap` turns it into
a compiled function of whole batches, by `jit` on one device, `pmap` on several, or `shard_map` over a mesh.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnets.devices import devices as all_devices
from jaxnets.errors import InputError
from jaxnets.ops import compile

PARALLEL = ("auto", "jit", "pmap", "shard_map")
PLATFORMS = ("auto", "cpu", "gpu")
_AXIS = "replicas"
_SECONDS_TO_JOIN = 300
# Without a sign of life of another process for so long, JAX ends this one.
SECONDS_OF_SILENCE = 30
# The number of processes that srun or mpirun started.
_LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def choose_platform(platform: str) -> None:
    """Makes JAX use the CPU or a GPU; raises InputError without a GPU. Call it before any computation."""
    if platform not in PLATFORMS:
        raise InputError(f"platform={platform!r}; expected one of {', '.join(PLATFORMS)}")
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if platform == "gpu":
        try:
            jax.devices("gpu")
        except RuntimeError:
            raise InputError(
                "platform=gpu, but JAX finds no GPU; check the driver (nvidia-smi), install jaxnets[cuda12] or "
                "jaxnets[cuda13], or give --platform cpu"
            ) from None


def join_processes(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Connects the processes of a run, as given or as Slurm, Open MPI or Kubernetes say; does nothing without these.

    `coordinator` is HOST:PORT of process 0. Call it before any computation. Raises InputError if only some of the three
    are given, or if the other processes can't be reached.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given):
        if num_processes is None or process_id is None or coordinator is None:
            raise InputError("give all of --coordinator HOST:PORT, --num-processes N and --process-id I, or none")
        if not 0 <= process_id < num_processes:
            raise InputError(f"process_id={process_id}; expected 0 to {num_processes - 1}, each once")
        if ":" not in coordinator:
            raise InputError(f"coordinator={coordinator!r}; expected HOST:PORT of process 0, such as node1:7890")
    elif not _launched():
        return
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=_SECONDS_TO_JOIN,
            heartbeat_timeout_seconds=SECONDS_OF_SILENCE,
        )
    except (RuntimeError, ValueError) as error:
        lines = str(error).splitlines() or ["no reason given"]
        raise InputError(
            f"the processes of this run can't connect ({lines[0][:200]}); are all of them started, and process 0 "
            "reachable? In Kubernetes, pip install kubernetes, or give --coordinator, --num-processes and --process-id"
        ) from None


def _launched() -> bool:
    if any(count.isdecimal() and int(count) > 1 for count in (os.environ.get(name, "") for name in _LAUNCHERS)):
        return True
    # An indexed Job; JAX asks the cluster for the number of processes, with the package "kubernetes".
    return "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ


@dataclass(frozen=True)
class Parallel:
    """How steps use devices. `kind` is "jit", "pmap" or "shard_map"; `devices` are those of all processes.

    Only process 0 writes files. The arguments of a wrapped function are replicated (`replicate`) or a batch (`put`).
    """

    kind: str
    devices: tuple[jax.Device, ...]

    @classmethod
    def choose(cls, kind: str = "auto", devices: Sequence[jax.Device] | None = None) -> "Parallel":
        """`kind` on the given devices, or on all; "auto" is jit on one and pmap on several.

        Raises InputError for an unknown kind, and for jit in several processes.
        """
        if kind not in PARALLEL:
            raise InputError(f"parallel={kind!r}; expected one of {', '.join(PARALLEL)}")
        chosen = tuple(sorted(devices or all_devices(), key=lambda device: (device.process_index, device.id)))
        if kind == "auto":
            kind = "jit" if len(chosen) == 1 else "pmap"
        if kind == "jit":
            if jax.process_count() > 1:
                raise InputError(
                    f"parallel=jit uses one device, but there are {jax.process_count()} processes; "
                    "give --parallel pmap or shard_map"
                )
            chosen = chosen[:1]
        return cls(kind, chosen)

    @property
    def axis_name(self) -> str | None:
        """The name of the axis of replicas; None if there is only one."""
        return None if self.kind == "jit" else _AXIS

    @property
    def process_index(self) -> int:
        """The index of this process."""
        return jax.process_index()

    @property
    def process_count(self) -> int:
        """The number of processes."""
        return jax.process_count()

    @property
    def is_primary(self) -> bool:
        """Whether this process writes the files."""
        return self.process_index == 0

    def check_batch_size(self, batch_size: int, accumulation: int = 1) -> None:
        """Raises InputError unless the batch splits into equal parts for each replica and accumulation step."""
        parts = len(self.devices) * accumulation
        if batch_size % parts:
            accumulated = f" in {accumulation} parts" if accumulation > 1 else ""
            raise InputError(
                f"batch_size={batch_size} can't be split over {len(self.devices)} devices{accumulated}; choose a "
                f"multiple of {parts}, such as {-(-batch_size // parts) * parts}"
            )

    def wrap(
        self,
        function: Callable[..., Any],
        *,
        donate: bool = False,
        several_steps: bool = False,
        compiling: Callable[[], None] = lambda: None,
        compiled: Callable[[float], None] = lambda seconds: None,
    ) -> "Compiled":
        """Compiles `function(replicated, batch) -> replicated`; with `donate` the first argument is donated.

        With `several_steps`, `function` is `(replicated, batch) -> (replicated, sums)` and runs on each of the batches
        [steps, N, ...] in turn; the sums are stacked.

        `compiling` is called before a program is compiled, `compiled` after it with the seconds that took.
        """
        transformed = self._transformed(function, donate, several_steps)
        return Compiled(transformed, self.devices[0].platform, compiling, compiled)

    def _transformed(self, function: Callable[..., Any], donate: bool, several_steps: bool = False) -> Any:
        if several_steps:
            function = partial(lax.scan, function)
        donated = (0,) if donate else ()
        if self.kind == "jit":
            return jax.jit(function, donate_argnums=donated)
        if self.kind == "pmap":
            return jax.pmap(
                function, _AXIS, in_axes=(None, 0), out_axes=None, devices=self.devices, donate_argnums=donated
            )
        shards, whole = _shards(several_steps), PartitionSpec()
        # JAX cannot infer through all_gather that outputs are the same on all replicas.
        mapped = jax.shard_map(function, mesh=self._mesh, in_specs=(whole, shards), out_specs=whole, check_vma=False)
        return jax.jit(mapped, donate_argnums=donated)

    def put(self, batch: Any, several_steps: bool = False) -> Any:
        """A batch on the devices, from this process's share of it: arrays [N, ...], or [steps, N, ...]."""
        if self.kind == "jit":
            return jax.device_put(batch, self.devices[0])
        sharding = NamedSharding(self._mesh, _shards(several_steps and self.kind != "pmap"))
        here = sum(device.process_index == self.process_index for device in self.devices)

        def spread(array: np.ndarray) -> jax.Array:
            array = np.asarray(array)
            if self.kind == "pmap":
                steps = array.shape[:several_steps]
                array = array.reshape(*steps, here, -1, *array.shape[len(steps) + 1 :])
                array = np.moveaxis(array, len(steps), 0)
            return jax.make_array_from_process_local_data(sharding, array)

        return jax.tree.map(spread, batch)

    def replicate(self, tree: Any) -> Any:
        """The arrays of process 0 on each device of each process."""
        if self.kind == "jit":
            return jax.device_put(tree, self.devices[0])
        sharding = NamedSharding(self._mesh, PartitionSpec())
        if self.process_count == 1:
            return jax.device_put(tree, sharding)
        tree = multihost_utils.broadcast_one_to_all(tree)
        return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), tree)

    def fetch(self, tree: Any) -> Any:
        """Replicated arrays as NumPy arrays on this host."""
        return jax.device_get(jax.tree.map(lambda array: array.addressable_data(0), tree))

    def in_any_process(self, here: bool) -> bool | jax.Array:
        """Whether `here` is true in any process; with several processes, an array that may still be in computation."""
        if self.process_count == 1:
            return here
        flags = self.put(np.full(sum(d.process_index == self.process_index for d in self.devices), here))
        return _any(flags)

    def broadcast(self, value: Any) -> Any:
        """The value of process 0, of JSON types, in each process."""
        return self.gather(value if self.is_primary else None)[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, of JSON types, in each process, in order."""
        if self.process_count == 1:
            return [value]
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = np.asarray(multihost_utils.process_allgather(np.array(len(text))))
        padded = np.pad(text, (0, int(lengths.max()) - len(text)))
        rows = np.asarray(multihost_utils.process_allgather(padded))
        return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]

    def on_primary(self, function: Callable[[], Any]) -> Any:
        """The result of `function()` in process 0, None in the others.

        An InputError or an OSError from it ends all processes, as an InputError.
        """
        value = refusal = None
        if self.is_primary:
            try:
                value = function()
            except InputError as error:
                refusal = str(error)
            except OSError as error:
                if self.process_count == 1:
                    raise
                refusal = f"{error.filename or 'process 0'}: {error.strerror or error}"
        refusal = self.broadcast(refusal)
        if refusal is not None:
            raise InputError(refusal)
        return value

    def check_agreement(self, what: str) -> None:
        """Raises InputError in all processes unless `what` is the same in all of them."""
        digests = self.gather(sha256(what.encode()).hexdigest())
        other = [process for process, digest in enumerate(digests) if digest != digests[0]]
        if other:
            raise InputError(
                f"process {other[0]} of {self.process_count} has another configuration or other data than process 0; "
                "start all of them with the same command, code and files"
            )

    @property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (_AXIS,))


@contextmanager
def memory_explained(batch_size: int) -> Iterator[None]:
    """Turns an out-of-memory error of a device into an InputError that says what to change."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        raise InputError(
            f"out of memory with batch_size={batch_size} ({str(error).splitlines()[0][:120]}); try --batch-size "
            f"{max(1, batch_size // 2)}, --accumulation 2, --remat, --dtype bfloat16, or a smaller --image-size (and "
            "--train-image-sizes)"
        ) from None


class Compiled:
    """A wrapped function, compiled for each shape of batch; `seconds` is the total time of compilation."""

    def __init__(
        self,
        transformed: Any,
        platform: str,
        compiling: Callable[[], None],
        compiled: Callable[[float], None],
    ) -> None:
        self._transformed = transformed
        self._platform = platform
        self._compiling = compiling
        self._compiled = compiled
        self._programs: dict[Any, Any] = {}
        self.seconds = 0.0

    def __call__(self, replicated: Any, batch: Any) -> Any:
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch))
        if shapes not in self._programs:
            self._compiling()
            started = time.perf_counter()
            self._programs[shapes] = compile(self._transformed, replicated, batch)
            seconds = time.perf_counter() - started
            self.seconds += seconds
            self._compiled(seconds)
        results = self._programs[shapes](replicated, batch)
        # On the CPU, each step in flight holds all of its memory and competes for the threads.
        return jax.block_until_ready(results) if self._platform == "cpu" else results


def _shards(several_steps: bool) -> PartitionSpec:
    return PartitionSpec(None, _AXIS) if several_steps else PartitionSpec(_AXIS)


_any = jax.jit(jnp.any)
