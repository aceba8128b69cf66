"""Which engine answers, with which of its options; everything an option of another engine is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from graphmem.checkpoint import Checkpoint
from graphmem.engines.estimate import Estimate
from graphmem.engines.llama_cpp.settings import Running
from graphmem.engines.vllm.serving import Serving
from graphmem.errors import GraphmemError, TargetError, UnsupportedError, nearest
from graphmem.inference.kv_cache import CacheLayout, NoCache
from graphmem.inference.layouts import CompressedAttention
from graphmem.inspection.model import Model, understand
from graphmem.sources.load import Access, load
from graphmem.tracing.device import Device

if TYPE_CHECKING:
    from graphmem.engines.transformers.run import Generated

ENGINES = ("transformers", "vllm", "llama.cpp")

#: Options by engine, in its own words. transformers' are listed here, because its settings' room imports torch.
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "transformers": (
        "prompt", "new_tokens", "batch_size", "beams", "samples", "cache", "dtype", "load_in", "attention", "all_logits",
    ),
    "vllm": tuple(field.name for field in fields(Serving)),
    "llama.cpp": (*(field.name for field in fields(Running)), "quantization"),
}  # fmt: skip


#: Options that are whole numbers, whoever's.
_WHOLE = {"prompt", "new_tokens", "batch_size", "beams", "samples"} | {
    field.name for engine in (Serving, Running) for field in fields(engine) if field.type in ("int", "int | None")
}


def settings_for(engine: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, if all are the engine's own.

    Raises:
        GraphmemError: no such engine, or an option of another one.
    """
    if engine not in ENGINES:
        raise GraphmemError(f"engine {engine!r}: {nearest(engine, ENGINES)}")
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name in _OPTIONS[engine]:
            if name in _WHOLE and (not isinstance(value, int) or isinstance(value, bool)):
                raise GraphmemError(f"{name.replace('_', '-')} {value!r}: is a whole number: 8192")
            continue
        owners = [other for other in ENGINES if name in _OPTIONS[other]]
        spelled = name.replace("_", "-")
        if owners:
            raise GraphmemError(
                f"{spelled}: an option of engine {' and '.join(owners)}; this is {engine}: add --engine {owners[0]}, or leave it out"
            )
        raise GraphmemError(f"{spelled}: {nearest(name, _OPTIONS[engine])}")
    return given


def infer(
    target: str, engine: str | None, options: Mapping[str, Any], device: Device, named: bool, access: Access, trust_remote_code: bool = False,
    alloc: str = "",
) -> Estimate:  # fmt: skip
    """What running ``target`` takes. ``named``: whether the device is a GPU that was named.

    Raises:
        GraphmemError: in one line, what cannot be and what to type next.
    """
    if engine is None:
        engine = "llama.cpp" if target.lower().endswith(".gguf") else "transformers"
    given = settings_for(engine, options)
    place = (
        device.name
        if named
        else f"a GPU of {device.memory:,} bytes"
        if device.memory is not None
        else f"a GPU like {device.name}"
    )
    if engine == "vllm":
        return _vllm(target, given, device, place, access)
    if engine == "llama.cpp":
        return _llama_cpp(target, given, device, place, access)
    return _transformers(target, given, device, place, access, trust_remote_code, alloc)


def _model(checkpoint: Checkpoint) -> Model:
    specs = [spec for spec in checkpoint.sections if spec.config]
    if len(checkpoint.sections) != 1 or not specs:
        what = "holds several models" if len(checkpoint.sections) > 1 else "has no config.json"
        raise UnsupportedError(f"{checkpoint.target}: {what}; engines serve one language model")
    return understand(specs[0])[0]


def _layout(model: Model) -> CacheLayout:
    if isinstance(model.cache, NoCache):
        raise GraphmemError(
            f"no cache can be laid out: {model.cache.reason}{_assumed(model) if model.cache.missing else ''}"
        )
    return model.cache


def _assumed(model: Model) -> str:
    """What transformers' class would assume for the sizes that a config leaves out; empty where it is not installed."""
    from graphmem.config import text_config

    text = text_config(model.spec.config)
    try:
        from transformers import CONFIG_MAPPING

        defaults = CONFIG_MAPPING[text.get("model_type")]()
    except Exception:
        return ""
    keys = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size")
    missing = [
        f"{key} {value}" for key in keys if key not in text and isinstance(value := getattr(defaults, key, None), int)
    ]
    return (
        f"; its class in transformers would assume {', '.join(missing)}: write them into config.json" if missing else ""
    )


def _vllm(target: str, given: Mapping[str, Any], device: Device, place: str, access: Access) -> Estimate:
    from graphmem.engines.vllm.budget import budget
    from graphmem.engines.vllm.report import estimate

    settings = Serving(**given)
    if target.lower().endswith(".gguf"):
        raise TargetError(f"{target}: a GGUF file; --engine llama.cpp runs it")
    checkpoint = load(target, access)
    model = _model(checkpoint)
    _layout(model)
    found = estimate(budget(model, device, settings), target, checkpoint.origin, place)
    return replace(found, warnings=(*checkpoint.warnings, *found.warnings))


