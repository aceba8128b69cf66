"""Settings → a traced training run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch

from graphmem.errors import GraphmemError
from graphmem.timeline.allocator.conf import alloc_conf as parse_alloc_conf
from graphmem.timeline.reserved import simulated
from graphmem.tracing.device import Device
from graphmem.tracing.loop import default_loss
from graphmem.tracing.run import trace_module
from graphmem.tracing.targets import Choices, resolve
from graphmem.tracing.trace import Trace
from graphmem.tracing.world import World
from graphmem.training.laid import paged_bytes
from graphmem.training.optimizers import Chosen, roles_of
from graphmem.training.prepare import Maker, inputs_in, prepared, workload_of
from graphmem.training.settings import Training
from graphmem.workload import Workload

if TYPE_CHECKING:
    from graphmem.checkpoint import Basis
    from graphmem.report import Report
    from graphmem.timeline.allocator.simulate import Simulation
    from graphmem.training.changes import Tried


@dataclass(frozen=True)
class Job:
    """What to train, how, and where: all that a run follows from. ``base``: the loss, attention, routing and allocator settings."""

    target: Any
    inputs: tuple[Any, ...]
    training: Training
    choices: Choices
    base: Workload
    device: Device
    #: Whether the device is a GPU that was named.
    gpu: bool = False
    #: The ranks it is spread over; None: one GPU.
    world: World | None = None


@dataclass(frozen=True, repr=False)
class TrainingRun:
    """A run of `Job`, traced. Bytes are ints."""

    job: Job
    trace: Trace
    #: What the settings did to the model, in words.
    said: tuple[str, ...]
    warnings: tuple[str, ...]
    #: How the optimizer's memory is known: ``traced``, or ``formula`` where its states are laid out by its documentation.
    optimizer_basis: Basis
    #: Optimizer states in unified memory, beside PyTorch's allocator.
    paged: int
    #: Parameters of the model, adapters' included, and those of them that are trained.
    parameters: int
    trained: int
    #: Sizes that published formulas ask for, as far as the model's config has them.
    sizes: dict[str, int]

    @property
    def named(self) -> bool:
        """Whether a GPU was named, by which kernels and the context are known."""
        return self.job.gpu

    @property
    def peak(self) -> int:
        """The most bytes of tensors allocated at once."""
        return self.trace.peak

    @cached_property
    def unlimited(self) -> Simulation:
        """The caching allocator on a device without end."""
        return simulated(self.trace, parse_alloc_conf(self.trace.alloc_conf))

    @property
    def served(self) -> Simulation:
        """The allocator as it goes on the GPU that was named, where the run fits there; else on one without end."""
        return self.limited if self.fits and self.limited is not None else self.unlimited

    @property
    def reserved(self) -> int:
        """The most bytes PyTorch reserves at once: on the GPU that was named, if the run fits there, else where memory has no end."""
        return self.served.peak_reserved if self.trace.device.type == "cuda" else self.trace.peak

    @cached_property
    def limited(self) -> Simulation | None:
        """The caching allocator on the device's memory; None where not even the model fits, or the device has no end."""
        if self.trace.device.memory is None or self.trace.device.type != "cuda":
            return None
        try:
            return self.trace.simulation
        except GraphmemError:
            return None

    @property
    def fits(self) -> bool | None:
        """Whether the run fits on the GPU beside a CUDA context; None where no GPU was named."""
        if self.trace.device.memory is None:
            return None
        return self.limited is not None and self.limited.out_of_memory is None

    @property
    def margin(self) -> int | None:
        """Bytes left on the GPU at the reserved peak, its CUDA context counted; below zero, how much is missing."""
        memory = self.trace.device.memory
        if memory is None:
            return None
        return memory - self.trace.device.context_size - self.reserved

    def again(self, **settings: Any) -> TrainingRun:
        """The same run with other settings: fields of `Training`, as in ``run.again(checkpointing="layers")``."""
        return trained(replace(self.job, training=replace(self.job.training, **settings)))

    @cached_property
    def changes(self) -> list[Tried]:
        """What would make it fit, the cheapest first, each traced."""
        from graphmem.training.changes import changes

        return changes(self)

    def report(self, by: str | None = None, top: int | None = None, compare_rules: bool = False) -> Report:
        """What ``graphmem train`` prints."""
        from graphmem.training.report import report

        return report(self, by, top, compare_rules)

    def __repr__(self) -> str:
        return repr(self.report())

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def __getitem__(self, key: str) -> Any:
        return self.report()[key]


