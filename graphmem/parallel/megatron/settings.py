"""How Megatron-LM trains: its arguments, by their own names without dashes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from graphmem.errors import GraphmemError, nearest

Backend = Literal["fused", "flash", "unfused", "local"]
Granularity = Literal["full", "selective"]


@dataclass(frozen=True)
class Megatron:
    """Defaults are those of a bf16 run with Transformer Engine, the distributed optimizer and flash attention, without dropout."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    ep: int = 1
    #: Tensor parallelism of the experts; None: ``tp``.
    etp: int | None = None
    #: Model chunks of a pipeline rank; 1: no interleaving.
    chunks: int = 1
    sequence_parallel: bool = False
    use_distributed_optimizer: bool = True
    num_distributed_optimizer_instances: int = 1
    fp16: bool = False
    micro_batch_size: int = 1
    seq_length: int = 4096
    #: Of a step; at least as many as stages keeps them all busy.
    microbatches: int = 1
    #: How attention is computed: by cuDNN (``fused``), FlashAttention, softmax of its own in TE, or Megatron's own (``local``).
    attention_backend: Backend = "fused"
    #: Transformer Engine's layers, or Megatron's own.
    transformer_engine: bool = True
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    cross_entropy_loss_fusion: Literal["te", "native"] | None = None
    gradient_accumulation_fusion: bool = True
    moe_grouped_gemm: bool = True
    recompute_granularity: Granularity | None = None
    recompute_method: Literal["uniform", "block"] | None = None
    recompute_num_layers: int = 1
    make_vocab_size_divisible_by: int = 128
    #: The attention mask is made by the data loader (``--no-create-attention-mask-in-dataloader`` unmakes it).
    attention_mask: bool = False
    #: YaRN's tables of MLA.
    yarn: bool = False

    def __post_init__(self) -> None:
        for name in (
            "tp",
            "pp",
            "dp",
            "cp",
            "ep",
            "chunks",
            "micro_batch_size",
            "seq_length",
            "microbatches",
            "recompute_num_layers",
        ):
            if getattr(self, name) < 1:
                raise GraphmemError(f"{name} {getattr(self, name)}: must be 1 or more")
        if self.attention_backend not in get_args(Backend):
            raise GraphmemError(
                f"attention backend {self.attention_backend!r}: {nearest(self.attention_backend, get_args(Backend))}"
            )
        if self.recompute_granularity == "full" and self.recompute_method is None:
            raise GraphmemError("recompute granularity 'full' takes a method: uniform or block")
        if self.sequence_parallel and self.seq_length % (self.tp * self.cp):
            raise GraphmemError(
                f"seq-length {self.seq_length} is not divided by tp {self.tp} × cp {self.cp}, which sequence parallelism takes"
            )
        if self.cp > 1 and self.seq_length % (2 * self.cp):
            raise GraphmemError(
                f"seq-length {self.seq_length} is not divided by 2 × cp {self.cp}: each rank gets two chunks of it"
            )
        if self.chunks > 1 and self.pp == 1:
            raise GraphmemError(f"chunks {self.chunks}: are of a pipeline's stages; add --pp")
        if (self.dp * self.cp * self.tp) % (self.ep * (self.etp or self.tp)):
            raise GraphmemError(
                f"ep {self.ep} × expert tp {self.etp or self.tp} does not divide the {self.dp * self.cp * self.tp} ranks of a stage (dp {self.dp} × cp {self.cp} × tp {self.tp})"
            )

    @property
    def world(self) -> int:
        return self.tp * self.pp * self.dp * self.cp

    @property
    def expert_tp(self) -> int:
        return self.etp or self.tp

    @property
    def expert_dp(self) -> int:
        """Ranks that hold the same experts."""
        return max(self.world // (self.expert_tp * self.ep * self.pp), 1)

    @property
    def tokens(self) -> int:
        """Of a micro-batch on a rank."""
        return self.seq_length * self.micro_batch_size // self.cp

    @property
    def sharded_tokens(self) -> int:
        """The same between tensor-parallel regions, where sequence parallelism shards them."""
        return self.tokens // self.tp if self.sequence_parallel else self.tokens