def _llama_cpp(target: str, given: dict[str, Any], device: Device, place: str, access: Access) -> Estimate:
    from graphmem.engines.llama_cpp.buffers import Buffers
    from graphmem.engines.llama_cpp.converted import as_gguf
    from graphmem.engines.llama_cpp.report import estimate
    from graphmem.engines.llama_cpp.weights import weights_of
    from graphmem.engines.shape import shape_of

    quantization = given.pop("quantization", None)
    settings = Running(**given)
    checkpoint = load(target, access)
    model, origin = _model(checkpoint), checkpoint.origin
    if not model.spec.config.get("gguf"):
        if model.is_quantized:
            raise GraphmemError(
                f"{target}: a quantized checkpoint that is no GGUF; give the GGUF file, or the checkpoint it was made from"
            )
        model = understand(as_gguf(model.spec, dict(model.roles), quantization))[0]
        origin += f"; as converted to GGUF, every matrix in {quantization or '16 bit'}"
    elif quantization is not None:
        raise GraphmemError(f"quantization {quantization!r}: the file is a GGUF already; leave it out")
    layout = _layout(model)
    if not model.tensors:
        raise UnsupportedError(
            f"{target}: the checkpoint's tensors are not known, so neither are llama.cpp's buffers; give the GGUF file"
        )
    if any(isinstance(cache, CompressedAttention) for cache in layout):
        raise UnsupportedError(
            f"{target}: compressed attention (DeepSeek-V4): how llama.cpp lays it out is not known to graphmem"
        )
    if layout.cross:
        raise UnsupportedError(
            f"{target}: llama.cpp does not serve models with cross-attention, but for T5, whose buffers are not known to graphmem"
        )
    if (
        layout.context is not None
        and settings.ctx_size is not None
        and settings.ctx_size > layout.context * settings.parallel
    ):
        raise GraphmemError(
            f"ctx-size {settings.ctx_size:,}: the model was trained for {layout.context:,} tokens a slot; lower it"
        )
    tensors = weights_of(model, len(layout.layers))
    buffers = Buffers(model, tensors, layout, shape_of(model, layout), settings, device.type == "cuda")
    found = estimate(buffers, device, target, origin, place)
    return replace(found, warnings=(*checkpoint.warnings, *found.warnings))


def _transformers(
    target: str,
    given: Mapping[str, Any],
    device: Device,
    place: str,
    access: Access,
    trust_remote_code: bool,
    alloc: str,
) -> Estimate:
    from graphmem.tracing.targets import Choices, require_torch

    require_torch()
    from graphmem.engines.transformers.report import estimate
    from graphmem.engines.transformers.run import generated
    from graphmem.engines.transformers.settings import Generating

    settings = Generating(**given)
    if target.lower().endswith(".gguf"):
        raise TargetError(f"{target}: a GGUF file; --engine llama.cpp runs it")
    choices = Choices(trust_remote_code=trust_remote_code, access=access)
    origin, layout, stored = "its own code", None, None
    if not trust_remote_code:
        checkpoint = load(target, access)
        model, origin = _model(checkpoint), checkpoint.origin
        layout = model.cache if isinstance(model.cache, CacheLayout) else None
        stored = sum(tensor.spec.nbytes for tensor in model.tensors) if model.is_quantized else None
    found = generated(target, settings, device, choices, stored, alloc)
    room = _room(found) if device.memory is not None and device.type == "cuda" else None
    return estimate(found, target, origin, place, layout, room)


def _room(found: Generated) -> Any:
    """Bytes left on the GPU by context and requests: prefill traced for one and two requests of each context, affine beyond."""
    from graphmem.engines.transformers.run import prefill_bytes

    assert found.device.memory is not None
    free = found.device.memory - found.device.context_size
    traced: dict[int, tuple[int, int] | None] = {}
    too_long: list[int] = []  # contexts of which not even one request fits; longer ones need no trace

    def prefill(tokens: int) -> tuple[int, int] | None:
        """Bytes of one request, and what each further one adds."""
        try:
            one, reserved = prefill_bytes(tokens, 1, found)
            if reserved > free:
                too_long.append(tokens)
                return reserved, reserved
            two, _ = prefill_bytes(tokens, 2, found)
        except GraphmemError:
            return None
        return reserved, two - one

    def room(tokens: int, requests: int) -> int | None:
        if any(tokens > other for other in too_long):
            return -1
        if tokens not in traced:
            traced[tokens] = prefill(tokens)
        known = traced[tokens]
        return None if known is None else free - known[0] - (requests - 1) * known[1]

    return room
