"""What torchtune's README measures: Llama-3.2-3B on packed samples by its recipes for one device (1814feb, November 2024)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from graphmem.tracing.device import Device
from graphmem.tracing.offload import SMALLEST
from graphmem.training.compiled import Compiled, compiled

_LAYERS, _WIDTH, _HEADS, _GROUPS, _INNER, _VOCABULARY = 28, 3072, 24, 8, 8192, 128256
_SIZE = _WIDTH // _HEADS
#: Positions that the rotary cache is built for, samples of a batch, tokens of a pack, and parts of the loss.
_LONGEST, _BATCH, _TOKENS, _CHUNKS = 131072, 2, 4096, 8
_RANK, _SCALING = 64, 2.0
#: torchao's NF4: weights a scale, and scales a factor.
_BLOCK, _SCALES = 64, 256
#: torchtune gives the linears of these to LoRA; keys are only quantized.
_ADAPTED = ("q", "v", "output", "gate", "down", "up")

Linear = Callable[[str, int, int], nn.Module]


def plain(name: str, inputs: int, outputs: int) -> nn.Module:
    """A linear that is trained."""
    return nn.Linear(inputs, outputs, bias=False)


class _LoRA(nn.Module):
    """A frozen linear with an update of rank 64."""

    def __init__(self, frozen: nn.Module, inputs: int, outputs: int) -> None:
        super().__init__()
        self.frozen = frozen
        self.lora_a = nn.Linear(inputs, _RANK, bias=False)
        self.lora_b = nn.Linear(_RANK, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.frozen(x)
        update = _SCALING * self.lora_b(self.lora_a(x))
        return out + update


class _QuantizedProduct(torch.autograd.Function):
    """The weight is unpacked for the product, and again in backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: tuple[int, int], *stored: torch.Tensor) -> torch.Tensor:
        ctx.shape = shape
        ctx.save_for_backward(*stored)
        return F.linear(x, _unpacked(shape, *stored))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return grad @ _unpacked(ctx.shape, *ctx.saved_tensors), *(None,) * 6


