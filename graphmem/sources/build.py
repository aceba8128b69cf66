"""A config → the model's own class, on the meta device. Needs the torch extra; touches no weight."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from graphmem.config import architectures, named_dtype, text_config
from graphmem.dtypes import from_torch
from graphmem.errors import MissingExtraError, UnsupportedError
from graphmem.parameters.stored_schemes import quantization_of

if TYPE_CHECKING:
    import torch


#: RoPE type names that early configs carry and transformers has since renamed (Phi-3's "su", transformers 4.43).
_RENAMED_ROPE = {"su": "longrope"}


def build_model(config: Mapping[str, Any], what: str = "config.json", class_path: str | None = None) -> torch.nn.Module:
    """The transformers or diffusers model that ``config`` describes, on the meta device, in the config's dtype.

    Args:
        what: the file, for messages.
        class_path: ``"diffusers.AutoencoderKL"``, where the config does not name its class rightly.

    Raises:
        MissingExtraError: torch, transformers or diffusers is not installed.
        UnsupportedError: there is no class for it, or it needs code from the repository itself.
    """
    library, _, name = (class_path or "").rpartition(".")
    if library == "diffusers" or (not class_path and config.get("_class_name") and not config.get("model_type")):
        return _build_diffusers(config, what, name or str(config["_class_name"]))
    return _build_transformers(config, what, name)


def _build_transformers(config: Mapping[str, Any], what: str, class_name: str) -> torch.nn.Module:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            f"{what}: shapes must come from building the model, which needs torch and transformers", "torch"
        ) from error
    transformers.logging.set_verbosity_error()
    model_type = config.get("model_type")
    cls = getattr(transformers, class_name, None) if class_name else None
    if cls is None and model_type not in transformers.CONFIG_MAPPING:
        raise UnsupportedError(_no_class(config, what))
    settings = {
        key: value for key, value in config.items() if key not in ("quantization_config", "dtype", "torch_dtype")
    }
    _rename_rope(settings)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecated config keys, which are the checkpoint's, not the user's
            cls = cls or _class_for(transformers, config, what)
            config_class = getattr(cls, "config_class", None) or transformers.CONFIG_MAPPING[model_type]
            known = _config(transformers, config_class, settings)
            with _default_dtype(stored_dtype(config)), torch.device("meta"):
                model: torch.nn.Module = cls(known)
    except UnsupportedError:
        raise
    except Exception as error:
        raise _cannot_build(error, f"transformers {transformers.__version__}", what) from error
    return model


def _config(transformers: Any, config_class: Any, settings: Mapping[str, Any]) -> Any:
    """The config object. Keys that the class works out itself are left out only where it does not take them: Nemotron-H reads its pattern from one."""
    transformers.logging.set_verbosity(logging.CRITICAL)  # it would print the whole config beside the error
    try:
        return config_class.from_dict(dict(settings))
    except AttributeError:
        return config_class.from_dict({k: v for k, v in settings.items() if not _is_computed(config_class, k)})
    finally:
        transformers.logging.set_verbosity_error()


def _is_computed(config_class: Any, key: str) -> bool:
    """Whether the class works a key out itself: configs saved by other releases carry it all the same (Jamba's layer_types)."""
    found = getattr(config_class, key, None)
    return isinstance(found, property) and found.fset is None


def _build_diffusers(config: Mapping[str, Any], what: str, class_name: str) -> torch.nn.Module:
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise MissingExtraError(
            f"{what}: shapes must come from building the model, which needs diffusers", "diffusers"
        ) from error
    cls = getattr(diffusers, class_name, None)
    if cls is None:
        raise UnsupportedError(
            f"{what}: the installed diffusers has no class {class_name!r}; upgrade it: pip install -U diffusers"
        )
    try:
        with warnings.catch_warnings(), _default_dtype(stored_dtype(config)), torch.device("meta"):
            warnings.simplefilter("ignore")
            model: torch.nn.Module = cls.from_config(dict(config))
    except Exception as error:
        raise _cannot_build(error, f"diffusers {diffusers.__version__}", what) from error
    return model


def _cannot_build(error: Exception, library: str, what: str) -> UnsupportedError:
    first = str(error).splitlines()[0] if str(error) else ""
    return UnsupportedError(f"{what}: {library} cannot build it ({type(error).__name__}: {first})")


def assumed_dtype(config: Mapping[str, Any]) -> str:
    """What transformers takes for a config that names no dtype: float32, and with a quantization 16 bit for what it leaves alone."""
    return "bfloat16" if quantization_of(config) else "float32"


def stored_dtype(config: Mapping[str, Any]) -> str:
    """The dtype a config says its weights are stored in, by torch's name; where it says none, `assumed_dtype`.

    Raises:
        UnsupportedError: the name is no dtype.
    """
    name = named_dtype(config) or assumed_dtype(config)
    try:
        return {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}[from_torch(name).name]
    except KeyError as error:
        raise UnsupportedError(
            f"config.json: dtype {name!r} is not a dtype weights are stored in; correct it"
        ) from error


def _no_class(config: Mapping[str, Any], what: str) -> str:
    model_type = config.get("model_type")
    if config.get("auto_map"):
        return (
            f"{what}: model type {model_type!r} is defined by Python code in its own repository, which graphmem does not run; "
            "inspect a copy that has safetensors headers"
        )
    if model_type is None:
        return f"{what}: has no 'model_type', so no class can be built from it; add the key or inspect the weights themselves"
    return f"{what}: the installed transformers knows no model type {model_type!r}; upgrade it: pip install -U transformers"


def _class_for(transformers: Any, config: Mapping[str, Any], what: str) -> Any:
    for architecture in architectures(config):
        if cls := getattr(transformers, architecture, None):
            return cls
    mapping = transformers.models.auto.modeling_auto
    config_class = transformers.CONFIG_MAPPING[config["model_type"]]
    names = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "MASKED_LM")
    tables = [getattr(mapping, f"MODEL_FOR_{name}_MAPPING", {}) for name in names]
    for table in (*tables, mapping.MODEL_MAPPING):
        if config_class in table:
            found = table[config_class]
            return found[0] if isinstance(found, tuple | list) else found
    raise UnsupportedError(f"{what}: transformers has no model class for {config_class.__name__}")


def _rename_rope(settings: dict[str, Any]) -> None:
    scaling = settings.get("rope_scaling")
    if isinstance(scaling, dict):
        settings["rope_scaling"] = {
            key: _RENAMED_ROPE.get(value, value) if key in ("type", "rope_type") else value
            for key, value in scaling.items()
        }


@contextlib.contextmanager
def _default_dtype(name: str) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


#: What a cache layout is read from. Released configs leave some of these to the defaults of their class (Gemma 3 its heads).
_CACHE_KEYS = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "sliding_window",
    "layer_types", "max_position_embeddings", "kv_lora_rank", "qk_rope_head_dim", "num_kv_shared_layers",
)  # fmt: skip


def class_defaults(config: Mapping[str, Any], model: torch.nn.Module) -> dict[str, Any]:
    """Values of the language model's config that ``config`` leaves out and its class fills in, where the cache depends on them."""
    text = getattr(getattr(model, "config", None), "get_text_config", lambda: None)()
    if text is None or not hasattr(text, "num_attention_heads"):
        return {}
    given = text_config(config)
    held = {key: _held(text, key) for key in _CACHE_KEYS}
    return {key: value for key, value in held.items() if value is not None and given.get(key) is None}


def _held(text: Any, key: str) -> Any:
    """The class's value; None where it has none, or several by kind of layer (Gemma 4)."""
    try:
        return getattr(text, key, None)
    except Exception:
        return None
