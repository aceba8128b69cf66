"""Networks for what autograd and Python do with storage: in-place writes, checkpoints, hooks, resizes, custom functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.accuracy.network import Network, normal

WIDTH = 32


def _rows() -> tuple[Tensor, ...]:
    return (normal(16, WIDTH),)


def _rows_with_gradient() -> tuple[Tensor, ...]:
    return (normal(16, WIDTH).requires_grad_(),)


def _block() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, WIDTH))


class Square(torch.autograd.Function):
    """x squared, keeping x and a mask of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x, x > 0)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, mask = ctx.saved_tensors
        return 2 * x * gradient * mask


class CustomFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(Square.apply(self.into(x)))


class InPlace(nn.Module):
    """In-place activations and residual additions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x).relu_()
        residual = self.layers[1](x)
        residual.add_(x).mul_(0.5).sigmoid_()
        return self.layers[2](residual).clamp_(min=0).div_(2)


class Checkpointed(nn.Module):
    """Three blocks whose activations are computed anew in backward."""

    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_block() for _ in range(3))
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=self.use_reentrant) if self.training else block(x))
        return x


class Resized(nn.Module):
    """A weight whose storage is emptied after its use and filled again before its gradient, as sharded training does."""

    def __init__(self) -> None:
        super().__init__()
        self.shard = nn.Parameter(torch.randn(WIDTH * WIDTH) / WIDTH)
        self.register_buffer("full", torch.empty(WIDTH * WIDTH), persistent=False)

    def _fill(self) -> None:
        self.full.untyped_storage().resize_(4 * WIDTH * WIDTH)
        self.full.data.copy_(self.shard.detach())

    def _empty(self) -> None:
        self.full.untyped_storage().resize_(0)

    def forward(self, x: Tensor) -> Tensor:
        self._fill()
        weight = self.full.detach().view(WIDTH, WIDTH).requires_grad_(torch.is_grad_enabled())
        if torch.is_grad_enabled():
            weight.register_hook(self._collect)
        out = torch.tanh(x @ weight)
        self._empty()
        if out.requires_grad:
            out.register_hook(lambda gradient: self._fill())
        return out

    def _collect(self, gradient: Tensor) -> None:
        self._empty()
        self.shard.grad = gradient.flatten() if self.shard.grad is None else self.shard.grad + gradient.flatten()


class Hooked(nn.Module):
    """Forward hooks that change inputs and outputs, and backward hooks that change gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.first.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        self.first.register_forward_hook(lambda module, args, output: output + args[0])
        self.second.register_full_backward_hook(lambda module, grads, outs: (grads[0] * 0.5,))
        self.second.weight.register_hook(lambda gradient: gradient.clamp(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class SavedOnHost(nn.Module):
    """Saved activations packed to half precision and unpacked in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.block = _block()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.to(torch.bfloat16), lambda t: t.float()):
            return self.block(x)


class DoubleBackward(nn.Module):
    """A gradient penalty: the loss holds the gradient of the output in the input."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            out = self.block(x).sum()
            (gradient,) = torch.autograd.grad(out, x, create_graph=True)
        return out + (gradient.norm(dim=-1) - 1).square().mean()


class HeldLocals(nn.Module):
    """Python decides: a local keeps one activation through the loop, a list keeps all, `del` frees one early."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        first = x = torch.exp(x)
        states = []
        for layer in self.layers:
            wide = torch.cat([x, x], dim=-1)
            x = layer(wide[:, :WIDTH])
            del wide
            states.append(x)
        return x + first, states


class MixedPrecision(nn.Module):
    """bfloat16 autocast on the CPU, one weight used twice, with a float32 island."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.layer(self.norm(self.layer(x)))
            with torch.autocast("cpu", enabled=False):
                return self.layer(x.float())


NETWORKS = [
    Network("custom-function", CustomFunction, _rows),
    Network("in-place", InPlace, _rows),
    Network("checkpoint-reentrant", lambda: Checkpointed(use_reentrant=True), _rows_with_gradient),
    Network("checkpoint-non-reentrant", lambda: Checkpointed(use_reentrant=False), _rows),
    Network("storage-resize", Resized, _rows_with_gradient),
    Network("hooks", Hooked, _rows_with_gradient),
    Network("saved-tensor-hooks", SavedOnHost, _rows),
    Network("double-backward", DoubleBackward, _rows_with_gradient, lambda loss: loss),
    Network("held-locals", HeldLocals, _rows),
    Network("autocast", MixedPrecision, _rows),
    Network("gradient-accumulation", _block, _rows, backwards=2),
]
