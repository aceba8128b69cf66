"""LSTM by oneDNN, as the CPU runs every padded float32 one: layer by layer, with its workspace, its weights' formats, its scratch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphmem.tracing.rules.cpu_contiguous import contiguous_bytes
from graphmem.tracing.rules.registry import Free, OpCall, Out, Scratch, rule

aten = torch.ops.aten
_PYTORCH = "aten/src/ATen/native/mkldnn/RNN.cpp"
_ONEDNN = "oneDNN src/cpu/rnn/rnn_utils.hpp, set_workspace_sizes and rnn_utils.cpp, set_offsets"
_PAGE = 4096
_LSTM = 2
#: Tables of pointers that oneDNN keeps in its scratch beside the rest: for matrix products, and for batches of them, where the
#: inputs' products can be merged with the hidden states' or not.
_POINTERS, _BATCHES, _MERGED_BATCHES = 568, 776, 856


def onednn_runs(inputs: Tensor, state: list[Tensor]) -> bool:
    """Whether oneDNN takes this layer: no projection, a dtype it knows."""
    return (
        torch.backends.mkldnn.is_available()
        and inputs.numel() > 0
        and inputs.dtype in (torch.float32, torch.bfloat16)
        and state[0].shape[2] == state[1].shape[2]
    )


def onednn_lstm(
    inputs: Tensor,
    state: Any,
    flat: Any,
    biased: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """What mkldnn_rnn does: a call of mkldnn_rnn_layer for each layer and direction."""
    inputs = dense = (inputs.transpose(0, 1) if first else inputs).contiguous()
    hidden, cell = state[0].contiguous(), state[1].contiguous()
    directions, width = 2 if bidirectional else 1, 4 if biased else 2
    hiddens, cells = [], []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            weights = list(flat[index * width : (index + 1) * width])
            weights += [] if biased else [torch.zeros_like(weights[0]), torch.zeros_like(weights[1])]
            output, last_hidden, last_cell, _ = aten.mkldnn_rnn_layer(
                inputs, *weights, hidden[index], cell[index], direction > 0, [], _LSTM, hidden.shape[2], layers, biased, bidirectional,
                first, train,
            )  # fmt: skip
            outputs.append(output)
            hiddens.append(last_hidden)
            cells.append(last_cell)
            del output, last_hidden, last_cell, _, weights
        inputs = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        del outputs
        if dropout and train and layer < layers - 1:
            inputs = torch.dropout(inputs, dropout, True)
    stacked = torch.stack(hiddens, 0), torch.stack(cells, 0)
    del dense  # C++ holds it this long
    return (inputs.transpose(0, 1) if first else inputs, *stacked)


def _leading(columns: int) -> int:
    """A row's length in oneDNN's matrices: whole cache lines, but no multiple of 256 elements."""
    rounded = -(-columns // 16) * 16
    return rounded + 16 if rounded % 256 == 0 else rounded


def _pages(*sizes: int) -> int:
    """The end of spaces that each begin on a page, and of an empty one after them."""
    return sum(-(-size // _PAGE) * _PAGE for size in sizes)


class _Sizes:
    """Bytes of what oneDNN keeps for one layer and direction."""

    def __init__(self, inputs: Tensor, hidden: int) -> None:
        steps, batch, width = inputs.shape
        self.width, self.hidden = width, hidden
        states = 2 * (steps + 1) * batch * 4
        self.layer = states * _leading(max(width, hidden))
        self.cells = states * hidden
        self.gates = steps * batch * _leading(4 * hidden) * 4
        self.row_of_gates = batch * _leading(4 * hidden) * 4
        self.kept = steps * batch * _leading(hidden) * 4
        self.row = batch * _leading(hidden) * 4

    @property
    def workspace(self) -> int:
        """Gates and states of every step, and room for their gradients."""
        return _pages(self.gates, self.kept, self.layer, self.cells, self.layer, self.layer, self.cells)

    @property
    def training_scratch(self) -> int:
        return _pages(self.gates, self.row, self.row) + _PAGE + _POINTERS

    @property
    def inference_scratch(self) -> int:
        batches = _MERGED_BATCHES if self.width == self.hidden else _BATCHES
        return _pages(self.layer, self.cells, self.row_of_gates, self.row) + _PAGE + batches

    def weights(self, training: bool) -> tuple[int, int]:
        """The two weights by columns: with padded rows for training, in blocks of 32 for inference."""
        columns = _leading(4 * self.hidden) if training else 4 * (-(-self.hidden // 32) * 32)
        return self.width * columns * 4, self.hidden * columns * 4

    @property
    def weights_by_rows(self) -> tuple[int, int]:
        """For backward; where rows need no padding they stay where they are."""
        rows = 4 * self.hidden * 4
        padded = (_leading(width) if _leading(width) != width else 0 for width in (self.width, self.hidden))
        first, second = (rows * width for width in padded)
        return first, second


@rule("output", "aten.mkldnn_rnn_layer.default", device="cpu", source=f"{_PYTORCH}, mkldnn_rnn_layer; {_ONEDNN}")
def layer_outputs(call: OpCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, states, and while gradients are enabled the workspace that backward reads."""
    inputs, hidden, cell = call.args[0], call.args[5], call.args[6]
    output = inputs.new_empty(inputs.shape[0], inputs.shape[1], call.args[10])
    kept = _Sizes(inputs, call.args[10]).workspace if torch.is_grad_enabled() else 0
    workspace = torch.empty(kept, dtype=torch.uint8, device="meta")
    return output, torch.empty_like(hidden), torch.empty_like(cell), workspace


