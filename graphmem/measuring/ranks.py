"""A workload on the CPU in several processes, one a rank, with gloo between them."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from graphmem.errors import GraphmemError
from graphmem.measuring import cpu
from graphmem.measuring.measurement import Run
from graphmem.parallel.layout import Parallel
from graphmem.parallel.rank import Rank
from graphmem.tracing.patching import replaced
from graphmem.workload import Workload

#: Makes what a rank runs: module, positional and keyword inputs. Importable, since every process imports it.
Make = Callable[[], tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True)
class Ranked:
    """A workload, and the layout of the ranks that run it."""

    make: Make
    workload: Workload
    parallel: Parallel


def measured(runs: Sequence[Ranked]) -> list[list[Run]]:
    """What each rank's allocator did, in the order of ranks, run by run. The processes are started once.

    Raises:
        GraphmemError: a process failed.
    """
    count = max(run.parallel.gpus for run in runs)
    with tempfile.TemporaryDirectory() as folder:
        try:
            torch.multiprocessing.spawn(_process, (runs, [_free_port() for _ in runs], folder), nprocs=count)
        except Exception as error:
            raise GraphmemError(f"a rank failed: {error}") from error
        return [
            [torch.load(Path(folder, f"{at}-{number}"), weights_only=False) for number in range(run.parallel.gpus)]
            for at, run in enumerate(runs)
        ]


#: What gloo's own threads hold is dropped a moment after an operation is over; the rank waits for that, so that the order is always the same.
_SETTLED = 0.002


def _process(number: int, runs: Sequence[Ranked], ports: Sequence[int], folder: str) -> None:
    torch.set_num_threads(1)
    for at, (run, port) in enumerate(zip(runs, ports, strict=True)):
        if number >= run.parallel.gpus:
            continue
        rank = Rank(run.parallel, number, gloo(port))
        with rank.entered("cpu"), _settling():
            torch.save(cpu.measured(*rank.part(*run.make()), run.workload, rank), Path(folder, f"{at}-{number}"))


@contextlib.contextmanager
def _settling() -> Iterator[None]:
    def settled(collective: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(collective)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = collective(*args, **kwargs)
            time.sleep(_SETTLED)
            return result

        return call

    names = (
        "all_gather_single",
        "all_gather_into_tensor",
        "reduce_scatter_single",
        "reduce_scatter_tensor",
        "all_reduce",
    )
    with contextlib.ExitStack() as stack:
        for name in names:
            if hasattr(dist, name):
                stack.enter_context(replaced(dist, name, settled(getattr(dist, name))))
        yield


def gloo(port: int) -> Callable[[int, int], contextlib.AbstractContextManager[None]]:
    """Enters a world of processes on this machine that meet at a port."""

    @contextlib.contextmanager
    def enter(size: int, rank: int) -> Iterator[None]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
        try:
            yield
        finally:
            dist.destroy_process_group()

    return enter


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
