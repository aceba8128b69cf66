"""Known values, and the assumptions in the place of unknown ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphmem


class Branches(nn.Module):
    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        longest = int(positions.max().item()) + 1
        rows = mask.bool().any(-1).nonzero()
        if (ids == 7).any():
            longest += 100
        return torch.zeros(rows.shape[0], longest, device=ids.device)


def test_values_of_integers_are_followed() -> None:
    ids, mask = torch.tensor([[1, 2, 3], [4, 5, 6], [0, 0, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    trace = graphmem.trace(Branches(), ids, mask)
    assert trace.values[trace.ops[-1].outputs[0]].shape == (2, 3)
    assert not trace.assumptions
    ids[0, 0] = 7
    trace = graphmem.trace(Branches(), ids, mask)
    assert trace.values[trace.ops[-1].outputs[0]].shape == (2, 103)


def test_in_place_writes_reach_every_view() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            row = x[1]
            x[:, 0] = 5
            x[1].add_(1)
            return torch.zeros(int(row[0]), int(row.sum()), device=x.device)

    trace = graphmem.trace(Model(), torch.zeros(2, 3, dtype=torch.int64))
    assert trace.values[trace.ops[-1].outputs[0]].shape == (6, 8)


def test_buffers_with_integers_are_known() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("sizes", torch.tensor([3, 4]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.new_zeros(self.sizes.tolist())  # type: ignore[operator]

    trace = graphmem.trace(Model(), torch.zeros(1))
    assert trace.values[trace.ops[-1].outputs[0]].shape == (3, 4)


def test_what_depends_on_floats_is_assumed_and_said() -> None:
    class Exits(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.abs().max() > 1:
                return x
            return x[x > 0] + 1

    trace = graphmem.trace(Exits(), torch.zeros(4, 4))
    assert list(trace.assumptions) == [
        "a bool that depends on float data is taken as False",
        "every element of a mask that depends on float data is taken as true (the most memory)",
    ]
    assert trace.values[trace.ops[-1].outputs[0]].shape == (16,)
    assert "assumed: a bool that depends on float data is taken as False" in repr(trace)


class Experts(nn.Module):
    """Four experts, two a token, chosen by a router; experts that get no token do not run."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(8, 4), nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = self.router(x).topk(2).indices
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).any(-1).nonzero().squeeze(-1)
            if len(rows):
                result.index_add_(0, rows, expert(x[rows]))
        return result


@pytest.mark.parametrize(("routing", "expected"), [("balanced", [8, 8, 8, 8]), ("worst", [16, 16])])
def test_routing(routing: str, expected: list[int]) -> None:
    trace = graphmem.trace(Experts(), torch.zeros(16, 8), grad=False, routing=routing)  # type: ignore[arg-type]
    ran = [
        trace.values[op.outputs[0]].shape[0]
        for op in trace.ops
        if op.module.startswith("experts") and "addmm" in op.name
    ]
    assert ran == expected
    assert list(trace.assumptions) == [f"top-2 choices are taken as {routing}"]


def test_an_expanded_input_is_known() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(int(x[1].sum()), device=x.device)

    trace = graphmem.trace(Model(), torch.tensor([[1, 2, 3]]).expand(4, 3))
    assert trace.values[trace.ops[-1].outputs[0]].shape == (6,)
