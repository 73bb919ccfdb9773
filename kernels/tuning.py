"""Which tile sizes a kernel runs with: measured ones where there are some, else the kernel's own analytic choice.

`tuned/<GPU>.json` holds measured rows, {"op": [{"dtype": .., "shape": [..], "config": {..}}, ..]}, which
`python -m benchmarks tune` writes on that GPU. A call takes the row of its op and dtype whose shape is nearest, the
distance being counted in octaves; beyond `REACH` octaves in all it takes the default. Nothing is tuned at run time.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import torch

Config = dict[str, int]
TUNED = Path(__file__).with_name("tuned")
REACH = 3.0


_tried: ContextVar[tuple[str, Config] | None] = ContextVar("altclip_fast_tried", default=None)


@contextmanager
def trying(op: str, config: Config) -> Iterator[None]:
    """Calls of `op` in here take this configuration: for the tuner, and to compile what it would try."""
    token = _tried.set((op, config))
    try:
        yield
    finally:
        _tried.reset(token)


class Row(NamedTuple):
    """One measured choice."""

    dtype: str
    shape: tuple[int, ...]
    config: Config


def configuration(
    op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], default: Callable[[], Config]
) -> Config:
    """The configuration of `op` for this shape: its tile sizes, num_warps and num_stages."""
    tried = _tried.get()
    if tried is not None and tried[0] == op:
        return tried[1]
    if device.type == "cuda" and (found := _measured(_name(device), op, str(dtype).removeprefix("torch."), shape)):
        return found
    return default()


@functools.cache
def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device).replace(" ", "_")


@functools.lru_cache(maxsize=4096)
def _measured(gpu: str, op: str, dtype: str, shape: tuple[int, ...]) -> Config | None:
    near = [(distance(row.shape, shape), row.config) for row in table(gpu).get(op, ()) if row.dtype == dtype]
    best = min(near, key=lambda pair: pair[0], default=None)
    return best[1] if best is not None and best[0] <= REACH else None


@functools.cache
def table(gpu: str) -> dict[str, list[Row]]:
    """The measured rows of a GPU, by op; empty where nobody has tuned it."""
    file = TUNED / f"{gpu}.json"
    if not file.exists():
        return {}
    stored = json.loads(file.read_text(encoding="utf-8"))
    return {op: [Row(row["dtype"], tuple(row["shape"]), row["config"]) for row in rows] for op, rows in stored.items()}


def distance(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Octaves between two shapes, added up over their dimensions."""
    return sum(abs(math.log2(max(x, 1) / max(y, 1))) for x, y in zip(a, b, strict=True))
