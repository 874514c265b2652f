"""A convolution's kernel in memory, and on its way to and from the layout that oneDNN's primitive works with."""

import math
from collections.abc import Sequence
from ctypes import c_void_p

import numpy as np

from jaxnets.ops.cpu.library import Step, aligned, array_at, describe, has_only_avx2, reorder

# With vectors of 8 numbers, groups of 4 or 2 channels are computed as if they were so many, with zeros between them:
# for [8, 56, 56, 128] in 32 groups in 12 instead of 36 ms, and the gradients in the same time (two Zen 3 cores).
_CHANNELS = 8
_NUMBER = 4


class KernelLayout:
    """A kernel [kh, kw, C / groups, F] for oneDNN, which may see wider and fewer groups.

    `free` describes it in a layout that a primitive is to choose.
    """

    def __init__(self, shape: Sequence[int], groups: int) -> None:
        self._shape = shape
        self._features = shape[3] // groups
        self._merged = _groups_to_merge(shape[2], groups)
        height, width, inputs, features = self._wide = (*shape[:2], shape[2] * self._merged, shape[3])
        groups //= self._merged
        sizes = [features // groups, inputs, height, width]
        strides = [1, features, width * inputs * features, inputs * features]
        if groups > 1:
            sizes, strides = [groups, *sizes], [features // groups, *strides]
        self._plain, self.free = describe(sizes, strides), describe(sizes, None)
        # Bytes of memory that it needs on its way.
        self.wide_size = aligned(math.prod(self._wide) * _NUMBER) if self._merged > 1 else 0

    def read(self, place: int, layout: c_void_p, own: int, wide: int) -> list[Step]:
        """Steps from the kernel at a place of a call to the layout at another, over memory of `wide_size`."""
        if self._merged == 1:
            return [reorder(self._plain, place, layout, own)]

        def widen(addresses: Sequence[int]) -> None:
            array_at(addresses[wide], self._wide)[:] = 0
            for block, part in self._blocks(addresses[place], addresses[wide]):
                block[:] = part

        return [widen, reorder(self._plain, wide, layout, own)]

    def written(self, layout: c_void_p, own: int, place: int, wide: int) -> list[Step]:
        """Steps from the layout to the kernel."""
        if self._merged == 1:
            return [reorder(layout, own, self._plain, place)]

        def narrow(addresses: Sequence[int]) -> None:
            for block, part in self._blocks(addresses[place], addresses[wide]):
                part[:] = block

        return [reorder(layout, own, self._plain, wide), narrow]

    def _blocks(self, address: int, wide: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The blocks on the wide kernel's diagonals, and the parts of the kernel that belong there."""
        height, width, inputs, features = self._shape
        merged, count = self._merged, features // self._features // self._merged
        parts = array_at(address, (height, width, inputs, count, merged, self._features))
        blocks = array_at(wide, (height, width, merged, inputs, count, merged, self._features))
        return [(blocks[:, :, i, :, :, i], parts[:, :, :, :, i]) for i in range(merged)]


def _groups_to_merge(inputs: int, groups: int) -> int:
    """How many neighbouring groups, of so many channels each, are computed as one."""
    wanted, rest = divmod(_CHANNELS, inputs)
    # Where there is one channel, oneDNN has its own way.
    return 1 if not has_only_avx2() or inputs == 1 or rest or wanted == 0 or groups % wanted else wanted
