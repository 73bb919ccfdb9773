"""Layers one after the other: on a CPU in one native call, where nothing has to see what lies between them.

The kernels are those of the layers' own ops in the same order, so the bits are the same, but no Python runs between
them. After a product that has read the weights nothing of Python is in a cache: there an op takes 80 us to be called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .. import native
from ..ops import checks
from ..ops.packed import PanelWeight
from .layers import Attention, LayerNorm, Linear, Mlp, PostNormLayer, PreNormLayer, is_plain, packing
from .rows import Rows

Layer = PreNormLayer | PostNormLayer

_NONE = torch.empty(0, device="cpu")


def run_layers(layers: Sequence[Layer], x: Tensor, rows: Rows, select: Tensor | None = None) -> Tensor:
    """x after all layers.

    Args:
        x: [T, hidden].
        select: [B] rows, one a sequence: the last layer computes these alone; packed rows only.

    Returns:
        [T, hidden], or [B, hidden] with `select`.
    """
    if (found := _native(layers, x, rows, select)) is not None:
        return found
    for count, layer in enumerate(layers, 1):
        x = layer(x, rows, select if count == len(layers) else None)
    return x


class _Settings(NamedTuple):
    """What the layers of a stack have in common."""

    hidden: int
    intermediate: int
    heads: int
    scale: float
    pre_norm: bool
    quantized: bool
    activation: int


class _Refused(Exception):
    """A layer has to be called itself."""


def _native(layers: Sequence[Layer], x: Tensor, rows: Rows, select: Tensor | None = None) -> Tensor | None:
    """x after all layers, or None where they have to be called one by one."""
    if rows.cu_seqlens is None or not layers or not _runs(x):
        return None
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for m in layers for p in m.parameters())):
        return None
    parts: list[Tensor] = []
    try:
        settings = {_take(layer, x, parts) for layer in layers}
    except _Refused:
        return None
    if len(settings) > 1:
        return None
    (_, *common), causal = settings.pop(), rows.causal
    eps = [norm.eps for layer in layers for norm in (layer.norm1, layer.norm2)]
    return native.kernels().layers_cpu(x, rows.cu_seqlens, select, parts, eps, causal, *common)


def _runs(x: Tensor) -> bool:
    """Whether ops would choose native kernels for rows like these."""
    return (
        type(x) is Tensor
        and x.is_cpu
        and x.dim() == 2
        and x.is_contiguous()
        and checks.kernel_dtype(x) is True
        and packing()
        and native.missing() is None
        and not torch.is_autocast_enabled("cpu")
        and not _has_any_global_hook()
    )


def _take(layer: Layer, x: Tensor, parts: list[Tensor]) -> _Settings:
    """Add to `parts` those of a layer, as the native call wants them: weight and bias of its norms; of each linear the
    packed weight, the sums and scales of its 8-bit numbers, and the bias, or `_NONE`.
    """
    if not _is_simple(layer):
        raise _Refused
    attention, mlp, norm1, norm2 = _children(layer, _OF_LAYER)
    query, key, value, output = _children(attention, _OF_ATTENTION)
    fc1, fc2 = _children(mlp, _OF_MLP)
    hidden, intermediate, scale = attention.heads * attention.head_dim, fc1.out_features, attention.scale
    if x.shape[1] != hidden or not 0 < scale < math.inf or mlp.activation not in PanelWeight.fused:
        raise _Refused
    for norm in (norm1, norm2):
        parameters = norm._parameters
        parts += _read(parameters["weight"], x, hidden), _read(parameters["bias"], x, hidden)
    quantized = {_take_linear(linear, hidden, hidden, 1.0, x, parts) for linear in (query, key, value, output)}
    quantized.add(_take_linear(fc1, intermediate, hidden, mlp.factor, x, parts))
    quantized.add(_take_linear(fc2, hidden, intermediate, 1 / mlp.factor, x, parts))
    if len(quantized) > 1:
        raise _Refused
    activation, pre_norm = PanelWeight.fused[mlp.activation], type(layer) is PreNormLayer
    return _Settings(hidden, intermediate, attention.heads, scale, pre_norm, quantized.pop(), activation)


_OF_LAYER = {"attention": Attention, "mlp": Mlp, "norm1": LayerNorm, "norm2": LayerNorm}
_OF_ATTENTION = {"query": Linear, "key": Linear, "value": Linear, "output": Linear}
_OF_MLP = {"fc1": Linear, "fc2": Linear}


def _children(module: nn.Module, kinds: Mapping[str, type[nn.Module]]) -> list[Any]:
    """Those of these names, which have to be plain. Not as attributes: that takes as long as all the rest."""
    children = module._modules
    found: list[Any] = [children[name] for name in kinds]
    if not all(map(is_plain, found, kinds.values())):
        raise _Refused
    return found


def _is_simple(layer: Layer) -> bool:
    """All rows at once, and without dropout."""
    if isinstance(layer, PostNormLayer) and (layer.chunk_size or (layer.training and layer.dropout)):
        return False
    return is_plain(layer, PreNormLayer) or is_plain(layer, PostNormLayer)


def _take_linear(linear: Linear, n: int, k: int, factor: float, x: Tensor, parts: list[Tensor]) -> bool:
    """Add the parts of a linear [n, k]; whether it is of 8 bits."""
    weight = linear.pack(factor)
    if not isinstance(weight, PanelWeight) or weight.shape != (n, k):
        raise _Refused
    quantized = weight.scale is not None
    if not quantized and weight.dtype is not x.dtype:
        raise _Refused
    bias = linear._parameters["bias"]
    parts += weight.blocked, _given(weight.sums), _given(weight.scale), _NONE if bias is None else _read(bias, x, n)
    return quantized


def _given(x: Tensor | None) -> Tensor:
    return _NONE if x is None else x


def _read(parameter: Tensor | None, x: Tensor, size: int) -> Tensor:
    """The parameter, if the kernels can read it as it is."""
    if (
        parameter is not None
        and parameter.dtype is x.dtype
        and parameter.is_cpu
        and parameter.is_contiguous()
        and parameter.shape == (size,)
    ):
        return parameter
    raise _Refused
