"""Weights packed once for the CPU, and their product with rows: in panels of columns for the own kernels, or blocked
for those of oneDNN.

Either is about twice as fast in float32 as `F.linear`, which does not reach oneDNN there. Our own run where there is
AVX-512, but for bfloat16 where there is AMX, too; with AVX2 they were 0.91 to 0.95 as fast as oneDNN's. There
quick_gelu comes exactly out of silu: quick_gelu(z) = silu(1.702 z) / 1.702, so a blocked weight may carry a factor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import native
from ..dispatch import PLAIN, forced_backend

QUICK_GELU = 1.702


class PackedWeight(Tensor):
    """A weight [N, K] with its packed copy: a plain tensor for all who do not look for it.

    Attributes:
        blocked: `factor` times the weight, opaque.
        factor: what the packed copy was multiplied by.
        fused: the activations that `product` has; what each of them is called there.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    blocked: Tensor
    factor: float
    fused: ClassVar[Mapping[str, Any]]

    def product(
        self, x: Tensor, bias: Tensor | None, activation: str = "none", residual: Tensor | None = None
    ) -> Tensor:
        """activation(x @ (factor weight)^T + bias) + residual.

        Args:
            x: [.., K], a dtype that the weight was packed for; bias: [N] or None.
            activation: one of `fused`.
            residual: [.., N] or None.
        """
        raise NotImplementedError


class PanelWeight(PackedWeight):
    """Panels of columns. Of 8-bit numbers (`int8.Int8Weight`) there are also `scale` and `sums`, [N] float32."""

    scale: Tensor | None = None
    sums: Tensor | None = None
    fused = {"none": 0, "quick_gelu": 1, "gelu": 2}

    def product(
        self, x: Tensor, bias: Tensor | None, activation: str = "none", residual: Tensor | None = None
    ) -> Tensor:
        y = native.kernels().linear_cpu(
            _lanes(x), *self._with(bias), self.fused[activation], _contiguous(residual, self.shape[0])
        )
        return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[1])

    def mlp(
        self,
        x: Tensor,
        bias: Tensor | None,
        activation: str,
        second: PanelWeight,
        second_bias: Tensor | None,
        residual: Tensor | None,
    ) -> Tensor:
        """second.product(self.product(x, bias, activation), second_bias, "none", residual), some rows at a time."""
        y = native.kernels().mlp_cpu(
            _lanes(x),
            *self._with(bias),
            self.fused[activation],
            *second._with(second_bias),
            _contiguous(residual, second.shape[0]),
        )
        return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[1])

    def _with(self, bias: Tensor | None) -> tuple[Any, ...]:
        """As the kernels take a layer."""
        return self.blocked, self.shape[0], self.sums, self.scale, bias if bias is None else bias.contiguous()


class BlockedWeight(PackedWeight):
    """The layout that oneDNN's kernels read."""

    # activation -> oneDNN's attribute and algorithm
    fused = {
        "none": ("none", ""),
        "gelu": ("gelu", "none"),
        "gelu_new": ("gelu", "tanh"),
        "relu": ("relu", ""),
        "silu": ("swish", ""),
    }

    def product(
        self, x: Tensor, bias: Tensor | None, activation: str = "none", residual: Tensor | None = None
    ) -> Tensor:
        shape = *x.shape[:-1], self.shape[0]
        count = x.numel() // x.shape[-1]
        rows, added = _rows(x, count), None if residual is None else _rows(residual, count)
        if added is not None and activation == "none":
            y = torch.ops.mkldnn._linear_pointwise.binary(rows, added, self.blocked, bias, "add")
            return y[:count].reshape(shape)
        attribute, algorithm = self.fused[activation]
        y = torch.ops.mkldnn._linear_pointwise(rows, self.blocked, bias, attribute, [], algorithm)
        return (y if added is None else y + added)[:count].reshape(shape)


PLAIN.update((PanelWeight, BlockedWeight))


def form(weight: Tensor) -> type[PackedWeight]:
    """How this weight is packed, or would be."""
    if isinstance(weight, PackedWeight):
        return type(weight)
    whole = math.prod(weight.shape[1:]) * weight.element_size() % 4 == 0  # lanes of 32 bits
    return PanelWeight if whole and weight.dtype in _own_dtypes() else BlockedWeight


def pack(weight: Tensor, factor: float = 1.0) -> PackedWeight:
    """Make the packed copy; the weight itself is shared, not copied.

    Args:
        weight: [N, K] or [N, ..] with K numbers each, float32 or bfloat16, on the CPU.
        factor: multiplied in, before the copy is rounded to the dtype.
    """
    kind = form(weight)
    scaled = (weight.detach() if factor == 1.0 else weight.detach() * factor).flatten(1).contiguous()
    packed = weight.detach().as_subclass(kind)
    if kind is PanelWeight:
        packed.blocked = native.kernels().pack_weight_cpu(scaled)
    else:
        packed.blocked = torch.ops.mkldnn._reorder_linear_weight(scaled, None)
    packed.factor = factor
    return packed


@functools.cache
def _own_dtypes() -> set[torch.dtype]:
    """The dtypes whose products are our own."""
    capability = "portable" if native.missing() else native.kernels().cpu_capability()
    if not capability.startswith("avx512"):
        return set()
    pairs = capability == "avx512_bf16" and not torch.cpu._is_amx_tile_supported()
    return {torch.float32, torch.bfloat16} if pairs else {torch.float32}


@functools.cache
def why_not(dtype: torch.dtype) -> str | None:
    """Why weights of this dtype cannot be packed here, or None."""
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN"
    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "this processor has no bfloat16 arithmetic"
    return None if dtype in (torch.float32, torch.bfloat16) else f"{dtype} is not packed, float32 and bfloat16 are"


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


def products(weights: Sequence[PackedWeight], x: Tensor, biases: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The product of each of three weights, packed in one way, with x and its bias."""
    panels = [w._with(bias) for w, bias in zip(weights, biases, strict=True) if isinstance(w, PanelWeight)]
    if not panels:
        return tuple(w.product(x, bias) for w, bias in zip(weights, biases, strict=True))
    found = native.kernels().qkv_cpu(_lanes(x), *(part for layer in panels for part in layer))
    return found if x.dim() == 2 else tuple(y.view(*x.shape[:-1], y.shape[1]) for y in found)


def _lanes(x: Tensor) -> Tensor:
    """x as rows of whole lanes of 32 bits."""
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 and rows.stride(0) * rows.element_size() % 4 == 0 else rows.contiguous()


def _contiguous(residual: Tensor | None, columns: int) -> Tensor | None:
    return residual if residual is None else residual.reshape(-1, columns).contiguous()


def _rows(x: Tensor, count: int) -> Tensor:
    """x as rows; a single one twice, for oneDNN sums 2048 products and more of one row in another order than of two."""
    rows = x.reshape(count, x.shape[-1])
    return rows.expand(2, -1).contiguous() if count == 1 else rows
