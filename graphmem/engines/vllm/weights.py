"""What a checkpoint's tensors take once vLLM has loaded them, on one GPU of ``tp``.

Stored bytes, but for what vLLM casts, drops, repacks, pads, replicates or adds (rotary tables, LoRA slots), in the tensors that vLLM fuses them to,
as PyTorch's allocator serves those: a block that is not worth splitting is given whole. Sources: vllm/model_executor/layers/ (rotary_embedding,
vocab_parallel_embedding, quantization/, lora/layers) of releases 0.6.6 to 0.28.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graphmem.config import architectures, text_config
from graphmem.engines.shape import Shape
from graphmem.engines.vllm.specs import kv_heads_of_rank
from graphmem.engines.vllm.versions import Release
from graphmem.errors import UnsupportedError
from graphmem.inference.layer_kinds import whole
from graphmem.inspection.model import Model
from graphmem.parameters.loading import linear_shapes
from graphmem.parameters.roles import NOT_TEXT, Component
from graphmem.parameters.schemes import Scheme
from graphmem.parameters.stored import StoredTensor
from graphmem.parameters.stored_schemes import quantization_of
from graphmem.timeline.allocator.caching import CachingAllocator
from graphmem.timeline.allocator.conf import alloc_conf
from graphmem.timeline.allocator.simulate import Request, simulate

_VOCABULARY_PADDING = 64
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
#: Replicated on every GPU: besides norms and routers, the down-projections of latent attention.
_REPLICATED = re.compile(r"\.(q_a_proj|kv_a_proj_with_mqa|q_a_layernorm|kv_a_layernorm|indexer)\.")
_KEYS_VALUES = re.compile(r"\.(k_proj|v_proj|key|value)\.")


@dataclass(frozen=True)
class Loaded:
    """Bytes on one GPU after loading, by component; rotary tables and LoRA slots apart."""

    components: Mapping[Component, int]
    rotary: int
    lora: int
    #: What the allocator gives beyond what was asked for.
    rounding: int
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """What the log calls "Model loading took"."""
        return sum(self.components.values()) + self.rotary + self.lora + self.rounding


@dataclass(frozen=True)
class Lora:
    """Slots for adapters: ``--max-loras`` of ``--max-lora-rank``."""

    slots: int = 0
    rank: int = 16


@dataclass(frozen=True)
class _Target:
    """Where the weights go."""

    release: Release
    capability: tuple[int, int]
    model_bytes: int
    tp: int
    kv_heads: int
    scheme: Scheme | None
    quantization: Mapping[str, Any] = field(default_factory=dict)


def loaded(
    model: Model, shape: Shape, release: Release, model_bytes: int = 2, tp: int = 1, kv_heads: int = 1,
    capability: tuple[int, int] = (8, 0), scheme: Scheme | None = None, lora: Lora = Lora(),
) -> Loaded:  # fmt: skip
    """The weights of ``model`` as vLLM holds them.

    Args:
        model_bytes: of an element of the dtype the model computes in.
        kv_heads: of the whole model; each GPU holds at least one.
        scheme: quantize linear weights while loading; None: as the checkpoint has them.
    """
    if not model.tensors:
        return _declared(model, tp)
    quantization = quantization_of(model.spec.config)
    target = _Target(release, capability, model_bytes, tp, kv_heads, scheme, quantization)
    components: dict[Component, int] = {}
    fused: dict[str, int] = {}
    skipped = 0
    tied = text_config(model.spec.config).get("tie_word_embeddings") or model.spec.config.get("tie_word_embeddings")
    for tensor in sorted(model.tensors, key=lambda tensor: _place(tensor, model.roles[tensor.spec.name])):
        role = model.roles[tensor.spec.name]
        if tensor.kind == "buffer" or (tied and role == "head" and len(tensor.spec.shape) == 2):
            continue
        if _is_prediction_layer(tensor, shape):
            skipped += tensor.spec.nbytes
            continue
        for suffix, nbytes in _on_one_gpu(tensor, role, target):
            components[role] = components.get(role, 0) + nbytes
            name = _fused_name(tensor.spec.name) + suffix
            fused[name] = fused.get(name, 0) + nbytes
    tables = [rows * shape.rotary * model_bytes for rows in _rotary_rows(model.spec.config, shape)]
    slots = _lora_slots(model, shape, release, model_bytes, tp, lora)
    notes = (
        [f"prediction layers (MTP) of {skipped:,} bytes are not loaded without speculative decoding"] if skipped else []
    )
    notes += _notes(target)
    asked = [*(nbytes for nbytes in fused.values() if nbytes), *tables, *slots]
    rounding = _allocated(asked) - sum(asked)
    return Loaded(components, sum(tables), sum(slots), rounding, tuple(notes))


def _declared(model: Model, tp: int) -> Loaded:
    """Where only an index's total is known: that many bytes, shared equally.

    Raises:
        UnsupportedError: not even that.
    """
    total = model.spec.declared_bytes
    if not total:
        raise UnsupportedError(
            "the checkpoint's tensors are not known, so neither is what vLLM loads; give a copy that has safetensors headers"
        )
    said = f"only the total that {model.spec.declared_by or 'an index'} declares is known: neither padding nor what is replicated counts"
    return Loaded({"other": -(-total // tp)}, 0, 0, 0, (said,))


def _allocated(sizes: list[int]) -> int:
    """Bytes of the blocks PyTorch's allocator gives for tensors of these sizes, asked for in this order."""
    requests = [Request("alloc", number, nbytes) for number, nbytes in enumerate(sizes) if nbytes]
    return simulate(requests, CachingAllocator(alloc_conf(""))).peak_allocated


