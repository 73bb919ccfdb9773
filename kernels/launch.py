"""Every Triton kernel of this package is started here, by `launch`.

So a test can count launches (`LAUNCHES`), and the ahead-of-time report compiles exactly what a call would start:
`recording(90)` keeps the launches of an sm_90 GPU instead of running them, and works on tensors of the meta device.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
LAUNCHES: Counter[str] = Counter()  # kernel name -> how often it was started


class Launch(NamedTuple):
    """A kernel with everything that it is compiled for and called with."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # of the kernel, constants included
    options: dict[str, int]  # num_warps, num_stages


class _Target(NamedTuple):
    capability: int
    launches: list[Launch] | None


_target: ContextVar[_Target | None] = ContextVar("altclip_fast_triton_target", default=None)


@contextmanager
def recording(capability: int) -> Iterator[list[Launch]]:
    """Launches are kept, not run, as if on a GPU of this compute capability (80, 90)."""
    launches: list[Launch] = []
    token = _target.set(_Target(capability, launches))
    try:
        yield launches
    finally:
        _target.reset(token)


@contextmanager
def assuming(capability: int) -> Iterator[None]:
    """Launchers choose as on a GPU of this compute capability: how a test reaches each of them in the interpreter."""
    token = _target.set(_Target(capability, None))
    try:
        yield
    finally:
        _target.reset(token)


def capability(device: torch.device) -> int:
    """Compute capability as a number: 80, 90. The interpreter stands for 90."""
    target = _target.get()
    if target is not None:
        return target.capability
    return 90 if device.type != "cuda" else _capability(device)


@functools.cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int = 4, num_stages: int = 2, **named: Any
) -> None:
    """Start `kernel` on `grid`, on the device of its tensors; an empty grid starts nothing.

    Args:
        arguments, named: of the kernel.
        num_warps, num_stages: of the compiler.
    """
    if 0 in grid:
        return
    target = _target.get()
    if target is not None and target.launches is not None:
        given = dict(zip(kernel.arg_names, arguments, strict=False)) | named
        target.launches.append(Launch(kernel, grid, given, {"num_warps": num_warps, "num_stages": num_stages}))
        return
    LAUNCHES[kernel.fn.__name__] += 1
    with torch.cuda.device_of(next(a for a in arguments if isinstance(a, Tensor))):  # Triton takes the current device
        # Said, not left to the default: some versions of Triton warn about it, and the default may change.
        kernel[grid](*arguments, **named, num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True)


def rows(x: Tensor) -> Tensor:
    """[.., H] -> [T, H]; a view where the strides allow it."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])
