"""A model and the settings of ``generate`` → what prefill and the last decode steps take, traced on the meta device.

Two short traces stand for the whole: prefill of the prompt with the first steps after it, and the last steps, from a cache as long as it is then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch

from graphmem.engines.transformers.settings import Generating
from graphmem.errors import GraphmemError
from graphmem.timeline.allocator.caching import CachingAllocator
from graphmem.timeline.allocator.conf import alloc_conf
from graphmem.timeline.allocator.driver import DeviceMemory
from graphmem.timeline.allocator.simulate import Request, Simulation, simulate
from graphmem.timeline.events import Kind, Phase, rounded
from graphmem.timeline.liveness import alive_after
from graphmem.tracing.device import Device
from graphmem.tracing.example_inputs import example_inputs
from graphmem.tracing.on_meta import light_copy
from graphmem.tracing.run import trace_module
from graphmem.tracing.targets import Choices, resolve
from graphmem.tracing.trace import Trace
from graphmem.training.quantized import quantize
from graphmem.workload import Generation, Workload

#: Steps that are traced after a prefill: the second replaces what sliding windows still hold of it.
_STEPS = 2


@dataclass(frozen=True)
class Moment:
    """The most bytes while a phase ran, and what they were."""

    nbytes: int
    kinds: dict[Kind, int]
    where: str


@dataclass(frozen=True)
class Generated:
    """Both traces and what they show."""

    settings: Generating
    device: Device
    first: Trace
    #: The last steps; the same trace where there are no more steps than it has.
    last: Trace
    name: str
    #: On the meta device, its linear layers quantized if the settings say so.
    module: torch.nn.Module
    workload: Workload
    parameters: int
    #: Longest context of the model; None: its config names none.
    context: int | None
    #: Bytes of a quantized checkpoint's weights as stored, which were traced unpacked; None: they are as traced.
    stored: int | None = None

    @property
    def model_class(self) -> str:
        return type(self.module).__name__

    @property
    def loaded(self) -> int:
        """Parameters and buffers."""
        return sum(
            rounded(block.nbytes, self.first.device.rounding)
            for event in self.first.events
            if event.op is None and (block := self.first.blocks[event.block]).kind in ("parameter", "buffer")
        )

    @cached_property
    def prefill(self) -> Moment:
        return _moment(self.first, "prefill", 0)

    @cached_property
    def decode(self) -> Moment | None:
        """The last step; None where only one token is generated, which is prefill's."""
        if self.settings.new_tokens < 2:
            return None
        return _moment(self.last, "decode", max(op.step for op in self.last.ops))

    @property
    def peak(self) -> Moment:
        """The larger of the two."""
        return self.prefill if self.decode is None or self.prefill.nbytes >= self.decode.nbytes else self.decode

    @property
    def weights(self) -> int:
        """Parameters and buffers as loaded."""
        return self.loaded - self.saved

    @property
    def saved(self) -> int:
        """What stored weights take less than those that were traced."""
        return 0 if self.stored is None else self.loaded - self.stored

    @property
    def steady(self) -> int:
        """Bytes allocated when all is generated and the cache is still held."""
        # The trace ends with the loop's own variables alive.
        return self.last.end

    @cached_property
    def _served(self) -> tuple[Simulation, ...]:
        """The caching allocator on a device without end, for both traces."""
        return tuple(served(trace, self.loaded) for trace in (self.first, self.last))

    @property
    def allocated(self) -> int:
        """The most bytes of blocks, as ``torch.cuda.max_memory_allocated()`` counts; unpacked weights as traced."""
        if self.device.type != "cuda":
            return self.peak.nbytes
        return max(one.peak_allocated for one in self._served)

    @property
    def reserved(self) -> int:
        """What PyTorch reserves at most in either trace, with weights as loaded."""
        if self.device.type != "cuda":
            return self.peak.nbytes - self.saved
        return max(one.peak_reserved for one in self._served) - self.saved

    @property
    def fits(self) -> bool | None:
        """Whether both traces run on the device's memory; None where it has no end."""
        if self.device.memory is None:
            return None
        total, context = self.device.memory + self.saved, self.device.context_size
        return all(
            served(trace, self.loaded, total, context).out_of_memory is None for trace in (self.first, self.last)
        )


#: What the warm-up of the allocator leaves free, in bytes (transformers, modeling_utils.py, caching_allocator_warmup).
_LEFT_FREE = round(1.2 * 2**30)


def served(trace: Trace, weights: int, total: int | None = None, context: int = 0, warmed: bool = True) -> Simulation:
    """The caching allocator serving a trace whose ``weights`` bytes ``from_pretrained(device_map=…)`` loaded.

    Since transformers 4.50 it first takes and drops one block as large as they are, from which they are then cut. ``warmed`` False: before that, or
    ``model.to("cuda")``, which takes a block for each.
    """
    requests = list(trace.requests)
    if warmed:
        size = weights if total is None else max(min(weights, total - context - _LEFT_FREE), 0)
        block = -1
        requests = [Request("alloc", block, size), Request("free", block), *requests] if size else requests
    return simulate(requests, CachingAllocator(alloc_conf(trace.alloc_conf), DeviceMemory(total, context)))


