"""`scaled_dot_product_attention` on CUDA: which backend runs, what is done before it, and what its kernels allocate.

Sources, PyTorch 2.13: aten/src/ATen/native/transformers/attention.cpp (scaled_dot_product_attention), transformers/cuda/sdp_utils.cpp
(select_sdp_backend and the can_use_* checks), transformers/cuda/flash_attn/flash_api.cpp, transformers/cuda/attention.cu and
attention_backward.cu, cudnn/MHA.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from graphmem.tracing.device import Device
from graphmem.tracing.rules.registry import Free, OpCall, Out, Scratch, rule
from graphmem.units import round_up

aten = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class _Problem:
    """One call, as the backends' conditions see it. Tensors are [batch, heads, tokens, head_dim]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None
    dropout: float
    causal: bool
    gqa: bool
    device: Device

    @property
    def trains(self) -> bool:
        return torch.is_grad_enabled() and any(t.requires_grad for t in (self.q, self.k, self.v))


def _tensors_fit(p: _Problem) -> bool:
    """What flash, efficient and cuDNN attention all ask: 4-D, one dtype, one batch, no empty or strided last dimension."""
    all_of = (p.q, p.k, p.v)
    return (
        all(t.dim() == 4 and t.dtype == p.q.dtype and t.shape[0] == p.q.shape[0] for t in all_of)
        and all(t.shape[2] > 0 and (t.stride(-1) == 1 or t.shape[-1] == 1) for t in all_of)
        and (p.mask is None or p.mask.stride(-1) == 1 or p.mask.shape[-1] == 1)
    )


def _flash(p: _Problem) -> bool:
    dim, capability = p.q.shape[-1], p.device.capability
    consumer = (8, 6) <= capability <= (8, 9) or (12, 0) <= capability <= (12, 1)
    heads, of_k, of_v = p.q.shape[1], p.k.shape[1], p.v.shape[1]
    return (
        p.mask is None
        and p.q.shape[-1] == p.k.shape[-1] == p.v.shape[-1] <= 256
        and (8, 0) <= capability <= (12, 1)
        and not (p.trains and consumer and dim > 192 and not (dim > 224 and p.dropout == 0))
        and not (p.causal and p.q.shape[2] != p.k.shape[2])
        and p.q.dtype in _HALF
        and (of_k == of_v and heads % of_k == 0 if p.gqa else heads == of_k == of_v)
    )


def _efficient(p: _Problem) -> bool:
    capability = p.device.capability
    if not (5, 0) <= capability <= (12, 1) or p.q.dtype not in (*_HALF, torch.float32):
        return False
    if p.q.dtype == torch.bfloat16 and capability < (8, 0):
        return False
    tensor_cores = capability >= (8, 0) or (capability >= (7, 0) and p.q.dtype == torch.float16)
    step = max(4 if capability >= (8, 0) else 1, 16 // p.q.dtype.itemsize if tensor_cores else 1)
    return (
        p.q.shape[-1] == p.k.shape[-1]
        and all(t.shape[-1] % step == 0 and t.shape[-1] > 0 for t in (p.q, p.v))
        and (capability < (8, 0) or all(t.storage_offset() % step == 0 for t in (p.q, p.k, p.v)))
        and p.q.shape[1] == p.k.shape[1] == p.v.shape[1]
    )


def _cudnn(p: _Problem) -> bool:
    if p.q.dtype not in _HALF or not (8, 0) <= p.device.capability <= (12, 1):
        return False
    (batch, heads, queries, dim), keys = p.q.shape, p.k.shape[2]
    most = 256 if p.device.capability == (9, 0) else 128
    if p.mask is not None and (p.mask.requires_grad or p.mask.dim() == 3 or p.causal):
        return False
    return (
        (heads % p.k.shape[1] == 0 and heads % p.v.shape[1] == 0 if p.gqa else heads == p.k.shape[1] == p.v.shape[1])
        and batch <= 65535 >= heads
        and all(t.shape[-1] % 8 == 0 and t.shape[-1] <= most for t in (p.q, p.v))
        and keys != 1
        and not (queries == 1 and p.dropout > 0)
        and (p.dropout * 16) % 1 == 0
        and dim > 0
    )


def backend(p: _Problem) -> str:
    """``cudnn``, ``flash``, ``efficient`` or ``math``: the first that is allowed and can, in PyTorch's order for the device."""
    flags = torch.backends.cuda
    allowed = {
        "flash": flags.flash_sdp_enabled(),
        "efficient": flags.mem_efficient_sdp_enabled(),
        "cudnn": flags.cudnn_sdp_enabled(),
    }
    order = _order(p.device)
    if _tensors_fit(p):
        for name in order:
            if name == "math" and flags.math_sdp_enabled():
                return name
            if name != "math" and allowed[name] and _CAN[name](p):
                return name
    return "math"


_CAN = {"flash": _flash, "efficient": _efficient, "cudnn": _cudnn}
#: PyTorch's numbers of them (torch.nn.attention.SDPBackend), and the order in which it asks unless it is told another.
_NUMBERS = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}
_DEFAULT = ("flash", "efficient", "math", "cudnn")


