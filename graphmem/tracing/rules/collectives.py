"""Collectives whose fake does less than a real one."""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import torch

from graphmem.tracing.rules.registry import OpCall, rule
from graphmem.tracing.values import Values


@cache
def _done() -> Any:
    """Work that is done; one for all calls, since C++ does not keep the Python half of an object of its own. It keeps no tensor."""
    from torch._C._distributed_c10d import Work

    class Done(Work):
        tensors: tuple[weakref.ref[torch.Tensor], ...] = ()

        def wait(self, timeout: Any = None) -> bool:
            return True

        def is_completed(self) -> bool:
            return True

        def get_future(self) -> Any:
            future: Any = torch.futures.Future()
            future.set_result([tensor() for tensor in self.tensors])
            return future

    return Done()


@rule("output", "c10d.allreduce_.default", source="torch/csrc/distributed/c10d/FakeProcessGroup.hpp, FakeWork")
def all_reduce(call: OpCall) -> tuple[list[torch.Tensor], Any]:
    """The reducer of DDP takes the reduced tensors from the work's future, which a fake process group leaves empty."""
    tensors, work = call.args[0], _done()
    work.tensors = tuple(weakref.ref(tensor) for tensor in tensors)
    return tensors, work.boxed()


@rule("data", "c10d.alltoall_base_.default")
def exchanged_counts(call: OpCall, values: Values) -> Any:
    """Numbers of tokens that ranks are about to send each other: every rank routes as this one does."""
    target, source, group = call.args[:3]
    known = values.known.of(source)
    if source.dtype.is_floating_point or known is None or target.shape != source.shape:
        return NotImplemented
    from torch.distributed import ProcessGroup

    ranks = ProcessGroup.unbox(group)
    result = values.func(*call.args, **call.kwargs)
    parts = known.view(ranks.size(), -1)
    values.known.learn(target, parts[ranks.rank()].expand_as(parts).reshape(target.shape))
    values.assume("every rank routes its tokens to experts as this one does")
    return result


@rule("output", "_c10d_functional._wrap_tensor_autograd.default", source="torch/csrc/distributed/c10d/Functional.cpp")
def wrapped_for_autograd(call: OpCall) -> torch.Tensor:
    """It is the collective's own tensor, which meta makes a new one of."""
    tensor: torch.Tensor = call.args[0].detach()
    return tensor
