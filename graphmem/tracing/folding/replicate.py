"""Put the layers that were not traced into a trace: the middle unit's operations and events, once for each unit left out.

The trace is read as a sequence of operations, each with the events it caused. Operations of one unit that follow each other are a
*run*; forward passes over the units in ascending order, backward in descending order. Between the runs of units 2 and 3 the copies
of unit 2 belong. A copy's references are the original's, moved by as many units: to the unit itself, to a neighbour, or to
something outside, which stays. Unit 3 must be unit 2 moved by one, reference by reference; if anything does not fit, nothing is folded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from graphmem.timeline.events import Block, Event, Op, Value, ValueRef, refs_in
from graphmem.tracing.folding.stacks import Stack
from graphmem.tracing.trace import Trace

_T = TypeVar("_T")
#: The unit that is copied, and the one after it, which proves that copying is right.
_TEMPLATE, _PROOF = 2, 3


class NotFoldableError(Exception):
    """The trace does not repeat from unit to unit, so it must be made in full."""


class _Born(NamedTuple):
    """Where a value or block was made: in which pass over the units, in which unit, as its how manyth. Units None: outside."""

    pass_: int
    unit: int | None
    ordinal: int

    def moved(self, units: int) -> _Born:
        return self if self.unit is None else _Born(self.pass_, self.unit + units, self.ordinal)


def replicate(trace: Trace, stack: Stack) -> Trace:
    """The trace of the whole module, from that of the shortened one.

    Raises:
        NotFoldableError: the traced units are not alike.
    """
    return _Replica(trace, stack).build()


def _expanded(items: list[tuple[int | None, _T]], copies: int) -> list[tuple[_T, int]]:
    """(item, units it is moved by) in the order of the whole module. ``items`` carry the unit they belong to."""
    result: list[tuple[_T, int]] = []
    runs = _runs(items)
    for position, (unit, run) in enumerate(runs):
        before = runs[position - 1][0] if position else None
        after = runs[position + 1][0] if position + 1 < len(runs) else None
        if unit == _TEMPLATE:
            if _PROOF not in (before, after):
                raise NotFoldableError(f"unit {_TEMPLATE} is not followed by unit {_PROOF}")
            order = range(copies + 1) if after == _PROOF else range(copies, -1, -1)
            result += [(item, move) for move in order for item in run]
        else:
            move = copies if unit is not None and unit > _TEMPLATE else 0
            result += [(item, move) for item in run]
    return result


def _runs(items: Iterable[tuple[int | None, _T]]) -> list[tuple[int | None, list[_T]]]:
    runs: list[tuple[int | None, list[_T]]] = []
    for unit, item in items:
        if not runs or runs[-1][0] != unit:
            runs.append((unit, []))
        runs[-1][1].append(item)
    return runs


def _passes_over(units: list[int | None]) -> bool:
    """Whether a list runs through units 1, 2, 3 or 3, 2, 1."""
    order = [unit for unit, _ in _runs((unit, None) for unit in units)]
    return any(order[i : i + 3] in ([1, 2, 3], [3, 2, 1]) for i in range(len(order) - 2))


class _Replica:
    """The work of `replicate`: born-tables of the traced units, then the whole written out."""

    def __init__(self, trace: Trace, stack: Stack) -> None:
        self._trace, self._stack, self._copies = trace, stack, stack.left_out
        self._events: dict[int | None, list[Event]] = {}
        for event in trace.events:
            self._events.setdefault(event.op, []).append(event)
        self._units = self._positional([stack.unit_of(op.module) for op in trace.ops])
        self._last = max((unit for unit in self._units if unit is not None), default=0)
        self._value_born: dict[int, _Born] = {}
        self._block_born: dict[int, _Born] = {}
        self._counts: dict[tuple[str, int, int | None], int] = {}
        self._ops: list[Op] = []
        self._values: list[Value] = []
        self._blocks: list[Block] = []
        self._written: list[Event] = []
        self._new_values: dict[_Born, int] = {}
        self._new_blocks: dict[_Born, int] = {}
        #: Of an operation, found out once for all its copies: its outputs, and whether it acts on all units at once.
        self._results: dict[int, list[tuple[int, int | None]]] = {}
        self._spreads: dict[int, bool] = {}

    def build(self) -> Trace:
        if self._trace.cache_emptied:
            raise NotFoldableError("the step empties the allocator's cache on its way")
        self._take_stock()
        self._prove()
        placeholders = self._write_start()
        for index, move in _expanded([(self._units[i], i) for i in range(len(self._trace.ops))], self._copies):
            self._write_op(index, move)
        return replace(
            self._trace, ops=tuple(self._ops), values=tuple(self._values), blocks=tuple(self._blocks),
            events=tuple(self._written), placeholders=placeholders,
        )  # fmt: skip

    # -- what was born where --------------------------------------------------------------------------------------

    def _positional(self, units: list[int | None]) -> list[int | None]:
        """Operations of the model's own loop over its layers belong to the layer before them."""
        filled, ops = list(units), self._trace.ops
        previous: int | None = None
        for index, unit in enumerate(units):
            if unit is None:
                continue
            if previous is not None and index - previous > 1:
                here = units[previous]
                assert here is not None
                gap = ops[previous + 1 : index]
                loop = all(op.phase == ops[index].phase and self._stack.path.startswith(op.module) for op in gap)
                if abs(here - unit) == 1 or (here == unit and loop):
                    filled[previous + 1 : index] = [here] * len(gap)
            previous = index
        return filled

    def _take_stock(self) -> None:
        """Give every value and block its birth."""
        for name, index in self._trace.placeholders.items():
            unit = self._stack.unit_of(name.rpartition(".")[0])
            self._value_born.setdefault(index, self._next("value", -1, unit))
        for event in self._events.get(None, ()):
            self._block_born.setdefault(
                event.block, self._next("block", -1, self._stack.unit_of(self._trace.blocks[event.block].module))
            )
        passes = self._pass_numbers()
        for index, op in enumerate(self._trace.ops):
            for value in [*refs_in((op.args, tuple(op.kwargs.values()))), *op.outputs]:
                if value not in self._value_born:
                    unit = self._units[index]
                    block = self._trace.values[value].block
                    # A view that is made of a layer's parameter outside of the layer is the layer's.
                    if (
                        unit is None
                        and block is not None
                        and (len(op.outputs) > 1 or self._trace.blocks[block].op is None)
                    ):
                        unit = self._stack.unit_of(self._trace.blocks[block].module)
                    self._value_born[value] = self._next("value", passes[index], unit)
            spread = self._spread(index)
            for event in self._events.get(index, ()):
                if event.alloc:
                    unit = self._block_unit(event) if spread else self._units[index]
                    self._block_born[event.block] = self._next("block", passes[index], unit)

    def _pass_numbers(self) -> list[int]:
        """The pass each operation belongs to: a new one begins where the order of units turns or is left, or the optimizer begins."""
        numbers: list[int] = []
        number, direction = 0, 0
        before: int | None = None
        updating = False
        for unit, op in zip(self._units, self._trace.ops, strict=True):
            turns = (op.phase == "optimizer") != updating
            updating = op.phase == "optimizer"
            if unit is None or before is None or turns:
                number += before is not None
                direction = 0
            elif unit != before:
                step = 1 if unit > before else -1
                number += direction not in (0, step)
                direction = step
            before = unit
            numbers.append(number)
        return numbers

    def _next(self, what: str, pass_: int, unit: int | None) -> _Born:
        key = (what, pass_, unit)
        self._counts[key] = ordinal = self._counts.get(key, -1) + 1
        return _Born(pass_, unit, ordinal)

    def _block_unit(self, event: Event) -> int | None:
        return self._stack.unit_of(self._trace.blocks[event.block].module)

    def _spread(self, index: int) -> bool:
        """Whether the operation acts on all units at once (a foreach optimizer, gradients dropped together)."""
        events = self._events.get(index, ())
        return self._units[index] != _TEMPLATE and _passes_over([self._block_unit(event) for event in events])

    # -- the proof ------------------------------------------------------------------------------------------------

    def _prove(self) -> None:
        """Unit 3's operations and events are unit 2's, moved by one."""
        template = [i for i, unit in enumerate(self._units) if unit == _TEMPLATE]
        proof = [i for i, unit in enumerate(self._units) if unit == _PROOF]
        ours, theirs = self._by_pass(template), self._by_pass(proof)
        if ours.keys() != theirs.keys() or not ours:
            raise NotFoldableError("the units are not passed over alike")
        for number in ours:
            if [self._portrait(i, 1) for i in ours[number]] != [self._portrait(i, 0) for i in theirs[number]]:
                raise NotFoldableError(f"units {_TEMPLATE} and {_PROOF} differ")

    def _by_pass(self, indices: list[int]) -> dict[int, list[int]]:
        numbers = self._pass_numbers()
        found: dict[int, list[int]] = {}
        for index in indices:
            found.setdefault(numbers[index], []).append(index)
        return found

    def _portrait(self, index: int, move: int) -> Any:
        """An operation and its events with all references as births, moved."""
        op = self._trace.ops[index]
        values = self._trace.values

        def born(value: int) -> Any:
            seen = values[value]
            return self._value_born[value].moved(move), seen.shape, seen.dtype

        events = [
            (e.alloc, self._block_born[e.block].moved(move), self._trace.blocks[e.block].nbytes)
            for e in self._events.get(index, ())
        ]
        arguments = _mapped((op.args, tuple(op.kwargs.items())), lambda ref: born(ref.index))
        return op.name, op.phase, op.node, repr(arguments), [born(v) for v in (*op.outputs, *op.saved)], events

    # -- the whole, written out -----------------------------------------------------------------------------------

    def _write_start(self) -> dict[str, int]:
        stack, placeholders = self._stack, {}
        for event, move in self._spread_events(self._events.get(None, [])):
            self._write_event(event, move, None)
        names = [(stack.unit_of(name.rpartition(".")[0]), name) for name in self._trace.placeholders]
        for name, move in _expanded(names, self._copies):
            placeholders[stack.shifted(name, move)] = self._value(self._trace.placeholders[name], move)
        return placeholders

    def _spread_events(self, events: list[Event]) -> list[tuple[Event, int]]:
        return _expanded([(self._block_unit(event), event) for event in events], self._copies)

    def _write_op(self, index: int, move: int) -> None:
        op, unit, place = self._trace.ops[index], self._units[index], len(self._ops)

        def seen(born: _Born) -> int:
            return self._offset(born, unit, move)

        def value(index: int) -> int:
            return self._value(index, seen(self._value_born[index]))

        def ref(found: Any) -> ValueRef:
            return ValueRef(self._value(found.index, found.move) if isinstance(found, _Moved) else value(found.index))

        if index not in self._spreads:
            self._spreads[index] = self._spread(index)
        if self._spreads[index]:
            for event, further in self._spread_events(self._events.get(index, [])):
                self._write_event(event, further, place)
        else:
            for event in self._events.get(index, ()):
                self._write_event(event, seen(self._block_born[event.block]), place)
        if index not in self._results:
            self._results[index] = self._outputs(op, unit)
        outputs = tuple(
            [
                value(found) if further is None else self._value(found, further)
                for found, further in self._results[index]
            ]
        )
        args = _mapped(op.args, ref, self._spread_refs if unit is None else None)
        kwargs = {key: _mapped(argument, ref) for key, argument in op.kwargs.items()}
        saved = tuple([value(found) for found in op.saved])
        module = self._stack.shifted(op.module, move)
        self._ops.append(replace(op, module=module, args=args, kwargs=kwargs, outputs=outputs, saved=saved))

    def _offset(self, born: _Born, unit: int | None, move: int) -> int:
        """How far what is born there moves, as seen from an operation of ``unit`` that is itself moved by ``move``."""
        if born.unit is None:
            return 0
        if unit is None:
            return self._copies if born.unit > _TEMPLATE else 0
        if abs(born.unit - unit) > 1:
            raise NotFoldableError(f"unit {unit} reaches over to unit {born.unit}")
        return move

    def _outputs(self, op: Op, unit: int | None) -> list[tuple[int, int | None]]:
        """(value, units it moves by; None: with its operation)."""
        if (
            unit is None
            and len(op.outputs) > 1
            and _passes_over(units := [self._value_born[v].unit for v in op.outputs])
        ):
            return list(_expanded(list(zip(units, op.outputs, strict=True)), self._copies))
        touched = {self._value_born[value].unit for value in refs_in((op.args, tuple(op.kwargs.values())))}
        if unit is None and {1, _TEMPLATE, _PROOF} <= touched and op.outputs:
            raise NotFoldableError(f"{op.name} joins all layers in one result")
        if unit is None and _TEMPLATE in touched and not {1, _PROOF} & touched:
            raise NotFoldableError(f"{op.name} works on unit {_TEMPLATE} from outside of it")
        return [(value, None) for value in op.outputs]

    def _spread_refs(self, refs: list[Any]) -> list[Any]:
        """A list of tensors of all units, with those of the units left out."""
        if not all(isinstance(ref, ValueRef) for ref in refs):
            return refs
        units = [self._value_born[ref.index].unit for ref in refs]
        if not _passes_over(units):
            return refs
        return [_Moved(ref.index, move) for ref, move in _expanded(list(zip(units, refs, strict=True)), self._copies)]

    def _write_event(self, event: Event, move: int, op: int | None) -> None:
        born = self._block_born[event.block].moved(move)
        if event.alloc:
            block = self._trace.blocks[event.block]
            shift = self._stack.shifted
            self._new_blocks[born] = len(self._blocks)
            made = None if block.op is None else op
            self._blocks.append(replace(block, op=made, module=shift(block.module, move), name=shift(block.name, move)))
        if born not in self._new_blocks:
            raise NotFoldableError("something is released that was never allocated")
        self._written.append(Event(event.alloc, self._new_blocks[born], op))

    def _value(self, index: int, move: int) -> int:
        born = self._value_born[index].moved(move)
        if born not in self._new_values:
            value = self._trace.values[index]
            block = None
            if value.block is not None:
                of = self._block_born[value.block]
                block = self._new_blocks.get(of.moved(move if born.unit is not None else self._offset(of, None, 0)))
            self._new_values[born] = len(self._values)
            self._values.append(replace(value, block=block))
        return self._new_values[born]


@dataclass(frozen=True)
class _Moved:
    index: int
    move: int


def _mapped(value: Any, change: Callable[[Any], Any], spread: Callable[[list[Any]], list[Any]] | None = None) -> Any:
    if isinstance(value, ValueRef | _Moved):
        return change(value)
    if isinstance(value, list | tuple):
        items = spread(list(value)) if spread is not None and len(value) > 1 else value
        return type(value)([_mapped(item, change, spread) for item in items])
    return value