def _order(device: Device) -> tuple[str, ...]:
    """That of ``sdpa_kernel(…, set_priority=True)``, else PyTorch's own (sdp_utils.cpp, priority_order and check_prefer_cudnn_attention: with cuDNN
    above 9.15, which wheels have since 2.11; pytorch#138522, #162073)."""
    told = tuple(_NUMBERS[number] for number in torch._C._get_sdp_priority_order() if number in _NUMBERS)
    if told != _DEFAULT:
        return told
    preferred = device.capability[0] in (9, 10) and device.torch >= (2, 11)
    return ("cudnn", *_DEFAULT[:-1]) if preferred else _DEFAULT


@rule(
    "call",
    torch.nn.functional.scaled_dot_product_attention,
    device="cuda",
    source="ATen/native/transformers/attention.cpp",
)
def attention(call: Any) -> Any:
    """On meta the choice of backend is always math; on CUDA it follows dtype, shapes, mask and compute capability."""
    named = (
        dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), call.args, strict=False))
        | call.kwargs
    )
    p = _Problem(
        named["query"], named["key"], named["value"], named.get("attn_mask"), named.get("dropout_p", 0.0),
        bool(named.get("is_causal", False)), bool(named.get("enable_gqa", False)), call.device,
    )  # fmt: skip
    scale = named.get("scale")
    return {"flash": _run_flash, "efficient": _run_efficient, "cudnn": _run_cudnn, "math": _run_math}[backend(p)](
        p, scale
    )


def _additive(mask: torch.Tensor | None, like: torch.Tensor, lowest: float = -math.inf) -> torch.Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    zero, low = (torch.full((), value, dtype=like.dtype, device="meta") for value in (0.0, lowest))
    return torch.where(mask, zero, low)


def _run_flash(p: _Problem, scale: float | None) -> torch.Tensor:
    dim = p.q.shape[-1]
    pad = -dim % 8
    q, k, v = ((torch.nn.functional.pad(t, (0, pad)) if pad else t) for t in (p.q, p.k, p.v))
    scale = 1 / math.sqrt(dim) if scale is None else scale
    output: torch.Tensor = aten._scaled_dot_product_flash_attention(q, k, v, p.dropout, p.causal, False, scale=scale)[0]
    return output[..., :dim] if pad else output


def _run_efficient(p: _Problem, scale: float | None) -> torch.Tensor:
    mask = _additive(p.mask, p.q)
    if mask is not None:
        if any(stride % 8 for stride in mask.stride()[:-1]) or mask.stride(-1) != 1:
            length = mask.shape[-1]
            mask = torch.nn.functional.pad(mask, (0, 8 - length % 8))[..., :length]
        mask = mask.expand(p.q.shape[0], p.q.shape[1], p.q.shape[2], p.k.shape[2])
    output: torch.Tensor = aten._scaled_dot_product_efficient_attention(
        p.q, p.k, p.v, mask, p.trains, p.dropout, p.causal, scale=scale
    )[0]
    return output


def _run_cudnn(p: _Problem, scale: float | None) -> torch.Tensor:
    mask = _additive(p.mask, p.q, -65504.0)
    if mask is not None:
        mask = mask.expand(p.q.shape[0], p.q.shape[1], p.q.shape[2], p.k.shape[2])
    output: torch.Tensor = aten._scaled_dot_product_cudnn_attention(
        p.q, p.k, p.v, mask, p.trains, p.dropout, p.causal, False, scale=scale
    )[0]
    return output


def _run_math(p: _Problem, scale: float | None) -> torch.Tensor:
    mask = _additive(p.mask, p.q)
    output: torch.Tensor = aten._scaled_dot_product_attention_math(
        p.q, p.k, p.v, mask, p.dropout, p.causal, scale=scale, enable_gqa=p.gqa
    )[0]
    return output


