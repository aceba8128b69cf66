"""What fsdp_qlora's benchmark of March 2024 trains (train.py at 05ed9f2, transformers 4.37, torch 2.2): LoRA on Llama-2-7B under FSDP."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.nn import functional as F

from graphmem.tracing.device import Device
from graphmem.tracing.run import trace_module
from graphmem.tracing.trace import Trace
from graphmem.workload import Workload
from tests.accuracy.fsdp1 import Fsdp1, Held

_LAYERS, _WIDTH, _HEADS, _INNER, _VOCABULARY, _POSITIONS = 32, 4096, 32, 11008, 32000, 4096
_SIZE = _WIDTH // _HEADS
_RANK, _SCALING, _DROPOUT = 64, 16 / 64, 0.1


class _LoRA(nn.Module):
    """A frozen linear and its update, in one type."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
        self.dropout = nn.Dropout(_DROPOUT)
        self.lora_A = nn.Linear(inputs, _RANK, bias=False)
        self.lora_B = nn.Linear(_RANK, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.base(x)
        return result + self.lora_B(self.lora_A(self.dropout(x))) * _SCALING


class _Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(_WIDTH), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = x.dtype
        x = x.to(torch.float32)
        variance = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + 1e-5)
        return self.weight * x.to(dtype)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x[..., : _SIZE // 2], x[..., _SIZE // 2 :]
    return (x * cos) + (torch.cat((-second, first), dim=-1) * sin)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (_LoRA(_WIDTH, _WIDTH) for _ in range(3))
        self.o_proj = nn.Linear(_WIDTH, _WIDTH, bias=False).requires_grad_(False)
        self.register_buffer("cos", torch.empty(_POSITIONS, _SIZE))
        self.register_buffer("sin", torch.empty(_POSITIONS, _SIZE))

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.size()
        q = self.q_proj(x)
        k = self.k_proj(x)
        v = self.v_proj(x)
        q, k, v = (part.view(batch, tokens, _HEADS, _SIZE).transpose(1, 2) for part in (q, k, v))
        cos, sin = self.cos[:tokens][positions].unsqueeze(1), self.sin[:tokens][positions].unsqueeze(1)
        q, k = _turned(q, cos, sin), _turned(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).contiguous()
        y = y.reshape(batch, tokens, _WIDTH)
        return self.o_proj(y)


class _MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = _LoRA(_WIDTH, _INNER), _LoRA(_WIDTH, _INNER)
        self.down_proj = _LoRA(_INNER, _WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = _Attention(), _MLP()
        self.input_layernorm, self.post_attention_layernorm = _Norm(), _Norm()

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        residual = x
        x = self.input_layernorm(x)
        x = self.self_attn(x, positions)
        x = residual + x
        residual = x
        x = self.post_attention_layernorm(x)
        x = self.mlp(x)
        return residual + x


class _Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(_VOCABULARY, _WIDTH).requires_grad_(False)
        self.layers = nn.ModuleList(_Layer() for _ in range(_LAYERS))
        self.norm = _Norm()
        self.lm_head = nn.Linear(_WIDTH, _VOCABULARY, bias=False).requires_grad_(False)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        x = self.embed_tokens(ids).requires_grad_(True)
        for layer in self.layers:
            x = layer(x, positions)
        logits = self.lm_head(self.norm(x))
        logits = logits.float()
        shifted = logits[..., :-1, :].contiguous()
        wanted = labels[..., 1:].contiguous()
        loss = F.cross_entropy(shifted.view(-1, _VOCABULARY), wanted.view(-1))
        return loss, logits


class _Loop(Held):
    """The script drops the output between a step and the next forward."""

    def forward(self, *args: Any) -> Any:
        return list(super().forward(*args))


class _AdamW(torch.optim.AdamW):
    def __init__(self, parameters: Any, outputs: list[Any]) -> None:
        super().__init__(parameters, betas=(0.9, 0.95))
        self._outputs = outputs

    def step(self) -> None:  # type: ignore[override]
        super().step()
        self._outputs.pop().clear()


def _wraps(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Layers, and every trained module without parts: the A and the B of each update."""
    leaf = not list(module.children()) and getattr(getattr(module, "weight", None), "requires_grad", False)
    return recurse or isinstance(module, _Layer) or bool(leaf)


def _checkpointed(model: nn.Module) -> None:
    apply_activation_checkpointing(
        model, checkpoint_wrapper_fn=partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.REENTRANT),
        check_fn=lambda module: isinstance(module, _Layer),
    )  # fmt: skip


def lora(batch: int, tokens: int, device: Device) -> Trace:
    """Two ranks; everything in bf16, layers recomputed with reentry."""
    with torch.device("meta"):
        model = _Llama().to(torch.bfloat16)
    ids = torch.ones(batch, tokens, dtype=torch.int64)
    outputs: list[Any] = []

    def loss(output: list[Any]) -> Any:
        outputs.append(output)
        return output[0]

    workload = Workload(step="train", loss=loss, optimizer=partial(_AdamW, outputs=outputs), steps=2, fold=False)
    settings = {"auto_wrap_policy": _wraps, "use_orig_params": False, "limit_all_gathers": True}
    world = Fsdp1(2, settings, _checkpointed)
    return trace_module(_Loop(model).train(), (ids, ids.clone()), {}, workload, device, "", world)
