"""litgpt's TinyLlama (extensions/thunder/pretrain.py at 101e31d) on one GPU, and as Fabric's strategies spread it: PyTorch's defaults."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.distributed.fsdp import MixedPrecision
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from graphmem.parallel.layout import Parallel
from graphmem.parallel.rank import Rank
from graphmem.tracing.device import Device
from graphmem.tracing.run import trace_module
from graphmem.tracing.trace import Trace
from graphmem.workload import Workload
from tests.accuracy.fsdp1 import Fsdp1, Held
from tests.accuracy.published_models import litgpt_thunder


def pretraining(ranks: int, device: Device) -> Trace:
    """By DDP, until gradients are added to while the optimizer's states and DDP's buckets are there.

    That gradients are averaged in the last of the accumulated backwards only changes no memory: buckets are there from the start.
    """
    world = Rank(Parallel(dp=ranks)) if ranks > 1 else None
    workload = Workload(
        step="train", loss=lambda output: output[0], optimizer=litgpt_thunder.Accumulated, steps=litgpt_thunder.STEPS
    )
    return trace_module(litgpt_thunder.pretraining(), (litgpt_thunder.batch(),), {}, workload, device, "", world)


def sharded(ranks: int, device: Device) -> Trace:
    """By FSDP, a batch an update (the table's own command for it)."""
    half = torch.bfloat16
    model: Any = litgpt_thunder.pretraining()
    settings = {
        "auto_wrap_policy": ModuleWrapPolicy({type(model.h[0])}),
        "use_orig_params": True,
        "mixed_precision": MixedPrecision(param_dtype=half, reduce_dtype=half, buffer_dtype=half),
    }
    workload = Workload(
        step="train",
        loss=lambda output: output[0],
        optimizer=partial(torch.optim.AdamW, fused=True),
        steps=2,
        fold=False,
    )
    return trace_module(
        Held(model).train(), (litgpt_thunder.batch(),), {}, workload, device, "", Fsdp1(ranks, settings)
    )
