"""The layers of a network: shapes, windows, parameters, multiply-adds and memory, found by tracing it once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from jaxnets.models.contract import anatomy, check_image_sizes, option_of, traced_side
from jaxnets.models.initialization import declaration
from jaxnets.ops.pool import AVERAGE

_CALL = "call:"


@dataclass
class Layer:
    """One layer. Shapes are without the batch; `activations` is the size of the outputs of one image [bytes].

    `window`, `stride` and `padding` are of the height; `padding` is before and after the image. They are 0 for layers
    without a window. `multiply_adds` are those of convolutions and dense layers, for one image.
    """

    name: str
    kind: str
    stage: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    window: int = 0
    stride: int = 0
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    parameters: int = 0
    multiply_adds: int = 0
    activations: int = 0

    @property
    def formula(self) -> str:
        """The output size by N = (W - F + 2P) / S + 1, with its numbers; empty for layers without a window."""
        if not self.window:
            return ""
        size, padding = self.inputs[0], self.padding[0]
        quotient = f"({size} - {self.window} + 2*{padding}) / {self.stride} + 1"
        steps = (size - self.window + 2 * padding) / self.stride
        if steps.is_integer():
            return f"{quotient} = {self.outputs[0]}"
        rounding = "floor" if int(steps) + 1 == self.outputs[0] else "ceil"
        return f"{rounding}({quotient}) = {self.outputs[0]}"


@dataclass(frozen=True)
class Total:
    """The sums over the layers of a stage, and the shape that its last module outputs, before pooling."""

    stage: str
    outputs: tuple[int, ...]
    layers: int
    parameters: int
    multiply_adds: int
    activations: int


@dataclass(frozen=True)
class Summary:
    """The layers of a network in the order of their calls, for images of `image_size` pixels a side."""

    network: str
    image_size: int
    layers: tuple[Layer, ...]
    stage_outputs: Mapping[str, tuple[int, ...]]

    def stages(self) -> list[Total]:
        """The totals of each stage, in order."""
        names = dict.fromkeys(layer.stage for layer in self.layers)
        return [self._total(name, [layer for layer in self.layers if layer.stage == name]) for name in names]

    def total(self) -> Total:
        """The totals of the network."""
        return self._total("total", list(self.layers))

    def _total(self, name: str, layers: list[Layer]) -> Total:
        sums = (sum(getattr(layer, key) for layer in layers) for key in ("parameters", "multiply_adds", "activations"))
        return Total(name, self.stage_outputs.get(name, layers[-1].outputs), len(layers), *sums)


@dataclass
class _Call:
    """A call of a module while the network is traced. `is_leaf` says that it calls no other module."""

    path: tuple[str, ...]
    kind: str
    inputs: tuple[int, ...]
    outputs: Any = None
    is_leaf: bool = True
    row: Layer | None = None


def summarize(model: Any, image_size: int | None = None, *, train: bool = False) -> Summary:
    """Traces a network for one image [1, S, S, 3]; `train` includes auxiliary heads. Nothing is computed.

    A layer is a module that calls no other, such as a convolution, or a pooling, dense product or convolution outside
    of these. What leaves no operation, such as dropout in evaluation, is left out. `image_size` [pixels] is by default
    one that fits. Raises InputError if the network does not take images of that size.
    """
    if option_of(model, "repeated_blocks", False):
        model = model.clone(repeated_blocks=False)  # a scan would be traced once, whatever its length
    side = traced_side(model) if image_size is None else image_size
    check_image_sizes(model, [side])
    calls: list[_Call] = []

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        path = context.module.path
        for other in calls:
            other.is_leaf &= other.path != path[:-1] or not path
        calls.append(_Call(path, type(context.module).__name__, _shape(args[0] if args else None)))
        number = len(calls) - 1
        with jax.named_scope(f"{_CALL}{number}"):
            calls[number].outputs = call(*args, **kwargs)
        return calls[number].outputs

    def forward(variables: Any, images: Any, key: Any) -> Any:
        return model.apply(variables, images, train=train, rngs={"dropout": key}, mutable=["batch_stats", "aux_logits"])

    variables = declaration(model, side).shapes
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with nn.intercept_methods(record):
        program = jax.make_jaxpr(forward)(variables, images, key)
    parts = anatomy(model)
    stage_of = {module: stage for stage, modules in parts.stages.items() for module in modules}
    layers = _layers(program.jaxpr, calls, variables.get("params", {}), stage_of, parts.head_inputs)
    outputs = {stage_of.get(call.path[0], ""): _shape(call.outputs) for call in calls if len(call.path) == 1}
    return Summary(type(model).__name__, side, tuple(layers), outputs)


def _layers(
    jaxpr: Any, calls: list[_Call], params: Mapping[str, Any], stage_of: Mapping[str, str], head_inputs: str
) -> list[Layer]:
    layers: list[Layer] = []
    stage, pooling = next(iter(stage_of.values())), ""
    for scope, equation in _equations(jaxpr, ""):
        _, found, after = scope.rpartition(_CALL)
        if not found:
            continue
        call = calls[int(after.split("/")[0])]
        stage = stage_of.get(call.path[0], stage) if call.path else stage
        operation = _operation(equation)
        if call.is_leaf and call.path:
            if call.row is None:
                arrays = jax.tree.leaves(_subtree(params, call.path))
                outputs = [leaf for leaf in jax.tree.leaves(call.outputs) if hasattr(leaf, "shape")]
                call.row = Layer("/".join(call.path), call.kind, stage, call.inputs, _shape(call.outputs))
                call.row.parameters = sum(prod(array.shape) for array in arrays)
                call.row.activations = sum(prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in outputs)
                layers.append(call.row)
            if operation:
                call.row.multiply_adds += operation.multiply_adds
                if operation.window and len(call.inputs) > 1:
                    call.row.window, call.row.stride = operation.window, operation.stride
                    call.row.padding, call.row.groups = operation.padding, operation.groups
            continue
        if AVERAGE in after.split("/"):
            inputs, outputs = equation.invars[0].aval, equation.outvars[0].aval
            if scope != pooling:
                layers.append(_layer("AvgPool", inputs, outputs))
                layers[-1].name, layers[-1].stage = "/".join((*call.path, "AvgPool")), stage
            layers[-1].outputs, layers[-1].activations = _shape(outputs), outputs.size * outputs.dtype.itemsize
        elif operation:
            if operation.kind == "GlobalAvgPool" and not call.path:
                stage = head_inputs
            operation.name = "/".join((*call.path, operation.kind))
            operation.stage = stage
            layers.append(operation)
        pooling = scope
    return _own_parameters(calls, params, stage_of) + layers


def _own_parameters(calls: list[_Call], params: Mapping[str, Any], stage_of: Mapping[str, str]) -> list[Layer]:
    """A row for each module that calls others and has parameters of its own."""
    called, in_rows = ({call.path for call in calls if call.row or not rows} for rows in (False, True))
    sizes: dict[tuple[str, ...], int] = {}
    for path, array in flatten_dict(params).items():
        if path[:-1] in called and path[:-1] not in in_rows:
            sizes[path[:-1]] = sizes.get(path[:-1], 0) + prod(array.shape)
    stages = list(stage_of.values())
    return [
        Layer("/".join((*path, "parameters")), "Parameters", stage_of.get(path[0], stages[0]) if path else stages[0],
              (), (), parameters=size)
        for path, size in sizes.items()
    ]  # fmt: skip


def _equations(jaxpr: Any, outer: str) -> Iterator[tuple[str, Any]]:
    """The equations of a program and of the programs inside it, in order, each with its scope."""
    for equation in jaxpr.eqns:
        scope = f"{outer}/{equation.source_info.name_stack}"
        inner = [
            getattr(value, "jaxpr", value)
            for value in equation.params.values()
            if isinstance(value, jax.extend.core.ClosedJaxpr | jax.extend.core.Jaxpr)
        ]
        if not inner or equation.primitive.name in _OPERATIONS:
            yield scope, equation
        for program in inner[:1]:
            yield from _equations(program, scope)


def _operation(equation: Any) -> Layer | None:
    """The layer that an equation is by itself; None for others, such as sums."""
    convert = _OPERATIONS.get(equation.primitive.name)
    return convert(equation, equation.invars[0].aval, equation.outvars[0].aval) if convert else None


def _layer(kind: str, inputs: Any, outputs: Any, **options: Any) -> Layer:
    size = prod(outputs.shape[1:]) * outputs.dtype.itemsize
    return Layer("", kind, "", _shape(inputs), _shape(outputs), activations=size, **options)


def _conv(equation: Any, inputs: Any, outputs: Any) -> Layer:
    """jaxnets' convolutions, whose kernel is the second operand."""
    options, kernel = equation.params, equation.invars[1].aval.shape
    padding = options["padding"]
    return _layer(
        "Conv", inputs, outputs, window=kernel[0], stride=options["stride"], padding=(padding, padding),
        groups=options["groups"], multiply_adds=outputs.size // outputs.shape[0] * prod(kernel[:-1]),
    )  # fmt: skip


