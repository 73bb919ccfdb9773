"""`BatchEncoding`: what a tokenizer returns. A dict of lists or tensors, usable as `model(**encoding)`.

`encoding["input_ids"]`, `encoding.input_ids` and `encoding.to(device)` work on the values; `encoding[0]`,
`tokens(0)`, `word_ids(0)` and `sequence_ids(0)` show one row as the `tokenizers` library sees it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding


class BatchEncoding(dict[str, Any]):
    """A dict of lists, arrays or tensors, one entry per model input.

    Args:
        data: the values by name.
        encodings: the `tokenizers` view of each row, for `tokens`, `word_ids` and integer indices.
        tensor_type: None keeps lists, "pt" makes int64 tensors, "np" int64 arrays.

    Raises:
        ValueError: unknown `tensor_type`, or rows of different lengths that should become one tensor.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        encodings: Sequence[Encoding] | None = None,
        tensor_type: str | None = None,
    ) -> None:
        super().__init__(data or {})
        self._encodings = list(encodings) if encodings is not None else None
        self.convert_to_tensors(tensor_type)

    def __getitem__(self, key: Any) -> Any:
        """A value by name, one row's `Encoding` by integer, or every value sliced."""
        if isinstance(key, str):
            return super().__getitem__(key)
        if isinstance(key, slice) and self._encodings is None:
            return {name: value[key] for name, value in self.items()}
        return self._rows()[key]

    def __getattr__(self, name: str) -> Any:
        try:
            return dict.__getitem__(self, name)
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name!r}; it holds {list(self)}") from None

    @property
    def data(self) -> dict[str, Any]:
        """The values as a plain dict."""
        return dict(self)

    @property
    def encodings(self) -> list[Encoding] | None:
        """The `tokenizers` view of each row, or None."""
        return self.__dict__.get("_encodings")

    @property
    def n_sequences(self) -> int | None:
        """1 for single texts, 2 for pairs, None where unknown."""
        return self.encodings[0].n_sequences if self.encodings else None

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of one row, special and padding tokens included."""
        return list(self._rows()[batch_index].tokens)

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of one row the index of its word, None for special tokens."""
        return list(self._rows()[batch_index].word_ids)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of one row 0 (text) or 1 (text_pair), None for special tokens."""
        return list(self._rows()[batch_index].sequence_ids)

    def convert_to_tensors(self, tensor_type: str | None = None) -> BatchEncoding:
        """Turn lists into "pt" tensors or "np" arrays in place; values that are such already stay."""
        tensor_type = getattr(tensor_type, "value", tensor_type)
        if tensor_type is None:
            return self
        if tensor_type not in ("pt", "np"):
            raise ValueError(f"return_tensors must be None, 'pt' or 'np', not {tensor_type!r}")
        for name, value in self.items():
            if not isinstance(value, (torch.Tensor, np.ndarray)):
                value = _as_array(name, value)
            if tensor_type == "pt" and isinstance(value, np.ndarray):
                value = torch.from_numpy(value)
            self[name] = value
        return self

    def to(self, device: str | torch.device | int, *, non_blocking: bool = False) -> BatchEncoding:
        """Move every tensor to `device`, in place; other values stay as they are."""
        for name, value in self.items():
            if isinstance(value, torch.Tensor):
                self[name] = value.to(device=device, non_blocking=non_blocking)
        return self

    def _rows(self) -> list[Encoding]:
        if self.encodings is None:
            raise ValueError("this BatchEncoding was not made from text: it has no tokens, words or rows")
        return self.encodings


def _as_array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, list) and value and isinstance(value[0], (np.ndarray, torch.Tensor)):
        return np.stack([np.asarray(item) for item in value])
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.empty(0, dtype=object)
    if array.dtype == object:
        raise ValueError(
            f"the rows of {name!r} differ in length and cannot become one tensor: pass padding=True "
            "(and truncation=True)"
        )
    # an empty batch has no integers to infer the type from
    return array if array.size else array.astype(np.int64)


def as_lists(value: Any) -> Any:
    """Tensors and arrays, alone or in lists, as Python numbers in lists."""
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [as_lists(item) if not isinstance(item, int) else item for item in value]
    return value


def tensor_type_of(value: Any) -> str | None:
    """The `return_tensors` that gives back what `value` is made of."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    if isinstance(value, torch.Tensor):
        return "pt"
    return "np" if isinstance(value, (np.ndarray, np.generic)) else None
