"""A built model → what its checkpoint stores, by the checkpoint's names; with an index exactly the tensors it lists.

transformers 5 renames and fuses checkpoint tensors while it loads (a Mixtral's experts become one 3-D parameter). The names
here are the checkpoint's: transformers' own conversion tables are run backwards over the meta tensors, and forwards for names
that are older than the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from graphmem.checkpoint import ModelSpec, TensorSpec
from graphmem.config import architectures, named_dtype, with_defaults
from graphmem.dtypes import SAFETENSORS, DType, from_torch
from graphmem.errors import UnsupportedError
from graphmem.parameters.packing import packed
from graphmem.parameters.roles import components
from graphmem.parameters.stored_schemes import layout_of, quantization_of
from graphmem.sources.build import assumed_dtype, build_model, class_defaults, stored_dtype
from graphmem.sources.index import Index
from graphmem.sources.module import spec_of_module

if TYPE_CHECKING:
    import torch

    from graphmem.sources.weights import Findings


def checkpoint_tensors(model: torch.nn.Module) -> tuple[TensorSpec, ...]:
    """What a checkpoint of ``model`` would store, by the checkpoint's names."""
    stored, _ = _checkpoint_tensors(model)
    return tuple(stored.values())


def build_spec(config: Mapping[str, Any], index: Index | None, name: str, file: str, findings: Findings) -> ModelSpec:
    """What the checkpoint of ``config`` stores. With an ``index`` exactly its names, held against its total.

    Raises:
        MissingExtraError, UnsupportedError: as `build_model`.
    """
    model = build_model(config, file)
    if named_dtype(config) is None:
        findings.warnings.append(
            f"{file}: the config names no dtype; {assumed_dtype(config)} is assumed, as transformers does"
        )
    named, built = architectures(config), type(model).__name__
    if named and built not in named and config.get("model_type"):
        findings.warnings.append(
            f"{file}: names {named[0]}, which transformers lacks; built {built} instead, which may differ"
        )
    stored, ties = _checkpoint_tensors(model)
    if index is None:
        packed_as = _as_quantized(model, tuple(stored.values()), config, file, findings)
        return ModelSpec(packed_as, with_defaults(config, class_defaults(config, model)), name, "built", ties)
    if quantization_of(config) and layout_of(config) is None:
        findings.warnings.append(_counted_plain(config, file))
    tensors, unknown = _named_tensors(index, stored, model, config)
    declared = index.declared_bytes()
    tensors = _with_declared_dtype(tensors, declared, config, index.path, findings)
    counted = sum(tensor.nbytes for tensor in tensors)
    # A sum that misses a tenth of the checkpoint would be read as its size.
    if unknown and (2 * len(unknown) > len(index.shards) or (declared or 0) * 0.9 > counted):
        raise UnsupportedError(
            f"{index.path}: config.json does not describe these tensors: {len(unknown)} of {len(index.shards)} are unknown to "
            f"{type(model).__name__}, first {unknown[0]!r}"
        )
    if unknown:
        findings.warnings.append(
            f"{index.path}: {len(unknown)} of {len(index.shards)} tensors are unknown to transformers' class and not counted, "
            f"first {unknown[0]!r}"
        )
    if declared is not None and counted != declared:
        findings.warnings.append(
            f"{index.path}: metadata.total_size says {declared:,} bytes, the tensors counted take {counted:,} ({counted - declared:+,})"
        )
    full = with_defaults(config, class_defaults(config, model))
    return ModelSpec(tuple(tensors), full, name, "built", None, declared, index.path)


def _as_quantized(
    model: torch.nn.Module, tensors: tuple[TensorSpec, ...], config: Mapping[str, Any], file: str, findings: Findings
) -> tuple[TensorSpec, ...]:
    """The tensors that a checkpoint quantized as its config says holds."""
    if not quantization_of(config):
        return tensors
    found = packed(tensors, components(tensors), config, getattr(model, "_keep_in_fp32_modules", None) or ())
    if found is None:
        findings.warnings.append(_counted_plain(config, file))
        return tensors
    findings.notes.append(
        f"{file}: packed and kept modules as its quantization ({_method(config)}) names them; no headers were read"
    )
    return tuple(found)


def _method(config: Mapping[str, Any]) -> str:
    return str(quantization_of(config).get("quant_method", "an unnamed method"))


def _counted_plain(config: Mapping[str, Any], file: str) -> str:
    return f"{file}: the weights are stored quantized ({_method(config)}); without their headers they are counted in {stored_dtype(config)}"


def _checkpoint_tensors(model: torch.nn.Module) -> tuple[dict[str, TensorSpec], tuple[tuple[str, ...], ...]]:
    """What ``save_pretrained`` would write, by its names: persistent tensors, tied ones once."""
    spec = spec_of_module(model, "built")
    by_name = {tensor.name: tensor for tensor in spec.tensors}
    state = {name: value for name, value in model.state_dict().items() if name in by_name}
    if hasattr(model, "all_tied_weights_keys"):
        from transformers.core_model_loading import revert_weight_conversion

        state = revert_weight_conversion(model, state)
    stored: dict[str, TensorSpec] = {}
    for name, value in state.items():
        known = by_name.get(name)
        stored[name] = TensorSpec(
            name,
            tuple(value.shape),
            from_torch(str(value.dtype)),
            known.is_buffer if known else False,
            module_classes=known.module_classes if known else (),
        )
    return stored, spec.ties or ()