#: Modules that vLLM makes one of, and the name of the one.
_FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"), **dict.fromkeys(("query", "key", "value"), "qkv"),
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), "gate_up_proj"), **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa"), "qkv_a_proj"),
}  # fmt: skip
_EXPERT = re.compile(r"(?<=experts)\.\d+(?=\.)")


def _fused_name(name: str) -> str:
    """The tensor that a stored one becomes a part of: experts are stacked, projections of the same input joined."""
    *modules, last = _EXPERT.sub("", name).split(".")
    return ".".join((*[_FUSED.get(part, part) for part in modules], last))


#: Layers make their attention first, then the MLP or experts, then norms (models/llama.py and its kin).
_ORDER: tuple[Component, ...] = ("attention", "ssm", "router", "mlp", "experts", "shared experts", "norm")


def _place(tensor: StoredTensor, role: Component) -> tuple[int, int, int]:
    found = _LAYER.search(tensor.spec.name)
    if found is None:
        return (0 if role == "embedding" else 1 << 30), 0, 0
    return int(found[1]) + 1, _ORDER.index(role) if role in _ORDER else len(_ORDER), 0


def _is_prediction_layer(tensor: StoredTensor, shape: Shape) -> bool:
    found = _LAYER.search(tensor.spec.name)
    towers = ("visual", "vision", "audio")
    return (
        found is not None and int(found[1]) >= shape.layers and not any(word in tensor.spec.name for word in towers)
    ) or (".mtp." in f".{tensor.spec.name}")


