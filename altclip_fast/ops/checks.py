"""What every op asks of its tensors; the messages name the argument, the value and what is allowed."""

from __future__ import annotations

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


def given(**arguments: Any) -> dict[str, Any]:
    """The optional arguments that are there."""
    return {name: value for name, value in arguments.items() if value is not None}


def tensors(op: str, **arguments: Any) -> None:
    """All are tensors of a floating dtype, on one device."""
    device = None
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, not {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{op}: {name} is {describe(value)}; a floating dtype is needed")
        device = same_device(op, name, value, device)


def integers(op: str, device: torch.device, **arguments: Any) -> None:
    """All are tensors of int32 or int64, on `device`."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, not {type(value).__name__}")
        if value.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{op}: {name} is {describe(value)}; int32 or int64 is needed")
        same_device(op, name, value, device)


def one_dtype(op: str, **arguments: Tensor) -> None:
    """All have the dtype of the first; autocast, where it is on, sees to that itself."""
    first, *others = arguments
    value = arguments[first]
    for name in others:
        if arguments[name].dtype != value.dtype and not torch.is_autocast_enabled(value.device.type):
            raise TypeError(
                f"{op}: {name} is {describe(arguments[name])} and {first} is {describe(value)}; one dtype is needed"
            )


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
    if value is None or value.shape == expected:
        return
    if value.dim() != len(expected) or any(e not in (None, n) for n, e in zip(value.shape, expected, strict=True)):
        wanted = ", ".join("any" if e is None else str(e) for e in expected)
        raise ValueError(f"{op}: {name} is {describe(value)}; shape [{wanted}] is needed")
