"""A convolution's kernel, and its copies to and from the layout that oneDNN's primitive chooses."""

import math
from collections.abc import Sequence
from ctypes import c_void_p

import numpy as np

from jaxnets.ops.cpu.library import Step, aligned, array_at, computes_by_eight, describe, reorder

# Without AVX-512, groups of 4 or 2 channels are computed as groups of this many, with zeros in between.
_CHANNELS = 8
_NUMBER = 4


class KernelLayout:
    """A kernel [kh, kw, C / groups, F] for oneDNN, perhaps with fewer and wider groups.

    `free` describes it in a layout that the primitive chooses.
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
        # Bytes of the wide kernel, which is copied first.
        self.wide_size = aligned(math.prod(self._wide) * _NUMBER) if self._merged > 1 else 0

    def read(self, index: int, layout: c_void_p, target: int, wide: int) -> list[Step]:
        """Steps that copy array `index`, the kernel, to `layout` in array `target`, by way of array `wide`."""
        if self._merged == 1:
            return [reorder(self._plain, index, layout, target)]

        def widen(addresses: Sequence[int]) -> None:
            array_at(addresses[wide], self._wide)[:] = 0
            for block, part in self._blocks(addresses[index], addresses[wide]):
                block[:] = part

        return [widen, reorder(self._plain, wide, layout, target)]

    def write(self, layout: c_void_p, source: int, index: int, wide: int) -> list[Step]:
        """Steps that copy array `source` in `layout` to array `index`, the kernel."""
        if self._merged == 1:
            return [reorder(layout, source, self._plain, index)]

        def narrow(addresses: Sequence[int]) -> None:
            for block, part in self._blocks(addresses[index], addresses[wide]):
                part[:] = block

        return [reorder(layout, source, self._plain, wide), narrow]

    def _blocks(self, address: int, wide: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The blocks on the wide kernel's diagonals, each with its part of the kernel."""
        height, width, inputs, features = self._shape
        merged, count = self._merged, features // self._features // self._merged
        parts = array_at(address, (height, width, inputs, count, merged, self._features))
        blocks = array_at(wide, (height, width, merged, inputs, count, merged, self._features))
        return [(blocks[:, :, i, :, :, i], parts[:, :, :, :, i]) for i in range(merged)]


def _groups_to_merge(inputs: int, groups: int) -> int:
    """The number of neighbouring groups, of `inputs` channels each, that are computed as one."""
    count, rest = divmod(_CHANNELS, inputs)
    # For one channel oneDNN has a primitive of its own.
    return 1 if not computes_by_eight() or inputs == 1 or rest or count == 0 or groups % count else count
