"""What gloo takes for its collectives on the CPU: flat copies of what it sends or receives, in PyTorch's own allocator.

NCCL works in place on a GPU's tensors; its buffers lie outside of the caching allocator.
"""

from __future__ import annotations

from graphmem.tracing.known import tensors_in
from graphmem.tracing.rules.registry import Free, OpCall, Out, Scratch, rule
from graphmem.units import round_up

_SOURCE = "torch/csrc/distributed/c10d/ProcessGroupGloo.cpp"


@rule(
    "scratch",
    "c10d._allgather_base_.default",
    "c10d.allgather_.default",
    device="cpu",
    source=_SOURCE + ", AsyncAllgatherWork",
)
def all_gather(call: OpCall) -> Scratch:
    """Results are laid out flat once to be checked, and once to be received into."""
    nbytes = sum(tensor.nbytes for tensor in tensors_in(call.args[0]))
    return Scratch(program=(nbytes, Free(0), nbytes, Free(1)))


@rule("scratch", "c10d._reduce_scatter_base_.default", device="cpu", source=_SOURCE + ", _reduce_scatter_base")
def reduce_scatter(call: OpCall) -> Scratch:
    """The whole input is cloned and reduced, and the rank's part of it copied out."""
    return Scratch(before=(call.args[1].nbytes,))


@rule(
    "scratch",
    "_c10d_functional.all_gather_into_tensor.default",
    device="cpu",
    source=_SOURCE + ", AsyncAllgatherCoalescedWork",
)
def all_gather_into_tensor(call: OpCall) -> Scratch:
    """As `all_gather`, after the result; of one tensor by way of the operation for several."""
    return Scratch(program=(Out(), call.args[0].nbytes, Free(0), call.result.nbytes, Free(1)))


@rule(
    "scratch", "_c10d_functional.reduce_scatter_tensor.default", device="cpu", source=_SOURCE + ", _reduce_scatter_base"
)
def reduce_scatter_tensor(call: OpCall) -> Scratch:
    """As `reduce_scatter`, after the result."""
    return Scratch(after=(call.args[0].nbytes,))


@rule("scratch", "fsdp.chunk_cat.default", device="cpu", source="aten/src/ATen/native/TensorShape.cpp, _pad_chunk")
def chunk_cat(call: OpCall) -> Scratch | None:
    """Gradients are copied between ranks' parts; one whose rows the ranks do not divide is padded first. CUDA's kernel pads as it copies."""
    tensors, _, chunks = call.args[:3]
    padded = [round_up(t.shape[0], chunks) * (t.nbytes // t.shape[0]) for t in tensors if t.shape[0] % chunks]
    return Scratch(program=(*padded, *map(Free, range(len(padded))))) if padded else None
