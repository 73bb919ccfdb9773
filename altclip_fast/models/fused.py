"""Layers one after the other: on a CPU in one native call, where nothing has to see what lies between them.

The kernels are those of the layers' own ops in the same order, so the bits are the same, but no Python runs between
them. After a product that has read the weights nothing of Python is in a cache: there an op takes 80 us to be called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

from .. import native
from ..ops import checks
from ..ops.packed import PanelWeight
from .layers import Attention, LayerNorm, Linear, Mlp, PostNormLayer, PreNormLayer, is_plain, packing
from .rows import Rows

Layer = PreNormLayer | PostNormLayer

_NONE = torch.empty(0)


def run_layers(layers: Sequence[Layer], x: Tensor, rows: Rows, select: Tensor | None = None) -> Tensor:
    """x after all layers.

    Args:
        x: [T, hidden].
        select: [B] rows, one a sequence: the last layer computes these alone; packed rows only.
    """
    if (found := _native(layers, x, rows, select)) is not None:
        return found
    for layer in layers:
        x = layer(x, rows, select if layer is layers[-1] else None)
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
    attention, mlp, norms = layer.attention, layer.mlp, (layer.norm1, layer.norm2)
    linears = attention.query, attention.key, attention.value, attention.output, mlp.fc1, mlp.fc2
    if not (
        _is_simple(layer)
        and is_plain(attention, Attention)
        and is_plain(mlp, Mlp)
        and all(is_plain(norm, LayerNorm) for norm in norms)
        and all(is_plain(linear) for linear in linears)
    ):
        raise _Refused
    hidden, intermediate, scale = attention.heads * attention.head_dim, mlp.fc1.out_features, attention.scale
    if x.shape[1] != hidden or not 0 < scale < math.inf or mlp.activation not in PanelWeight.fused:
        raise _Refused
    for norm in norms:
        parts += _read(norm.weight, x, hidden), _read(norm.bias, x, hidden)
    square = hidden, hidden
    shapes = square, square, square, square, (intermediate, hidden), (hidden, intermediate)
    factors = 1.0, 1.0, 1.0, 1.0, mlp.factor, 1 / mlp.factor
    quantized = {_take_linear(*one, x, parts) for one in zip(linears, shapes, factors, strict=True)}
    if len(quantized) > 1:
        raise _Refused
    activation, pre_norm = PanelWeight.fused[mlp.activation], type(layer) is PreNormLayer
    return _Settings(hidden, intermediate, attention.heads, scale, pre_norm, quantized.pop(), activation)


def _is_simple(layer: Layer) -> bool:
    """All rows at once, and without dropout."""
    if isinstance(layer, PostNormLayer) and (layer.chunk_size or (layer.training and layer.dropout)):
        return False
    return is_plain(layer, PreNormLayer) or is_plain(layer, PostNormLayer)


def _take_linear(linear: Linear, shape: tuple[int, int], factor: float, x: Tensor, parts: list[Tensor]) -> bool:
    """Add the parts of a linear; whether it is of 8 bits."""
    weight = linear.pack(factor)
    if not isinstance(weight, PanelWeight) or weight.shape != shape:
        raise _Refused
    quantized = weight.scale is not None
    if not quantized and weight.dtype is not x.dtype:
        raise _Refused
    bias = None if linear.bias is None else _read(linear.bias, x, shape[0])
    parts += weight.blocked, *(_NONE if t is None else t for t in (weight.sums, weight.scale, bias))
    return quantized


def _read(parameter: Tensor, x: Tensor, size: int) -> Tensor:
    """The parameter, if the kernels can read it as it is."""
    if parameter.dtype is x.dtype and parameter.is_cpu and parameter.is_contiguous() and parameter.shape == (size,):
        return parameter
    raise _Refused