def _splits(batch_heads: int, queries: int, keys: int, dim: int, device: Device) -> int:
    """``num_splits_heuristic`` of flash_api.cpp: parts of the keys that are worked on at once where there is too little other work."""
    blocks = round_up(keys, size := 256 if dim <= 64 else 128 if dim <= 128 else 64) // size
    work, lanes = batch_heads * (round_up(queries, 64) // 64), 2 * device.sms
    if work >= 0.8 * lanes:
        return 1
    most = min(128, lanes, blocks)
    candidates = [s for s in range(1, most + 1) if s == 1 or -(-blocks // s) != -(-blocks // (s - 1))]
    efficiency = {s: (waves := work * s / lanes) / math.ceil(waves) for s in candidates}
    return next(s for s in candidates if efficiency[s] >= 0.85 * max(efficiency.values()))


@rule(
    "scratch",
    "aten._scaled_dot_product_flash_attention.default",
    device="cuda",
    source="flash_attn/flash_api.cpp, mha_fwd",
)
def flash_forward(call: OpCall) -> Scratch:
    """Few queries over many keys are split among the multiprocessors, whose parts meet in float32 accumulators."""
    q, k = call.args[0], call.args[1]
    batch, heads, queries, dim = q.shape
    if call.argument(3, "dropout_p", 0.0) > 0:
        return Scratch()
    if queries == 1 and heads > k.shape[1]:
        queries, heads = heads // k.shape[1], k.shape[1]
    splits = _splits(batch * heads, queries, k.shape[2], dim, call.device)
    if splits == 1:
        return Scratch()
    rows = splits * batch * heads * queries * 4
    return Scratch(program=(Out(0), Out(1), rows, rows * (round_up(dim, 32) if dim <= 192 else 256)))


@rule(
    "scratch",
    "aten._scaled_dot_product_flash_attention_backward.default",
    device="cuda",
    source="flash_attn/flash_api.cpp, mha_bwd",
)
def flash_backward(call: OpCall) -> Scratch:
    """Gradients meet in a float32 accumulator of dQ; grouped heads' gradients are made per query head and summed."""
    grad, q, k, _, out = call.args[:5]
    batch, heads, queries, dim = q.shape
    copies = tuple(t.numel() * t.element_size() for t in (grad, out) if not t.transpose(1, 2).is_contiguous())
    padded = round_up(queries, 128)
    delta = batch * heads * padded * 4
    accumulator = delta * (round_up(dim, 32) if dim <= 192 else 256)
    expanded = (batch * k.shape[2] * heads * dim * k.element_size(),) * 2 if k.shape[1] != heads else ()
    return Scratch(program=(*copies, Out(0), Out(1), Out(2), delta, accumulator, *expanded))


@rule(
    "scratch",
    "aten._scaled_dot_product_efficient_attention.default",
    device="cuda",
    source="attention.cu, _efficient_attention_forward",
)
def efficient_forward(call: OpCall) -> Scratch:
    """Seed and offset of the random generator stay on the host; wide 16-bit heads accumulate in a float32 output."""
    q, v = call.args[0], call.args[2]
    wide = q.element_size() == 2 and max(q.shape[-1], v.shape[-1]) > 128
    return Scratch(after=(call.result[0].numel() * 4,) if wide else (), host=(2, 3))


@rule(
    "scratch",
    "aten._scaled_dot_product_efficient_attention_backward.default",
    device="cuda",
    source="attention_backward.cu, _efficient_attention_backward",
)
def efficient_backward(call: OpCall) -> Scratch:
    """Before the kernel, the rows' sums of gradient times output; for the kernel, a workspace in which blocks of dQ meet."""
    grad, q, k, v = call.args[:4]
    batch, heads, queries, dim = q.shape
    keys, dim_v, size = k.shape[2], v.shape[-1], q.element_size()
    copy = () if grad.transpose(1, 2).is_contiguous() else (grad.numel() * size,)
    rows = batch * heads * queries * 4
    outputs = tuple(Out(position) for position, tensor in enumerate(call.result[:3]) if tensor is not None)
    block_q, block_k, in_registers = _backward_blocks(max(dim, dim_v), size, call.device.capability)
    workspace = (
        -(-queries // block_q) * -(-keys // block_k) * (4 + block_q * block_k)
        if call.device.capability >= (7, 0)
        else 0
    )
    if not in_registers:
        splits = max(-(-keys // block_k), 1)
        splits = max(min(splits, 200 // (batch * heads)), 1)
        workspace += splits * block_k * (round_up(dim, block_q) + round_up(dim_v, block_q))
    workspace = batch * heads * 4 * round_up(workspace, 4)
    if size == 2:
        return Scratch(program=(*copy, *outputs, rows, workspace))
    first = len(copy)
    return Scratch(program=(*copy, *outputs, rows * dim_v, rows, rows, Free(first), Free(first + 1), workspace))


def _backward_blocks(dim: int, size: int, capability: tuple[int, int]) -> tuple[int, int, bool]:
    """(queries, keys) of a block of the backward kernel, and whether dK and dV stay in registers; the first kernel that fits."""
    roomy = capability in ((8, 0), (8, 7)) or (9, 0) <= capability < (12, 0)
    if dim <= 64:
        return 64, 64, True
    if size == 4:
        return (128, 64, True) if roomy else (64, 64, True)
    if roomy:
        return (128, 128, True) if dim <= 128 else (128, 64, False)
    return (64, 64, False)
