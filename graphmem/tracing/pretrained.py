"""A model id or folder → the model's own code, built on the meta device."""

from __future__ import annotations

from typing import Any

import torch

from graphmem.checkpoint import Checkpoint
from graphmem.errors import GraphmemError, UnsupportedError
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
    model = build_model(config)
    return prepared(model, dtype, attention)


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
    """The model in the dtype and with the attention that were asked for.

    Raises:
        GraphmemError: a dtype that weights cannot have.
    """
    if dtype is not None:
        found = getattr(torch, dtype, None)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise GraphmemError(f"--dtype {dtype}: weights are float32, bfloat16 or float16")
        model = model.to(found)
    if attention is not None:
        set_attention(model, attention)
    return model
