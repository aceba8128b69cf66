"""Which modules a checkpoint's quantization_config packs, and how: for a checkpoint known by its config alone.

Every method has its own key for what stays as it was and its own way to compare names: globs (ModelOpt), regular expressions after ``re:``
(compressed-tensors), substrings (AWQ, GPTQ), dotted parts (fp8, bitsandbytes). Sources: vllm/model_executor/layers/quantization/ of 0.11 and
transformers/quantizers of 5.x, which agree on these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from graphmem.checkpoint import TensorSpec
from graphmem.dtypes import SAFETENSORS
from graphmem.parameters.loading import linear_shapes
from graphmem.parameters.roles import Component
from graphmem.parameters.schemes import Layout, compressed_float, compressed_int, fp8_tensor, mxfp4_packed, nvfp4
from graphmem.parameters.stored import StoredTensor
from graphmem.parameters.stored_schemes import layout_of, quantization_of

_KEEPING = ("ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules")
_BY_SUBSTRING = ("awq", "gptq")


def packed(
    tensors: Iterable[TensorSpec],
    roles: Mapping[str, Component],
    config: Mapping[str, Any],
    in_fp32: Iterable[str] = (),
) -> list[TensorSpec] | None:
    """``tensors`` of a plain checkpoint as one with this config's quantization stores them; None where how is not known.

    ``in_fp32``: modules that the class keeps in fp32 (T5's ``wo``), which bitsandbytes leaves alone (transformers' quantizer_bnb).
    """
    rule = _rule(config)
    if rule is None:
        return None
    wide = tuple(in_fp32) if rule.method == "bitsandbytes" else ()
    result: list[TensorSpec] = []
    for tensor in tensors:
        if _listed(tensor.module, wide, rule.method):
            result.append(replace(tensor, dtype=SAFETENSORS["F32"]))
        else:
            result += rule.parts(tensor, roles[tensor.name])
    return result


@dataclass(frozen=True)
class _Rule:
    """What to do with a linear weight: the first group that targets its module."""

    method: str
    groups: tuple[tuple[tuple[str, ...], Layout], ...]
    kept: tuple[str, ...] = ()
    only_experts: bool = False

    def parts(self, tensor: TensorSpec, role: Component) -> list[TensorSpec]:
        # Explicitly named, even a head may be packed; otherwise only what loaders take for a linear layer.
        module = tensor.module if tensor.name.endswith(".weight") else tensor.name
        layout = self._layout(module)
        linear = _linear(tensor, "mlp" if self._is_named(module) else role) if layout else None
        if layout is None or linear is None or (self.only_experts and role != "experts"):
            return [tensor]
        count, out, inp = linear
        stacked = len(tensor.shape) == 3
        if stacked and self.only_experts:  # gpt-oss keeps [experts, in, out] and packs along the inputs
            out, inp = inp, out
        return [
            TensorSpec(
                module + part.suffix,
                (count, *part.shape) if stacked else part.shape,
                part.dtype,
                not part.holds_weight,
                tensor.trainable,
                tensor.module_classes if part.holds_weight else (),
            )
            for part in layout(out, inp)
        ]

    def _layout(self, module: str) -> Layout | None:
        if _listed(module, self.kept, self.method):
            return None
        return next((layout for targets, layout in self.groups if self._targets(module, targets)), None)

    def _targets(self, module: str, targets: tuple[str, ...]) -> bool:
        return "Linear" in targets or _listed(module, targets, self.method)

    def _is_named(self, module: str) -> bool:
        return any(module in targets for targets, _ in self.groups)


def _linear(tensor: TensorSpec, role: Component) -> tuple[int, int, int] | None:
    return linear_shapes(StoredTensor(tensor, "parameter", 0), role)


def _listed(module: str, patterns: Iterable[str], method: str) -> bool:
    return any(_matches(module, pattern, method) for pattern in patterns)


def _matches(module: str, pattern: str, method: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    if method in _BY_SUBSTRING:
        return pattern in module
    # Multimodal checkpoints put the language model's names under a prefix that their config may omit, or the other way round.
    short, wanted = module.replace("language_model.", ""), pattern.replace("language_model.", "")
    if "*" in pattern:
        return any(fnmatchcase(name, glob) for name in (module, short) for glob in (pattern, wanted))
    return f".{wanted}." in f".{short}."


def _rule(config: Mapping[str, Any]) -> _Rule | None:
    quantization = quantization_of(config)
    method = str(quantization.get("quant_method") or "").lower()
    kept = tuple(
        str(pattern) for key in _KEEPING for pattern in quantization.get(key) or () if isinstance(pattern, str)
    )
    if method in ("compressed-tensors", "modelopt"):
        groups = tuple(_groups(quantization))
        return _Rule(method, groups, kept) if groups else None
    if method == "fp8" and not quantization.get("weight_block_size"):
        return _Rule(method, ((("Linear",), fp8_tensor),), kept)
    stored = layout_of(config)
    if stored is None or not method or str(config.get("expert_dtype", "fp8")) != "fp8":
        return None
    return _Rule(method, ((("Linear",), stored.layout),), kept, only_experts=stored.stacked)


_ALGORITHMS: Mapping[str, Layout] = {"FP8": fp8_tensor, "NVFP4": nvfp4, "W4A16_NVFP4": nvfp4, "NVFP4_AWQ": nvfp4}


def _groups(quantization: Mapping[str, Any]) -> Iterable[tuple[tuple[str, ...], Layout]]:
    """(targets, layout) of each group: ModelOpt's layers by name, then its one algorithm; compressed-tensors' config_groups."""
    layers = quantization.get("quantized_layers")
    if isinstance(layers, Mapping):
        for name, settings in layers.items():
            layout = _ALGORITHMS.get(str(settings.get("quant_algo"))) if isinstance(settings, Mapping) else None
            if layout:
                yield (str(name),), layout
        return
    algorithm = _ALGORITHMS.get(str(quantization.get("quant_algo")))
    if algorithm:
        yield ("Linear",), algorithm
        return
    groups = quantization.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights")
        layout = _compressed(weights, group.get("format") or quantization.get("format")) if weights else None
        if layout:
            yield tuple(map(str, group.get("targets") or ())), layout


def _compressed(weights: Mapping[str, Any], form: Any) -> Layout | None:
    bits, group = weights.get("num_bits"), weights.get("group_size")
    if form == "nvfp4-pack-quantized":
        return nvfp4
    if form == "mxfp4-pack-quantized":
        return mxfp4_packed
    if weights.get("type") == "float" and bits == 8:
        return compressed_float(str(weights.get("strategy")))
    if weights.get("type") == "int" and isinstance(bits, int):
        return compressed_int(
            bits, group if isinstance(group, int) else 0, form == "pack-quantized", bool(weights.get("symmetric", True))
        )
    return None
