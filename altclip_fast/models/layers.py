"""The blocks that all towers are made of. They work on packed rows [T, hidden]; `Rows` says how these lie.

pre-norm layer (vision, CLIP text):   x = x + attention(norm1(x));   x = x + mlp(norm2(x))
post-norm layer (XLM-R):              x = norm1(x + attention(x));   x = norm2(x + mlp(x))
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..dispatch import forced_backend
from ..notices import warn_once
from ..ops.int8 import pack_int8
from ..ops.linear import ACTIVATION
from ..ops.packed import QUICK_GELU, PackedWeight, pack, why_not
from .rows import Rows


class LayerNorm(nn.LayerNorm):
    """`ops.layer_norm` with its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """layer_norm(x + residual)"""
        return ops.add_layer_norm(x, residual, self.weight, self.bias, self.eps)[1]


class Linear(nn.Linear):
    """`ops.linear` with its parameters; they are initialised by the model.

    On a CPU it keeps a packed copy of its weight, made by the first call without gradients. The weight itself stays
    what it is, often pages mapped from a file, which the system can drop.

    Attributes:
        int8: the packed copy holds 8-bit numbers; see `quantization`.
    """

    int8 = False

    def reset_parameters(self) -> None:
        self._kept: _Kept | None = None

    def forward(self, x: Tensor, activation: str = "none", residual: Tensor | None = None) -> Tensor:
        return ops.linear(x, self.packed(), self.bias, activation, residual)

    def packed(self, factor: float = 1.0) -> Tensor:
        """The weight as an op should get it: packed, times `factor`, where that is faster; else as it is."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or (torch.is_grad_enabled() and not self.int8):
            if self.int8:
                warn_once("int8-traced", "int8 weights are not used in compiled or traced code: it computes in floats")
            return self.weight
        if not _packs(self.weight, self.int8):
            return self.weight
        kept = self._kept
        if self.int8:
            factor = 1.0  # the epilogue has the activations themselves
        if kept is None or kept.packed.factor != factor or not kept.fits(self.weight):
            make = pack_int8 if self.int8 else partial(pack, factor=factor)
            kept = self._kept = _Kept.of(self.weight, make)
        return kept.packed

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._kept = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._kept = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


class _Kept(NamedTuple):
    """A packed weight, and how to tell that the weight is still the one that was packed."""

    packed: PackedWeight
    address: int
    version: int
    probe: Tensor  # some of the weight's values: a fused optimiser changes them without touching the version

    @classmethod
    def of(cls, weight: Tensor, make: Callable[[Tensor], PackedWeight]) -> _Kept:
        return cls(make(weight), weight.data_ptr(), weight._version, _probe(weight).clone())

    def fits(self, weight: Tensor) -> bool:
        same = self.address == weight.data_ptr() and self.version == weight._version
        return same and torch.equal(_probe(weight), self.probe)


def _probe(weight: Tensor) -> Tensor:
    flat = weight.detach().view(-1)
    return flat[:: max(1, flat.numel() // 64)]


def _packs(weight: Tensor, int8: bool) -> bool:
    plain = type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.is_contiguous()
    wanted = forced_backend() in (None, "cpu")
    return plain and wanted and weight.numel() > 0 and (int8 or why_not(weight.dtype) is None)


def affine(layer: nn.Module, x: Tensor, activation: str = "none", residual: Tensor | None = None) -> Tensor:
    """`layer` with its epilogue: fused where it is a `Linear`, spelled out where it was replaced or wrapped (LoRA)."""
    if is_plain(layer):
        return layer(x, activation, residual)
    y = ACTIVATION[activation](layer(x))
    return y if residual is None else y + residual


def is_plain(layer: nn.Module) -> bool:
    """Nothing but its weight and bias decides what the layer does."""
    return type(layer) is Linear and not (layer._forward_hooks or layer._forward_pre_hooks)


def embedding(rows: int, hidden: int, padding_idx: int | None = None) -> nn.Embedding:
    """A table to be initialised by the model."""
    return nn.Embedding(rows, hidden, padding_idx, _weight=torch.empty(rows, hidden))


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        hidden: width, a multiple of `heads`.
        dropout: of the probabilities, in training.
    """

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_dim, self.dropout = heads, hidden // heads, dropout
        self.scale = self.head_dim**-0.5
        self.query = Linear(hidden, hidden)
        self.key = Linear(hidden, hidden)
        self.value = Linear(hidden, hidden)
        self.output = Linear(hidden, hidden)

    def forward(
        self,
        x: Tensor,
        rows: Rows,
        residual: Tensor | None = None,
        select: Tensor | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Attend, project, add.

        Args:
            x: [T, hidden].
            residual: [T, hidden] added to the result ([B, hidden] with `select`).
            select: [B] rows, one a sequence, that are the only queries; packed rows only.
            weights: dense rows only: gets the probabilities [B, heads, S, S].
        """
        q = self.query(x if select is None else x[select]).view(-1, self.heads, self.head_dim)
        k = self.key(x).view(-1, self.heads, self.head_dim)
        v = self.value(x).view(-1, self.heads, self.head_dim)
        if rows.cu_seqlens is None:
            context = self._dense(q, k, v, rows, weights)
        elif select is None:
            context = ops.attention(
                q, k, v, rows.cu_seqlens, rows.cu_seqlens, rows.max_seqlen, rows.max_seqlen, rows.causal, self.scale
            )
        else:
            one_each = torch.arange(rows.batch + 1, dtype=torch.int32, device=x.device)
            context = ops.attention(q, k, v, one_each, rows.cu_seqlens, 1, rows.max_seqlen, False, self.scale)
        return affine(self.output, context.flatten(1), residual=residual)

    def _dense(self, q: Tensor, k: Tensor, v: Tensor, rows: Rows, weights: list[Tensor] | None) -> Tensor:
        q, k, v = (t.view(rows.batch, rows.length, self.heads, self.head_dim) for t in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        if weights is None and dropout == 0.0:
            return ops.masked_attention(q, k, v, rows.mask, self.scale).flatten(0, 1)
        found = ops.attention_weights(q, k, rows.mask, self.scale)
        found = F.dropout(found, dropout, self.training)
        if weights is not None:
            weights.append(found)
        return torch.matmul(found.to(v.dtype), v.transpose(1, 2)).transpose(1, 2).flatten(0, 1)


class Mlp(nn.Module):
    """`ops.mlp` with its parameters."""

    def __init__(self, hidden: int, intermediate: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = Linear(hidden, intermediate)
        self.fc2 = Linear(intermediate, hidden)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if not (is_plain(self.fc1) and is_plain(self.fc2)):
            return affine(self.fc2, affine(self.fc1, x, self.activation), residual=residual)
        factor = QUICK_GELU if self.activation == "quick_gelu" else 1.0
        w1, w2 = self.fc1.packed(factor), self.fc2.packed(1 / factor)
        return ops.mlp(x, w1, self.fc1.bias, w2, self.fc2.bias, self.activation, residual)


class PreNormLayer(nn.Module):
    """One layer of the vision tower and of CLIP's text tower."""

    def __init__(
        self, hidden: int, heads: int, intermediate: int, activation: str, eps: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(hidden, eps)
        self.attention = Attention(hidden, heads, attention_dropout)
        self.norm2 = LayerNorm(hidden, eps)
        self.mlp = Mlp(hidden, intermediate, activation)

    def forward(
        self, x: Tensor, rows: Rows, select: Tensor | None = None, weights: list[Tensor] | None = None
    ) -> Tensor:
        residual = x if select is None else x[select]
        x = self.attention(self.norm1(x), rows, residual, select, weights)
        return self.mlp(self.norm2(x), x)


class PostNormLayer(nn.Module):
    """One layer of XLM-R. With `chunk_size` the MLP takes that many rows at a time (less memory, equal results)."""

    def __init__(
        self,
        hidden: int,
        heads: int,
        intermediate: int,
        activation: str,
        eps: float,
        attention_dropout: float,
        hidden_dropout: float,
        chunk_size: int,
    ) -> None:
        super().__init__()
        self.attention = Attention(hidden, heads, attention_dropout)
        self.norm1 = LayerNorm(hidden, eps)
        self.mlp = Mlp(hidden, intermediate, activation)
        self.norm2 = LayerNorm(hidden, eps)
        self.dropout, self.chunk_size = hidden_dropout, chunk_size

    def forward(
        self, x: Tensor, rows: Rows, select: Tensor | None = None, weights: list[Tensor] | None = None
    ) -> Tensor:
        residual = x if select is None else x[select]
        found = self.attention(x, rows, None, select, weights)
        x = self.norm1.add(F.dropout(found, self.dropout, self.training), residual)
        parts = x.split(self.chunk_size) if self.chunk_size else (x,)
        found = torch.cat([self.mlp(part) for part in parts]) if len(parts) > 1 else self.mlp(x)
        return self.norm2.add(F.dropout(found, self.dropout, self.training), x)
