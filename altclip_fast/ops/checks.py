"""What every op asks of its tensors; the messages name the argument, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor


def describe(value: Any) -> str:
    """A tensor as `float32[2, 3] on cpu`, anything else as its repr."""
    if isinstance(value, Tensor):
        shape = ", ".join(str(n) for n in value.shape)
        return f"{str(value.dtype).removeprefix('torch.')}[{shape}] on {value.device}"
    return repr(value)


def kernel_dtype(x: Tensor) -> bool | str:
    """For `when=`: whether the kernels are written for this dtype."""
    return x.dtype in (torch.float32, torch.bfloat16, torch.float16) or f"there is no kernel for {x.dtype}"


def tensors(op: str, optional: Collection[str] = (), *, one_dtype: bool = True, **arguments: Any) -> None:
    """All are tensors of one floating dtype, on one device. Autocast, where it is on, sees to the one dtype itself.

    Args:
        optional: the names of those that may be None.
    """
    first, dtype, device = "", None, None
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            if value is None and name in optional:
                continue
            raise TypeError(f"{op}: {name} must be a Tensor, not {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{op}: {name} is {describe(value)}; a floating dtype is needed")
        device = same_device(op, name, value, device)
        if dtype is None:
            first, dtype = name, value.dtype
        elif one_dtype and value.dtype is not dtype and not torch.is_autocast_enabled(device.type):
            raise TypeError(
                f"{op}: {name} is {describe(value)} and {first} is {describe(arguments[first])}; one dtype is needed"
            )


def integers(op: str, device: torch.device, optional: Collection[str] = (), **arguments: Any) -> None:
    """All are tensors of int32 or int64, on `device`, or are None and `optional`."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            if value is None and name in optional:
                continue
            raise TypeError(f"{op}: {name} must be a Tensor, not {type(value).__name__}")
        if value.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{op}: {name} is {describe(value)}; int32 or int64 is needed")
        same_device(op, name, value, device)


def rows(op: str, name: str, value: Tensor) -> None:
    """`value` has a last dimension."""
    if value.dim() == 0:
        raise ValueError(f"{op}: {name} is {describe(value)}; at least one dimension is needed")


def same_device(op: str, name: str, value: Tensor, device: torch.device | None) -> torch.device:
    """The device of `value`, which is `device` where that is known."""
    if device is not None and value.device != device:
        raise ValueError(f"{op}: {name} is on {value.device}, the other tensors on {device}; move them to one device")
    return value.device


def shape(op: str, name: str, value: Tensor | None, *expected: int | None) -> None:
    """`value` (None passes) has this shape; None in `expected` stands for any size."""
    if value is None or (found := value.shape) == expected:
        return
    if len(found) != len(expected) or any(e not in (None, n) for n, e in zip(found, expected, strict=True)):
        wanted = ", ".join("any" if e is None else str(e) for e in expected)
        raise ValueError(f"{op}: {name} is {describe(value)}; shape [{wanted}] is needed")
