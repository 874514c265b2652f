"""What the functions of torch in a pickle make of their arguments, without calling them."""

from typing import Any

from jaxnets.weights.pickle_values import (
    MAX_DIMENSIONS,
    STORAGES,
    Inert,
    Name,
    Namespace,
    Ordered,
    Storage,
    Tensor,
    kind_of,
    refuse,
    set_items,
    shown,
)

_MAX_ARGUMENTS = 7
_TENSOR, _TENSOR_V2 = "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"
# A tensor or a parameter that has attributes of its own has one of these classes, a subclass has another.
_PLAIN_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter")
_PARAMETERS = {"torch._utils._rebuild_parameter": 3, "torch._utils._rebuild_parameter_with_state": 4}
_DICTS = ("collections.OrderedDict", "collections.defaultdict")
_UNREADABLE = {
    "torch._utils._rebuild_sparse_tensor": "sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse tensor",
    "torch._utils._rebuild_nested_tensor": "nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "tensor on the meta device, which has no values",
}
# Functions that make an object of the class that is their first argument.
_MAKERS = (
    "copyreg._reconstructor",
    "copy_reg._reconstructor",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
)


def call(function: Name, arguments: tuple) -> Any:
    """The tensor, dict or size that a call of torch describes; an inert value for any other call.

    Raises InputError, without the file's name, for arguments that do not describe a tensor, a dict or a size.
    """
    full = function.full
    if full == "torch.Size" or full in (_TENSOR, _TENSOR_V2, *_PARAMETERS, *_DICTS):
        if len(arguments) > _MAX_ARGUMENTS:
            refuse(f"calls {full} with {len(arguments)} arguments")
        if full == "torch.Size":
            return _size(arguments)
        if full in _DICTS:
            return _dict(full, arguments)
        return _parameter(arguments, _PARAMETERS[full]) if full in _PARAMETERS else _tensor(full, arguments)
    if full in ("torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type"):
        return _typed_tensor(arguments)
    if full == "torch._utils._rebuild_tensor_v3" and len(arguments) > 6:
        return Inert(f"tensor of {kind_of(arguments[6])}")
    if full == "torch._utils._rebuild_qtensor" and arguments and type(arguments[0]) is Storage:
        return Inert(f"quantised tensor of {arguments[0].dtype}")
    if full in _UNREADABLE:
        return Inert(_UNREADABLE[full])
    return make(arguments[0] if full in _MAKERS and arguments and type(arguments[0]) is Name else function)


def make(made_by: Any) -> Inert:
    """An inert value for an object of a class, or for the result of a function."""
    if type(made_by) is Name and made_by.full == "argparse.Namespace":
        return Namespace(made_by.full, {})
    if type(made_by) is Name:
        return Inert(made_by.full)
    if not isinstance(made_by, Inert):
        refuse(f"calls a {kind_of(made_by)}, which is not a function")
    return Inert(made_by.what)


def storage(identity: Any) -> Storage:
    """The storage that a persistent ID of torch describes; raises InputError for any other ID."""
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
        refuse("has a persistent ID that is not a storage")
    _, storage_class, key, _, numel = identity[:5]
    module, _, name = (storage_class.full if type(storage_class) is Name else "").rpartition(".")
    if (
        module not in ("torch", "torch.storage")
        or name not in STORAGES
        or type(key) is not str
        or type(numel) is not int
    ):
        refuse("refers to a storage without its type, key or size")
    start, length = 0, numel
    view = identity[5] if len(identity) == 6 else None
    if view is not None:
        if type(view) is not tuple or len(view) != 3 or not _integers(view[1:]):
            refuse(f"has a view of storage {shown(key)} without its bounds")
        _, start, length = view
    return Storage(key, STORAGES[name][0], numel, start, length)


def _dict(function: str, arguments: tuple) -> Ordered:
    ordered = Ordered()
    if function == "collections.defaultdict":
        return ordered
    # Python 2 passes the items as an argument.
    pairs = arguments[0] if len(arguments) == 1 else []
    if len(arguments) > 1 or type(pairs) is not list or not all(_is_pair(pair) for pair in pairs):
        refuse("makes an OrderedDict from items that are not pairs")
    set_items(ordered, pairs)
    return ordered


def _size(arguments: tuple) -> tuple[int, ...]:
    if len(arguments) != 1 or type(arguments[0]) not in (list, tuple):
        refuse("has a torch.Size that is not of integers")
    if len(arguments[0]) > MAX_DIMENSIONS:
        refuse(f"has a torch.Size of {len(arguments[0])} dimensions")
    if not _integers(size := tuple(arguments[0])):
        refuse("has a torch.Size that is not of integers")
    return size


def _parameter(arguments: tuple, count: int) -> Tensor | Inert:
    if len(arguments) != count or not isinstance(arguments[0], Tensor | Inert):
        refuse("has a parameter without a tensor")
    tensor: Tensor | Inert = arguments[0]
    return tensor


def _typed_tensor(arguments: tuple) -> Any:
    """A tensor of a class other than torch's, or one with attributes, which are ignored."""
    if len(arguments) != 4 or not all(type(argument) is Name for argument in arguments[:2]):
        refuse("describes a tensor without its class")
    function, tensor_class, inner, _ = arguments
    if tensor_class.full not in _PLAIN_CLASSES or type(inner) is not tuple:
        return Inert(f"tensor of class {kind_of(tensor_class)}")
    return _tensor(function.full, inner) if function.full in (_TENSOR, _TENSOR_V2) else Inert(function.full)


def _tensor(function: str, arguments: tuple) -> Tensor | Inert:
    if len(arguments) not in ((4,) if function == _TENSOR else (6, 7)):
        refuse(f"describes a tensor by {len(arguments)} values")
    storage, offset, size, stride = arguments[:4]
    if type(storage) is not Storage or type(size) is not tuple or type(stride) is not tuple:
        refuse("has a tensor without a storage, a size or a stride")
    if max(len(size), len(stride)) > MAX_DIMENSIONS:
        refuse(f"has a tensor of {max(len(size), len(stride))} dimensions")
    if not _integers((offset, *size, *stride)):
        refuse("has a tensor whose size, stride or offset is not of integers")
    if len(arguments) == 7 and arguments[6]:
        return Inert("negated or conjugated tensor; save it with .resolve_neg() or .resolve_conj()")
    return Tensor(storage, offset, size, stride)


def _is_pair(value: Any) -> bool:
    return type(value) in (list, tuple) and len(value) == 2


def _integers(values: tuple) -> bool:
    return all(type(value) is int for value in values)