def _lax_conv(equation: Any, inputs: Any, outputs: Any) -> Layer | None:
    """XLA's convolution, as flax's layers call it."""
    options, numbers = equation.params, equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    window = [kernel[axis] for axis in numbers.rhs_spec[2:]]
    inputs_per_group = kernel[numbers.rhs_spec[1]]
    return _layer(
        "Conv", inputs, outputs, window=window[0], stride=options["window_strides"][0],
        padding=tuple(options["padding"][0]), groups=options["feature_group_count"],
        multiply_adds=outputs.size // outputs.shape[0] * prod(window) * inputs_per_group,
    )  # fmt: skip


def _dense(equation: Any, inputs: Any, outputs: Any) -> Layer:
    ((contracted, _), _) = equation.params["dimension_numbers"]
    length = prod(inputs.shape[axis] for axis in contracted)
    return _layer("Dense", inputs, outputs, multiply_adds=outputs.size // outputs.shape[0] * length)


def _max_pool(equation: Any, inputs: Any, outputs: Any) -> Layer:
    options = equation.params
    return _layer(
        "MaxPool", inputs, outputs, window=options["window"], stride=options["stride"], padding=options["pads"][0]
    )


def _window_reduction(equation: Any, inputs: Any, outputs: Any) -> Layer | None:
    """XLA's pooling, as flax's functions call it."""
    options = equation.params
    kind = "MaxPool" if equation.primitive.name == "reduce_window_max" else "AvgPool"
    return _layer(
        kind, inputs, outputs, window=options["window_dimensions"][1], stride=options["window_strides"][1],
        padding=tuple(options["padding"][1]),
    )  # fmt: skip


def _global_average(equation: Any, inputs: Any, outputs: Any) -> Layer | None:
    is_global = len(inputs.shape) == 4 and tuple(equation.params["axes"]) == (1, 2)
    return _layer("GlobalAvgPool", inputs, outputs) if is_global else None


_OPERATIONS = {
    "conv2d": _conv,
    "conv2d_bias": _conv,
    "conv_general_dilated": _lax_conv,
    "dot_general": _dense,
    "max_pool": _max_pool,
    "reduce_window_max": _window_reduction,
    "reduce_window_sum": _window_reduction,
    "reduce_sum": _global_average,
}


def _subtree(params: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        params = params.get(name, {}) if isinstance(params, Mapping) else {}
    return params


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape[1:]) if hasattr(value, "shape") else ()
