"""`torch.autocast` on meta tensors: the same lists, promotion and weight-cast cache as PyTorch keeps for real devices.

The state (enabled, dtype, nesting, cache on or off) is torch's own, so nested and disabled regions need nothing here.
Source of the lists and of the cache's conditions: aten/src/ATen/autocast_mode.h and autocast_mode.cpp, PyTorch 2.13.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from graphmem.tracing.patching import replaced


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LOWER = _names(
    """
    _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution prelu
    addmm addmv addr matmul __matmul__ __rmatmul__ einsum mm mv linalg_vecdot linear addbmm baddbmm bmm
    chain_matmul linalg_multi_dot lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    scaled_dot_product_attention
    """
)
_FLOAT32 = _names(
    """
    acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow __pow__ __rpow__ softplus
    layer_norm native_layer_norm group_norm frobenius_norm nuclear_norm cosine_similarity poisson_nll_loss
    cosine_embedding_loss nll_loss nll_loss_nd nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss
    huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss
    multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_nearest1d
    upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d
    upsample_bicubic2d _upsample_bicubic2d_aa rms_norm
    """
)
#: They take a dtype and convert inside: they are asked for float32 rather than given a converted copy.
_FLOAT32_BY_DTYPE = _names("prod softmax log_softmax cumprod cumsum linalg_vector_norm linalg_matrix_norm sum norm")
_PROMOTE = _names(
    "addcdiv addcmul atan2 bilinear cross dot vdot grid_sample grid_sampler index_put tensordot scatter_add"
)
_CPU_LOWER = _names(
    """
    conv1d conv2d conv3d bmm mm linalg_vecdot baddbmm addmm addbmm linear _convolution matmul __matmul__ __rmatmul__
    conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d prelu scaled_dot_product_attention
    """
)
_CPU_FLOAT32 = _names(
    """
    avg_pool3d binary_cross_entropy grid_sampler polar prod quantile nanquantile stft cdist trace view_as_complex
    cholesky mse_loss cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss poisson_nll_loss smooth_l1_loss
    cross_entropy_loss l1_loss huber_loss margin_ranking_loss soft_margin_loss triplet_margin_loss multi_margin_loss
    ctc_loss kl_div multilabel_margin_loss binary_cross_entropy_with_logits
    """
)
_CPU_PROMOTE = _names("stack cat index_copy")

#: The device's lists: lower precision, float32 by cast, float32 by dtype argument, widest of the inputs.
_LISTS = {
    "cuda": (_LOWER, _FLOAT32, _FLOAT32_BY_DTYPE, _PROMOTE),
    "cpu": (_CPU_LOWER, _CPU_FLOAT32, frozenset[str](), _CPU_PROMOTE),
}


class Autocast:
    """Casts the arguments of torch's functions where `torch.autocast` is on for ``device_type``."""

    def __init__(self, device_type: str) -> None:
        self._type = device_type
        lower, float32, by_dtype, promote = _LISTS[device_type]
        self._actions: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = (
            dict.fromkeys(lower, self._to_lower)
            | dict.fromkeys(float32, self._to_float32)
            | dict.fromkeys(by_dtype, self._by_dtype)
            | dict.fromkeys(promote, self._promoted)
        )
        #: id of a parameter → the parameter and its cast, until the outermost region ends.
        self._cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        #: Whether a region is open. Below autograd torch itself says no, whatever the region.
        self.is_open = False

    def cast(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments as autocast would hand them to ``func``; the last is cast first, as C++ evaluates them."""
        if not torch.is_autocast_enabled(self._type):
            return args, kwargs
        return self.cast_for(getattr(func, "__name__", ""), args, kwargs)

    def cast_for(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The same by name, whether autocast is on or not: backward formulas that run inside a region are cast too."""
        action = self._actions.get(name)
        return (args, kwargs) if action is None else action(args, kwargs)

    @contextlib.contextmanager
    def available(self) -> Iterator[None]:
        """`torch.autocast("cuda")` works without a GPU, and the cache ends with the outermost region, as torch's own does."""
        clear, switch = torch.clear_autocast_cache, torch.set_autocast_enabled

        def noted(device_type: Any, enabled: bool | None = None) -> None:
            if device_type == self._type:
                self.is_open = bool(enabled)
            switch(device_type) if enabled is None else switch(device_type, enabled)

        def clear_both() -> None:
            self._cache.clear()
            clear()

        with (
            replaced(torch, "clear_autocast_cache", clear_both),
            replaced(torch, "set_autocast_enabled", noted),
            replaced(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        ):
            yield
        self._cache.clear()

    # -- one list each --------------------------------------------------------------------------------------------

    def _to_lower(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return self._cast_all(args, kwargs, torch.get_autocast_dtype(self._type))

    def _to_float32(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return self._cast_all(args, kwargs, torch.float32)

    def _by_dtype(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        tensor = args[0] if args else kwargs.get("input")
        given = kwargs.get("dtype") or next((value for value in args if isinstance(value, torch.dtype)), None)
        if not isinstance(tensor, torch.Tensor) or not _eligible(tensor) or given is not None:
            return args, kwargs
        return args, {**kwargs, "dtype": torch.float32} if tensor.dtype != torch.float32 else kwargs

    def _promoted(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        tensors = [value for value in args if isinstance(value, torch.Tensor) and _eligible(value)]
        widest = (
            torch.float32 if any(t.dtype == torch.float32 for t in tensors) else torch.get_autocast_dtype(self._type)
        )
        return self._cast_all(args, kwargs, widest)

    def _cast_all(self, args: Any, kwargs: Any, dtype: torch.dtype) -> tuple[Any, Any]:
        named = {key: self._cast_one(value, dtype) for key, value in reversed(kwargs.items())}
        return tuple([self._cast_one(value, dtype) for value in reversed(args)][::-1]), named

    def _cast_each(self, values: Any, dtype: torch.dtype) -> Any:
        return type(values)([self._cast_one(value, dtype) for value in values])

    def _cast_one(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
            return self._cast_each(value, dtype) if any(isinstance(item, torch.Tensor) for item in value) else value
        if not isinstance(value, torch.Tensor) or not _eligible(value) or value.dtype == dtype:
            return value
        if not self._cacheable(value, dtype):
            return value.to(dtype)
        cached = self._cache.get(id(value))
        if cached is None:
            self._cache[id(value)] = cached = (value, value.to(dtype))
        return cached[1]

    def _cacheable(self, tensor: torch.Tensor, dtype: torch.dtype) -> bool:
        return (
            tensor.dtype == torch.float32
            and dtype == torch.get_autocast_dtype(self._type)
            and tensor.requires_grad
            and tensor.is_leaf
            and not tensor._is_view()
            and torch.is_autocast_cache_enabled()
            and not torch.is_inference_mode_enabled()
        )


def _eligible(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float64 and tensor.is_meta
