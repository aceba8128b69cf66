"""A model id or folder → the model's own code, built on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from graphmem.checkpoint import Checkpoint, ModelSpec
from graphmem.config import named_dtype, text_config
from graphmem.errors import UnsupportedError
from graphmem.sources.build import build_model
from graphmem.tracing.attention import set_attention
from graphmem.tracing.failure import first_line
from graphmem.workload import Attention


def model_of(checkpoint: Checkpoint, dtype: str | None, attention: Attention | None) -> torch.nn.Module:
    """The model of a checkpoint's config, its parameters in the stored dtype or in ``dtype``.

    Raises:
        UnsupportedError: no config, several models (a pipeline), or a class that needs code of its own repository.
    """
    specs = [spec for spec in checkpoint.sections if spec.config]
    if len(checkpoint.sections) != 1 or not specs:
        what = "holds several models" if len(checkpoint.sections) > 1 else "has no config.json"
        raise UnsupportedError(
            f"{checkpoint.target}: {what}, so there is no one model to trace; trace a factory (package.module:function)"
        )
    config = dict(specs[0].config)
    if config.get("auto_map") and not _known(config):
        raise UnsupportedError(
            f"{checkpoint.target}: is defined by Python code in its own repository, which would run on this machine; "
            "if you trust it, say --trust-remote-code"
        )
    if is_quantized(config) and dtype is None and named_dtype(config) is None:
        dtype = "bfloat16"  # what transformers unpacks to
    if dtype is None and named_dtype(config) is None:
        dtype = _stored_dtype(specs[0])
    return prepared(build_model(config), dtype, attention)


def _stored_dtype(spec: ModelSpec) -> str | None:
    """The dtype most bytes are stored in, where the config does not name one and it is one that weights are computed in."""
    sizes: dict[str, int] = {}
    for tensor in spec.tensors:
        sizes[tensor.dtype.name] = sizes.get(tensor.dtype.name, 0) + tensor.nbytes
    most = max(sizes, key=sizes.__getitem__, default="")
    return {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}.get(most)


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint stores packed weights, which a trace has unpacked."""
    return bool(config.get("quantization_config") or text_config(config).get("quantization_config"))


def _known(config: dict[str, Any]) -> bool:
    import transformers

    return config.get("model_type") in transformers.CONFIG_MAPPING


def remote_model(
    target: str, revision: str | None, token: str | None, dtype: str | None, attention: Attention | None
) -> torch.nn.Module:
    """The model built by code from its own repository, because the user said so.

    Raises:
        UnsupportedError: transformers cannot build it.
    """
    import transformers

    options: dict[str, Any] = {"trust_remote_code": True, "revision": revision or "main", "token": token}
    try:
        config = transformers.AutoConfig.from_pretrained(target, **options)
        auto = (
            transformers.AutoModelForCausalLM
            if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
            else transformers.AutoModel
        )
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=True)
    except Exception as error:
        raise UnsupportedError(f"{target}: its own code cannot be built here ({first_line(error)})") from error
    return prepared(model, dtype, attention)


def prepared(model: torch.nn.Module, dtype: str | None, attention: Attention | None) -> torch.nn.Module:
    """The model in the dtype and with the attention that were asked for; its decoder begins with some token.

    Raises:
        GraphmemError: the model does not offer that attention.
    """
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = getattr(config, "pad_token_id", None) or 0  # type: ignore[union-attr]
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
    if attention is not None:
        set_attention(model, attention)
    return model
