"""The blocks that all towers are made of. They work on packed rows [T, hidden]; `Rows` says how these lie.

pre-norm layer (vision, CLIP text):   x = x + attention(norm1(x));   x = x + mlp(norm2(x))
post-norm layer (XLM-R):              x = norm1(x + attention(x));   x = norm2(x + mlp(x))
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.linear import ACTIVATION
from .rows import Rows


class LayerNorm(nn.LayerNorm):
    """`ops.layer_norm` with its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """layer_norm(x + residual)"""
        return ops.add_layer_norm(x, residual, self.weight, self.bias, self.eps)[1]


class Linear(nn.Linear):
    """`ops.linear` with its parameters; they are initialised by the model."""

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor, activation: str = "none", residual: Tensor | None = None) -> Tensor:
        return ops.linear(x, self.weight, self.bias, activation, residual)


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
        return ops.mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, self.activation, residual)


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
