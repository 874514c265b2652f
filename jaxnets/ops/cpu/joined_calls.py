"""Joins calls of the engine in a lowered program, and lets calls in a loop use rows of stacked arrays.

Each call costs a handover between threads. Successive calls become one, unless XLA has to compute something between
them. XLA copies each row that a loop reads from a stacked array or writes to one; instead, a call gets the whole array
and the row's index.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxlib.mlir import ir

_CALL, _FUNCTION_CALL = "stablehlo.custom_call", "func.call"


@dataclass
class _Call:
    """A call's operands and results, and the fields of its `call_text`.

    `aliases` maps results to the operands that they overwrite.
    """

    target: str
    operands: list[Any] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    operations: list[Any] = field(default_factory=list)
    temporaries: list[int] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    aliases: dict[int, int] = field(default_factory=dict)

    def insert_before(self, operation: Any) -> Any:
        """Inserts the call before another operation, as `jax.ffi.ffi_call` writes it."""
        text = call_text(self.operations, self.temporaries, self.rows)
        attributes = {
            "call_target_name": ir.StringAttr.get(self.target),
            "backend_config": ir.StringAttr.get(""),
            "mhlo.backend_config": ir.DictAttr.get({"call": ir.StringAttr.get(text)}),
            "operand_layouts": ir.ArrayAttr.get([_layout(value.type) for value in self.operands]),
            "result_layouts": ir.ArrayAttr.get([_layout(kind) for kind in self.results]),
            "output_operand_aliases": ir.ArrayAttr.get(
                [
                    ir.Attribute.parse(
                        f"#stablehlo.output_operand_alias<output_tuple_indices = {[result] * (len(self.results) > 1)}, "
                        f"operand_index = {operand}, operand_tuple_indices = []>"
                    )
                    for result, operand in self.aliases.items()
                ]
            ),
        }
        return ir.Operation.create(
            _CALL,
            results=self.results,
            operands=self.operands,
            attributes=attributes,
            ip=ir.InsertionPoint(operation),
        )


def call_text(operations: Sequence[Any], temporaries: Sequence[int] = (), rows: Sequence[Sequence[int]] = ()) -> str:
    """A call as text: its operations, each as kind, numbers and the indices of its arrays.

    Indices count the call's operands, then its results, then its temporaries, of which the bytes are listed. `rows` are
    arrays of which the call uses one row: [index, index of the row's number, rows, bytes of one row].
    """
    fields = {"operations": operations, "temporaries": temporaries, "rows": rows}
    return json.dumps(fields, default=lambda number: number.item())  # NumPy numbers


def join_calls(module: Any, target: str) -> None:
    """Joins the calls of `target` in a module of StableHLO, in place; it computes the same as before."""
    with module.context, ir.Location.unknown():
        operations = [operation.operation for operation in module.body.operations]
        if not any(_is_call(inner, target) for operation in operations for inner in _within(operation)):
            return
        functions = {ir.StringAttr(f.attributes["sym_name"]).value: f for f in operations if f.name == "func.func"}
        inlined: set[str] = set()
        for name in functions:
            _inline_calls(name, functions, inlined)
        for function in functions.values():
            for block in list(_blocks(function)):
                if any(_is_call(inner.operation, target) for inner in block.operations):
                    _join(block, target)
                    _use_rows(block, target)


def _blocks(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region.blocks:
            yield block
            for inner in block.operations:
                yield from _blocks(inner.operation)


def _within(operation: Any) -> Iterator[Any]:
    for block in _blocks(operation):
        for inner in block.operations:
            yield inner.operation


def _is_call(operation: Any, target: str) -> bool:
    return operation.name == _CALL and ir.StringAttr(operation.attributes["call_target_name"]).value == target


def _parsed(operation: Any) -> dict[str, Any]:
    text = ir.StringAttr(ir.DictAttr(operation.attributes["mhlo.backend_config"])["call"]).value
    fields: dict[str, Any] = json.loads(text)
    return fields


def _was_joined(operation: Any) -> bool:
    """Whether a call has temporaries or rows, because its module was joined before."""
    fields = _parsed(operation)
    return bool(fields["temporaries"] or fields["rows"])


def _layout(kind: Any) -> Any:
    axes = reversed(range(ir.RankedTensorType(kind).rank))
    return ir.Attribute.parse(f"dense<{list(axes)}> : tensor<{ir.RankedTensorType(kind).rank}xindex>")


def _inline_calls(name: str, functions: dict[str, Any], inlined: set[str]) -> None:
    """Replaces calls of functions by their bodies, as calls in two functions may be joined."""
    if name in inlined:
        return
    inlined.add(name)
    for operation in [inner for inner in _within(functions[name]) if inner.name == _FUNCTION_CALL]:
        callee = ir.FlatSymbolRefAttr(operation.attributes["callee"]).value
        if callee not in functions or len(operation.attributes) > 1:
            continue
        _inline_calls(callee, functions, inlined)
        (block,) = functions[callee].regions[0].blocks
        known = dict(zip(block.arguments, operation.operands, strict=True))
        *body, end = (inner.operation for inner in block.operations)
        for inner in body:
            copy = inner.clone(ip=ir.InsertionPoint(operation))
            for part in (copy, *_within(copy)):
                for i, value in enumerate(part.operands):
                    if value in known:
                        part.operands[i] = known[value]
            known.update(zip(inner.results, copy.results, strict=True))
        for result, value in zip(operation.results, end.operands, strict=True):
            result.replace_all_uses_with(known.get(value, value))
        operation.erase()


def _join(block: Any, target: str) -> None:
    """Joins each call with the one before it, unless an operation has to run in between."""
    *operations, end = (operation.operation for operation in block.operations)
    makers = {result: i for i, operation in enumerate(operations) for result in operation.results}
    needs = [
        {makers[value] for part in (operation, *_within(operation)) for value in part.operands if value in makers}
        for operation in operations
    ]
    # Indices of operations in their new order; those of one list are joined.
    order: list[list[int]] = []
    last: int | None = None  # the index in `order` of the last call; only other operations follow it
    for i, operation in enumerate(operations):
        if not _is_call(operation, target) or _was_joined(operation):
            order.append([i])
            continue
        if last is not None:
            call = order[last]
            others: list[list[int]] = []
            later: list[list[int]] = []  # operations that need the call, and can follow both
            reached = set(call)
            for numbers in order[last + 1 :]:
                waits = any(not reached.isdisjoint(needs[number]) for number in numbers)
                (later if waits else others).append(numbers)
                reached.update(numbers if waits else ())
            if (reached - set(call)).isdisjoint(needs[i]):  # it needs nothing that depends on the call but its results
                order[last:] = [*others, [*call, i], *later]
                last += len(others)
                continue
        last = len(order)
        order.append([i])
    for numbers in order:
        if len(numbers) == 1:
            operations[numbers[0]].move_before(end)
        else:
            _write_joined([operations[number] for number in numbers], target, end)


def _write_joined(operations: Sequence[Any], target: str, end: Any) -> None:
    values = dict.fromkeys(result for operation in operations for result in operation.results)
    operands = list(
        dict.fromkeys(value for operation in operations for value in operation.operands if value not in values)
    )
    results = [value for value in values if any(use.owner.operation not in operations for use in value.uses)]
    temporaries = [value for value in values if value not in results]
    indices = {value: index for index, value in enumerate([*operands, *results, *temporaries])}
    call = _Call(target, operands, [result.type for result in results], temporaries=[_bytes(v) for v in temporaries])
    for operation in operations:
        arrays = [indices[value] for value in (*operation.operands, *operation.results)]
        for kind, numbers, of_operation in _parsed(operation)["operations"]:
            call.operations.append([kind, numbers, [arrays[index] for index in of_operation]])
    _replace(operations, call.insert_before(end), results)


def _replace(operations: Sequence[Any], by: Any, results: Sequence[Any]) -> None:
    for old, new in zip(results, by.results, strict=True):
        old.replace_all_uses_with(new)
    for operation in reversed(operations):
        operation.erase()


def _use_rows(block: Any, target: str) -> None:
    """Passes stacked arrays to the calls of a loop's body, instead of copies of their rows."""
    arguments = set(block.arguments)
    # A list, as operations are erased in the loop.
    calls = [inner.operation for inner in block.operations if _is_call(inner.operation, target)]
    for operation in calls:
        if _parsed(operation)["rows"]:
            continue
        operands = list(operation.operands)
        read = {place: row for place, value in enumerate(operands) if (row := _row_read(value, arguments))}
        written = {
            place: update for place, value in enumerate(operation.results) if (update := _row_written(value, arguments))
        }
        if not read and not written:
            continue
        # Arrays replace rows among the operands; arrays that are written, and row numbers, follow the operands.
        call = _Call(target, list(operands), [result.type for result in operation.results])
        for place, (array, _) in read.items():
            call.operands[place] = array
        for place, (updated, array, _) in written.items():
            call.results[place] = updated.type
            call.aliases[place] = len(call.operands)
            call.operands.append(array)
        numbers = dict.fromkeys(row[-1] for row in (*read.values(), *written.values()))
        number_places = {number: len(call.operands) + i for i, number in enumerate(numbers)}
        call.operands.extend(numbers)
        shift = len(call.operands) - len(operands)
        call.temporaries = _parsed(operation)["temporaries"]
        call.operations = [
            [kind, fields, [place if place < len(operands) else place + shift for place in places]]
            for kind, fields, places in _parsed(operation)["operations"]
        ]
        for place, (array, number) in read.items():
            call.rows.append([place, number_places[number], *_rows(array)])
        for place, (_, array, number) in written.items():
            call.rows.append([len(call.operands) + place, number_places[number], *_rows(array)])
        new = call.insert_before(operation)
        for place, result in enumerate(operation.results):
            if place in written:
                written[place][0].replace_all_uses_with(new.results[place])
            else:
                result.replace_all_uses_with(new.results[place])
        for updated, _, _ in written.values():
            of_one_row = updated.owner.operands[1].owner
            updated.owner.erase()
            of_one_row.erase()
        operation.erase()


def _rows(array: Any) -> tuple[int, int]:
    """The number of rows of an array, and the bytes of one."""
    count = _shape(array)[0]
    return count, _bytes(array) // count


def _bytes(array: Any) -> int:
    element: Any = ir.RankedTensorType(array.type).element_type
    return math.prod(_shape(array)) * max(1, element.width // 8)


def _row_read(value: Any, arguments: set[Any]) -> tuple[Any, Any] | None:
    """The array and the row's number if a value is a row of a loop's array."""
    if not _is_result_of(value, "stablehlo.reshape"):
        return None
    row = value.owner.operands[0]
    if not _is_result_of(row, "stablehlo.dynamic_slice"):
        return None
    array, number, *others = row.owner.operands
    if array not in arguments or not _is_row(row, array, number, others) or _shape(value) != _shape(array)[1:]:
        return None
    return array, number


def _row_written(value: Any, arguments: set[Any]) -> tuple[Any, Any, Any] | None:
    """The updated array, the array and the row's number if the only use of a value is a row of a loop's array."""
    row = _only_user(value, ("stablehlo.broadcast_in_dim", "stablehlo.reshape"))
    update = None if row is None else _only_user(row.results[0], ("stablehlo.dynamic_update_slice",))
    if row is None or update is None:
        return None
    array, updated_by, number, *others = update.operands
    fits = array in arguments and updated_by == row.results[0] and len(list(array.uses)) == 1
    if not fits or not _is_row(updated_by, array, number, others) or _shape(value) != _shape(array)[1:]:
        return None
    # The number must be known before the call.
    if number not in arguments and not _is_before(number.owner, value.owner):
        return None
    return update.results[0], array, number


def _is_row(row: Any, array: Any, number: Any, others: Sequence[Any]) -> bool:
    return (
        _shape(row) == [1, *_shape(array)[1:]]
        and str(number.type) == "tensor<i32>"
        and all(_is_result_of(other, "stablehlo.constant") and _is_zero(other.owner) for other in others)
    )


def _is_zero(constant: Any) -> bool:
    return not np.asarray(ir.DenseIntElementsAttr(constant.attributes["value"])).any()


def _is_result_of(value: Any, operation: str) -> bool:
    return (
        not isinstance(value, ir.BlockArgument)
        and not isinstance(value.owner, ir.Block)
        and (value.owner.name == operation)
    )


def _only_user(value: Any, operations: Sequence[str]) -> Any:
    users = [use.owner.operation for use in value.uses]
    return users[0] if len(users) == 1 and users[0].name in operations else None


def _is_before(first: Any, second: Any) -> bool:
    for operation in second.operation.block.operations:
        if operation.operation in (first.operation, second.operation):
            return bool(operation.operation == first.operation)
    return False


def _shape(value: Any) -> list[int]:
    return list(ir.RankedTensorType(value.type).shape)