def _on_one_gpu(tensor: StoredTensor, role: Component, target: _Target) -> list[tuple[str, int]]:
    """(suffix, bytes) of each tensor that this one becomes on one GPU."""
    shards = 1 if _is_replicated(tensor, role) else _shards(tensor, target)
    if target.scheme is not None and (linear := linear_shapes(tensor, role)) is not None:
        count, out, inp = linear
        return [(part.suffix, -(-count * part.nbytes // shards)) for part in target.scheme.layout(out, inp)]
    return [("", -(-_as_loaded(tensor, role, target) // shards))]


def _is_replicated(tensor: StoredTensor, role: Component) -> bool:
    name, shape = tensor.spec.name, tensor.spec.shape
    if role in ("norm", "router", "projector") or _REPLICATED.search(f".{name}"):
        return True
    return len(shape) <= 1 and name.endswith(
        ("o_proj.bias", "down_proj.bias", "dense_4h_to_h.bias", "dense.bias", "fc2.bias")
    )


def _shards(tensor: StoredTensor, target: _Target) -> int:
    if _KEYS_VALUES.search(f".{tensor.spec.name}"):
        return target.kv_heads // kv_heads_of_rank(target.kv_heads, target.tp) if target.kv_heads else target.tp
    return target.tp


def _as_loaded(tensor: StoredTensor, role: Component, target: _Target) -> int:
    """Bytes over all GPUs."""
    spec = tensor.spec
    if spec.dtype.floating and spec.dtype.bits >= 16 and tensor.kind == "parameter":
        rows = spec.shape[0] if role in ("embedding", "head") and len(spec.shape) == 2 else 0
        padded = -(-rows // _VOCABULARY_PADDING) * _VOCABULARY_PADDING - rows
        return (spec.elements + padded * (spec.shape[1] if rows else 0)) * target.model_bytes
    return _packed(tensor, target)


def _packed(tensor: StoredTensor, target: _Target) -> int:
    """A packed weight or its scale after ``process_weights_after_loading``."""
    name, nbytes = tensor.spec.name, tensor.spec.nbytes
    method = str(target.quantization.get("quant_method", "")).lower()
    if method == "gptq" and target.capability >= (8, 0):  # Marlin
        if name.endswith(".qzeros") and target.quantization.get("sym", True):
            return 0
        if name.endswith(".g_idx"):
            return 2 * nbytes if target.quantization.get("desc_act") else 0
    if method == "bitsandbytes" and target.release.since(
        "0.10"
    ):  # double quantization is undone: an fp32 maximum for each block
        if name.endswith(".absmax") and tensor.spec.dtype.bits == 8:
            return 4 * nbytes
        if ".nested_" in name or ".quant_state." in name or name.endswith(".quant_map"):
            return 0
    if method == "mxfp4" and name.endswith("_scales") and (9, 0) <= target.capability < (10, 0):
        # Triton's kernels keep a swizzled copy, rows padded to 256, beside the scales as loaded (quantization/mxfp4.py).
        experts, rows, columns = tensor.spec.shape
        return nbytes + experts * -(-rows // 256) * 256 * columns
    if method == "mxfp4" and name.endswith(("_blocks", "_scales")) and not (9, 0) <= target.capability < (10, 0):
        return _padded_mxfp4(tensor, target)
    if name.endswith("weight_scale_inv") and target.capability < (8, 9):
        # fp8 Marlin: 16-bit scales for every output and 128 inputs.
        return tensor.spec.elements * 128 * 2
    return nbytes


def _padded_mxfp4(tensor: StoredTensor, target: _Target) -> int:
    """Marlin pads the experts' width to 128 and the hidden size to 256; kernels of Blackwell both to 256 (128 since 0.28)."""
    wide = 256 if target.capability >= (10, 0) and not target.release.since("0.28") else 128
    experts, rows, groups, *rest = tensor.spec.shape
    halves = 2 if "gate_up" in tensor.spec.name else 1
    inputs, outputs = (256, wide) if halves == 2 else (wide, 256)
    rows = halves * (-(-rows // halves // outputs) * outputs)
    groups = -(-groups * 32 // inputs) * inputs // 32
    total = experts * rows * groups
    for size in rest:
        total *= size
    return total


def _notes(target: _Target) -> list[str]:
    notes = []
    if target.scheme is not None:
        notes.append(f"linear weights as {target.scheme.title}; embeddings, head, norms and routers stay in 16 bit")
        if target.scheme.key == "fp8" and not target.release.since("0.28"):
            notes.append("before 0.28, quantizing to fp8 while loading first loads every weight in 16 bit")
    return notes


def _rotary_rows(config: Mapping[str, Any], shape: Shape) -> list[int]:
    """Rows of each table of cosines and sines (layers/rotary_embedding): one for each kind of rotation, shared by all layers."""
    text = text_config(config)
    if not shape.rotary:
        return []
    nested = text.get("rope_parameters")
    if isinstance(nested, Mapping) and any(isinstance(value, Mapping) for value in nested.values()):
        scalings: list[Mapping[str, Any]] = [value for value in nested.values() if isinstance(value, Mapping)]
    elif text.get("rope_local_base_freq"):  # Gemma 3: sliding layers rotate otherwise
        scalings = [text.get("rope_scaling") or {}, {}]
    else:
        scalings = [text.get("rope_scaling") or (nested if isinstance(nested, Mapping) else {})]
    return [_rows(scaling, text, shape) for scaling in scalings]


def _rows(scaling: Mapping[str, Any], text: Mapping[str, Any], shape: Shape) -> int:
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    factor = scaling.get("factor")
    factor = factor if isinstance(factor, int | float) and factor > 0 else 1
    original = whole(scaling, ("original_max_position_embeddings",)) or whole(
        text, ("original_max_position_embeddings",)
    )
    if scaling.get("mrope_section"):
        return 4 * shape.positions
    if kind in ("linear", "dynamic"):
        return int(shape.positions * factor)
    if kind in ("yarn", "deepseek_yarn"):
        return int((original or shape.positions) * factor)
    if kind in ("longrope", "su"):
        return (original or 0) + shape.positions
    return shape.positions


#: Classes that declare ``embedding_modules``, so that adapters may change embeddings and head (vllm/model_executor/models).
_EMBEDDINGS_ADAPTED = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "PhiMoEForCausalLM",
    "GraniteForCausalLM",
)
#: Linear layers that a checkpoint stores as one and adapters address as several.
_SLICES = {"qkv_proj": 3, "gate_up_proj": 2, "query_key_value": 3, "Wqkv": 3}
#: Extra tokens an adapter may bring, before they were given up.
_EXTRA_VOCABULARY = 256


def _lora_slots(model: Model, shape: Shape, release: Release, size: int, tp: int, lora: Lora) -> list[int]:
    """Bytes of the stacked A and B matrices of every linear layer, whichever of them the adapters train (vllm/lora/layers)."""
    if not lora.slots:
        return []
    each: list[int] = []
    for tensor in model.tensors:
        role = model.roles[tensor.spec.name]
        linear = linear_shapes(tensor, role) if tensor.spec.dtype.bits >= 16 else None
        if linear is None or role == "experts" or role in NOT_TEXT:
            continue
        _, out, inp = linear
        slices = _SLICES.get(tensor.spec.module.rpartition(".")[2], 1)
        reduces = tensor.spec.module.endswith(("o_proj", "down_proj", "dense", "dense_4h_to_h", "fc2"))
        each += [lora.rank * (inp // tp if reduces else inp)] * slices
        each += [lora.rank * (out if reduces else out // tp // slices)] * slices
    if set(architectures(model.spec.config)) & set(_EMBEDDINGS_ADAPTED):
        vocabulary = -(-shape.vocabulary // 256) * 256
        extra = _EXTRA_VOCABULARY if not release.since("0.12") else 0
        each += [lora.rank * (shape.vocabulary + extra), lora.rank * shape.hidden, extra * shape.hidden]  # embeddings
        each += [
            lora.rank * shape.hidden,
            lora.rank * vocabulary,
            extra * shape.hidden,
            extra * shape.hidden,
        ]  # head, and rows of the base
    return [lora.slots * elements * size for elements in each if elements]
