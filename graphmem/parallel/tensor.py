"""Tensor parallelism: transformers' own plan for a model, applied by transformers, or with sequence parallelism by PyTorch's DTensor styles.

transformers' plans name modules and styles (``layers.*.mlp.up_proj``: ``colwise``); it shards their parameters as DTensors and hooks their
forwards. Sequence parallelism it does not have yet: there the same plan is put into PyTorch's styles, with norms sharded over the sequence and
gathers before, scatters after each block (Korthikanti et al. 2022, §4.2; PyTorch's tensor-parallel tutorial).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from graphmem.errors import GraphmemError, UnsupportedError
from graphmem.tracing.layers import stacks_of

#: Projections of keys and values, by the names transformers gives them.
_KEY_VALUE = ("k_proj", "v_proj")


def split(module: nn.Module, mesh: DeviceMesh, plan: dict[str, str], sequence: bool, loss_parallel: bool) -> None:
    """Split a model of transformers over a mesh of one dimension, in place.

    Raises:
        GraphmemError: its heads are not divided; says the numbers.
    """
    _repeat_heads(module, mesh.size())
    head = next((name for name in plan if name.rpartition(".")[2] == "lm_head"), None)
    if loss_parallel:
        if head is None:
            raise GraphmemError(f"loss-parallel: {type(module).__name__} does not split its head: its plan has none")
        plan = {name: style for name, style in plan.items() if not name.startswith(head)}
        _split_head(module, mesh, head)
    if sequence:
        _split_sequence(module, mesh, plan)
    else:
        from transformers.distributed.tensor_parallel import apply_tensor_parallelism

        apply_tensor_parallelism(module, mesh, plan)


@contextlib.contextmanager
def untied(module: nn.Module) -> Iterator[None]:
    """A head that shares its weight with the embedding has one of its own while both are split; afterwards it has the embedding's part, as when
    transformers ties weights at the end of loading."""
    ends: list[Any] = [getattr(module, f"get_{end}_embeddings", lambda: None)() for end in ("output", "input")]
    weights: list[Any] = [getattr(end, "weight", None) for end in ends]
    if weights[0] is None or weights[0] is not weights[1]:
        yield
        return
    ends[0].weight = nn.Parameter(torch.empty_like(weights[0]), requires_grad=weights[0].requires_grad)
    yield
    ends[0].weight = ends[1].weight


def _text_config(module: nn.Module) -> Any:
    config: Any = module.config
    return config.get_text_config(decoder=True)


def _repeat_heads(module: nn.Module, ranks: int) -> None:
    """Where there are more ranks than KV heads, each gets a copy of one, as Megatron and vLLM have it.

    Raises:
        GraphmemError: ranks do not divide the heads.
    """
    config = _text_config(module)
    heads, kv_heads = (
        config.num_attention_heads,
        getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
    )
    if heads % ranks:
        raise GraphmemError(f"tp {ranks} does not divide {heads} attention heads")
    if kv_heads % ranks == 0:
        return
    if ranks % kv_heads:
        raise GraphmemError(f"tp {ranks} and {kv_heads} KV heads: one must divide the other")
    for attention in module.modules():
        if not all(isinstance(getattr(attention, name, None), nn.Linear) for name in _KEY_VALUE):
            continue
        for name in _KEY_VALUE:
            linear = getattr(attention, name)
            wide = nn.Linear(
                linear.in_features,
                linear.out_features // kv_heads * ranks,
                linear.bias is not None,
                device=linear.weight.device,
                dtype=linear.weight.dtype,
            )
            for new, old in zip(wide.parameters(), linear.parameters(), strict=True):
                new.requires_grad_(old.requires_grad)
            setattr(attention, name, wide)
        attention.num_key_value_groups = heads // ranks


def _split_head(module: nn.Module, mesh: DeviceMesh, head: str) -> None:
    """Logits stay split over the vocabulary, as `torch.distributed.tensor.parallel.loss_parallel` takes them."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    style = ColwiseParallel(input_layouts=Replicate(), output_layouts=Shard(-1), use_local_output=False)
    parallelize_module(module, mesh, {head: style})


def _split_sequence(module: nn.Module, mesh: DeviceMesh, plan: dict[str, str]) -> None:
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

    named: dict[str, Any] = {
        "colwise": ColwiseParallel(), "rowwise": RowwiseParallel(output_layouts=Shard(1)),
        "colwise_gather_output": ColwiseParallel(output_layouts=Replicate()),
        "embedding_rowwise": RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate()),
    }  # fmt: skip
    modules = dict(module.named_modules())
    plan = {name: style for name, style in plan.items() if name in modules}
    strange = sorted(set(plan.values()) - set(named))
    if strange:
        raise UnsupportedError(
            f"sequence-parallel: the plan of {type(module).__name__} has styles it is not known how to combine with: {', '.join(strange)}"
        )
    styles = {path: named[style] for path, style in plan.items()}
    stacks = stacks_of(module)
    for path, layers in stacks:
        for number, layer in enumerate(layers):
            for name, child in layer.named_children():
                inside = f"{path}.{number}.{name}"
                if any(planned.startswith(f"{inside}.") for planned in plan):
                    child.register_forward_pre_hook(_redistributing(mesh, Shard(1), Replicate()), with_kwargs=True)
                elif next(child.parameters(), None) is not None:
                    styles[inside] = SequenceParallel(use_local_output=True)
        # Positions are counted by the length of what is embedded, so that the embedding's result is whole, and split from the first layer on.
        layers[0].register_forward_pre_hook(_splitting(mesh), with_kwargs=True)
        norm = f"{path.rpartition('.')[0]}.norm".lstrip(".")
        last = module.get_submodule(norm)
        styles[norm] = SequenceParallel(use_local_output=False)
        last.register_forward_hook(lambda _, __, output: _gathered(output))
    parallelize_module(module, mesh, styles)


def _redistributing(mesh: DeviceMesh, given: Any, wanted: Any) -> Any:
    """A hook that takes the first tensor of a call from one placement to another, as a DTensor."""
    from torch.distributed.tensor import DTensor

    def changed(tensor: Any) -> Any:
        return DTensor.from_local(tensor, mesh, [given], run_check=False).redistribute(placements=[wanted])

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args and isinstance(args[0], torch.Tensor):
            return (changed(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed(kwargs["hidden_states"])}

    return hook


def _splitting(mesh: DeviceMesh) -> Any:
    """A hook that keeps the rank's part of the sequence of the first tensor of a call."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        whole = DTensor.from_local(args[0], mesh, [Replicate()], run_check=False)
        return (whole.redistribute(placements=[Shard(1)]).to_local(), *args[1:]), kwargs

    return hook


def _gathered(output: Any) -> torch.Tensor:
    """The whole sequence on every rank."""
    from torch.distributed.tensor import Replicate

    whole: torch.Tensor = output.redistribute(placements=[Replicate()]).to_local()
    return whole