def trained(job: Job) -> TrainingRun:
    """Trace a job.

    Raises:
        GraphmemError: the model does not offer what is asked, or cannot be traced; says where and why.
    """
    training, recipe = job.training, job.training.precision
    base = replace(job.base, step="train")
    module, args, kwargs, name = resolve(job.target, job.inputs, base, job.choices)
    if not any(parameter.is_floating_point() for parameter in module.parameters()):
        raise GraphmemError(f"{name}: has no parameters, so there is nothing to train")
    model, said = prepared(module, training)
    workload = workload_of(training, base, job.device.type)
    given, named = inputs_in(args, recipe), inputs_in(kwargs, recipe)
    if job.world is not None:
        model, given, named = job.world.part(model, given, named)
    traced_as = model
    if training.compile:
        traced_as, workload = _compiled(model, given, named, workload, job.device)
        said.append(
            "compiled: what is saved is AOTAutograd's choice; elementwise work is fused as inductor's main rules have it"
        )
    trace = trace_module(traced_as, given, named, workload, job.device, name, job.world)
    maker = workload.optimizer
    assert isinstance(maker, Maker)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    warnings = [*_positions(model, kwargs), *_kernels(training, job)]
    return TrainingRun(
        job, replace(trace, settings=_words(trace, training, job, type(module).__name__)), tuple(said), tuple(warnings), maker.basis,
        _paged(maker, trainable, model), _count(model), sum(parameter.numel() for parameter in trainable), _sizes(model, args, kwargs),
    )  # fmt: skip


def _compiled(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], workload: Workload, device: Device
) -> tuple[torch.nn.Module, Workload]:
    """The model as compiled graphs that return the loss, and the workload for it."""
    from graphmem.training.compiled import compiled

    loss = workload.loss or partial(default_loss, assume=lambda what: None)
    context = (
        partial(torch.autocast, device.type, dtype=getattr(torch, workload.autocast)) if workload.autocast else None
    )

    def of_output(output: Any) -> torch.Tensor:
        return loss(output)

    found = compiled(model, args, kwargs, of_output, device, context)
    return found, replace(workload, loss=None, autocast=None, fold=False)


def _paged(maker: Maker, trainable: list[torch.nn.Parameter], model: torch.nn.Module) -> int:
    chosen = maker.chosen
    if not isinstance(chosen, Chosen) or chosen.layout is None:
        return 0
    recipe = maker.training.precision
    masters = recipe is not None and bool(recipe.master)
    parameters: list[torch.Tensor] = [p.float() if masters else p for p in trainable]
    roles = roles_of(model)
    known = {id(new): roles[id(old)] for new, old in zip(parameters, trainable, strict=True) if id(old) in roles}
    return paged_bytes(parameters, chosen.layout, chosen.options, known)


def _count(model: torch.nn.Module) -> int:
    """Packed weights counted as weights."""
    from graphmem.training.quantized import QuantizedLinear

    packed = {id(m.weight): m.in_features * m.out_features for m in model.modules() if isinstance(m, QuantizedLinear)}
    return sum(packed.get(id(parameter), parameter.numel()) for parameter in model.parameters())


def _words(trace: Trace, training: Training, job: Job, model_class: str) -> dict[str, str]:
    """The settings of the trace and those of the training, for people."""
    said = dict(trace.settings)
    recipe = training.precision
    said["model"] = model_class
    said["recipe"] = (
        f"{recipe.key}: {recipe.title}"
        if recipe is not None
        else "none: weights as they are, states as the optimizer makes them"
    )
    if training.accumulation > 1:
        said["accumulation"] = f"{training.accumulation} micro-batches a step"
    said["gradients"] = "dropped after each step" if training.set_to_none else "kept and zeroed"
    if training.clip_norm is not None:
        said["clipping"] = f"norm of all gradients at most {training.clip_norm:g}"
    if training.flat_buffers:
        said["buffers"] = "fp32 gradients and master weights flattened"
    if training.offload:
        said["offload"] = "saved activations in host memory"
    if job.choices.packed:
        said["packing"] = "the batch's sequences in one row"
    said["output"] = "dropped before backward, as transformers' Trainer does"
    return said


def _kernels(training: Training, job: Job) -> list[str]:
    """What the GPU lacks, by its compute capability (CUDA programming guide, arithmetic by capability; flash-attn's README)."""
    recipe, device = training.precision, job.device
    if device.memory is None or device.type != "cuda":
        return []
    bf16 = recipe is not None and "bfloat16" in (recipe.dtype, recipe.autocast)
    lacks = {
        "fp8 products need Ada, Hopper or newer (8.9)": bool(recipe and recipe.fp8) and device.capability < (8, 9),
        "the flash-attn package needs Ampere or newer (8.0)": job.base.attention == "flash" and device.capability < (8, 0),
        "bf16 is emulated before Ampere (8.0)": bf16 and device.capability < (8, 0),
    }  # fmt: skip
    major, minor = device.capability
    return [f"{what}; {device.name} has {major}.{minor}" for what, holds in lacks.items() if holds]


def _positions(model: torch.nn.Module, kwargs: dict[str, Any]) -> list[str]:
    """A sequence longer than the model was made for."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    most = getattr(text, "max_position_embeddings", None)
    ids = kwargs.get("input_ids")
    positions = kwargs.get("position_ids")
    if ids is None or not isinstance(most, int):
        return []
    length = int(positions.max()) + 1 if positions is not None and positions.device.type == "cpu" else ids.shape[-1]
    return [f"{length:,} tokens are more than the {most:,} positions the model was made for"] if length > most else []


def _sizes(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    names = {"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads"}
    found = {key: value for key, name in names.items() if isinstance(value := getattr(text, name, None), int)}
    ids = kwargs.get("input_ids", args[0] if args else None)
    if isinstance(ids, torch.Tensor) and ids.dim() == 2:
        found |= {"batch": ids.shape[0], "tokens": ids.shape[1]}
    return found
