"""DDP: PyTorch's own `DistributedDataParallel`, whose reducer keeps gradients in buckets."""

from __future__ import annotations

from torch import nn
from torch.distributed import ProcessGroup

from graphmem.parallel.layout import Buckets
from graphmem.training.quantized import QuantizedLinear


def replicated(module: nn.Module, group: ProcessGroup, settings: Buckets) -> nn.Module:
    """A module whose gradients are averaged over the replicas of a group.

    That ranks start alike is not checked (``init_sync``): there are no values to compare. Its buffers are gone before the first step.
    """
    # bitsandbytes keeps what it unpacks weights by beside them, not in buffers that are broadcast.
    packed = [
        f"{path}.{name}"
        for path, child in module.named_modules()
        if isinstance(child, QuantizedLinear)
        for name, _ in child.named_buffers()
    ]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, packed)
    return nn.parallel.DistributedDataParallel(
        module, process_group=group, bucket_cap_mb=settings.bucket_cap_mb, gradient_as_bucket_view=settings.gradient_as_bucket_view,
        static_graph=settings.static_graph, init_sync=False,
    )  # fmt: skip
