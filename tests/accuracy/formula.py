"""Truth 3: the activations of one GPT layer as Korthikanti et al. 2022 (section 4.1) count them, derived from a trace."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

import graphmem
from graphmem.tracing.formula import Formula

#: (s, b, h, a) powers → bytes: 34·s·b·h + 5·a·s²·b.
PAPER = {(1, 1, 1, 0): 34, (2, 1, 0, 1): 5}
#: Four float32 statistics a token (mean and 1/deviation of two layer norms), which the paper leaves out as small.
STATISTICS = {(1, 1, 0, 0): 16}


class GPTLayer(nn.Module):
    """The layer of the paper's figure 2: fp16, dropout of 10 % after attention, projection and MLP; inputs are [s, b, h]."""

    def __init__(self, h: int, a: int, flash: bool = False) -> None:
        super().__init__()
        self.heads, self.flash = a, flash
        self.norm1, self.norm2 = nn.LayerNorm(h), nn.LayerNorm(h)
        self.qkv, self.projection = nn.Linear(h, 3 * h), nn.Linear(h, h)
        self.up, self.down = nn.Linear(h, 4 * h), nn.Linear(4 * h, h)
        self.dropout1, self.dropout2, self.dropout3 = nn.Dropout(0.1), nn.Dropout(0.1), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.dropout2(self.projection(self._attention(self.norm1(x))))
        return x + self.dropout3(self.down(functional.gelu(self.up(self.norm2(x)))))

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        s, b, h = x.shape
        q, k, v = (t.permute(1, 2, 0, 3) for t in self.qkv(x).view(s, b, self.heads, 3 * h // self.heads).chunk(3, -1))
        if self.flash:
            mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=0.1)
        else:
            scores = torch.softmax(q @ k.transpose(-1, -2) * (h // self.heads) ** -0.5, -1)
            mixed = self.dropout1(scores) @ v
        return mixed.permute(2, 0, 1, 3).reshape(s, b, h)


def derived(flash: bool) -> Formula:
    """The polynomial of the layer's stored activations."""

    def traced(s: int, b: int, h: int, a: int) -> graphmem.Trace:
        with torch.device("meta"):
            layer, x = GPTLayer(h, a, flash).half(), torch.empty(s, b, h, dtype=torch.float16)
        return graphmem.trace(layer, x)

    return graphmem.fit_formula(traced, {"s": [16, 32, 64, 128], "b": [2, 4, 6], "h": [64, 128, 192], "a": [2, 4, 8]})
