"""The profiling run: how much PyTorch allocates at most while vLLM runs its largest batch once, and samples from it.

Buffers by name, as the code of each release makes them; the larger of forward and sampling counts. Sources: vllm/model_executor/models/llama.py,
layers/fused_moe/, layers/sampler.py, v1/sample/ops/topk_topp_sampler.py, v1/worker/gpu_model_runner.py of the releases named here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphmem.engines.shape import Shape
from graphmem.engines.vllm.versions import Release, Scheduling

#: cuBLAS' workspace, from PyTorch's allocator: by compute capability (aten/src/ATen/cuda/CublasHandlePool.cpp).
_CUBLAS, _CUBLAS_HOPPER = 8_519_680, 32 * 2**20


#: Classes whose model file in vLLM is llama.py, or derives from it.
_LLAMA_FILE = ("Llama", "Mistral", "Phi3", "Yi", "InternLM3", "Aquila", "Solar")


@dataclass(frozen=True)
class Profile:
    """Bytes at the peak of the profiling run, in parts that are alive together."""

    forward: int
    sampling: int
    #: Allocated once by the runner and kept: penalties' counts, image features.
    kept: int
    workspace: int
    explain_forward: str
    explain_sampling: str

    @property
    def peak(self) -> int:
        """Activations and workspace."""
        return max(self.forward, self.sampling) + self.workspace

    @property
    def explain(self) -> str:
        which = self.explain_forward if self.forward > self.sampling else self.explain_sampling
        return f"{which}; cuBLAS workspace {self.workspace:,} B"


def profile(
    shape: Shape, schedule: Scheduling, release: Release, model_bytes: int = 2, tp: int = 1, capability: tuple[int, int] = (8, 0),
    sms: int = 108, classes: Sequence[str] = (),
) -> Profile:  # fmt: skip
    """What the profiling run allocates on one GPU of ``tp``. ``classes``: names of the model's class, which say whose code it runs."""
    tokens = schedule.max_num_batched_tokens
    rows = min(schedule.max_num_seqs, tokens)
    forward, explain_forward = _forward(
        shape, tokens, release, model_bytes, tp, any(name.startswith(_LLAMA_FILE) for name in classes)
    )
    sampling, explain_sampling = _sampling(shape, tokens, rows, release, model_bytes, sms)
    kept = 0
    if uses_v2_runner(shape, release):
        # int32 counts of every token and a bit for each that the prompt has (v1/worker/gpu/sample/penalties.py).
        kept += schedule.max_num_seqs * (4 * shape.vocabulary + 4 * -(-shape.vocabulary // 32))
    if shape.multimodal and release.v1:
        kept += tokens * shape.hidden * model_bytes  # features of as many image tokens as a step may have
    workspace = _CUBLAS_HOPPER if capability >= (9, 0) else _CUBLAS
    return Profile(forward, sampling, kept, workspace, explain_forward, explain_sampling)


def uses_v2_runner(shape: Shape, release: Release) -> bool:
    """Whether the second model runner is taken: dense models without states, since 0.25.1 (vllm/config/vllm.py)."""
    return release.v1 and release.since("0.25.1") and shape.is_dense and not shape.has_states


def _forward(shape: Shape, tokens: int, release: Release, size: int, tp: int, reuses_names: bool) -> tuple[int, str]:
    """One decoder layer at its fullest: the loop's hidden states, the layer's and the residual stay beside attention, MLP or experts."""
    # Where the MLP's two projections keep their names until the end, eager code holds its input too; llama.py and what derives from it
    # give the name away.
    keeps = not release.v1 and not reuses_names
    hidden = (4 if keeps else 3) * shape.hidden
    attention = 2 * (shape.query + shape.key_value) // tp
    mlp = (shape.halves + 1) * shape.width // tp
    if shape.is_dense:
        widest = max(attention, mlp)
        what = f"{shape.halves + 1} × {shape.width // tp:,} MLP" if mlp >= attention else f"{attention:,} attention"
        return tokens * (
            hidden + widest
        ) * size, f"{tokens:,} tokens × ({hidden // shape.hidden} × {shape.hidden:,} hidden + {what}) × {size} B"
    chunk = _moe_chunk(release, tokens)
    width = shape.expert_width // tp
    experts = _experts(release, width, shape.hidden) * shape.top_k
    rest = max(attention, 0) * tokens
    routed = chunk * experts + tokens * shape.experts * 4 // size
    nbytes = (tokens * hidden + max(routed, rest)) * size
    return nbytes, (
        f"{tokens:,} tokens × {hidden // shape.hidden} × {shape.hidden:,} hidden × {size} B + {chunk:,} tokens × {shape.top_k} experts × {experts // shape.top_k:,} × {size} B"
    )


def _moe_chunk(release: Release, tokens: int) -> int:
    """Tokens that experts take at once (VLLM_FUSED_MOE_CHUNK_SIZE)."""
    return tokens if release.since("0.18.1") else min(tokens, 16384 if release.since("0.12") else 32768)


def _experts(release: Release, width: int, hidden: int) -> int:
    """Elements for each token and expert of the fused kernels' buffers."""
    if not release.since("0.8"):
        return 2 * width + width + hidden
    if release.since("0.13"):  # modular kernels share two workspaces
        return max(width, hidden) + max(2 * width, hidden)
    return max(2 * width, hidden) + width


def _sampling(shape: Shape, tokens: int, rows: int, release: Release, size: int, sms: int) -> tuple[int, str]:
    """Sampling from ``rows`` rows of logits, and the hidden states that stay meanwhile."""
    each, fixed, why = _per_logit(shape, rows, release, size)
    kept = tokens if not release.v1 or release.since("0.11") else 0
    nbytes = rows * shape.vocabulary * each + fixed * sms * shape.vocabulary * 4 + (kept + rows) * shape.hidden * size
    explain = f"{rows:,} rows × {shape.vocabulary:,} tokens × {each} B ({why})"
    if fixed:
        explain += f" + {sms} multiprocessors × {shape.vocabulary:,} × 4 B"
    return nbytes, f"{explain} + {kept + rows:,} hidden states × {shape.hidden:,} × {size} B"


def _per_logit(shape: Shape, rows: int, release: Release, size: int) -> tuple[int, int, str]:
    """Bytes for each logit at the sampler's peak; whether Triton's buffer of a row a multiprocessor is there; why."""
    if uses_v2_runner(shape, release):
        return size, 0, "logits; the dummy request asks for no filtering"
    if release.v1 and release.since("0.17") and rows >= 8:
        return size + 12, 1, "logits, fp32 copy, probabilities, noise"
    copy = 4 if size < 4 else 0
    if 1 < rows < 128:
        # torch.sort of few long rows sorts all of them at once, with pairs (aten/src/ATen/native/cuda/SortStable.cu).
        return (
            size + copy + 44,
            0,
            "logits, fp32 copy, sorted values, indices, pairs and keys of a full sort, cub's scratch",
        )
    return (
        size + copy + 32,
        0,
        "logits, fp32 copy, sorted values, indices, reverse indices, cub's second keys and values",
    )
