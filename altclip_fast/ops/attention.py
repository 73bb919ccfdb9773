"""Scaled dot-product attention over packed rows, over padded batches with a mask, and its probabilities.

    attention(q, k, v) = softmax(scale * q @ k^T + mask) @ v          for every sequence and head

Packed rows hold the sequences one after the other without padding: sequence b is rows
`cu_seqlens[b] : cu_seqlens[b + 1]`. A query that may look at no key gives zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import native
from ..dispatch import op
from . import checks


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    scale: float | None,
) -> None:
    checks.tensors("attention", q=q, k=k, v=v)
    checks.integers("attention", q.device, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    checks.shape("attention", "q", q, None, None, None)
    checks.shape("attention", "k", k, None, q.shape[1], q.shape[2])
    checks.shape("attention", "v", v, k.shape[0], k.shape[1], None)
    checks.shape("attention", "cu_seqlens_q", cu_seqlens_q, None)
    checks.shape("attention", "cu_seqlens_k", cu_seqlens_k, cu_seqlens_q.shape[0])
    batch = cu_seqlens_q.shape[0] - 1
    if batch < 0:
        raise ValueError("attention: cu_seqlens_q is empty; batch + 1 offsets are needed, the first of them 0")
    for name, longest, rows in (("max_seqlen_q", max_seqlen_q, q.shape[0]), ("max_seqlen_k", max_seqlen_k, k.shape[0])):
        if longest < 0 or batch * longest < rows:
            raise ValueError(f"attention: {name} is {longest}; {batch} sequences hold {rows} rows, so it is larger")


def _check_padded(q: Tensor, k: Tensor, mask: Tensor | None, name: str) -> None:
    checks.tensors(name, q=q, k=k)
    checks.shape(name, "q", q, None, None, None, None)
    checks.shape(name, "k", k, q.shape[0], None, q.shape[2], q.shape[3])
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: mask must be a Tensor or None, not {type(mask).__name__}")
    if mask.dtype is not torch.bool and not mask.is_floating_point():
        raise TypeError(f"{name}: mask is {checks.describe(mask)}; bool (True: may look) or floating (added) is needed")
    full = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    if mask.dim() != 4 or any(n not in (1, f) for n, f in zip(mask.shape, full, strict=True)):
        raise ValueError(f"{name}: mask is {checks.describe(mask)}; it must broadcast to {list(full)}")


def _check_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> None:
    _check_padded(q, k, mask, "masked_attention")
    checks.tensors("masked_attention", q=q, v=v)
    checks.shape("masked_attention", "v", v, k.shape[0], k.shape[1], k.shape[2], None)


def _check_weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None) -> None:
    _check_padded(q, k, mask, "attention_weights")


def _places(cu_seqlens: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The sequence and the position in it of every packed row."""
    row = torch.arange(rows, device=cu_seqlens.device)
    sequence = torch.bucketize(row, cu_seqlens[1:], right=True)
    return sequence, row - cu_seqlens[sequence]


def _pad(x: Tensor, places: tuple[Tensor, Tensor] | None, batch: int, longest: int) -> Tensor:
    """[T, heads, D] -> [B, heads, L, D], zeros behind each sequence. No places: all have the same length."""
    if places is None:
        return x.reshape(batch, longest, *x.shape[1:]).transpose(1, 2)
    padded = x.new_zeros(batch, longest, *x.shape[1:])
    return padded.index_put(places, x).transpose(1, 2)


def _lengths(cu_seqlens: Tensor) -> Tensor:
    return cu_seqlens[1:] - cu_seqlens[:-1]


def causal_mask(q_lengths: Tensor, k_lengths: Tensor, max_q: int, max_k: int) -> Tensor:
    """[B, 1, max_q, max_k] bool: the last query of a sequence is at its last key, and none looks ahead."""
    query = torch.arange(max_q, device=q_lengths.device)[:, None]
    key = torch.arange(max_k, device=q_lengths.device)[None, :]
    return key <= query + (k_lengths - q_lengths)[:, None, None, None]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, causal: bool = False) -> Tensor:
    """sdpa over [B, heads, L, D], except that a query with no key to look at gives zeros."""
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    blocked = ~mask if mask.dtype is torch.bool else mask == -torch.inf
    idle = blocked.all(-1, keepdim=True)
    mask = mask | idle if mask.dtype is torch.bool else mask.masked_fill(idle, 0).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).masked_fill(idle, 0)


