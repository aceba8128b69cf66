"""Which component a tensor belongs to, by the role of the module that owns it.

Where a live module gave the tensor, its class decides. A header has only names, so the role is read as a person reads it: a
module is what its own name says it is (``post_attention_layernorm`` is a layer norm that comes after attention, not attention),
confirmed by its shape (norms own vectors) and its siblings (a ``gate`` beside ``experts`` routes; a ``mixer`` with an
``A_log`` is a state space). Names are compared word by word, never by substring, and the innermost module that has a role wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

from graphmem.checkpoint import TensorSpec

Component = Literal[
    "embedding",
    "attention",
    "mlp",
    "experts",
    "shared experts",
    "router",
    "ssm",
    "convolution",
    "norm",
    "head",
    "vision tower",
    "audio tower",
    "projector",
    "other",
]

#: The order components print in.
COMPONENTS: tuple[Component, ...] = (
    "embedding",
    "attention",
    "ssm",
    "mlp",
    "experts",
    "shared experts",
    "router",
    "convolution",
    "norm",
    "vision tower",
    "audio tower",
    "projector",
    "head",
    "other",
)

#: What a text token does not pass through.
NOT_TEXT: frozenset[Component] = frozenset(("vision tower", "audio tower", "projector"))

_VISION = {"visual", "vision", "vit", "vpm", "sam", "vison"}
_AUDIO = {"audio", "speech"}
_TOWER = {"tower", "model", "encoder", "backbone", "trunk"}
_PROJECTOR = {"projector", "merger", "resampler", "connector", "aligner", "adaptor"}

_NORM = {"norm", "layernorm", "rmsnorm", "groupnorm", "batchnorm", "normalization", "ln", "bn"}
_ATTENTION = {
    "attn", "attention", "attentions", "selfattention", "crossattention", "encdecattention", "localselfattention",
    "transientglobalselfattention", "mha", "xattn",
}  # fmt: skip
_MLP = {"mlp", "ffn", "ff", "ffw", "feedforward", "densereludense", "intermediate"}
_CONVOLUTION = {"conv", "convolution", "convolutions", "convs", "pwconv", "dwconv", "convtr", "downsample", "upsampler"}
_EMBEDDING = {"embed", "embedding", "embeddings", "embedder", "embd", "wte", "wpe"}
_SSM = {"mamba", "ssm", "rwkv", "mlstm", "slstm"}

#: Kernels are no wider than this; stacked matrices are.
_WIDEST_KERNEL = 31

#: Names that stand for one role wherever they come.
_ROLE_OF_NAME: dict[str, Component] = {
    **dict.fromkeys(("router", "shared_expert_gate", "ffn_gate_inp"), "router"),
    **dict.fromkeys(("linear_attn", "time_mix", "time_mixer", "kda", "short_conv"), "ssm"),
    **dict.fromkeys(
        ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "wqkv", "c_attn", "query", "key", "value", "to_q", "to_k", "to_v", "q_lin", "k_lin", "v_lin"),
        "attention",
    ),
    **dict.fromkeys(("in_proj_weight", "in_proj_bias"), "attention"),
    **dict.fromkeys(
        ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "c_fc", "fc_in", "fc_out", "lin1", "lin2"),
        "mlp",
    ),
    **dict.fromkeys(("dense_h_to_4h", "dense_4h_to_h", "feed_forward", "proj_mlp", "ff_context", "linear1", "linear2"), "mlp"),
    **dict.fromkeys(("embed_tokens", "embed_positions", "embed_in", "embed_out_proj", "cls_token", "mask_token", "shared"), "embedding"),
    **dict.fromkeys(("class_embedding", "positional_embedding"), "embedding"),
}  # fmt: skip

#: Names that are the output head when they stand outside the layers.
_HEAD = {
    "lm_head", "embed_out", "output", "output_layer", "score", "classifier", "pre_classifier", "qa_outputs", "cls", "head",
    "vocab_projector", "vocab_transform", "proj_out", "pooler", "shared_head", "text_projection", "visual_projection", "text_proj",
}  # fmt: skip

#: Children only a state-space or linear-attention mixer has.
_SSM_CHILDREN = {"A_log", "dt_bias", "dt_proj", "x_proj", "time_decay", "in_proj_qkvz", "rg_lru"}

_EXPERTS = {"experts", "exps"}
_SHARED_EXPERTS = {"shared_expert", "shared_experts", "share_expert", "shared_mlp"}


def components(tensors: Iterable[TensorSpec]) -> dict[str, Component]:
    """Tensor name → component, for all tensors of one model (roles depend on siblings)."""
    tensors = list(tensors)
    tree = _Tree(tensors)
    roles = {tensor.name: _role(tensor, tree) for tensor in tensors}
    towers = {tensor.name: _tower(tensor.name) for tensor in tensors}
    # A tower is a tower only beside a language model: a lone vision encoder is attention and MLP like any other.
    beside = any(
        towers[name] is None and role in ("attention", "mlp", "experts", "ssm") for name, role in roles.items()
    )
    if beside:
        for name, tower in towers.items():
            if tower:
                roles[name] = tower
    return roles


class _Tree:
    """Children by module path, and which modules own nothing but vectors."""

    def __init__(self, tensors: Sequence[TensorSpec]) -> None:
        self.children: dict[str, set[str]] = {}
        self._widest: dict[str, int] = {}
        self._kernels: set[str] = set()
        for tensor in tensors:
            parts = tensor.name.split(".")
            for depth in range(len(parts)):
                self.children.setdefault(".".join(parts[:depth]), set()).add(parts[depth])
            dims = sum(1 for dim in tensor.shape if dim != 1)
            self._widest[tensor.module] = max(dims, self._widest.get(tensor.module, 0))
            if len(tensor.shape) >= 3 and tensor.shape[-1] <= _WIDEST_KERNEL:
                self._kernels.add(tensor.module)

    def has_kernel(self, module: str) -> bool:
        """Whether the module owns a tensor shaped like a convolution's weight: [out, in, kernel …]."""
        return module in self._kernels

    def owns_vectors_only(self, module: str) -> bool:
        return self._widest.get(module, 0) <= 1


