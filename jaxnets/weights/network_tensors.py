"""The tensors of a file that a network takes, checked when they are read."""

from collections.abc import Collection, Iterator, Mapping

import numpy as np
from jax.typing import DTypeLike

from jaxnets.errors import InputError
from jaxnets.weights.pickle_values import shown
from jaxnets.weights.tensor_file import TensorFile
from jaxnets.weights.tensors import Spec, shown_path

_FLOATS = ("float64", "float32", "float16", "bfloat16")


class NetworkTensors(Mapping[str, np.ndarray]):
    """Those of a file's tensors that have `names`. Each access reads a tensor, as `dtype` or as it is stored.

    `taken` are the tensors that become variables, and `variances` those of them that cannot be negative. Raises
    InputError, with the file and the tensor, for taken ones that are not of floating-point numbers, and when a tensor
    is read that is not finite, has a negative variance or exceeds the range of `dtype`.
    """

    def __init__(
        self,
        tensors: TensorFile,
        names: Collection[str],
        taken: Collection[str],
        variances: Collection[str],
        dtype: DTypeLike | None,
    ) -> None:
        self.path = tensors.path
        self.specs: dict[str, Spec] = {name: tensors.specs[name] for name in names}
        self._tensors, self._taken, self._variances, self._dtype = tensors, taken, variances, dtype
        for name in taken:
            if (found := self.specs[name].dtype.name) not in _FLOATS:
                raise InputError(
                    f"{shown_path(self.path)} has a tensor {shown(name)} of type {found}; expected one of "
                    f"{', '.join(_FLOATS)}, not quantised weights"
                )

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._tensors[name]
        if name not in self._taken:
            return array
        values = array
        if self._dtype is not None and array.dtype != self._dtype:
            with np.errstate(over="ignore"):
                values = array.astype(self._dtype)
        if fault := fault_of(values, is_variance=name in self._variances):
            if values is not array and not fault_of(array):
                fault = f"has values beyond the range of {values.dtype}"
            raise InputError(f"{shown_path(self.path)} has a tensor {shown(name)} that {fault}; use another file")
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def fault_of(array: np.ndarray, *, is_variance: bool = False) -> str | None:
    """What makes an array useless as weights: values that are not finite, or negative variances; None if nothing."""
    finite = np.isfinite(array)
    if not finite.all():
        return f"has {array.size - np.count_nonzero(finite)} values that are not finite (NaN or infinity)"
    if is_variance and (array < 0).any():
        return "has negative variances"
    return None
