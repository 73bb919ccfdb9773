"""Rows of text to `tokenizers` encodings of the right length. The Rust tokenizer is only read, never set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding, Tokenizer

from .truncation import Lengths, looks_short, safe_prefix, truncate


@dataclass(frozen=True)
class RowEncoder:
    """How to encode the rows of one call.

    Attributes:
        backend: the Rust tokenizer.
        lengths: truncation; padding is the caller's.
        add_special_tokens, is_pretokenized: as in `tokenizers`.
        keep_overflow: what truncation cuts off stays reachable as `overflowing`.
        prefix_is_safe: `safe_prefix` may shorten texts.
    """

    backend: Tokenizer
    lengths: Lengths
    add_special_tokens: bool
    is_pretokenized: bool
    keep_overflow: bool
    prefix_is_safe: bool

    def encode(self, rows: list[Any]) -> list[Encoding]:
        """One encoding per row; a row is a str, a list of words, or a pair of these.

        Raises:
            ValueError: truncation leaves no room for text.
        """
        if not rows:
            return []
        if self.lengths.truncation is None or self.lengths.max_length is None:
            return self.backend.encode_batch(rows, **self._how)
        return self._encode_truncated(rows, self.lengths.max_length)

    @property
    def _how(self) -> dict[str, bool]:
        return {"add_special_tokens": self.add_special_tokens, "is_pretokenized": self.is_pretokenized}

    def _encode_truncated(self, rows: list[Any], limit: int) -> list[Encoding]:
        self.lengths.check_room(self._special(any(isinstance(row, tuple) for row in rows)))
        read = [self._shortened(row, limit) for row in rows]
        encodings: dict[int, Encoding] = {}
        short = [i for i, row in enumerate(read) if looks_short(row, limit)]
        for i, encoding in zip(short, self.backend.encode_batch([read[i] for i in short], **self._how), strict=True):
            if len(encoding) <= limit:
                encodings[i] = encoding
        rest = [i for i in range(len(rows)) if i not in encodings]
        cut = self._encode_and_cut([rows[i] for i in rest], [read[i] for i in rest], limit)
        encodings.update(zip(rest, cut, strict=True))
        return [encodings[i] for i in range(len(rows))]

    def _encode_and_cut(self, rows: list[Any], read: list[Any], limit: int) -> list[Encoding]:
        """Tokenise without special tokens, cut, and put the special tokens around; `read` may be shortened rows."""
        texts = [row if isinstance(row, tuple) else (row,) for row in read]
        how: Mapping[str, bool] = {**self._how, "add_special_tokens": False}
        parts = iter(self.backend.encode_batch([text for row in texts for text in row], **how))
        encodings = []
        for whole, row in zip(rows, texts, strict=True):
            first, second = next(parts), next(parts) if len(row) == 2 else None
            room = limit - self._special(second is not None)
            if isinstance(whole, str) and len(row[0]) < len(whole) and len(first) < room:
                first = self.backend.encode(whole, **how)
            first, second = truncate(first, second, room, self.lengths, self.keep_overflow)
            encodings.append(self.backend.post_process(first, second, self.add_special_tokens))
        return encodings

    def _special(self, pair: bool) -> int:
        return self.backend.num_special_tokens_to_add(pair) if self.add_special_tokens else 0

    def _shortened(self, row: Any, limit: int) -> Any:
        may_shorten = self.prefix_is_safe and not self.keep_overflow and self.lengths.truncation_side == "right"
        return safe_prefix(row, limit) if may_shorten and isinstance(row, str) else row