def _unpacked(
    shape: tuple[int, int], packed: torch.Tensor, scales: torch.Tensor, factors: torch.Tensor, mean: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """In the type of ``values``, by lookups of both halves of each byte."""
    first = values[(packed >> 4).to(torch.int64)]
    second = values[(packed & 15).to(torch.int64)]
    wide = (scales.view(-1, _SCALES) / factors.unsqueeze(-1)).flatten().to(values.dtype) + mean
    wide = wide.unsqueeze(-1).expand(wide.size(0), _BLOCK // 2).flatten()
    return torch.stack([first * wide, second * wide], dim=-1).reshape(shape)


class QuantizedLinear(nn.Module):
    """torchao's NF4: two weights a byte, a byte for the scale of 64, and a factor for 256 scales in the weights' own type."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shape = (outputs, inputs)
        count = inputs * outputs
        self.packed = nn.Parameter(torch.empty(count // 2, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("scales", torch.empty(count // _BLOCK, dtype=torch.int8))
        self.register_buffer("factors", torch.empty(count // _BLOCK // _SCALES))
        self.register_buffer("mean", torch.empty(()))
        self.register_buffer("values", torch.empty(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stored = (self.packed, self.scales, self.factors, self.mean, self.values)
        return _QuantizedProduct.apply(x, self.shape, *stored)  # type: ignore[no-any-return]


def adapted(quantized: bool) -> Linear:
    """Makes the linears of LoRA, or of QLoRA."""

    def make(name: str, inputs: int, outputs: int) -> nn.Module:
        frozen = QuantizedLinear(inputs, outputs) if quantized else plain(name, inputs, outputs).requires_grad_(False)
        return _LoRA(frozen, inputs, outputs) if name in _ADAPTED else frozen

    return make


class _Norm(nn.Module):
    """In float32."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(_WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        scaled = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).type_as(x)
        return scaled * self.scale


def _turned(x: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Rotary positions in float32; ``found``: the cache at the tokens' positions."""
    wide = x.float().reshape(*x.shape[:-1], -1, 2)
    found = found.view(-1, wide.size(1), 1, wide.size(3), 2)
    real = wide[..., 0] * found[..., 0] - wide[..., 1] * found[..., 1]
    imaginary = wide[..., 1] * found[..., 0] + wide[..., 0] * found[..., 1]
    return torch.stack([real, imaginary], -1).flatten(3).type_as(x)


class _Heads(nn.Module):
    """Queries, keys or values: keys and values are repeated for each query of their group."""

    def __init__(self, linear: nn.Module, heads: int, rotary: bool) -> None:
        super().__init__()
        self.linear, self.heads, self.rotary = linear, heads, rotary

    def forward(self, x: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        x = self.linear(x).view(batch, tokens, self.heads, _SIZE)
        if self.rotary:
            x = _turned(x, found)
        x = x.transpose(1, 2)
        if self.heads == _HEADS:
            return x
        return x.unsqueeze(2).expand(batch, self.heads, _HEADS // self.heads, tokens, _SIZE).flatten(1, 2)


class _Flex(torch.autograd.Function):
    """Flex attention with a mask of blocks, which is compiled on its own: its output lies as the queries do."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(q)
        sums = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, _, sums = ctx.saved_tensors
        delta = torch.empty_like(sums)
        found = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        del delta
        return found


class _Output(nn.Module):
    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, tokens, _ = x.shape
        return self.linear(x.transpose(1, 2).contiguous().view(batch, tokens, -1))


class _Rest(nn.Module):
    """What follows attention."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.norm = _Norm()
        self.gate = linear("gate", _WIDTH, _INNER)
        self.down = linear("down", _INNER, _WIDTH)
        self.up = linear("up", _WIDTH, _INNER)

    def forward(self, attended: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        hidden = attended + x
        normed = self.norm(hidden)
        return hidden + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Layer(nn.Module):
    """A layer in the graphs that `torch.compile` makes of it: it breaks at the attention, which torchtune keeps out of it.

    The break is in a call in a call, so the layer's own graphs end before that and go on behind it.
    """

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.norm: nn.Module = _Norm()
        self.q: nn.Module = _Heads(linear("q", _WIDTH, _WIDTH), _HEADS, rotary=True)
        self.k: nn.Module = _Heads(linear("k", _WIDTH, _GROUPS * _SIZE), _GROUPS, rotary=True)
        self.v: nn.Module = _Heads(linear("v", _WIDTH, _GROUPS * _SIZE), _GROUPS, rotary=False)
        self.output: nn.Module = _Output(linear("output", _WIDTH, _WIDTH))
        self.rest: nn.Module = _Rest(linear)

    def forward(self, x: torch.Tensor, cache: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        found = cache[positions]  # saved once, for queries and keys
        q, k, v = (part(normed, found) for part in (self.q, self.k, self.v))
        attended = self.output(_Flex.apply(q, k, v))
        return self.rest(attended, x)

    def compile(self, device: Device, like: Layer | None) -> None:  # type: ignore[override]
        """Every part; ``like`` is a layer that is compiled already."""
        parts = ("norm", "q", "k", "v", "output", "rest")
        if like is not None:
            for name in parts:
                setattr(self, name, _alike(getattr(like, name), getattr(self, name)))
            return
        hidden = torch.empty(_BATCH, _TOKENS, _WIDTH, dtype=torch.bfloat16, device="meta", requires_grad=True)
        heads = hidden.detach().view(_BATCH, _TOKENS, _HEADS, _SIZE).transpose(1, 2).requires_grad_()
        found = torch.empty(_BATCH, _TOKENS, _SIZE // 2, 2, device="meta")
        inputs: dict[str, tuple[torch.Tensor, ...]] = {
            "norm": (hidden,), "output": (heads,), "rest": (hidden, hidden.detach().requires_grad_()),
            **dict.fromkeys(("q", "k", "v"), (hidden, found)),
        }  # fmt: skip
        for name in parts:
            setattr(self, name, compiled(getattr(self, name), inputs[name], {}, lambda output: output, device))


def _alike(found: Compiled, module: nn.Module) -> Compiled:
    """Another module of the same geometry, by the programs that were found for one."""
    return Compiled(module, found._forward, found._backward, found._trained)


class _Moved:
    """What is saved goes to the host, as torchtune's offloading has it: a second stream copies, so the last few stay until backward."""

    _last = 5

    def __init__(self) -> None:
        self.count = 0
        self.staying: dict[int, torch.Tensor] = {}

    def pack(self, tensor: torch.Tensor) -> Any:
        self.count += 1
        if isinstance(tensor, nn.Parameter) or tensor.numel() * tensor.element_size() < SMALLEST:
            return tensor
        for number in [number for number in self.staying if number <= self.count - self._last]:
            del self.staying[number]
        self.staying[self.count] = tensor
        with torch._C.DisableTorchFunction():
            return self.count, tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device

    def unpack(self, packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        number, size, stride, dtype, device = packed
        if number in self.staying:
            return self.staying[number]
        self.staying.clear()
        with torch._C.DisableTorchFunction():
            return torch.empty_strided(size, stride, dtype=dtype, device=device)


class _Loss(nn.Module):
    """The sum over a part of the logits, in float32."""

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float(), labels, reduction="sum")


class Finetuning(nn.Module):
    """The model and the recipe's part from a batch to its loss.

    ``whole``: PyTorch's cross entropy over all logits in float32, which the recipe for all parameters does not compile (it drops
    what it gets from `torch.compile`); else torchtune's in eight parts, which is compiled. The embeddings are the head's too.
    """

    def __init__(self, linear: Linear, whole: bool, moved: bool) -> None:
        super().__init__()
        self.whole, self.moved = whole, moved
        self.embeddings = nn.Embedding(_VOCABULARY, _WIDTH)
        self.layers = nn.ModuleList(Layer(linear) for _ in range(_LAYERS))
        self.norm = _Norm()
        self.loss: nn.Module = _Loss()
        self.register_buffer("cache", torch.empty(_LONGEST, _SIZE // 2, 2, dtype=torch.float32))

    def _hidden(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(tokens)
        for layer in self.layers:
            if self.moved:
                x = checkpoint(layer, x, self.cache, positions, use_reentrant=False)
            else:
                x = layer(x, self.cache, positions)
        return self.norm(x)

    def _head(self, x: torch.Tensor) -> torch.Tensor:
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            return F.linear(x, self.embeddings.weight)

    def _logits(self, tokens: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        to_host = _Moved()
        with saved_tensors_hooks(to_host.pack, to_host.unpack) if self.moved else contextlib.nullcontext():
            x = self._hidden(tokens, positions)
            if self.whole:
                return [self._head(x).float()]
            return [self._head(part) for part in x.chunk(_CHUNKS, dim=1)]

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        logits = self._logits(tokens, positions)
        if self.whole:
            (found,) = logits
            del logits
            found = found.reshape(-1, found.size(-1))
            loss = F.cross_entropy(found, labels.reshape(-1))
            del found
            return loss
        count = (labels != -100).sum()
        wanted = [part.reshape(-1) for part in labels.chunk(_CHUNKS, dim=1)]
        flat = [part.reshape(-1, part.size(-1)) for part in logits]
        total = torch.zeros((), device=tokens.device)
        for part, labels_part in zip(flat, wanted, strict=True):
            total = total + self.loss(part, labels_part)
        return total / count


@contextlib.contextmanager
def _in_bf16() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(default)


def finetuning(
    device: Device, method: Literal["full", "lora", "qlora"] = "full", whole: bool = False, moved: bool = False
) -> nn.Module:
    """In bf16, its layers compiled; ``moved``: layers are checkpointed and what is saved outside them goes to the host."""
    linear = plain if method == "full" else adapted(quantized=method == "qlora")
    with _in_bf16():
        model = Finetuning(linear, whole, moved)
    if method != "full":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    first: Layer | None = None
    for layer in model.layers:
        layer.compile(device, first)  # type: ignore[operator]
        first = first or layer  # type: ignore[assignment]
    if not whole:
        rows = _BATCH * _TOKENS // _CHUNKS
        logits = torch.empty(rows, _VOCABULARY, dtype=torch.bfloat16, device="meta", requires_grad=True)
        labels = torch.empty(rows, dtype=torch.int64, device="meta")
        model.loss = compiled(model.loss, (logits, labels), {}, lambda output: output, device)
    return model.train()


def batch() -> tuple[torch.Tensor, ...]:
    """Tokens, labels and positions of two packs."""
    tokens = torch.ones(_BATCH, _TOKENS, dtype=torch.int64)
    return tokens, tokens.clone(), tokens.clone()
