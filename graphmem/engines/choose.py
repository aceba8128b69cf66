"""Which engine answers, with which of its options; everything an option of another engine is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from graphmem.engines.estimate import Estimate
from graphmem.engines.llama_cpp.settings import Running
from graphmem.engines.served import layout_of, model_of
from graphmem.engines.transformers.settings import Generating
from graphmem.engines.vllm.serving import Serving
from graphmem.errors import GraphmemError, TargetError, UnsupportedError, nearest
from graphmem.inference.kv_cache import CacheLayout
from graphmem.inference.layouts import CompressedAttention
from graphmem.inspection.model import understand
from graphmem.parameters.roles import NOT_TEXT
from graphmem.sources.load import Access, load
from graphmem.tracing.device import Device
from graphmem.units import format_bytes

_SETTINGS: Mapping[str, type[Any]] = {"transformers": Generating, "vllm": Serving, "llama.cpp": Running}
ENGINES = tuple(_SETTINGS)
#: Options by engine, in its own words.
_OPTIONS = {engine: [field.name for field in fields(settings)] for engine, settings in _SETTINGS.items()}
_OPTIONS["llama.cpp"].append("quantization")
#: Those that are whole numbers, whoever's.
_WHOLE = {
    field.name for settings in _SETTINGS.values() for field in fields(settings) if field.type in ("int", "int | None")
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


def _vllm(target: str, given: Mapping[str, Any], device: Device, place: str, access: Access) -> Estimate:
    from graphmem.engines.vllm.budget import budget
    from graphmem.engines.vllm.report import estimate

    settings = Serving(**given)
    if target.lower().endswith(".gguf"):
        raise TargetError(f"{target}: a GGUF file; --engine llama.cpp runs it")
    checkpoint = load(target, access)
    found = estimate(budget(model_of(checkpoint), device, settings), target, checkpoint.origin, place)
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
    model, origin = model_of(checkpoint), checkpoint.origin
    if not model.spec.config.get("gguf"):
        if model.is_quantized:
            raise GraphmemError(
                f"{target}: a quantized checkpoint that is no GGUF; give the GGUF file, or the checkpoint it was made from"
            )
        encoders = sum(t.spec.nbytes for t in model.tensors if model.roles[t.spec.name] in NOT_TEXT)
        model = understand(as_gguf(model.spec, dict(model.roles), quantization))[0]
        origin += f"; as converted to GGUF, every matrix in {quantization or '16 bit'}"
        if encoders:
            origin += (
                f"; encoder and projector of {format_bytes(encoders)} are a file of their own (mmproj), not counted"
            )
    elif quantization is not None:
        raise GraphmemError(f"quantization {quantization!r}: the file is a GGUF already; leave it out")
    layout = layout_of(model)
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

    settings = Generating(**given)
    if target.lower().endswith(".gguf"):
        raise TargetError(f"{target}: a GGUF file; --engine llama.cpp runs it")
    checkpoint, origin, layout, stored = None, "its own code", None, None
    if not trust_remote_code:
        checkpoint = load(target, access)
        model, origin = model_of(checkpoint), checkpoint.origin
        layout = model.cache if isinstance(model.cache, CacheLayout) else None
        stored = sum(tensor.spec.nbytes for tensor in model.tensors) if model.is_quantized else None
    choices = Choices(trust_remote_code=trust_remote_code, access=access, checkpoint=checkpoint)
    found = generated(target, settings, device, choices, stored, alloc)
    return estimate(found, target, origin, place, layout)
