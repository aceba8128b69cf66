"""Which layouts fit: of a model, GPUs and a global batch, by headroom and by a stated proxy of their cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal

from graphmem.errors import GraphmemError
from graphmem.report import Column, Figure, Report, Row, Section, Table
from graphmem.sources.load import Access
from graphmem.tracing.device import Device

if TYPE_CHECKING:
    from graphmem.parallel.megatron.run import MegatronRun
    from graphmem.parallel.megatron.settings import Megatron

#: Floating-point operations that take as long as a byte sent: an H100's 989 TFLOP/s in bf16 against 450 GB/s of NVLink (NVIDIA's data sheet).
OPERATIONS_A_BYTE = 2200
#: Tensor parallelism stays within a node.
_TENSOR = (1, 2, 4, 8)
_MICRO_BATCHES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Layout:
    """One way to train. Bytes and operations are of a GPU; of a step ``operations`` and ``sent``."""

    words: str
    micro_batch: int
    accumulation: int
    checkpointing: str
    peak: int
    left: int
    operations: int
    sent: int
    #: Share of a step in which a stage waits for others.
    bubble: float = 0.0
    basis: Literal["formula", "traced"] = "formula"
    #: Options of ``graphmem train`` for it, beside those of the plan.
    options: str = ""

    @property
    def cost(self) -> float:
        """Operations, and bytes sent as the operations that take as long, over the share of time a stage works."""
        return (self.operations + OPERATIONS_A_BYTE * self.sent) * (1 + self.bubble)


@dataclass(frozen=True, repr=False)
class Plan:
    """Every layout that was looked at."""

    target: str
    origin: str
    device: Device
    gpus: int
    global_batch: int
    seq_len: int
    looked_at: tuple[Layout, ...]

    @cached_property
    def fitting(self) -> tuple[Layout, ...]:
        """Those that fit, the cheapest first."""
        return tuple(sorted((one for one in self.looked_at if one.left >= 0), key=lambda one: (one.cost, -one.left)))

    def report(self, top: int = 10) -> Report:
        """What ``graphmem plan`` prints."""
        tables = [
            _table(
                "fitting",
                f"Layouts that fit, the cheapest first ({len(self.fitting)} of {len(self.looked_at)})",
                self.fitting[:top],
            )
        ]
        listed = self.fitting[:top]
        if not listed:
            listed = tuple(sorted(self.looked_at, key=lambda one: -one.left)[:top])
            tables = [_table("nearest", "None fits; the nearest, and by how much (Left)", listed)]
        figures = (
            Figure("gpus", "GPUs", f"{self.gpus:,} × {self.device.name}", "text", "assumed"),
            Figure(
                "batch",
                "Global batch",
                f"{self.global_batch:,} sequences of {self.seq_len:,} tokens",
                "text",
                "assumed",
            ),
            Figure("fitting_layouts", "Layouts that fit", len(self.fitting), "count", "formula"),
        )
        notes = (
            f"cost: operations of a GPU in a step, recomputation included, and {OPERATIONS_A_BYTE:,} for each byte it sends, times the pipeline's bubble; "
            "1.00 is the cheapest listed. A proxy, for comparing: nothing is timed",
            "left: on the GPU, beside its CUDA context and NCCL's buffers",
            f"first row: graphmem train {self.target} --gpu {quote(self.device.name)} --gpus {self.gpus} --seq-len {self.seq_len} {listed[0].options}",
            *(() if self.fitting else ("to fit: more GPUs, larger ones, or a smaller --seq-len",)),
        )
        return Report("plan", self.target, self.origin, (Section("", figures, tuple(tables)),), notes)

    def __repr__(self) -> str:
        return repr(self.report())

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()


def _table(key: str, title: str, layouts: tuple[Layout, ...]) -> Table:
    columns = (
        Column("layout", "Layout"), Column("micro_batch", "Micro-batch", "count"), Column("accumulation", "Of them", "count"), Column("recompute", "Recompute"),
        Column("peak", "Peak", "bytes"), Column("left", "Left", "bytes"), Column("sent", "Sent a step", "bytes"), Column("cost", "Cost"), Column("basis", "Basis"),
    )  # fmt: skip
    least = min((one.cost for one in layouts), default=1.0)
    rows: list[Row] = [
        (
            one.words,
            one.micro_batch,
            one.accumulation,
            one.checkpointing,
            one.peak,
            one.left,
            one.sent,
            f"{one.cost / least:.2f}",
            one.basis,
        )
        for one in layouts
    ]
    return Table(key, title, columns, tuple(rows), "formula")


def megatron_plan(
    target: str, device: Device, gpus: int, global_batch: int, seq_len: int | None, access: Access
) -> Plan:
    """Tensor, pipeline, data and expert parallelism of Megatron, all by formula.

    Raises:
        GraphmemError: no layout divides the model and the batch.
    """
    from graphmem.parallel.megatron.run import megatron_run
    from graphmem.parallel.megatron.settings import Megatron

    base = megatron_run(target, Megatron(sequence_parallel=False), device, access, seq_len=seq_len)
    length = base.settings.seq_length
    found: list[Layout] = []
    for tp, pp, ep in _sizes(gpus, base.model.layers, base.model.experts is not None):
        dp = gpus // (tp * pp)
        for micro in _MICRO_BATCHES:
            if global_batch % (dp * micro):
                continue
            for way in (None, "full"):  # with fused attention, selective recomputation has nothing left to recompute
                try:
                    settings = Megatron(
                        tp=tp, pp=pp, dp=dp, ep=ep, etp=1 if ep > 1 else None, sequence_parallel=tp > 1, micro_batch_size=micro, seq_length=length,
                        microbatches=global_batch // (dp * micro), recompute_granularity=way, recompute_method="uniform" if way == "full" else None,
                    )  # fmt: skip
                    run = replace(base, settings=settings)
                    peak = run.peak
                except GraphmemError:  # heads or layers that do not divide
                    continue
                found.append(_of_megatron(run, peak))
    return _plan(base.target, f"Megatron-Core by formula; {base.origin}", device, gpus, global_batch, length, found)


def _of_megatron(run: MegatronRun, peak: int) -> Layout:
    from graphmem.parallel.megatron.cost import operations, sent

    given = run.settings
    sizes = " × ".join(f"{name} {getattr(given, name)}" for name in ("dp", "tp", "pp") if getattr(given, name) > 1)
    return Layout(
        sizes + (f", ep {given.ep}" if given.ep > 1 else ""), given.micro_batch_size, given.microbatches, given.recompute_granularity or "none", peak,
        run.margin or 0, operations(run.model, given), sent(run.model, given), (given.pp - 1) / given.microbatches, options=_megatron_options(given),
    )  # fmt: skip


def _megatron_options(given: Megatron) -> str:
    sizes = [f"--{name} {getattr(given, name)}" for name in ("dp", "tp", "pp", "ep") if getattr(given, name) > 1]
    own = [
        *(["--etp 1"] if given.etp is not None and given.etp != given.tp else []), *(["--sequence-parallel"] if given.sequence_parallel else []),
        f"--batch-size {given.micro_batch_size}", f"--microbatches {given.microbatches}",
        *(["--checkpointing layers"] if given.recompute_granularity == "full" else []),
    ]  # fmt: skip
    return " ".join(["--engine megatron", *sizes, *own])


def _sizes(gpus: int, layers: int, experts: bool) -> Iterator[tuple[int, int, int]]:
    for tp in _TENSOR:
        for pp in (size for size in range(1, layers + 1) if layers % size == 0 or (layers + 2) % size == 0):
            if gpus % (tp * pp):
                continue
            ranks = gpus // pp
            yield from ((tp, pp, ep) for ep in (1, 2, 4, 8, 16, 32, 64) if ep == 1 or (experts and ranks % ep == 0))


def torch_plan(
    target: str,
    device: Device,
    gpus: int,
    global_batch: int,
    seq_len: int,
    traced: Callable[..., Any],
    top: int,
    progress: Callable[[str], None],
) -> Plan:
    """FSDP2 with tensor parallelism, each traced; micro-batches beyond two by what the second adds to the first, but for those that are listed.

    ``traced``: `graphmem.train` of the target with the keywords it is given.

    Raises:
        GraphmemError: no layout divides the model and the batch.
    """
    found: list[Layout] = []
    refused: GraphmemError | None = None
    for tp in (size for size in _TENSOR if gpus % size == 0):
        fsdp = gpus // tp
        for way in (None, "layers"):
            sizes = [micro for micro in _MICRO_BATCHES if global_batch % (fsdp * micro) == 0]
            progress(f"fsdp {fsdp}, tp {tp}, recompute {way or 'none'}")
            try:
                known = {micro: _traced(traced, tp, fsdp, micro, way, global_batch) for micro in sizes[:2]}
            except GraphmemError as error:
                refused = refused or error
                continue
            found += known.values()
            found += (_beyond(known, micro, fsdp, global_batch) for micro in sizes[2:] if len(known) == 2)
    if not found and refused is not None:
        raise refused
    plan = _plan(target, f"FSDP2 and DTensor, traced for {device.name}", device, gpus, global_batch, seq_len, found)
    for one in plan.fitting[:top]:
        if one.basis == "formula":
            progress(f"{one.words}, micro-batch {one.micro_batch}")
            tp, fsdp = _of_words(one.words, gpus)
            way = None if one.checkpointing == "none" else one.checkpointing
            found[found.index(one)] = _traced(traced, tp, fsdp, one.micro_batch, way, global_batch)
    return _plan(target, plan.origin, device, gpus, global_batch, seq_len, found)


def _of_words(words: str, gpus: int) -> tuple[int, int]:
    sizes = {name: int(size) for name, size in (part.split(" ") for part in words.split(" × "))}
    return sizes.get("tp", 1), sizes.get("fsdp", 1)


def _traced(traced: Callable[..., Any], tp: int, fsdp: int, micro: int, way: str | None, global_batch: int) -> Layout:
    from graphmem.training.flops import flops

    sizes = {name: size for name, size in (("fsdp", fsdp), ("tp", tp)) if size > 1}
    again = global_batch // (fsdp * micro)
    run_of = min(again, 2)  # from the second micro-batch on, gradients of the ones before lie there
    run = traced(batch_size=micro, checkpointing=way, accumulation=run_of, **sizes)
    counted = sum(flops(run.trace).values()) // run_of
    sent = sum(one.sent for one in run.fullest.communication) // run_of
    return Layout(
        " × ".join(f"{name} {size}" for name, size in sizes.items()), micro, again, way or "none", run.reserved, run.margin or 0,
        counted * again, sent * again, basis="traced", options=_torch_options(sizes, micro, way, again),
    )  # fmt: skip


def _torch_options(sizes: dict[str, int], micro: int, way: str | None, again: int) -> str:
    """Of the recipe that `graphmem.plan` traces: weights or their masters in fp32, products in bfloat16."""
    precision = "--recipe fp32 --param-dtype bfloat16 --reduce-dtype float32" if "fsdp" in sizes else "--recipe mixed"
    chosen = [f"--{name} {size}" for name, size in sizes.items()]
    return " ".join(
        [*chosen, precision, f"--batch-size {micro}", *([f"--checkpointing {way}"] if way else []),
         *([f"--accumulation {again}"] if again > 1 else [])]
    )  # fmt: skip


def _beyond(known: dict[int, Layout], micro: int, fsdp: int, global_batch: int) -> Layout:
    """A larger micro-batch, by what the second that was traced has more than the first."""
    (first, one), (second, two) = known.items()
    times = (micro - first) / (second - first)

    def scaled(a: int, b: int) -> int:
        return round(a + (b - a) * times)

    again = global_batch // (fsdp * micro)
    return replace(
        one, micro_batch=micro, accumulation=again, options="", peak=scaled(one.peak, two.peak), left=scaled(one.left, two.left),
        operations=scaled(one.operations // one.accumulation, two.operations // two.accumulation) * again,
        sent=scaled(one.sent // one.accumulation, two.sent // two.accumulation) * again, basis="formula",
    )  # fmt: skip


def _plan(
    target: str, origin: str, device: Device, gpus: int, global_batch: int, seq_len: int, found: list[Layout]
) -> Plan:
    if not found:
        raise GraphmemError(
            f"{target}: no layout of {gpus} GPUs divides its heads and layers and a global batch of {global_batch}; try another --global-batch or --gpus"
        )
    return Plan(target, origin, device, gpus, global_batch, seq_len, tuple(found))
