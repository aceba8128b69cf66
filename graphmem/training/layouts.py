"""State layouts of optimizers whose kernels need a GPU or that are not part of PyTorch: what each keeps for a parameter, and for how long.

One function a layout: `Weight` → parts, with the source beside it. Nothing here needs torch; `laid` allocates what it says.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["matrix", "embedding", "other"]
#: bitsandbytes and torchao keep the states of smaller tensors plain.
_SMALLEST_IN_8_BITS = 4096
#: bitsandbytes pages states of tensors from this many elements on (optimizer.py, get_state_buffer).
_SMALLEST_PAGED = 100_000


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter as an optimizer sees it. ``role``: the weight of a hidden linear layer, a table of embeddings (or the head), or neither."""

    shape: tuple[int, ...]
    #: torch's name.
    dtype: str
    role: Role

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor. ``paged``: in CUDA's unified memory, beside PyTorch's allocator, and moved to the host where the device is full."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    paged: bool = False


Options = Mapping[str, Any]
Parts = tuple[Part, ...]
States = Callable[[Weight, Options], Parts]


def _none(weight: Weight, options: Options) -> Parts:
    return ()


@dataclass(frozen=True)
class Layout:
    """An optimizer by what it allocates. Options are those of its own constructor that change memory, with their defaults."""

    name: str
    states: States
    source: str
    #: What is alive together while one parameter is updated.
    temporaries: States = _none
    #: The same in a parameter's first step, where that is more.
    first_temporaries: States | None = None
    #: Whether the temporaries of all parameters are alive together (a foreach update).
    together: bool = False
    #: Once for the optimizer, not once a parameter.
    shared: Parts = ()
    options: Options = field(default_factory=dict)


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


def _like(*names: str) -> States:
    """Tensors like the parameter."""
    return lambda weight, options: tuple(Part(name, weight.shape, weight.dtype) for name in names)


def _in_fp32(*names: str) -> States:
    return lambda weight, options: tuple(Part(name, weight.shape, "float32") for name in names)


# -- bitsandbytes ---------------------------------------------------------------------------------------------------


def _bnb_32bit(count: int, paged: bool) -> States:
    """fp32 states whatever the weights are in."""

    def states(weight: Weight, options: Options) -> Parts:
        pages = paged and weight.count >= _SMALLEST_PAGED
        return tuple(Part(f"state{number + 1}", weight.shape, "float32", pages) for number in range(count))

    return states


def _bnb_8bit(count: int, paged: bool) -> States:
    """A byte a state, and one fp32 maximum for each block of 256; small tensors keep fp32 states."""

    def states(weight: Weight, options: Options) -> Parts:
        if weight.count < _SMALLEST_IN_8_BITS or (weight.role == "embedding" and options["embeddings_32bit"]):
            return _bnb_32bit(count, paged)(weight, options)
        pages = paged and weight.count >= _SMALLEST_PAGED
        blocks = _blocks(weight.count, options["block_size"])
        return tuple(
            part for number in range(count) for part in (
                Part(f"state{number + 1}", weight.shape, "uint8", pages), Part(f"absmax{number + 1}", (blocks,), "float32"),
            )
        )  # fmt: skip

    return states


_QMAPS = (Part("qmap1", (256,), "float32"), Part("qmap2", (256,), "float32"))
_BNB = (
    "bitsandbytes/optim/optimizer.py (Optimizer1State, Optimizer2State), blocks of 256 since 0.44 (2,048 before); one kernel a parameter, "
    "without temporaries"
)


def _bitsandbytes(name: str, count: int) -> list[Layout]:
    # transformers' Trainer has the tables of embeddings in 32 bits (trainer.py, GlobalOptimManager); bitsandbytes alone does not.
    eight = {"block_size": 256, "embeddings_32bit": False}
    maps = _QMAPS[:count]
    return [
        Layout(f"bitsandbytes.{name}", _bnb_32bit(count, False), _BNB),
        Layout(f"bitsandbytes.{name}8bit", _bnb_8bit(count, False), _BNB, shared=maps, options=eight),
        *(
            [
                Layout(f"bitsandbytes.Paged{name}", _bnb_32bit(count, True), _BNB),
                Layout(f"bitsandbytes.Paged{name}8bit", _bnb_8bit(count, True), _BNB, shared=maps, options=eight),
            ]
            if name in ("Adam", "AdamW", "Lion") else []
        ),
    ]  # fmt: skip


