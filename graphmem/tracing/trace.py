"""A Trace: one step (or several in a row) of a module, as operations, values, blocks and events. Light to hold, free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphmem.errors import GraphmemError
from graphmem.timeline.events import Block, Event, Op, Value, rounded
from graphmem.timeline.liveness import Peak, alive_after, peak_of, running_total
from graphmem.tracing.device import Device

if TYPE_CHECKING:
    import networkx
    import torch.fx

    from graphmem.report import Report
    from graphmem.timeline.allocator.conf import AllocConf
    from graphmem.timeline.allocator.simulate import Request, Simulation
    from graphmem.timeline.summary import By


@dataclass(frozen=True, repr=False)
class Trace:
    """Everything a step did to memory. Bytes are ints; ``start`` and ``peak`` are rounded as the device's allocator rounds."""

    device: Device
    #: What was traced and under which settings, in words, for people and reports.
    target: str
    settings: Mapping[str, str]
    ops: tuple[Op, ...]
    values: tuple[Value, ...]
    blocks: tuple[Block, ...]
    events: tuple[Event, ...]
    #: Values that were there when the step began (parameters, buffers, inputs), by name.
    placeholders: Mapping[str, int]
    #: Module paths → class names.
    modules: Mapping[str, str] = field(default_factory=dict)
    #: What depends on float data and was assumed → where it was needed first.
    assumptions: Mapping[str, str] = field(default_factory=dict)
    #: Settings of the caching allocator, as in ``PYTORCH_CUDA_ALLOC_CONF``.
    alloc_conf: str = ""
    #: Where the step called ``torch.cuda.empty_cache()``: before these events.
    cache_emptied: tuple[int, ...] = ()

    @cached_property
    def totals(self) -> list[int]:
        """Bytes allocated after each event."""
        return running_total(self.blocks, self.events, self.device.rounding)

    @cached_property
    def start(self) -> int:
        """Bytes of the parameters, buffers, inputs and states that are there before the step."""
        rounding = self.device.rounding
        return sum(rounded(self.blocks[e.block].nbytes, rounding) for e in self.events if e.op is None and e.alloc)

    @cached_property
    def peak_at(self) -> Peak:
        """The moment of most memory."""
        return peak_of(self.events, self.totals)

    @property
    def peak(self) -> int:
        """The most bytes allocated at once."""
        return self.peak_at.nbytes

    @property
    def end(self) -> int:
        """Bytes allocated when the step is over."""
        return self.totals[-1] if self.totals else 0

    @property
    def peak_op(self) -> Op | None:
        """The operation that allocated the last byte of the peak; None if that was before the first."""
        return None if self.peak_at.op is None else self.ops[self.peak_at.op]

    def simulate(self, conf: AllocConf | str | None = None) -> Simulation:
        """What PyTorch's caching allocator reserves for these events, on a device of ``device.memory`` bytes.

        Args:
            conf: settings as in ``PYTORCH_CUDA_ALLOC_CONF``; None: `alloc_conf`.

        Raises:
            GraphmemError: PyTorch would refuse the settings, or what is there before the step does not fit.
        """
        from graphmem.timeline.allocator.conf import AllocConf, alloc_conf
        from graphmem.timeline.reserved import simulated

        if self.device.type != "cuda":
            raise GraphmemError(f"simulate is about CUDA's caching allocator; this was traced for {self.device.name}")
        text = self.alloc_conf if conf is None else conf
        parsed = text if isinstance(text, AllocConf) else alloc_conf(text)
        return simulated(self, parsed, self.device.memory, self.device.context_size)

    @cached_property
    def requests(self) -> list[Request]:
        """The events as CUDA's allocator sees them; see `timeline.reserved`."""
        from graphmem.timeline.reserved import requests_of

        return requests_of(self)

    @cached_property
    def simulation(self) -> Simulation:
        """`simulate` under the settings of the trace."""
        return self.simulate()

    @property
    def reserved(self) -> int:
        """The most bytes PyTorch reserves at once: ``torch.cuda.max_memory_reserved()``. On the CPU nothing is reserved: `peak`."""
        return self.simulation.peak_reserved if self.device.type == "cuda" else self.peak

    def alive_at_peak(self) -> list[Block]:
        """The blocks that make up the peak, oldest first."""
        return [self.blocks[index] for index in alive_after(self.events, self.peak_at.event)]

    @cached_property
    def graph(self) -> torch.fx.Graph:
        """The step as a `torch.fx.Graph`: one node an operation, in the order they ran; see `tracing.graph` for ``node.meta``."""
        from graphmem.tracing.graph import fx_graph

        return fx_graph(self)

    def to_networkx(self) -> networkx.DiGraph:
        """The data flow: a node an operation or placeholder, an edge a tensor that passes from one to the other."""
        from graphmem.tracing.graph import data_flow

        return data_flow(self)

    def report(self, by: By | None = None, top: int | None = None, events: bool = False) -> Report:
        """The Report that ``graphmem trace`` prints; ``by`` (op, module, layer, line) adds a breakdown of ``top`` rows.

        ``events`` adds the timeline: a row for every allocation and release.
        """
        from graphmem.timeline.summary import report

        return report(self, by, top, events)

    def save(self, path: str | Path) -> None:
        """Write the trace to a file that `load_trace` reads. All or nothing."""
        from graphmem.tracing.store import save

        save(self, Path(path))

    def __repr__(self) -> str:
        return repr(self.report())

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def __getitem__(self, key: str) -> Any:
        return self.report()[key]
