"""RNN, GRU and LSTM layers on the CPU: loops over cells, whose product with the inputs is taken for all steps at once.

On any other device without a library for it, the meta device among them, every step makes its own product. Follows
aten/src/ATen/native/RNN.cpp: FullLayer, PackedLayer, their bidirectional and reversed forms, and the three cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from graphmem.tracing.rules.calls import product_and_bias
from graphmem.tracing.rules.cpu_lstm import onednn_lstm, onednn_runs
from graphmem.tracing.rules.registry import OpCall, rule
from graphmem.tracing.values import Values

#: One hidden tensor, or an LSTM's two.
State = tuple[Tensor, ...]
#: A direction's weights: input to hidden, hidden to hidden, their biases, and an LSTM's projection.
Weights = Sequence[Tensor | None]
Cell = Callable[[Tensor, State, Weights], State]

_SOURCE = "aten/src/ATen/native/RNN.cpp"


def _linear(tensor: Tensor, weights: Weights, which: int) -> Tensor:
    return product_and_bias(tensor, weights[which], weights[2 + which])


def _gru_cell(gates: Tensor, state: State, weights: Weights) -> State:
    (hidden,) = state
    inputs = gates.unsafe_chunk(3, 1)
    hiddens = _linear(hidden, weights, 1).unsafe_chunk(3, 1)
    reset = hiddens[0].add_(inputs[0]).sigmoid_()
    update = hiddens[1].add_(inputs[1]).sigmoid_()
    new = inputs[2].add(hiddens[2].mul_(reset)).tanh_()
    result = (hidden - new).mul_(update).add_(new)
    del new, update, reset, hiddens  # the latest first, as C++ does
    return (result,)


def _lstm_cell(gates: Tensor, state: State, weights: Weights) -> State:
    hidden, cell = state
    into, forget, new, out = _linear(hidden, weights, 1).add_(gates).unsafe_chunk(4, 1)
    into, forget, new, out = into.sigmoid_(), forget.sigmoid_(), new.tanh_(), out.sigmoid_()
    cell = (forget * cell).add_(into * new)
    hidden = out * cell.tanh()
    return (hidden if len(weights) < 5 or weights[4] is None else torch.matmul(hidden, weights[4].t())), cell


def _simple_cell(nonlinearity: Callable[[Tensor], Tensor]) -> Cell:
    def cell(gates: Tensor, state: State, weights: Weights) -> State:
        return (nonlinearity(_linear(state[0], weights, 1).add_(gates)),)

    return cell


def _steps(cell: Cell, steps: Iterable[Tensor], state: State, weights: Weights) -> tuple[list[Tensor], State]:
    outputs = []
    for step in steps:
        state = cell(step, state, weights)
        outputs.append(state[0])
    return outputs, state


def _full(cell: Cell, inputs: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
    steps = _linear(inputs, weights, 0).unbind(0)
    outputs, state = _steps(cell, steps, state, weights)
    return torch.stack(outputs, 0), state


def _full_both_ways(
    cell: Cell, inputs: Tensor, states: list[State], weights: Sequence[Weights]
) -> tuple[Tensor, list[State]]:
    """What is held how long is as in C++: the first direction's steps until the second one's are there, its outputs to the end."""
    steps = _linear(inputs, weights[0], 0).unbind(0)
    outputs, state = _steps(cell, steps, states[0], weights[0])
    there = torch.stack(outputs, 0)
    steps = _linear(inputs, weights[1], 0).unbind(0)
    reversed_outputs, reversed_state = _steps(cell, steps[::-1], states[1], weights[1])
    back = torch.stack(reversed_outputs[::-1], 0)
    return torch.cat([there, back], -1), [state, reversed_state]


def _packed(cell: Cell, inputs: Tensor, sizes: list[int], state: State, weights: Weights) -> tuple[Tensor, State]:
    """Steps of a packed sequence: fewer rows from step to step; the state of the rows that end is put aside."""
    steps = _linear(inputs, weights, 0)
    outputs, ended, offset, before = [], [], 0, sizes[0]
    for rows in sizes:
        step = steps.narrow(0, offset, rows)
        offset += rows
        if rows < before:
            ended.append(tuple(part.narrow(0, rows, before - rows) for part in state))
            state = tuple(part.narrow(0, 0, rows) for part in state)
        before = rows
        state = cell(step, state, weights)
        outputs.append(state[0])
    ended.append(state)
    return torch.cat(outputs, 0), tuple(torch.cat(list(parts), 0) for parts in zip(*reversed(ended), strict=True))


def _packed_reversed(
    cell: Cell, inputs: Tensor, sizes: list[int], given: State, weights: Weights
) -> tuple[Tensor, State]:
    steps = _linear(inputs, weights, 0)
    before = sizes[-1]
    state = tuple(part.narrow(0, 0, before) for part in given)
    outputs, offset = [], inputs.shape[0]
    for rows in reversed(sizes):
        if rows > before:
            joined = [(part, more.narrow(0, before, rows - before)) for part, more in zip(state, given, strict=True)]
            state = tuple(torch.cat(parts, 0) for parts in joined)
            del joined
        step = steps.narrow(0, offset - rows, rows)
        offset, before = offset - rows, rows
        state = cell(step, state, weights)
        outputs.append(state[0])
    return torch.cat(outputs[::-1], 0), state


def _layer(
    cell: Cell, inputs: Tensor, states: list[State], weights: Sequence[Weights], sizes: list[int] | None
) -> tuple[Tensor, list[State]]:
    """One layer, in one direction or two."""
    if sizes is None and len(states) == 2:
        return _full_both_ways(cell, inputs, states, weights)
    if sizes is None:
        output, state = _full(cell, inputs, states[0], weights[0])
        return output, [state]
    output, state = _packed(cell, inputs, sizes, states[0], weights[0])
    if len(states) == 1:
        return output, [state]
    back, reversed_state = _packed_reversed(cell, inputs, sizes, states[1], weights[1])
    return torch.cat([output, back], -1), [state, reversed_state]


def _layers(
    cell: Cell,
    inputs: Tensor,
    states: list[State],
    weights: list[Weights],
    sizes: list[int] | None,
    dropout: float,
    directions: int,
) -> tuple[Tensor, list[State]]:
    final: list[State] = []
    for first in range(0, len(weights), directions):
        inputs, last = _layer(
            cell, inputs, states[first : first + directions], weights[first : first + directions], sizes
        )
        final += last
        del last
        if dropout and first + directions < len(weights):
            inputs = torch.dropout(inputs, dropout, True)
    return inputs, final


def _run(cell: Cell, call: Any, state: list[Tensor], packed: bool) -> Any:
    """The arguments of ``torch.gru`` and its like: padded (input, hx, weights, ...) or packed (data, batch_sizes, hx, weights, ...)."""
    flat, biased, layers, dropout, train, bidirectional = call.args[3:9] if packed else call.args[2:8]
    first = not packed and call.args[8]
    directions = 2 if bidirectional else 1
    width = len(flat) // (layers * directions)
    groups = [list(flat[start : start + width]) for start in range(0, len(flat), width)]
    weights: list[Weights] = [group if biased else [*group[:2], None, None, *group[2:]] for group in groups]
    inputs = call.args[0].transpose(0, 1) if first else call.args[0]
    sizes = call.args[1].tolist() if packed else None
    states = list(zip(*(part.unbind(0) for part in state), strict=True))
    output, final = _layers(cell, inputs, states, weights, sizes, dropout if train else 0.0, directions)
    del states
    stacked = [torch.stack(parts, 0) for parts in zip(*final, strict=True)]
    return (output.transpose(0, 1) if first else output, *stacked)


def _padded_or_packed(cell: Cell) -> Callable[[Any], Any]:
    def run(call: Any) -> Any:
        """The inputs' product is taken for all steps at once."""
        packed = isinstance(call.args[2], torch.Tensor)
        return _run(cell, call, [call.args[2 if packed else 1]], packed)

    return run


