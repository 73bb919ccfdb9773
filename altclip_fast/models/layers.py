"""The blocks that all towers are made of. They work on packed rows [T, hidden]; `Rows` says how these lie.

pre-norm layer (vision, CLIP text):   x = x + attention(norm1(x));   x = x + mlp(norm2(x))
post-norm layer (XLM-R):              x = norm1(x + attention(x));   x = norm2(x + mlp(x))
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..dispatch import forced_backend
from ..ops import int8
from ..ops.linear import ACTIVATION
from ..ops.packed import QUICK_GELU, BlockedWeight, PackedWeight, form, pack, why_not
from .rows import Rows
from .stamp import Mark, mark, probe


class LayerNorm(nn.LayerNorm):
    """`ops.layer_norm` with its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """layer_norm(x + residual)"""
        return ops.add_layer_norm(x, residual, self.weight, self.bias, self.eps)[1]


class Linear(nn.Linear):
    """`ops.linear` with its parameters; they are initialised by the model.

    On a CPU it keeps a packed copy of its weight, made by the first call that records no gradients. The weight itself
    stays what it is, often pages mapped from a file, which the system can drop.

    After `use_int8` the weight holds 8-bit numbers, and `weight_scale` [out_features] what each of their rows is
    multiplied by. Where the kernel cannot run (gradients, a compiler, another backend) they are turned into floats.
    With `packs_int8` the weight stays what it is, and its packed copy is of such numbers.
    """

    weight_scale: Tensor | None
    packs_int8 = False

    def reset_parameters(self) -> None:
        self._kept: _Kept | None = None
        self.register_buffer("weight_scale", None)

    def use_int8(self) -> None:
        """Replace the weight by 8-bit numbers; on the meta device, by places for them."""
        if self.weight.is_meta:
            numbers, scale = torch.empty_like(self.weight, dtype=torch.int8), self.weight.new_empty(self.out_features)
        else:
            numbers, scale = int8.quantize_weight(self.weight)
        self._kept = None
        self.weight = nn.Parameter(numbers, requires_grad=False)
        self.weight_scale = scale.float()

    def forward(self, x: Tensor, activation: str = "none", residual: Tensor | None = None) -> Tensor:
        return ops.linear(x, self.packed(x), self.bias, activation, residual)

    def packed(self, x: Tensor, factor: float = 1.0) -> Tensor:
        """The weight as an op should get it for x: packed, times `factor`, where that is faster; else as it is."""
        ready = None if self._records(x) or not packing() else self.pack(factor)
        if ready is not None:
            return ready
        weight, scale = self.weight, self.weight_scale
        return weight if scale is None else (weight * scale[:, None]).to(x.dtype)

    def pack(self, factor: float = 1.0) -> PackedWeight | None:
        """The packed copy, made where it is not there or of other values; None where the weight has none."""
        weight, kept = self._parameters["weight"], self._kept  # an attribute of a module takes long to be found
        assert weight is not None
        if kept is not None and kept.fits(weight, factor):
            return kept.packed
        if not self._can_pack():
            return None
        if self.weight_scale is not None or self.packs_int8 or form(weight) is not BlockedWeight:
            factor = 1.0  # the epilogue of our own products has the activations themselves
        self._kept = kept = _Kept.of(weight, self._pack(factor))  # another thread may drop it
        return kept.packed

    def _records(self, x: Tensor) -> bool:
        """Autograd may need the weight itself."""
        if not torch.is_grad_enabled():
            return False
        tensors = (x, self.weight) if self.bias is None else (x, self.weight, self.bias)
        return any(t.requires_grad for t in tensors)

    def _can_pack(self) -> bool:
        weight = self.weight
        if not (type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.is_contiguous()):
            return False
        eight_bit = self.packs_int8 or weight.dtype is torch.int8
        reason = int8.why_not(weight.shape[1]) if eight_bit else why_not(weight.dtype)
        return weight.numel() > 0 and reason is None

    def _pack(self, factor: float) -> PackedWeight:
        if self.weight_scale is not None:
            return int8.pack_int8(self.weight, self.weight_scale)
        if self.packs_int8:
            return int8.pack_int8(*int8.quantize_weight(self.weight))
        return pack(self.weight, factor)

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._kept = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._kept = None
        exact = self.weight_scale
        super()._apply(fn, recurse)
        if exact is not None and self.weight_scale is not None and self.weight_scale.dtype is not exact.dtype:
            self.weight_scale = exact.to(self.weight_scale.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


class _Kept(NamedTuple):
    """A packed weight, and how to tell that the weight is still the one that was packed."""

    packed: PackedWeight
    mark: Mark
    probe: Tensor  # a view of the weight, as long as the mark is the same
    values: Tensor  # that it had

    @classmethod
    def of(cls, weight: Tensor, packed: PackedWeight) -> _Kept:
        some = probe(weight)
        return cls(packed, mark(weight), some, some.clone())

    def fits(self, weight: Tensor, factor: float) -> bool:
        if type(self.packed) is BlockedWeight and self.packed.factor != factor:
            return False
        return self.mark == mark(weight) and torch.equal(self.probe, self.values)


def packing() -> bool:
    """Packed weights are of use now."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not tracing and forced_backend() in (None, "cpu")


def affine(layer: nn.Module, x: Tensor, activation: str = "none", residual: Tensor | None = None) -> Tensor:
    """`layer` with its epilogue: fused where it is a `Linear`, spelled out where it was replaced or wrapped (LoRA)."""
    if is_plain(layer):
        return layer(x, activation, residual)
    y = ACTIVATION[activation](layer(x))
    return y if residual is None else y + residual


def is_plain(module: nn.Module, kind: type[nn.Module] = Linear) -> bool:
    """Nothing but its parameters decides what the module does."""
    state = module.__dict__
    return type(module) is kind and not (state["_forward_hooks"] or state["_forward_pre_hooks"] or "forward" in state)


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
        q, k, v = (t.view(-1, self.heads, self.head_dim) for t in self._project(x, select))
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

    def _project(self, x: Tensor, select: Tensor | None) -> tuple[Tensor, ...]:
        layers = self.query, self.key, self.value
        if select is not None or not all(is_plain(layer) for layer in layers):
            return self.query(x if select is None else x[select]), self.key(x), self.value(x)
        return ops.qkv(x, *(part for layer in layers for part in (layer.packed(x), layer.bias)))

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
        self.factor = QUICK_GELU if activation == "quick_gelu" else 1.0  # of a weight that is packed for oneDNN
        self.fc1 = Linear(hidden, intermediate)
        self.fc2 = Linear(intermediate, hidden)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        fc1, fc2 = self.fc1, self.fc2
        if not (is_plain(fc1) and is_plain(fc2)):
            return affine(fc2, affine(fc1, x, self.activation), residual=residual)
        w1, w2 = fc1.packed(x, self.factor), fc2.packed(x, 1 / self.factor)
        return ops.mlp(x, w1, fc1.bias, w2, fc2.bias, self.activation, residual)


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
