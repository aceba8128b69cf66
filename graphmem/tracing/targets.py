"""What ``graphmem trace`` is asked to trace → a module, its inputs and a name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphmem.checkpoint import Checkpoint
from graphmem.errors import GraphmemError, MissingExtraError, TargetError
from graphmem.sources.load import Access, load
from graphmem.workload import Workload

if TYPE_CHECKING:
    import torch

Resolved = tuple["torch.nn.Module", tuple[Any, ...], dict[str, Any], str]


@dataclass(frozen=True)
class Choices:
    """What a model id leaves open."""

    #: None: 1.
    batch_size: int | None = None
    #: In tokens; None: 1,024, or what the model takes.
    seq_len: int | None = None
    #: torch's name; None: as stored.
    dtype: str | None = None
    trust_remote_code: bool = False
    access: Access = field(default_factory=Access)
    #: The batch's sequences lie behind each other in one row, each with positions from 0.
    packed: bool = False
    #: The target's, where it has been read already.
    checkpoint: Checkpoint | None = None


def resolve(target: Any, inputs: tuple[Any, ...], workload: Workload, choices: Choices) -> Resolved:
    """The module to trace and what to call it with.

    Raises:
        MissingExtraError: torch is not installed.
        GraphmemError: the target names nothing that can be traced, or the choices cannot be.
    """
    require_torch()
    import torch

    args, kwargs = _split(inputs)
    if isinstance(target, torch.nn.Module):
        _refuse_model_choices(choices, workload, "a module you made")
        return target, args, kwargs, type(target).__name__
    if isinstance(target, type):
        raise TargetError(f"{target.__name__} is a class; call it: {target.__name__}(…)")
    if not isinstance(target, str | Path):
        raise TargetError(
            f"trace needs a torch.nn.Module, a model id, a folder or package.module:factory; this is a {type(target).__name__}"
        )
    from graphmem.tracing.factory import is_factory, module_from

    if is_factory(str(target)):
        _refuse_model_choices(choices, workload, "package.module:factory")
        return module_from(str(target)), args, kwargs, str(target)
    return _pretrained(str(target), args, kwargs, workload, choices)


def require_torch() -> None:
    """Say what to install where torch is missing.

    Raises:
        MissingExtraError: it is.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("tracing runs the model's own code on torch's meta device", "torch") from error


def _refuse_model_choices(choices: Choices, workload: Workload, target: str) -> None:
    """Nothing that is asked for is silently left undone."""
    asked = {
        "--batch-size": choices.batch_size is not None, "--seq-len": choices.seq_len is not None, "--dtype": choices.dtype is not None,
        "--attention": workload.attention is not None, "--packing": choices.packed, "--revision": choices.access.revision is not None,
    }  # fmt: skip
    if given := [name for name, is_given in asked.items() if is_given]:
        raise GraphmemError(
            f"{', '.join(given)}: for a model id; for {target}, shape its inputs and convert it yourself (.bfloat16())"
        )


def _split(inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if inputs and isinstance(inputs[-1], dict):
        return inputs[:-1], dict(inputs[-1])
    return inputs, {}


#: More tokens than anything is trained or served with at once: a slip of the keyboard.
_MOST_TOKENS = 2**32


def _pretrained(
    target: str, args: tuple[Any, ...], kwargs: dict[str, Any], workload: Workload, choices: Choices
) -> Resolved:
    from graphmem.tracing.example_inputs import example_inputs, packed
    from graphmem.tracing.pretrained import is_quantized, model_of, remote_model

    batch = 1 if choices.batch_size is None else choices.batch_size
    if batch < 1 or (choices.seq_len is not None and choices.seq_len < 1):
        raise GraphmemError(f"batch size {batch} and sequence length {choices.seq_len} must be 1 or more")
    if batch * (choices.seq_len or 1) > _MOST_TOKENS:
        raise GraphmemError(f"{batch * (choices.seq_len or 1):,} tokens in one step; check --batch-size and --seq-len")
    access, name = choices.access, target
    if choices.trust_remote_code:
        model = remote_model(target, access.revision, access.token, choices.dtype, workload.attention)
    else:
        checkpoint = choices.checkpoint or load(target, access)
        model = model_of(checkpoint, choices.dtype, workload.attention)
        if any(is_quantized(section.config) for section in checkpoint.sections):
            name = f"{target} (its quantized weights unpacked)"
    model.train(workload.trains)
    if not args and not kwargs:
        kwargs = dict(example_inputs(model, batch, choices.seq_len, workload.trains))
        if choices.packed:
            kwargs = packed(kwargs)
        if (
            not workload.trains
            and "input_ids" in kwargs
            and hasattr(model.config, "use_cache")
            and workload.grad is False
        ):
            kwargs["use_cache"] = True
        if "input_ids" in kwargs and "pixel_values" not in kwargs and hasattr(model.config, "vision_config"):
            name += " (text only: no image is passed)"
    if workload.trains and getattr(model.config.get_text_config(), "use_cache", None):
        kwargs.setdefault("use_cache", False)  # as transformers' Trainer does
    return model, args, kwargs, name