@lru_cache(maxsize=4096)
def _words(name: str) -> frozenset[str]:
    """``ffn_gate_exps`` → ffn gate exps; ``EncDecAttention`` and ``norm1`` → encdecattention, norm."""
    return frozenset(word for word in re.split(r"[_\d]+", name.lower()) if word)


def _tower(name: str) -> Component | None:
    """The tower or projector a tensor lives in, by the outermost module named as one (a projector inside a tower counts)."""
    tower: Component | None = None
    for depth, part in enumerate(name.split(".")[:-1]):
        words = _words(part)
        if (
            words & _PROJECTOR
            or part in ("modality_projection", "embed_vision", "embed_audio")
            or (part == "projection" and depth == 0)
        ):
            return "projector"
        if tower is None and words & _VISION and (words <= _VISION | _TOWER or part.startswith("vision_")):
            tower = "vision tower"
        if tower is None and words & _AUDIO and words <= _AUDIO | _TOWER:
            tower = "audio tower"
    return tower


def _role(tensor: TensorSpec, tree: _Tree) -> Component:
    *modules, parameter = tensor.name.split(".")
    if _is_norm(tensor, modules[-1] if modules else parameter, tree):
        return "norm"
    words = set().union(*(_words(part) for part in (*modules, parameter)))
    names = {part.lower() for part in (*modules, parameter)}
    if names & _SHARED_EXPERTS or "shexp" in words:
        return "router" if "shared_expert_gate" in names else "shared experts"
    if parameter.startswith(("e_score_correction", "router_")) or _routes(modules, tree):
        return "router"
    if words & _EXPERTS:
        return "experts"
    if _in_state_space(modules, words, tree):
        return "ssm"
    role = _innermost(tensor, modules, parameter, tree)
    return "experts" if _stacks_experts(tensor, modules, role, tree) else role


