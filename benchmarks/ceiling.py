"""What this machine can do at most: a large matrix product by the fastest path known here, and a copy of memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from .clock import Clock, Device, on_gpu

INNER, COLUMNS = 1024, 4096  # of the largest product of ViT-L/14
COPIED = 2**28  # bytes, several times any cache
ON_GPU = ((16384, INNER, COLUMNS), (8192, 8192, 8192))  # rows, inner, columns


class Probe(NamedTuple):
    """One way to reach a ceiling."""

    quantity: str  # a dtype, or "copy"
    path: str
    amount: float  # operations or bytes a call
    turn: Callable[[], float]


@dataclass(frozen=True)
class Ceiling:
    """Operations a second in a dtype, and bytes a second."""

    flops: float
    bytes: float

    def share(self, flops: float, bytes: float, seconds: float) -> float:
        """Of the time, what it takes at least: the arithmetic or the memory, whichever is longer."""
        return max(flops / self.flops, bytes / self.bytes) / seconds


def probes(dtype: str, device: Device = "cpu") -> list[Probe]:
    """What to measure for a dtype, beside the systems: every path that runs here."""
    found = [_copy(device)]
    if on_gpu(device):
        kind = getattr(torch, dtype)
        for m, k, n in ON_GPU:
            x, weight = torch.randn(m, k, device=device).to(kind), torch.randn(n, k, device=device).to(kind)
            call = partial(F.linear, x, weight)
            found.append(Probe(dtype, f"F.linear, {m} x {k} x {n}", 2 * m * k * n, Clock(call, device).turn))
        return found
    for rows in (256, 1024):
        for path, make in PATHS[dtype].items():
            try:
                call = make(rows)
                call()
            except (RuntimeError, AttributeError):
                continue  # a private operator of torch, or an instruction that is not there
            found.append(Probe(dtype, f"{path}, {rows} rows", 2 * rows * INNER * COLUMNS, Clock(call).turn))
    return found


def ceiling(dtype: str, measured: Mapping[Probe, Sequence[float]]) -> Ceiling:
    """The best of what the probes reached, by their medians."""

    def best(quantity: str) -> float:
        rates = [p.amount / statistics.median(times) for p, times in measured.items() if p.quantity == quantity]
        return max(rates, default=float("nan"))

    return Ceiling(best(dtype), best("copy"))


def _copy(device: Device) -> Probe:
    count = COPIED * (4 if on_gpu(device) else 1) // 4
    fill = torch.randn if on_gpu(device) else torch.ones  # numbers that are all alike are quicker there
    source, target = fill(count, device=device), torch.empty(count, device=device)
    return Probe("copy", "Tensor.copy_", 8 * count, Clock(lambda: target.copy_(source), device).turn)


def _plain(rows: int, dtype: torch.dtype) -> Callable[[], Any]:
    return partial(F.linear, torch.randn(rows, INNER, dtype=dtype), torch.randn(COLUMNS, INNER, dtype=dtype))


def _packed(rows: int, dtype: torch.dtype) -> Callable[[], Any]:
    weight = torch.ops.mkldnn._reorder_linear_weight(torch.randn(COLUMNS, INNER, dtype=dtype), None)
    x = torch.randn(rows, INNER, dtype=dtype)
    return partial(torch.ops.mkldnn._linear_pointwise, x, weight, None, "none", [], "")


def _int8(rows: int) -> Callable[[], Any]:
    x = torch.randint(0, 255, (rows, INNER), dtype=torch.uint8)
    weight = torch.randint(-127, 127, (COLUMNS, INNER), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    scales, zeros = torch.full((COLUMNS,), 0.01), torch.zeros(COLUMNS, dtype=torch.int64)
    call = torch.ops.onednn.qlinear_pointwise
    return partial(call, x, 0.01, 128, packed, scales, zeros, None, 1.0, 0, torch.bfloat16, "none", [], "")


PATHS: dict[str, dict[str, Callable[[int], Callable[[], Any]]]] = {
    "float32": {"F.linear": partial(_plain, dtype=torch.float32), "oneDNN": partial(_packed, dtype=torch.float32)},
    "bfloat16": {"F.linear": partial(_plain, dtype=torch.bfloat16), "oneDNN": partial(_packed, dtype=torch.bfloat16)},
    "int8": {"oneDNN": _int8},
}