# -- torchao --------------------------------------------------------------------------------------------------------


def _torchao(bits: int, codes: str, code_map: int) -> States:
    """Blocks with one scale each, where the tensor is large enough and divides into blocks; else like the parameter."""

    def states(weight: Weight, options: Options) -> Parts:
        if weight.count < _SMALLEST_IN_8_BITS or weight.count % options["block_size"]:
            return _like("exp_avg", "exp_avg_sq")(weight, options)
        found = []
        for name in ("exp_avg", "exp_avg_sq"):
            found += [
                Part(name, (weight.count * bits // 8,), codes),
                Part(f"{name}.scale", (weight.count // options["block_size"],), "float32"),
                *([Part(f"{name}.qmap", (code_map,), "float32")] if code_map else []),
            ]
        return tuple(found)

    return states


_TORCHAO = (
    "torchao/optim (subclass_8bit.py, subclass_4bit.py, subclass_fp8.py, adam.py), 0.18; each parameter's update is compiled, and taken "
    "to need no temporaries"
)


# -- projected and factored states ----------------------------------------------------------------------------------


def _projected(weight: Weight, options: Options) -> tuple[Part, tuple[int, ...]] | None:
    """(projector, shape of the projected gradient) of a matrix; the longer side is kept. None: not projected."""
    if weight.role != "matrix" or len(weight.shape) != 2:
        return None
    rows, columns = weight.shape
    rank = min(options["rank"], rows, columns)
    if rows >= columns:
        return Part("projector", (rank, columns), weight.dtype), (rows, rank)
    return Part("projector", (rows, rank), weight.dtype), (rank, columns)


def _low_rank(weight: Weight, options: Options) -> Parts:
    found = _projected(weight, options)
    if found is None:
        return _like("exp_avg", "exp_avg_sq")(weight, options)
    projector, shape = found
    return (projector, Part("exp_avg", shape, weight.dtype), Part("exp_avg_sq", shape, weight.dtype))


def _projected_back(weight: Weight, options: Options) -> Parts:
    """The projected gradient, its denominator and their quotient; then the update in full, and again when it is scaled."""
    found = _projected(weight, options)
    if found is None:
        return (Part("denominator", weight.shape, weight.dtype),)
    low = (Part(name, found[1], weight.dtype) for name in ("gradient", "denominator", "quotient"))
    return (*low, Part("update", weight.shape, weight.dtype), Part("scaled update", weight.shape, weight.dtype))


def _svd(weight: Weight, options: Options) -> Parts:
    """Every ``update_proj_gap`` steps, from the first: a singular value decomposition of the gradient in fp32."""
    if _projected(weight, options) is None:
        return _projected_back(weight, options)
    rows, columns = weight.shape
    short = min(rows, columns)
    copy = () if weight.dtype == "float32" else (Part("gradient", weight.shape, "float32"),)
    factors = (
        Part("U", (rows, short), "float32"),
        Part("S", (short,), "float32"),
        Part("Vh", (short, columns), "float32"),
    )
    return (*copy, *factors)


def _soap(weight: Weight, options: Options) -> Parts:
    """A covariance and its eigenvectors for each side that is not longer than ``max_precondition_dim``; vectors have none by default."""
    return (*_like("exp_avg", "exp_avg_sq")(weight, options), *_soap_sides(weight, options, ("GG", "Q")))


def _soap_sides(weight: Weight, options: Options, names: Sequence[str]) -> Parts:
    if len(weight.shape) == 1 and not options["precondition_1d"]:
        return ()
    sides = [(side, length) for side, length in enumerate(weight.shape) if length <= options["max_precondition_dim"]]
    return tuple(Part(f"{name}{side}", (length, length), weight.dtype) for side, length in sides for name in names)


def _soap_step(weight: Weight, options: Options) -> Parts:
    """The gradient projected, its denominator, the update and what it is projected back to; the outer products of both sides."""
    whole = _like("projected", "denominator", "update", "projected back")(weight, options)
    return (*whole, *_soap_sides(weight, options, ("outer product",)))


def _shampoo(weight: Weight, options: Options) -> Parts:
    """A preconditioner and its inverse root for each side, however long (Gupta et al. 2018, algorithm 2), and the momentum."""
    sides = [
        Part(f"{name}_{side}", (length, length), weight.dtype) for side, length in enumerate(weight.shape) for name in ("pre_cond", "inv_pre_cond")
    ]  # fmt: skip
    return (Part("momentum_buffer", weight.shape, weight.dtype), *sides)


def _shampoo_step(weight: Weight, options: Options) -> Parts:
    """The inverse root of the longest side, by a singular value decomposition in fp32."""
    longest = max(weight.shape, default=1)
    return tuple(Part(name, (longest, longest), "float32") for name in ("U", "Vh", "scaled", "root"))


def _distributed_shampoo(weight: Weight, options: Options) -> Parts:
    """Sides are cut into blocks; each block's factors are symmetric and packed, in fp32."""
    size = options["max_preconditioner_dim"]
    cuts = [[min(size, length - first) for first in range(0, length, size)] for length in weight.shape]
    packed = sum(length * (length + 1) // 2 for block in itertools.product(*cuts) for length in block)
    factors = (Part("factors", (packed,), "float32"), Part("inverse factors", (packed,), "float32"))
    return (Part("filtered_grad", weight.shape, weight.dtype), *factors)


LAYOUTS: tuple[Layout, ...] = (
    *_bitsandbytes("Adam", 2), *_bitsandbytes("AdamW", 2), *_bitsandbytes("Lion", 1), *_bitsandbytes("SGD", 1),
    *_bitsandbytes("RMSprop", 1), *_bitsandbytes("Adagrad", 1),
    Layout("torchao.AdamW8bit", _torchao(8, "uint8", 256), _TORCHAO, options={"block_size": 256}),
    Layout("torchao.Adam8bit", _torchao(8, "uint8", 256), _TORCHAO, options={"block_size": 256}),
    Layout("torchao.AdamW4bit", _torchao(4, "uint8", 16), _TORCHAO, options={"block_size": 128}),
    Layout("torchao.Adam4bit", _torchao(4, "uint8", 16), _TORCHAO, options={"block_size": 128}),
    Layout("torchao.AdamWFp8", _torchao(8, "float8_e4m3fn", 0), _TORCHAO, options={"block_size": 256}),
    Layout("AdamWFp32States", _in_fp32("exp_avg", "exp_avg_sq"), "fp32 moments of 16-bit weights, updated by one kernel"),
    Layout("Lion", _like("exp_avg"), "Chen et al. 2023; lion-pytorch 0.2", _like("copy", "update")),
    Layout(
        "GaLoreAdamW", _low_rank, "Zhao et al. 2024; galore-torch 1.0 (projection 'std')", _projected_back, _svd, options={"rank": 128},
    ),
    Layout(
        "APOLLO", _low_rank, "Zhu et al. 2024; apollo-torch 1.0 (random projection, scaled by channel)", _projected_back, options={"rank": 128},
    ),
    Layout(
        "Sophia", _like("exp_avg", "hessian"), "Liu et al. 2023; Liuhong99/Sophia", _like("denominator", "quotient", "ratio", "ratio before"),
    ),
    Layout(
        "ScheduleFreeAdamW", _like("z", "exp_avg_sq"), "Defazio et al. 2024; schedulefree 1.4 (foreach)", _like("denominator"), together=True,
    ),
    Layout("ScheduleFreeSGD", _like("z"), "Defazio et al. 2024; schedulefree 1.4, in place"),
    Layout(
        "SOAP", _soap, "Vyas et al. 2024; pytorch_optimizer 4.1 (the authors' own keeps both factors in fp32 and takes fp32 only)", _soap_step,
        options={"max_precondition_dim": 10_000, "precondition_1d": False},
    ),
    Layout("Shampoo", _shampoo, "Gupta et al. 2018; pytorch_optimizer 4.1", _shampoo_step),
    Layout(
        "DistributedShampoo", _distributed_shampoo, "Shi et al. 2023; facebookresearch/optimizers, without grafting",
        options={"max_preconditioner_dim": 1024},
    ),
)  # fmt: skip
