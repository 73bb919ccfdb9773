"""Which rows an encoder computes: a padded batch without its padding.

Text is packed, `[total_tokens, hidden]` with offsets per sequence, from the embedding to the pooled token, so that
padding is never computed. A batch stays padded ("dense", with an explicit mask) where packing cannot serve: while
compiling, for attention probabilities and their dropout, under a 4-D mask, and when a pooled token is masked out.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Rows:
    """The computed rows of a batch of `batch` sequences, padded to `length`.

    Attributes:
        cu_seqlens: [batch + 1] int32, the packed sequences' offsets; None when dense.
        max_seqlen: of the packed sequences.
        index: [T] place of each row in the flattened padded batch; None when every place is a row.
        mask: dense only: bool or floating, broadcast to [batch, heads, length, length]; None: all look at all.
        keep: dense only: [batch, length] bool, the rows that are not padding; None: all of them.
        pooled: [batch] the row of each sequence's pooled token.
        causal: packed only: a row looks at no later row.
        pooled_last: no row of a sequence comes after its pooled one.
    """

    batch: int
    length: int
    pooled: Tensor
    cu_seqlens: Tensor | None = None
    max_seqlen: int = 0
    index: Tensor | None = None
    mask: Tensor | None = None
    keep: Tensor | None = None
    causal: bool = False
    pooled_last: bool = True

    @property
    def dense(self) -> bool:
        return self.cu_seqlens is None

    def to(self, device: torch.device) -> Rows:
        """These rows on another device; the host does not wait for the copies."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {n: x.to(device, non_blocking=True) for n, x in given.items() if isinstance(x, Tensor)}
        return replace(self, **moved)

    def pack(self, padded: Tensor) -> Tensor:
        """[batch, length, ..] -> [T, ..]"""
        flat = padded.flatten(0, 1)
        return flat if self.index is None else flat[self.index]

    def unpack(self, rows: Tensor) -> Tensor:
        """[T, ..] -> [batch, length, ..], zeros where nothing was computed."""
        if self.index is not None:
            padded = rows.new_zeros(self.batch * self.length, *rows.shape[1:])
            rows = padded.index_copy(0, self.index, rows)
        padded = rows.reshape(self.batch, self.length, *rows.shape[1:])
        return padded if self.keep is None else padded * self.keep.unsqueeze(-1)


def whole_rows(batch: int, length: int, device: torch.device, dense: bool = False) -> Rows:
    """Sequences of one length without padding, pooled at their first row: images."""
    pooled = torch.arange(0, batch * length, length, device=device)
    if dense:
        return Rows(batch, length, pooled)
    cu_seqlens = torch.arange(0, batch * length + 1, length, device=device, dtype=torch.int32)
    return Rows(batch, length, pooled, cu_seqlens, length)


def dense_rows(
    visible: Tensor | None, pooled: Tensor, batch: int, length: int, causal: bool, mask: Tensor | None = None
) -> Rows:
    """Every place of the padded batch is a row.

    Args:
        visible: [batch, length] bool, the keys that may be looked at, or None for all.
        pooled: [batch] the pooled position of each sequence.
        mask: a caller's own 4-D mask, which replaces both `visible` and `causal`.
    """
    device = pooled.device
    rows = torch.arange(batch, device=device) * length + pooled
    if mask is not None:
        return Rows(batch, length, rows, mask=mask if mask.is_floating_point() else mask.bool())
    if visible is not None:
        mask = visible[:, None, None, :]
    if causal:
        ahead = torch.ones(1, 1, length, length, dtype=torch.bool, device=device).tril()
        mask = ahead if mask is None else mask & ahead
    keep = None
    if visible is not None:
        keep = visible | (torch.arange(length, device=device) == pooled[:, None])
    return Rows(batch, length, rows, mask=mask, keep=keep)


def packed_rows(visible: Tensor, pooled: Tensor, lengths: list[int], causal: bool, pooled_last: bool) -> Rows:
    """The visible places only; every pooled position has to be one of them.

    Args:
        visible: [batch, length] bool.
        pooled: [batch] the pooled position of each sequence.
        lengths: visible places of each sequence, known to the host.
    """
    batch, length = visible.shape
    total = sum(lengths)
    cu_seqlens = F.pad(visible.sum(1).cumsum(0), (1, 0))
    before = torch.arange(length, device=visible.device) < pooled[:, None]
    rows = cu_seqlens[:-1] + (visible & before).sum(1)
    index = None if total == batch * length else torch.nonzero_static(visible.flatten(), size=total).squeeze(1)
    return Rows(
        batch,
        length,
        rows,
        cu_seqlens.to(torch.int32),
        max(lengths, default=0),
        index,
        causal=causal,
        pooled_last=pooled_last,
    )