def _stacks_experts(tensor: TensorSpec, modules: Sequence[str], role: Component, tree: _Tree) -> bool:
    """Experts stacked in one tensor [experts, out, in] need no module of that name; a kernel is narrower than a matrix."""
    stacked = len(tensor.shape) == 3 and tensor.shape[-1] > _WIDEST_KERNEL
    return stacked and (role == "mlp" or (role in ("other", "convolution") and _beside_router(modules, tree)))


def _beside_router(modules: Sequence[str], tree: _Tree) -> bool:
    siblings = tree.children.get(".".join(modules[:-1]), set())
    return bool(siblings & {"router", "gate"})


def _is_norm(tensor: TensorSpec, owner: str, tree: _Tree) -> bool:
    if any(
        cls.endswith("Norm") or "RMSNorm" in cls or "LayerNorm" in cls or "BatchNorm" in cls
        for cls in tensor.module_classes
    ):
        return True
    return bool(_NORM & _words(owner)) and tree.owns_vectors_only(tensor.module)


def _routes(modules: Sequence[str], tree: _Tree) -> bool:
    """A ``gate`` (or anything of it) whose siblings are experts, or a module called router."""
    for depth, part in enumerate(modules):
        siblings = tree.children[".".join(modules[:depth])]
        if part == "gate" and ("moe" in modules[:depth] or any("experts" in sibling for sibling in siblings)):
            return True
        if _ROLE_OF_NAME.get(part) == "router":
            return True
    return False


def _in_state_space(modules: Sequence[str], words: set[str], tree: _Tree) -> bool:
    if words & _SSM:
        return True
    for depth, part in enumerate(modules, start=1):
        children = tree.children[".".join(modules[:depth])]
        if _ROLE_OF_NAME.get(part) == "ssm" or _SSM_CHILDREN & children or {"conv", "in_proj", "out_proj"} <= children:
            return True  # the last: LFM2's gated short convolution, which stands where attention would
    return False


def _innermost(tensor: TensorSpec, modules: Sequence[str], parameter: str, tree: _Tree) -> Component:
    """Walk outwards from the tensor; the first part of the path that has a role decides."""
    in_layer = any(part.isdigit() for part in modules[:-1])  # a number that comes last is a place in an nn.Sequential
    if any(cls == "Embedding" for cls in tensor.module_classes) and not in_layer:
        return "embedding"
    parts = [*modules, parameter]
    for depth in range(len(parts) - 1, -1, -1):
        part = parts[depth]
        if part == "shared_head" or (not in_layer and part.lower() in _HEAD):  # the former: DeepSeek's prediction layer
            return "head"
        named = _ROLE_OF_NAME.get(part.lower())
        if named:
            return named
        words = _words(part)
        if words & _ATTENTION:
            return "attention"
        if words & _MLP or {"feed", "forward"} <= words:
            return "mlp"
        if words & _EMBEDDING:
            return "embedding"
        siblings = tree.children[".".join(parts[:depth])]
        if part == "output" and "intermediate" in siblings:  # BERT's second MLP half has no name of its own
            return "mlp"
        if not part.isdigit() and (role := _by_children(tree.children.get(".".join(parts[: depth + 1]), set()))):
            return role
    if "head" in _words(modules[0] if modules else "") and not in_layer:
        return "head"
    return "convolution" if _convolves(tensor, modules, tree) else "other"


def _convolves(tensor: TensorSpec, modules: Sequence[str], tree: _Tree) -> bool:
    """A convolution by class, by its weight's kernel dimensions, or by name (a 1 × 1 kernel may be stored flat)."""
    by_class = any(cls.lstrip("_").startswith("Conv") and cls != "Conv1D" for cls in tensor.module_classes)
    named = any(_words(part) & _CONVOLUTION for part in modules[-2:])
    return by_class or named or tree.has_kernel(tensor.module)


def _by_children(children: set[str]) -> Component | None:
    """A container without a telling name (``mixer``, ``layer``) by what it holds; only if that is one thing."""
    roles = {_ROLE_OF_NAME.get(child.lower()) for child in children} & {"attention", "mlp"}
    return roles.pop() if len(roles) == 1 else None
