"""Weights in the blocked layout that oneDNN's matrix kernels read, and their product with rows.

On a CPU this is about twice as fast in float32 as `F.linear`, which does not reach oneDNN there. quick_gelu comes
exactly out of oneDNN's silu: quick_gelu(z) = silu(1.702 z) / 1.702, so a packed weight may carry a factor.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..dispatch import PLAIN, forced_backend

QUICK_GELU = 1.702

# activation -> oneDNN's attribute and algorithm
FUSED = {
    "none": ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}


class PackedWeight(Tensor):
    """A weight [N, K] with its blocked copy: a plain tensor for all who do not look for it.

    Attributes:
        blocked: `factor` times the weight, opaque.
        factor: what the blocked copy was multiplied by.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    blocked: Tensor
    factor: float


PLAIN.add(PackedWeight)


def pack(weight: Tensor, factor: float = 1.0) -> PackedWeight:
    """Make the blocked copy; the weight itself is shared, not copied.

    Args:
        weight: [N, K] or [N, ..] with K numbers each, float32 or bfloat16, on the CPU.
        factor: multiplied in, before the copy is rounded to the dtype.
    """
    scaled = weight.detach() if factor == 1.0 else weight.detach() * factor
    packed = weight.detach().as_subclass(PackedWeight)
    packed.blocked = torch.ops.mkldnn._reorder_linear_weight(scaled.flatten(1).contiguous(), None)
    packed.factor = factor
    return packed


@functools.cache
def why_not(dtype: torch.dtype) -> str | None:
    """Why weights of this dtype cannot be packed here, or None."""
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN"
    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "this processor has no bfloat16 arithmetic"
    return None if dtype in (torch.float32, torch.bfloat16) else f"oneDNN packs no {dtype}"


def takes(*weights: Tensor) -> bool | str:
    """For `when=`: whether products with these weights run here; they are packed first where that is forced."""
    if (reason := why_not(weights[0].dtype)) is not None:
        return reason
    ready = all(isinstance(w, PackedWeight) for w in weights)
    return ready or forced_backend() == "cpu" or "the weight is not packed (the models do that)"


def packed(weight: Tensor, factor: float = 1.0) -> PackedWeight:
    """The weight as it is where it was packed with this factor, else packed now."""
    fits = isinstance(weight, PackedWeight) and weight.factor == factor
    return weight if fits else pack(weight, factor)  # type: ignore[return-value]


def product(
    x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: str = "none", residual: Tensor | None = None
) -> Tensor:
    """activation(x @ blocked^T + bias) + residual.

    Args:
        x: [.., K]; weight: [N, K] with its blocked copy; bias: [N] or None.
        activation: one of `FUSED`.
        residual: [.., N] or None.
    """
    shape = *x.shape[:-1], weight.shape[0]
    count = x.numel() // x.shape[-1]
    rows, added = _rows(x, count), None if residual is None else _rows(residual, count)
    if added is not None and activation == "none":
        y = torch.ops.mkldnn._linear_pointwise.binary(rows, added, weight.blocked, bias, "add")
        return y[:count].reshape(shape)
    attribute, algorithm = FUSED[activation]
    y = torch.ops.mkldnn._linear_pointwise(rows, weight.blocked, bias, attribute, [], algorithm)
    return (y if added is None else y + added)[:count].reshape(shape)


def _rows(x: Tensor, count: int) -> Tensor:
    """x as rows; a single one twice, for oneDNN sums 2048 products and more of one row in another order than of two."""
    rows = x.reshape(count, x.shape[-1])
    return rows.expand(2, -1).contiguous() if count == 1 else rows
