"""The whole line, short and visible. The CLI, notebooks and tests call these."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graphmem.inspection.assemble import Detail, inspection
from graphmem.report import Report
from graphmem.sources.load import Access, load
from graphmem.sources.repository import Progress

if TYPE_CHECKING:
    import torch


def inspect(
    target: str | Path | torch.nn.Module,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    depth: int | None = None,
    tensors: bool = False,
    progress: Progress | None = None,
) -> Report:
    """What a checkpoint stores, by component, layer and dtype, and what it takes to load, cache and train.

    Reads headers and configs only: no weight is downloaded or loaded.

    Args:
        target: a Hub id (``"microsoft/Phi-3-mini-128k-instruct"``), one file of a Hub repository
            (``"owner/name/model-Q4_K_M.gguf"``), a local folder or file, or any ``torch.nn.Module``.
        revision: branch, tag or commit on the Hub.
        token: Hub token; by default the one huggingface_hub finds (``HF_TOKEN``, ``hf auth login``).
        offline: do not ask the Hub; answer from its cache or from the built-in catalog.
        depth: add the module tree to this many levels.
        tensors: add a table of every tensor.
        progress: called with (done, total) while many shards are read.

    Returns:
        A Report: ``report["parameters"]`` is an int, ``report["components"]`` a table. Bytes are ints.

    Raises:
        GraphmemError: with one line that says what is wrong and what to do next.
    """
    return inspection(load(target, Access(revision, token, offline, progress)), Detail(depth, tensors))
