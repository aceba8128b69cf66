"""DDP: PyTorch's own `DistributedDataParallel`, whose reducer keeps gradients in buckets."""

from __future__ import annotations

from torch import nn
from torch.distributed import ProcessGroup

from graphmem.parallel.layout import Buckets


def replicated(module: nn.Module, group: ProcessGroup, settings: Buckets) -> nn.Module:
    """A module whose gradients are averaged over the replicas of a group.

    That ranks start alike is not checked (``init_sync``): there are no values to compare. Its buffers are gone before the first step.
    """
    return nn.parallel.DistributedDataParallel(
        module, process_group=group, bucket_cap_mb=settings.bucket_cap_mb, gradient_as_bucket_view=settings.gradient_as_bucket_view,
        static_graph=settings.static_graph, init_sync=False,
    )  # fmt: skip
