"""The whole line, short and visible. The CLI, notebooks and tests call these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphmem.errors import GraphmemError
from graphmem.inspection.assemble import Detail, inspection
from graphmem.report import Report
from graphmem.sources.load import Access, load
from graphmem.sources.repository import Progress
from graphmem.timeline.allocator.conf import alloc_conf as parse_alloc_conf
from graphmem.workload import Attention, Routing, StepKind, Workload

if TYPE_CHECKING:
    import torch

    from graphmem.engines.estimate import Estimate
    from graphmem.measuring.measurement import Measurement
    from graphmem.parallel.megatron.run import MegatronRun
    from graphmem.parallel.plan import Plan
    from graphmem.parallel.run import ParallelRun
    from graphmem.parallel.zero_run import ZeroRun
    from graphmem.tracing.device import Device
    from graphmem.tracing.trace import Trace
    from graphmem.training.run import TrainingRun


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


def trace(
    target: str | Path | torch.nn.Module,
    *inputs: Any,
    step: StepKind = "forward",
    grad: bool = True,
    autocast: torch.dtype | str | None = None,
    loss: Callable[[Any], torch.Tensor] | None = None,
    optimizer: Callable[[Any], Any] | str | None = None,
    device: str | Device | None = None,
    gpu: str | None = None,
    memory: int | str | None = None,
    alloc_conf: str = "",
    steps: int = 1,
    routing: Routing = "balanced",
    attention: Attention | None = None,
    fold: bool = True,
    batch_size: int | None = None,
    seq_len: int | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> Trace:
    """One step of a model as a `torch.fx` graph with every allocation and release, on the meta device.

    The model's own eager code runs, without weights and without a GPU. The module that is given is not changed.

    Args:
        target: a module, ``"package.module:factory"``, or a model id, folder or config that transformers can build.
        inputs: what the module is called with: tensors on any device (small integer ones keep their values); a dict as the last one
            holds keyword arguments. A model id needs none.
        step: ``"forward"``, or ``"train"``: zero_grad, forward, loss, backward, optimizer step.
        grad: whether autograd records in a forward-only step (``torch.no_grad()`` if not).
        autocast: dtype for `torch.autocast` around forward and loss (``torch.bfloat16``).
        loss: ``loss(output) -> scalar``; by default the output's own ``loss``, else the sum of its floating-point tensors.
        optimizer: a class of `torch.optim` or its name, or any callable on the parameters; by default `torch.optim.AdamW`.
        device: ``"cuda"`` (an A100 whose memory has no end; the default), ``"h100"``, ``"cpu"``, or a `Device`.
        gpu: instead, a GPU of `graphmem.hardware` with its memory: ``"A100-80GB"``, ``"RTX 4090"``. The report says where the step dies.
        memory: bytes of the device (or ``"23.5GiB"``), in place of the GPU's own; the CUDA context comes out of them.
        alloc_conf: settings of the caching allocator, as in ``PYTORCH_CUDA_ALLOC_CONF``: ``"expandable_segments:True"``.
        steps: how many steps in a row; the first creates gradients and optimizer state.
        routing: how a router's choice of experts falls, ``"balanced"`` or ``"worst"``.
        attention: ``"eager"``, ``"sdpa"`` or ``"flash"``, for a model of transformers; by default as the model has it.
        fold: trace repeated layers a few times and replicate their events, exactly, where that is possible.
        batch_size, seq_len, dtype, trust_remote_code, revision, token, offline: for a model id. ``seq_len`` is in tokens.

    Returns:
        A Trace: ``trace.start``, ``trace.peak`` (bytes), ``trace.graph``, ``trace.ops``, ``trace.events``, ``trace.reserved``
        (bytes), ``trace.report(by="module")``.

    Raises:
        GraphmemError: with one line that says what is wrong, where, and what to do next.
    """
    from graphmem.tracing.targets import require_torch

    require_torch()
    from graphmem.tracing.device import traced_for
    from graphmem.tracing.run import trace_module

    # What cannot be is said before the work begins.
    parse_alloc_conf(alloc_conf)
    on = traced_for(device, gpu, memory)
    if alloc_conf and on.type != "cuda":
        raise GraphmemError(
            f'alloc-conf "{alloc_conf}": is about CUDA\'s caching allocator; this is traced for {on.name}'
        )
    module, args, kwargs, name, workload = _resolved(
        target, inputs, step=step, grad=grad, autocast=autocast, loss=loss, optimizer=optimizer, steps=steps, routing=routing,
        attention=attention, alloc_conf=alloc_conf, fold=fold, batch_size=batch_size, seq_len=seq_len, dtype=dtype,
        trust_remote_code=trust_remote_code, revision=revision, token=token, offline=offline,
    )  # fmt: skip
    return trace_module(module, args, kwargs, workload, on, name)


def train(
    target: str | Path | torch.nn.Module,
    *inputs: Any,
    recipe: str | None = None,
    optimizer: Callable[[Any], Any] | str | None = None,
    optimizer_in_backward: bool = False,
    accumulation: int = 1,
    set_to_none: bool = True,
    clip_norm: float | None = None,
    flat_buffers: bool = False,
    checkpointing: str | None = None,
    save: Sequence[str] = (),
    offload: bool = False,
    adapter: str | None = None,
    rank: int | None = None,
    alpha: int | None = None,
    target_modules: str | Sequence[str] | None = None,
    adapter_dropout: float | None = None,
    rslora: bool = False,
    virtual_tokens: int | None = None,
    load_in: str | None = None,
    engine: str | None = None,
    zero: int | None = None,
    gpus: int | None = None,
    dp: int | None = None,
    fsdp: int | None = None,
    tp: int | None = None,
    pp: int | None = None,
    cp: int | None = None,
    ep: int | None = None,
    parallel: Mapping[str, Any] | None = None,
    loss: Callable[[Any], torch.Tensor] | str = "full",
    compile: bool = False,
    steps: int = 2,
    batch_size: int | None = None,
    seq_len: int | None = None,
    packed: bool = False,
    attention: Attention | None = None,
    routing: Routing = "balanced",
    device: str | Device | None = None,
    gpu: str | None = None,
    memory: int | str | None = None,
    alloc_conf: str = "",
    fold: bool = True,
    trust_remote_code: bool = False,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> TrainingRun | ParallelRun | ZeroRun | MegatronRun:
    """Whether a training run fits, where its memory goes, and what would change it.

    A step of the model's own code is traced with the real optimizer, adapters and checkpointing, as in `trace`. The module that is given
    is not changed.

    Args:
        target, inputs: as in `trace`.
        recipe: a key of `graphmem.training.recipes.RECIPES` (``"bf16"``, ``"amp-bf16"``, ``"mixed"``); by default weights are as they are.
        optimizer: a name with options (``"SGD(momentum=0.9)"``, ``"bitsandbytes.PagedAdamW8bit"``, ``"adamw_torch_fused"``), a class of
            `torch.optim`, or any callable on the parameters; by default AdamW.
        optimizer_in_backward: each parameter is updated, and its gradient dropped, as soon as it is there.
        accumulation: micro-batches before each optimizer step.
        set_to_none: of ``zero_grad``.
        clip_norm: the largest norm of all gradients, by ``torch.nn.utils.clip_grad_norm_``.
        flat_buffers: fp32 gradients and master weights of the mixed recipes in one buffer each.
        checkpointing: ``"model"``, ``"layers"``, ``"every-4"``, ``"sqrt"`` or ``"selective"``, which keeps the results of ``save`` (``"aten.mm"``).
        offload: saved activations lie in host memory.
        adapter: by peft: ``"lora"``, ``"dora"``, ``"ia3"``, ``"prompt"``, ``"prefix"``, ``"p-tuning"``; with rank, alpha, target_modules (names, or
            ``"all-linear"``), adapter_dropout, rslora, virtual_tokens.
        load_in: frozen weights quantized: ``"nf4"``, ``"nf4-double"``, ``"int8"``.
        engine: what spreads it over GPUs: ``"torch"`` (FSDP2, DDP, DTensor, run for real), ``"deepspeed"`` or ``"megatron"`` (by formula).
        zero: DeepSpeed's stage, 0 to 3.
        gpus: how many; their ranks are laid out by dp (DDP; with fsdp, replicas of its shards), fsdp (FSDP2), tp, pp, cp, ep. One size may be 0,
            for as many as the others leave over.
        parallel: settings of the engine: fields of `graphmem.parallel.layout.Parallel`, ``Sharding``, ``Buckets`` and ``Pipeline``, such as
            ``{"reshard_after_forward": False, "param_dtype": "bfloat16"}``; of `graphmem.parallel.zero.Zero`; or of
            `graphmem.parallel.megatron.settings.Megatron`.
        loss: ``loss(output) -> scalar``, or, of a language model, ``"full"``, ``"chunked"`` or ``"fused"``.
        compile: what AOTAutograd's partitioner saves, as under `torch.compile`.
        steps: how many steps in a row; the first creates optimizer states.
        packed: the batch's sequences in one row, each with positions from 0.
        batch_size, seq_len, attention, routing, device, gpu, memory, alloc_conf, fold, trust_remote_code, revision, token, offline: as in `trace`.

    Returns:
        A TrainingRun, or of several GPUs a ParallelRun, ZeroRun or MegatronRun: ``run.peak``, ``run.reserved``, ``run.margin`` (bytes), ``run.fits``, ``run.trace``, ``run.report()``.

    Raises:
        GraphmemError: with one line that says what is wrong, where, and what to do next.
    """
    from graphmem.tracing.targets import Choices, require_torch

    require_torch()
    from graphmem.parallel.choose import Asked, layout_of, spread_over
    from graphmem.tracing.device import traced_for
    from graphmem.training.adapters import adapter_of
    from graphmem.training.optimizers import optimizer_named
    from graphmem.training.run import Job, trained
    from graphmem.training.settings import Training

    parse_alloc_conf(alloc_conf)
    sizes = {"dp": dp, "fsdp": fsdp, "tp": tp, "pp": pp, "cp": cp, "ep": ep}
    layout = layout_of(Asked(engine, gpus, zero, sizes, parallel or {}))
    on = traced_for(device, gpu, memory)
    if isinstance(optimizer, str):
        optimizer_named(optimizer, on.type)  # what cannot be is said before the work begins
    head, function = (loss, None) if isinstance(loss, str) else ("full", loss)
    training = Training(
        recipe=recipe, optimizer=optimizer, optimizer_in_backward=optimizer_in_backward, accumulation=accumulation, set_to_none=set_to_none,
        clip_norm=clip_norm, flat_buffers=flat_buffers, checkpointing=checkpointing, save=tuple(save), offload=offload,
        adapter=adapter_of(
            adapter, rank=rank, alpha=alpha, target_modules=target_modules, dropout=adapter_dropout, rslora=rslora or None,
            virtual_tokens=virtual_tokens,
        ), load_in=load_in, loss_head=head, compile=compile, steps=steps,
    )  # fmt: skip
    base = Workload(step="train", loss=function, routing=routing, attention=attention, alloc_conf=alloc_conf, fold=fold)
    choices = Choices(batch_size, seq_len, None, trust_remote_code, Access(revision, token, offline), packed)
    job = Job(target, inputs, training, choices, base, on, gpu is not None)
    return trained(job) if layout is None else spread_over(job, layout)


def plan(
    target: str | Path,
    *,
    gpu: str,
    gpus: int,
    global_batch: int,
    seq_len: int | None = None,
    engine: str = "megatron",
    top: int = 10,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Plan:
    """Which layouts of a training run fit on so many GPUs, and which is the cheapest by a stated proxy.

    Args:
        target: a model id or folder.
        gpu: of the table (``"H100-80GB"``).
        gpus: how many.
        global_batch: sequences of a step, over all GPUs.
        seq_len: tokens of a sequence; None: 4,096, or what the model takes.
        engine: ``"megatron"``: data, tensor, pipeline and expert parallelism by formula; ``"torch"``: FSDP2 and DTensor, traced.
        top: how many of those that fit are traced where they were only reckoned.
        progress: is told what is being looked at.
        revision, token, offline: as in `inspect`.

    Returns:
        A Plan: ``plan.fitting`` (layouts, the cheapest first; bytes), ``plan.report()``.

    Raises:
        GraphmemError: with one line that says what is wrong, where, and what to do next.
    """
    from graphmem.tracing.targets import require_torch

    require_torch()
    from graphmem.parallel.megatron.run import usual_length
    from graphmem.parallel.plan import megatron_plan, torch_plan
    from graphmem.sources.load import load
    from graphmem.tracing.device import traced_for

    if engine not in ("megatron", "torch"):
        raise GraphmemError(f"engine {engine!r}: plan with 'megatron' or 'torch'")
    for name, count in (("gpus", gpus), ("global_batch", global_batch), ("seq_len", seq_len)):
        if count is not None and count < 1:
            raise GraphmemError(f"{name} {count}: must be 1 or more")
    device, access = traced_for(None, gpu, None), Access(revision, token, offline)
    if engine == "megatron":
        return megatron_plan(str(target), device, gpus, global_batch, seq_len, access)
    length = seq_len or min(usual_length(section.config or {}) for section in load(target, access).sections)

    def traced(**choices: Any) -> Any:
        mixed = {"param_dtype": "bfloat16", "reduce_dtype": "float32"} if "fsdp" in choices else {}
        return train(
            target, gpu=gpu, seq_len=length, recipe="fp32" if mixed else "mixed", revision=revision, token=token, offline=offline,
            parallel=mixed, **choices,
        )  # fmt: skip

    return torch_plan(str(target), device, gpus, global_batch, length, traced, top, progress)


def infer(
    target: str | Path,
    *,
    engine: str | None = None,
    gpu: str | None = None,
    memory: int | str | None = None,
    alloc_conf: str = "",
    trust_remote_code: bool = False,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    **options: Any,
) -> Estimate:
    """What it takes to load a model, to prefill, to decode and to serve it; what fits on a GPU.

    Args:
        target: a model id, a folder, or a GGUF file (``"owner/name/file.gguf"``).
        engine: ``"transformers"`` (the default: ``generate``, traced), ``"vllm"``, or ``"llama.cpp"`` (the default for GGUF files).
        gpu: a GPU of `graphmem.hardware`: ``"H100-80GB"``, ``"RTX 4090"``; vLLM needs one, or ``memory``.
        memory: bytes of the device (or ``"23.5GiB"``), in place of the GPU's own.
        alloc_conf: transformers: settings of the caching allocator.
        options: the engine's own, in its words: fields of `engines.transformers.settings.Generating` (``prompt``, ``new_tokens``,
            ``batch_size``, ``beams``, ``samples``, ``cache``, ``dtype``, ``load_in``, ``attention``, ``all_logits``), of
            `engines.vllm.serving.Serving` (``version``, ``gpu_memory_utilization``, ``max_model_len``, ``kv_cache_dtype``,
            ``tensor_parallel_size``, …), or of `engines.llama_cpp.settings.Running` (``ctx_size``, ``gpu_layers``, ``cache_type_k``, …). None: the
            engine's default.
        trust_remote_code, revision, token, offline: as in `trace`.

    Returns:
        An Estimate: ``found.item("weights").nbytes``, ``found.total`` (bytes), ``found.fits``, ``found.margin``, ``found["matrix"]``,
        ``found.report()``.

    Raises:
        GraphmemError: with one line that says what is wrong and what to type next.
    """
    from graphmem.engines.choose import infer as answer
    from graphmem.tracing.device import traced_for

    parse_alloc_conf(alloc_conf)
    on = traced_for(None, gpu, memory)
    return answer(
        str(target),
        engine,
        options,
        on,
        gpu is not None,
        Access(revision, token, offline),
        trust_remote_code,
        alloc_conf,
    )


def measure(
    target: str | Path | torch.nn.Module, *inputs: Any, device: str | None = None, alloc_conf: str = "", **choices: Any
) -> Measurement:
    """Run a workload for real, with random weights, and hold it against its prediction, event by event.

    Args:
        target, inputs, choices: what `trace` takes, but for ``gpu``, ``memory`` and ``fold``.
        device: ``"cuda"`` (PyTorch's memory history) or ``"cpu"`` (the profiler's memory events); by default what there is.
        alloc_conf: settings of the caching allocator; on CUDA they hold only in a process that has not used the device yet.

    Returns:
        A Measurement: ``measured.real.peak`` and ``measured.predicted.peak`` are bytes, ``measured.matched`` counts events,
        ``measured.row()`` is what ``fixtures/measurements`` holds.

    Raises:
        GraphmemError: with one line that says what is wrong, where, and what to do next.
    """
    from graphmem.tracing.targets import require_torch

    require_torch()
    from graphmem.measuring.run import measured

    parse_alloc_conf(alloc_conf)
    module, args, kwargs, name, workload = _resolved(target, inputs, alloc_conf=alloc_conf, **choices)
    shown = target if isinstance(target, str) else name
    return measured(module, args, kwargs, workload, device, name, shown, choices, inputs)


def _resolved(
    target: str | Path | torch.nn.Module, inputs: tuple[Any, ...], *, step: StepKind = "forward", grad: bool = True,
    autocast: torch.dtype | str | None = None, loss: Callable[[Any], torch.Tensor] | None = None,
    optimizer: Callable[[Any], Any] | str | None = None, steps: int = 1, routing: Routing = "balanced", attention: Attention | None = None,
    alloc_conf: str = "", fold: bool = True, batch_size: int | None = None, seq_len: int | None = None,
    dtype: torch.dtype | str | None = None, trust_remote_code: bool = False, revision: str | None = None, token: str | None = None,
    offline: bool = False,
) -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any], str, Workload]:  # fmt: skip
    """What `trace` and `measure` were called with, as a module, its arguments, a name and a Workload."""
    from graphmem.tracing.names import dtype_named
    from graphmem.tracing.targets import Choices, resolve
    from graphmem.training.optimizers import optimizer_named

    chosen = optimizer_named(optimizer) if isinstance(optimizer, str) else optimizer
    if chosen is not None and not callable(chosen):
        raise GraphmemError("optimizer is an object; give its class, or lambda parameters: SGD(parameters, lr=0.1)")
    workload = Workload(
        step=step, grad=grad, autocast=dtype_named("autocast", autocast), loss=loss, optimizer=chosen, steps=steps, routing=routing,
        attention=attention, alloc_conf=alloc_conf, fold=fold,
    )  # fmt: skip
    choices = Choices(
        batch_size, seq_len, dtype_named("dtype", dtype), trust_remote_code, Access(revision, token, offline)
    )
    return (*resolve(target, inputs, workload, choices), workload)


def show(snapshot: str | Path | dict[str, Any], *, top: int = 15, events: bool = False) -> Report:
    """What a memory snapshot tells that ``torch.cuda.memory._dump_snapshot`` wrote. Nothing in the file is executed.

    Args:
        snapshot: the file, or what ``torch.cuda.memory._snapshot()`` returned.
        top: rows of the table of lines that hold memory at the peak.
        events: add the table of every event.

    Returns:
        A Report: ``report["peak"]`` and ``report["reserved"]`` are bytes, ``report["alloc_conf"]`` a table. Several devices are
        sections (``report.section("device 1")``).

    Raises:
        GraphmemError: no such file, no snapshot, cut off, or code in it.
    """
    from graphmem.snapshots.report import report
    from graphmem.snapshots.snapshot import read_snapshot, snapshot_of

    if isinstance(snapshot, dict):
        return report(snapshot_of(snapshot, "snapshot"), "snapshot", top, events)
    if not isinstance(snapshot, str | Path):
        raise GraphmemError(
            f"show needs a file, or the dict of torch.cuda.memory._snapshot(); this is a {type(snapshot).__name__}"
        )
    return report(read_snapshot(Path(snapshot)), str(snapshot), top, events)


def load_trace(path: str | Path) -> Trace:
    """A trace that `Trace.save` wrote.

    Raises:
        GraphmemError: it is not one.
    """
    from graphmem.tracing.store import load

    return load(Path(path))