@op(check=_check)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attention of packed rows; the rows of a sequence look at the keys of the same sequence only.

    Args:
        q: [Tq, heads, D]; k: [Tk, heads, D]; v: [Tk, heads, Dv], floating; views into packed qkv rows are fine.
        cu_seqlens_q, cu_seqlens_k: [B + 1] int32 or int64, from 0 to Tq and Tk, never falling.
        max_seqlen_q, max_seqlen_k: the longest sequence (or more).
        causal: a query looks at no later key. With fewer queries than keys they are the last ones.
        scale: of the scores; D ** -0.5 when None.

    Returns:
        [Tq, heads, Dv], contiguous. Rows whose sequence has no keys are zero.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit.

    Source: Dao et al., FlashAttention (arXiv 2205.14135), its variable-length form.
    """
    batch = cu_seqlens_q.shape[0] - 1
    rows_q, rows_k = q.shape[0], k.shape[0]
    if rows_q == 0 or rows_k == 0:
        return q.new_zeros(rows_q, q.shape[1], v.shape[2])
    places_q = None if rows_q == batch * max_seqlen_q else _places(cu_seqlens_q, rows_q)
    places_k = None if rows_k == batch * max_seqlen_k else _places(cu_seqlens_k, rows_k)
    if cu_seqlens_q is cu_seqlens_k:
        places_k = places_q
    # Padding lies behind the real keys, so among equal lengths the causal mask alone hides it.
    whole = places_k is None and (not causal or (places_q is None and max_seqlen_q == max_seqlen_k))
    mask = None
    if not whole and not (causal and cu_seqlens_q is cu_seqlens_k):
        q_lengths, k_lengths = _lengths(cu_seqlens_q), _lengths(cu_seqlens_k)
        mask = torch.arange(max_seqlen_k, device=q.device) < k_lengths[:, None, None, None]
        if causal:
            mask = mask & causal_mask(q_lengths, k_lengths, max_seqlen_q, max_seqlen_k)
    padded_q = _pad(q, places_q, batch, max_seqlen_q)
    padded_k = _pad(k, places_k, batch, max_seqlen_k)
    padded_v = _pad(v, places_k, batch, max_seqlen_k)
    out = _attend(padded_q, padded_k, padded_v, mask, scale, causal and mask is None).transpose(1, 2)
    return (out.reshape(rows_q, *out.shape[2:]) if places_q is None else out[places_q]).contiguous()


def _triton_takes(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> bool | str:
    if not (1 <= q.shape[2] <= 128 and 1 <= v.shape[2] <= 128):
        return f"heads of {q.shape[2]} and {v.shape[2]} columns; 1 to 128 are covered"
    return _kernels_take(q, rest[-1])


def _kernels_take(q: Tensor, scale: float | None) -> bool | str:
    if scale is not None and not 0 < scale < float("inf"):
        return f"scale is {scale}; a positive one is covered"
    return checks.kernel_dtype(q)


@attention.backend("triton", when=_triton_takes)
def _(*args: Any) -> Tensor:
    from ..kernels import attention

    return attention.attention(*args)


@attention.backward("triton")
def _(grads: Sequence[Tensor], *args: Any) -> Sequence[Tensor]:
    from ..kernels import attention

    return attention.attention_backward(grads[0], *args)


@attention.backend("cpu", when=lambda q, *rest: native.missing() or _kernels_take(q, rest[-1]))
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    scale: float | None,
) -> Tensor:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    try:
        return native.kernels().attention_cpu(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, scale)
    except RuntimeError as error:
        raise ValueError(f"attention: {error}") from error


@op(check=_check_masked)
def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """Attention of a padded batch under an explicit mask.

    Args:
        q: [B, Lq, heads, D]; k: [B, Lk, heads, D]; v: [B, Lk, heads, Dv], floating.
        mask: broadcast to [B, heads, Lq, Lk]; bool (True: may look) or floating (added to the scores); or None.
        scale: of the scores; D ** -0.5 when None.

    Returns:
        [B, Lq, heads, Dv], contiguous. A query with no key to look at gives zeros.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit.
    """
    return _attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, scale).transpose(1, 2).contiguous()


@op(check=_check_weights)
def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """The probabilities softmax(scale * q @ k^T + mask), for those who ask to see them.

    Args:
        q: [B, Lq, heads, D]; k: [B, Lk, heads, D], floating.
        mask: as in `masked_attention`.
        scale: of the scores; D ** -0.5 when None.

    Returns:
        [B, heads, Lq, Lk], the dtype of q; the softmax is computed in float32. A query with no key gives zeros.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1)) * scale
    if mask is None:
        return _softmax(scores).to(q.dtype)
    blocked = ~mask if mask.dtype is torch.bool else mask == -torch.inf
    scores = scores.masked_fill(blocked, -torch.inf) if mask.dtype is torch.bool else scores + mask
    idle = blocked.all(-1, keepdim=True)
    return _softmax(scores.masked_fill(idle, 0)).masked_fill(idle, 0).to(q.dtype)


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
