"""Which tile sizes a kernel runs with: measured ones where there are some, else the kernel's own analytic choice.

`tuned/<GPU>.json` holds what `python -m benchmarks tune` measured on that GPU:

    {"capability": 90, "versions": {..}, "ops": {OP: [{"dtype": .., "shape": [..], "config": {..}, "gain": ..}, ..]}}

with the gain over the analytic choice. A call takes the row of its op and dtype whose shape is nearest, the distance
being counted in octaves; beyond `REACH` octaves in all it takes the default. Nothing is tuned at run time.
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


class Asked(NamedTuple):
    """A look-up, and what came of it."""

    shape: tuple[int, ...]
    config: Config


class _Trial(NamedTuple):
    op: str
    config: Config | None
    asked: list[Asked]


_trial: ContextVar[_Trial | None] = ContextVar("altclip_fast_trial", default=None)


@contextmanager
def trying(op: str, config: Config | None) -> Iterator[list[Asked]]:
    """Calls of `op` in here take this configuration (None: the analytic one), and what they ask for is yielded."""
    trial = _Trial(op, config, [])
    token = _trial.set(trial)
    try:
        yield trial.asked
    finally:
        _trial.reset(token)


class Row(NamedTuple):
    """One measured choice."""

    dtype: str
    shape: tuple[int, ...]
    config: Config


def configuration(
    op: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], default: Callable[[], Config]
) -> Config:
    """The configuration of `op` for this shape: its tile sizes, num_warps and num_stages."""
    trial = _trial.get()
    if trial is not None and trial.op == op:
        trial.asked.append(Asked(shape, trial.config or default()))
        return trial.asked[-1].config
    if device.type == "cuda" and (found := _measured(gpu_name(device), op, str(dtype).removeprefix("torch."), shape)):
        return found
    return default()


@functools.cache
def gpu_name(device: torch.device) -> str:
    """As its table is called: "NVIDIA_H200"."""
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
    stored = json.loads(file.read_text(encoding="utf-8"))["ops"]
    return {op: [Row(row["dtype"], tuple(row["shape"]), row["config"]) for row in rows] for op, rows in stored.items()}


def distance(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Octaves between two shapes, added up over their dimensions."""
    return sum(abs(math.log2(max(x, 1) / max(y, 1))) for x, y in zip(a, b, strict=True))