def generated(
    target: str, settings: Generating, device: Device, choices: Choices, stored: int | None = None, alloc: str = ""
) -> Generated:
    """Trace ``generate`` on a model.

    Args:
        stored: bytes of a quantized checkpoint's weights; they are traced unpacked.
        alloc: settings of the caching allocator.

    Raises:
        GraphmemError: the model does not generate, or cannot be traced; says where and why.
    """
    chosen = replace(choices, batch_size=settings.batch_size, seq_len=settings.prompt, dtype=settings.dtype)
    workload = Workload(grad=False, attention=settings.attention, fold=False, alloc_conf=alloc)
    module, args, kwargs, name = resolve(target, (), workload, chosen)
    if args or not _generates(module):
        raise GraphmemError(
            f"{name}: {type(module).__name__} generates no tokens; graphmem trace shows one forward of it"
        )
    context = _context(module)
    if context is not None and settings.kept_tokens > context:
        raise GraphmemError(
            f"{settings.prompt:,} prompt and {settings.new_tokens:,} new tokens: {name} has positions for {context:,}; lower --prompt or --new-tokens"
        )
    if settings.load_in is not None:
        module = light_copy(module)
        dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.bfloat16)
        quantize(module, settings.load_in, dtype)
    kwargs.pop("use_cache", None)

    def traced(prompt: int, steps: int) -> Trace:
        inputs = {key: _of_length(value, settings.prompt, prompt) for key, value in kwargs.items()}
        return _traced(module, inputs, settings, steps, workload, device, name)

    steps = settings.new_tokens - 1
    first = traced(settings.prompt, min(steps, _STEPS))
    encodes = getattr(module.config, "is_encoder_decoder", False)
    last = first if steps <= _STEPS or encodes else _without_prefill(traced(settings.kept_tokens - _STEPS, _STEPS))
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Generated(settings, device, first, last, name, module, workload, parameters, context, stored)


def room_of(found: Generated) -> Callable[[int, int], int | None]:
    """Bytes left on the GPU by context and requests: prefill traced for one and two requests of each context, affine beyond; None: cannot be traced."""
    assert found.device.memory is not None
    free = found.device.memory - found.device.context_size

    @cache
    def prefill(tokens: int) -> tuple[int, int] | None:
        """Bytes of one request, and what each further one adds."""
        try:
            one, reserved = _prefill_bytes(tokens, 1, found)
            if reserved > free:  # then more of them do not fit either
                return reserved, 0
            two, _ = _prefill_bytes(tokens, 2, found)
        except GraphmemError:
            return None
        return reserved, two - one

    def room(tokens: int, requests: int) -> int | None:
        known = prefill(tokens)
        return None if known is None else free - known[0] - (requests - 1) * known[1]

    return room


def _prefill_bytes(tokens: int, requests: int, found: Generated) -> tuple[int, int]:
    """(peak of tensors, reserved) of prefilling ``requests`` prompts of ``tokens`` at once, with weights as loaded."""
    settings = replace(found.settings, prompt=tokens, new_tokens=1, batch_size=requests)
    device = replace(found.device, memory=None)
    inputs = dict(example_inputs(found.module, requests, tokens, train=False))
    trace = _traced(found.module, inputs, settings, 0, found.workload, device, found.name)
    other = replace(found, settings=settings, device=device, first=trace, last=trace)
    return other.prefill.nbytes - other.saved, other.reserved


def _traced(
    module: torch.nn.Module, inputs: dict[str, Any], settings: Generating, steps: int, workload: Workload, device: Device, name: str
) -> Trace:  # fmt: skip
    generation = Generation(
        steps, settings.cache, settings.kept_tokens, settings.beams, settings.samples, not settings.all_logits
    )
    return trace_module(module, (), inputs, replace(workload, generation=generation), device, name)


def _without_prefill(trace: Trace) -> Trace:
    """The trace without what came and went during prefill: that one only stands for the steps before, and leaves their cache."""
    born = {e.block for e in trace.events if e.alloc and e.op is not None and trace.ops[e.op].phase == "prefill"}
    gone = {
        e.block
        for e in trace.events
        if not e.alloc and e.block in born and e.op is not None and trace.ops[e.op].phase == "prefill"
    }
    return replace(trace, events=tuple(event for event in trace.events if event.block not in gone))


def _of_length(value: torch.Tensor, given: int, wanted: int) -> torch.Tensor:
    """Token ids of another length; everything else as it is."""
    if value.dim() != 2 or value.shape[1] != given or given == wanted or value.is_floating_point():
        return value
    return value[:, :1].expand(-1, wanted).contiguous()


def _generates(module: torch.nn.Module) -> bool:
    return bool(getattr(module, "can_generate", lambda: False)()) and hasattr(module, "config")


def _context(module: torch.nn.Module) -> int | None:
    text = module.config.get_text_config(decoder=True)
    most = getattr(text, "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None


def _moment(trace: Trace, phase: Phase, step: int) -> Moment:
    """The highest total while operations of this phase and step ran."""
    best, at = 0, -1
    for position, (event, total) in enumerate(zip(trace.events, trace.totals, strict=True)):
        op = trace.ops[event.op] if event.op is not None else None
        if op is not None and (op.phase, op.step) == (phase, step) and total > best:
            best, at = total, position
    kinds: dict[Kind, int] = {}
    for number in alive_after(trace.events, at):
        block = trace.blocks[number]
        kinds[block.kind] = kinds.get(block.kind, 0) + rounded(block.nbytes, trace.device.rounding)
    op = trace.ops[trace.events[at].op or 0] if at >= 0 else None
    where = ", ".join(part for part in (op.module, op.name, op.line) if part) if op is not None else ""
    return Moment(best, kinds, where)
