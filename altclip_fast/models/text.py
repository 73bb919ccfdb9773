"""What the text towers share: checking the inputs, finding the pooled token, and packing the real tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import AltCLIPTextConfig, CLIPTextConfig
from .rows import Rows, dense_rows, packed_rows
from .tower import Tower


@dataclass
class Facts:
    """Integers that the host has to know about a batch, gathered on its device and read back at once."""

    names: list[str] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)

    def add(self, name: str, values: Tensor) -> None:
        self.names.append(name)
        self.tensors.append(values.reshape(-1).long())

    def span(self, name: str, values: Tensor | None) -> None:
        """The least and the greatest of `values`."""
        if values is not None and values.numel():
            self.add(name, torch.stack(torch.aminmax(values)))

    def read(self) -> dict[str, list[int]]:
        numbers = torch.cat(self.tensors).tolist() if self.tensors else []
        found, start = {}, 0
        for name, tensor in zip(self.names, self.tensors, strict=True):
            found[name] = numbers[start : start + tensor.numel()]
            start += tensor.numel()
        return found


@dataclass
class Tokens:
    """Texts as the layers take them: one id, position and type a row.

    Attributes:
        ids, positions: [T]; types: [T], or None where the tower has none.
        rows: where they lie.
    """

    ids: Tensor
    positions: Tensor
    types: Tensor | None
    rows: Rows

    def to(self, device: torch.device) -> Tokens:
        """These tokens on another device; the host does not wait for the copies."""
        ids, positions = (x.to(device, non_blocking=True) for x in (self.ids, self.positions))
        types = None if self.types is None else self.types.to(device, non_blocking=True)
        return Tokens(ids, positions, types, self.rows.to(device))


def host_can_read(tensor: Tensor) -> bool:
    """Whether values may be read back: not while compiling, tracing, on meta, or in a graph capture."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or tensor.is_meta:
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


class TextTower(Tower):
    """Base of the text towers."""

    causal: bool
    config: AltCLIPTextConfig | CLIPTextConfig

    @property
    def max_tokens(self) -> int:
        """Tokens that a text may have, the special ones included."""
        return self.config.max_position_embeddings

    def tokens(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tokens:
        """Texts, checked and packed where they lie: those on the host without waiting for the model's device.

        Args:
            input_ids, attention_mask: as in `forward`, but for the device, which is the same for both.
        """
        raise NotImplementedError

    def pooled_of(self, tokens: Tokens) -> Tensor:
        """The pooled output of `tokens`, which are on the model's device: [B, ..], the cheapest way to an embedding."""
        raise NotImplementedError

    def plan(
        self,
        batch: int,
        length: int,
        visible: Tensor | None,
        mask: Tensor | None,
        pooled: Tensor,
        facts: Facts,
        *,
        dense: bool,
        pooled_only: bool,
    ) -> tuple[Rows, dict[str, list[int]]]:
        """Choose the rows to compute, and read the facts back.

        Args:
            visible: [B, S] bool, the tokens of the attention mask, or None for all.
            mask: the caller's 4-D mask, or None.
            pooled: [B] position of the pooled token.
            facts: what else has to come to the host with the lengths.
            dense: packing cannot serve this call.
            pooled_only: nothing but the pooled token will be read.
        """
        if not host_can_read(pooled):
            return dense_rows(visible, pooled, batch, length, self.causal, mask), {}
        place = torch.arange(length, device=pooled.device)
        rows = torch.ones(batch, length, dtype=torch.bool, device=pooled.device) if visible is None else visible
        later = place > pooled[:, None]
        if pooled_only and self.causal and not dense:
            rows = rows & ~later  # no later token reaches the pooled one
        if batch:
            facts.add("lengths", rows.sum(1))
            facts.add("pooled hidden", (rows.gather(1, pooled[:, None]) == 0).sum())
            facts.add("after pooled", (rows & later).sum())
            if visible is not None:
                facts.add("visible", visible.sum(1))
        read = facts.read()
        for row, count in enumerate(read.get("visible", ())):
            if count == 0:
                raise ValueError(f"attention_mask of text {row} is all zeros: a text needs at least one token")
        if dense or mask is not None or read.get("pooled hidden", [0])[0]:
            return dense_rows(visible, pooled, batch, length, self.causal, mask), read
        last = not self.causal or read.get("after pooled", [0])[0] == 0
        return packed_rows(rows, pooled, read.get("lengths", []), self.causal, last), read

    def split_mask(
        self, attention_mask: Tensor | None, batch: int, length: int, device: torch.device
    ) -> tuple[Tensor | None, Tensor | None]:
        """An attention mask as ([B, S] bool or None, 4-D or None), checked."""
        if attention_mask is None:
            return None, None
        self.check_tensor("attention_mask", attention_mask, device)
        if attention_mask.dim() == 4:
            shape = tuple(attention_mask.shape)
            heads = self.config.num_attention_heads
            fits = shape[0] in (1, batch) and shape[1] in (1, heads) and shape[2] in (1, length) and shape[3] == length
            if not fits:
                raise ValueError(f"attention_mask has shape {list(shape)}; [{batch}, 1, {length}, {length}] is needed")
            return None, attention_mask
        if tuple(attention_mask.shape) != (batch, length):
            raise ValueError(
                f"attention_mask has shape {list(attention_mask.shape)}; the texts are [{batch}, {length}]"
            )
        return attention_mask != 0, None

    def check_tensor(self, name: str, value: Tensor, device: torch.device) -> None:
        """It is a tensor on this device."""
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a Tensor, not {type(value).__name__}; pass return_tensors='pt'")
        if value.device != device:
            raise ValueError(f"{name} is on {value.device}, the model on {self.device}; move one of them")

    def check_ids(
        self, name: str, ids: Tensor, device: torch.device, batch: int | None = None, length: int | None = None
    ) -> None:
        """It is an integer tensor [batch, length], or [1, length] where the batch is known."""
        self.check_tensor(name, ids, device)
        if ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} has dtype {str(ids.dtype).removeprefix('torch.')}; int64 or int32 is needed")
        if ids.dim() != 2 or (batch is not None and (ids.shape[0] not in (1, batch) or ids.shape[1] != length)):
            wanted = "[batch, length]" if batch is None else f"[{batch}, {length}]"
            raise ValueError(f"{name} has shape {list(ids.shape)}; {wanted} is needed")
        if ids.shape[1] == 0:
            raise ValueError(f"{name} has shape {list(ids.shape)}: a text needs at least one token")

    @staticmethod
    def check_span(name: str, read: dict[str, list[int]], limit: int, what: str) -> None:
        """The ids named `name`, as read back, index a table of `limit` rows."""
        for value in read.get(name, ()):
            if not 0 <= value < limit:
                raise ValueError(f"{name} contains {value}; {what} allows 0 to {limit - 1}")