@rule("scratch", "aten.mkldnn_rnn_layer.default", device="cpu", source=f"{_PYTORCH}, mkldnn_rnn_layer; {_ONEDNN}")
def layer(call: OpCall) -> Scratch:
    """The sum of both biases, both weights in oneDNN's own format, and its scratch."""
    sizes = _Sizes(call.args[0], call.args[10])
    training = torch.is_grad_enabled()
    scratch = sizes.training_scratch if training else sizes.inference_scratch
    biases = 4 * sizes.hidden * call.args[0].element_size()
    return Scratch(program=(Out(0), Out(1), Out(2), biases, Out(3), *sizes.weights(training), scratch))


@rule("output", "aten.mkldnn_rnn_layer_backward.default", device="cpu", source=f"{_PYTORCH}, mkldnn_rnn_layer_backward")
def layer_gradients(call: OpCall) -> tuple[Tensor, ...]:
    """Gradients of the input, the weights, the biases (one a copy of the other) and the states, in float32."""
    inputs, first, second, bias, _, hidden, cell = call.args[:7]

    def like(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=torch.float32, device="meta")

    return like(inputs), like(first), like(second), like(bias), like(bias), like(hidden), like(cell)


@rule(
    "scratch",
    "aten.mkldnn_rnn_layer_backward.default",
    device="cpu",
    source=f"{_PYTORCH}, mkldnn_rnn_layer_backward; {_ONEDNN}",
)
def layer_backward(call: OpCall) -> Scratch:
    """Zeros for gradients that nobody gave, weights by rows, and the weights' gradients in oneDNN's own format."""
    inputs, hidden, cell = call.args[0], call.args[5], call.args[6]
    output, gradients = call.args[7], call.args[10:13]
    sizes = _Sizes(inputs, call.args[15])
    given = [
        tensor.nbytes if gradient is None else contiguous_bytes(gradient)
        for tensor, gradient in zip((output, hidden, cell), gradients, strict=True)
    ]
    biases = 4 * sizes.hidden * 4
    outputs = (Out(0), Out(5), Out(6), Out(1), Out(2), Out(3))
    reordered = (*sizes.weights_by_rows, *sizes.weights(training=True), biases, sizes.training_scratch)
    return Scratch(program=(*given, biases, *outputs, *reordered, *map(Free, (9, 8, 7, 6, 5, 4)), Out(4)))