def _named_tensors(
    index: Index, stored: Mapping[str, TensorSpec], model: torch.nn.Module, config: Mapping[str, Any]
) -> tuple[list[TensorSpec], list[str]]:
    """The index's names with shapes; and the names nothing here knows."""
    resolve = _Resolver(index, stored, model, config)
    tensors, unknown = [], []
    for name, shard in index.shards.items():
        found = resolve(name)
        if found is None:
            unknown.append(name)
        else:
            tensors.append(
                TensorSpec(name, found.shape, found.dtype, found.is_buffer, True, found.module_classes, shard)
            )
    return tensors, unknown


class _Resolver:
    """Shape and dtype of a checkpoint's tensor by its name, however old the name is."""

    def __init__(
        self, index: Index, stored: Mapping[str, TensorSpec], model: torch.nn.Module, config: Mapping[str, Any]
    ) -> None:
        self._names = index.shards
        self._stored = stored
        self._config = config
        self._layout = layout_of(config)
        self._state: dict[str, Any] = model.state_dict()
        self._prefix: str | None = getattr(model, "base_model_prefix", None)
        self._renamings, self._converters = _conversions(model)

    def __call__(self, name: str) -> TensorSpec | None:
        return self._packed(name) or self._plain(name) or _former_buffer(name, self._config)

    def _plain(self, name: str) -> TensorSpec | None:
        if name in self._stored:
            return self._stored[name]
        if self._prefix is None:  # a diffusers model stores what it holds
            return None
        from transformers.core_model_loading import rename_source_key

        renamed, converter = rename_source_key(name, self._renamings, self._converters, self._prefix, self._state)
        value = self._state.get(renamed)
        if value is None or converter is not None:
            return None
        return TensorSpec(name, tuple(value.shape), from_torch(str(value.dtype)))

    def _packed(self, name: str) -> TensorSpec | None:
        """A part of a packed weight (``…down_proj.SCB``), from the shape of the weight it stands for."""
        if self._layout is None:
            return None
        for suffix in self._layout.suffixes:
            path = name.removesuffix(suffix)
            if path == name or path + self._layout.marker not in self._names:
                continue
            weight = self._plain(f"{path}.weight") or self._plain(path)
            part = self._layout.part(suffix, weight.shape) if weight else None
            if part:
                return TensorSpec(name, part.shape, part.dtype, is_buffer=not part.holds_weight)
        return None


def _conversions(model: torch.nn.Module) -> tuple[list[Any], list[Any]]:
    """transformers' renamings and converters for this class, as it would apply them while loading."""
    if not hasattr(model, "base_model_prefix"):
        return [], []
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    steps = get_model_conversion_mapping(model)
    return [s for s in steps if isinstance(s, WeightRenaming)], [s for s in steps if isinstance(s, WeightConverter)]


def _former_buffer(name: str, config: Mapping[str, Any]) -> TensorSpec | None:
    """Buffers that earlier transformers releases saved and newer ones compute: RoPE's inverse frequencies (fp32)."""
    if name.endswith("rotary_emb.inv_freq"):
        heads = config.get("num_attention_heads")
        size = config.get("head_dim") or (config["hidden_size"] // heads if heads and "hidden_size" in config else None)
        if size:
            return TensorSpec(
                name, (int(size * config.get("rotary_pct", 1.0)) // 2,), SAFETENSORS["F32"], is_buffer=True
            )
    return None


def _with_declared_dtype(
    tensors: list[TensorSpec], declared: int | None, config: Mapping[str, Any], file: str, findings: Findings
) -> list[TensorSpec]:
    """The dtype whose sum is the declared total, where the config's own is not: fine-tunes are saved in fp32 under a bf16 config."""
    if declared is None or sum(tensor.nbytes for tensor in tensors) == declared:
        return tensors
    said = SAFETENSORS[from_torch(stored_dtype(config)).name]
    former = SAFETENSORS["F32"]
    for other, buffers in ((SAFETENSORS["F32"], former), (SAFETENSORS["BF16"], former), (said, said)):
        recast = [_recast(tensor, said, other, buffers) for tensor in tensors]
        if sum(tensor.nbytes for tensor in recast) == declared:
            what = f"{other}" if other != said else f"{said}, its RoPE buffers too"
            findings.notes.append(f"{file}: the config says {said}, and the total is that of {what}: counted so")
            return recast
    return tensors


def _recast(tensor: TensorSpec, said: DType, other: DType, buffers: DType) -> TensorSpec:
    dtype = buffers if tensor.name.endswith("inv_freq") else other if tensor.dtype == said else tensor.dtype
    return replace(tensor, dtype=dtype)