rule("call", torch.gru, device="cpu", source=f"{_SOURCE}, GRUCell")(_padded_or_packed(_gru_cell))
rule("call", torch.rnn_tanh, device="cpu", source=f"{_SOURCE}, SimpleCell")(_padded_or_packed(_simple_cell(torch.tanh)))
rule("call", torch.rnn_relu, device="cpu", source=f"{_SOURCE}, SimpleCell")(_padded_or_packed(_simple_cell(torch.relu)))


@rule("call", torch.lstm, device="cpu", source=f"{_SOURCE}, lstm")
def lstm(call: Any) -> Any:
    """oneDNN runs padded sequences; packed ones, and those with a projection, go cell by cell."""
    packed = isinstance(call.args[1], torch.Tensor)
    state = list(call.args[2 if packed else 1])
    if not packed and onednn_runs(call.args[0], state):
        return onednn_lstm(*call.args)
    return _run(_lstm_cell, call, state, packed)


@rule("data", "aten._pack_padded_sequence.default", device="cpu", source="aten/src/ATen/native/PackedSequence.cpp")
def pack_padded_sequence(call: OpCall, values: Values) -> Any:
    """Reads the lengths; where they are unknown every sequence is as long as the longest can be."""
    inputs, lengths, first = call.args
    real = values.known.of(lengths)
    if real is None:
        steps, batch = inputs.shape[1 if first else 0], inputs.shape[0 if first else 1]
        values.assume("lengths of packed sequences that are not known are taken as the longest (the most memory)")
        real = torch.full((batch,), steps, dtype=torch.int64)
    return values.func(inputs, real, first)
