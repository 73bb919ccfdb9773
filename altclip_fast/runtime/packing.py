"""Packed texts in one tensor: what goes to the device, and what a graph of texts reads.

    ids [rows], positions [rows], offsets of the sequences [texts + 1], row of each pooled token [texts]

The rows behind the last text are padding. They are sequences of their own, which nobody looks at, so each real row gets
what it gets without them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..models.rows import Rows
from ..models.text import Tokens
from .buckets import TextBucket


def text_lengths(tokens: Tokens) -> list[int]:
    """Rows of each of the packed texts, which are on the host."""
    assert tokens.rows.cu_seqlens is not None
    return tokens.rows.cu_seqlens.diff().tolist()


def pack(tokens: Tokens, start: int, stop: int, bucket: TextBucket, pinned: bool) -> Tensor:
    """The texts from `start` to `stop`, padded to `bucket`: int32, on the host."""
    packed = torch.empty(sum(_sizes(bucket)), dtype=torch.int32, pin_memory=pinned)
    ids, positions, offsets, pooled = packed.split(_sizes(bucket))
    assert tokens.rows.cu_seqlens is not None
    bounds = tokens.rows.cu_seqlens[start : stop + 1]
    first, last = int(bounds[0]), int(bounds[-1])
    for whole, own in ((ids, tokens.ids), (positions, tokens.positions)):
        whole[: last - first] = own[first:last]
        whole[last - first :] = own[first]
    count = stop - start
    offsets[: count + 1] = bounds - first
    padding = torch.arange(1, bucket.texts - count + 1, dtype=torch.int32) * bucket.longest
    offsets[count + 1 :] = (padding + (last - first)).clamp(max=bucket.rows)
    pooled[:count] = tokens.rows.pooled[start:stop] - first
    pooled[count:] = 0
    return packed


def compute_packed(compute: Callable[[Tokens], Tensor], bucket: TextBucket, like: Tokens, packed: Tensor) -> Tensor:
    """`compute` of the texts in `packed`, which is on the device; [bucket.texts, ..].

    Args:
        like: the tokens that were packed, for what is the same in all texts of a model.
    """
    ids, positions, offsets, pooled = packed.split(_sizes(bucket))
    types = None if like.types is None else torch.zeros_like(ids)
    rows = Rows(bucket.texts, bucket.longest, pooled, offsets, bucket.longest, causal=like.rows.causal)
    return compute(Tokens(ids, positions, types, rows))


def _sizes(bucket: TextBucket) -> list[int]:
    return [bucket.rows, bucket.rows, bucket.texts + 1, bucket.texts]
