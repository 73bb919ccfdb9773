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
from .packed import PanelWeight


class Int8Weight(PanelWeight):
    """A weight [N, K] of 8-bit numbers; its product takes float32, bfloat16 and float16.

    Attributes:
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
    packed.blocked = native.kernels().pack_weight_cpu(numbers)
    packed.factor = 1.0
    packed.scale, packed.sums = scale, numbers.sum(1, dtype=torch.int32).float()
    return packed


def in_floats(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as it is, or made out of its 8-bit numbers."""
    return (weight * weight.scale[:, None]).to(dtype) if isinstance(weight, Int8Weight) else weight


def why_not(columns: int) -> str | None:
    """Why rows of so many 8-bit numbers cannot be multiplied here, or None."""
    return native.missing() or (f"rows of {columns} numbers are no multiple of 4" if columns % 4 else None)
