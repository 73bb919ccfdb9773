"""Weights as 8-bit numbers with a scale for each output, and their product with rows that are quantised as they come.

    x[m] = low[m] + step[m] * values[m]      256 steps between the least and the largest number of a row
    w[n] = scale[n] * numbers[n]             -127 to 127

Sums are exact in 32 bits, so a row has the same bits whatever it is batched with (Jacob et al., arXiv 1712.05877;
a scale for each row and each output, as in ZeroQuant, Yao et al., arXiv 2206.01861).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from ..dispatch import PLAIN
from .packed import PackedWeight

FUSED = {"none": 0, "quick_gelu": 1, "gelu": 2}


class Int8Weight(PackedWeight):
    """A weight [N, K] of 8-bit numbers, packed.

    Attributes:
        blocked: the numbers in panels of columns, opaque.
        scale, sums: [N] float32; of the numbers of each output.
    """

    scale: Tensor
    sums: Tensor


PLAIN.add(Int8Weight)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest 8-bit weight.

    Args:
        weight: [N, K], floating.

    Returns:
        (numbers [N, K] int8, scale [N] float32). A row of zeros has scale 0.
    """
    wide = weight.detach().float()
    largest = wide.abs().amax(1)
    inverse = torch.where(largest > 0, 127 / largest, 0)
    return (wide * inverse[:, None]).round().to(torch.int8), largest / 127


def pack_int8(numbers: Tensor, scale: Tensor) -> Int8Weight:
    """Pack what `quantize_weight` gives; the numbers are shared, not copied. On the CPU, K a multiple of 4."""
    packed = numbers.detach().as_subclass(Int8Weight)
    packed.blocked = native.kernels().pack_int8_cpu(packed)
    packed.factor = 1.0
    packed.scale, packed.sums = scale, numbers.sum(1, dtype=torch.int32).float()
    return packed


def in_floats(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as it is, or made out of its 8-bit numbers."""
    return (weight * weight.scale[:, None]).to(dtype) if isinstance(weight, Int8Weight) else weight


def why_not(columns: int) -> str | None:
    """Why rows of so many 8-bit numbers cannot be multiplied here, or None."""
    return native.missing() or (f"rows of {columns} numbers are no multiple of 4" if columns % 4 else None)


def product(
    x: Tensor, weight: Int8Weight, bias: Tensor | None, activation: str = "none", residual: Tensor | None = None
) -> Tensor:
    """activation(x @ w^T + bias) + residual with both operands of 8 bits.

    Args:
        x: [.., K], float32, bfloat16 or float16: the dtype of bias, residual and the result.
        bias: [N] or None. activation: one of `FUSED`. residual: [.., N] or None.
    """
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    kernels = native.kernels()
    values, ranges = kernels.quantize_cpu(rows)
    out = rows.new_empty(rows.shape[0], weight.shape[0])
    residual = residual if residual is None else residual.reshape(out.shape).contiguous()
    bias = bias if bias is None else bias.contiguous()
    kernels.int8_linear_cpu(
        values, ranges, weight.blocked, weight.sums, weight.scale, bias, FUSED[activation], residual, out
    )
    return out.view(*x.shape[:-1], out.shape[1])
