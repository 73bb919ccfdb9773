"""What a processor returns: a dict of tensors with attribute access and `.to`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class BatchFeature(dict[str, Any]):
    """`batch["pixel_values"]`, `batch.pixel_values`, `model(**batch)`."""

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(data or {})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            has = ", ".join(self) or "nothing"
            raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {has}") from None

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Move and cast the tensors in place, as `Tensor.to` does; a dtype is for floating tensors only.

        Returns:
            The same object.
        """
        for key, value in self.items():
            self[key] = _to(value, *args, **kwargs)
        return self


def _to(value: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_to(item, *args, **kwargs) for item in value)
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point():
        return value.to(*args, **kwargs)
    kept = [argument for argument in args if not isinstance(argument, torch.dtype)]
    return value.to(*kept, **{key: argument for key, argument in kwargs.items() if key != "dtype"})
