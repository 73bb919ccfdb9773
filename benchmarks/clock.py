"""How long a call takes: by the host's clock on a CPU, by the GPU's own events on a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TURN = 0.25  # seconds that a turn of a fast function fills with calls
GPU_TURN = 0.03  # a GPU does in this time what a CPU does in a minute

Device = torch.device | str


def on_gpu(device: Device) -> bool:
    """Whether it is one."""
    return torch.device(device).type == "cuda"


class Clock:
    """Times calls of a function in turns.

    Args:
        call: its work is over when it returns, or on a GPU when what it has queued is.
        each: what one call does so many times.
    """

    def __init__(self, call: Callable[[], Any], device: Device = "cpu", each: int = 1) -> None:
        self.call, self.each = call, each
        self._seconds = _by_events if on_gpu(device) else _by_host
        self._turn = GPU_TURN if on_gpu(device) else TURN

    def turn(self) -> float:
        """Seconds a call. A fast function is called once before, to find its data in the caches, and then often."""
        first = self.once()
        if first * self.each >= self._turn:
            return first
        return statistics.median(self.once() for _ in range(min(50, int(self._turn / (first * self.each)) + 1)))

    def once(self) -> float:
        """Seconds of one call."""
        return self._seconds(self.call) / self.each


def _by_host(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _by_events(call: Callable[[], Any]) -> float:
    """From an idle GPU to the end of the last kernel: launches that the GPU waits for are in it."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def recorded(call: Callable[[], Any], device: Device) -> Callable[[], Any]:
    """On a GPU the replay of a graph of the call, so that no launch is in its time; elsewhere the call itself."""
    if not on_gpu(device):
        return call
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay(keeps_its_inputs: Any = call) -> None:
        graph.replay()

    return replay


def inputs(make: Callable[[], tuple], device: Device) -> list[tuple]:
    """Arguments to take turns with: on a GPU as many as are together twice its L2, so that none is found in there."""
    first = make()
    if not on_gpu(device):
        return [first]
    size = sum(a.numel() * a.element_size() for a in first if isinstance(a, Tensor))
    count = min(64, max(2, 2 * torch.cuda.get_device_properties(device).L2_cache_size // max(1, size)))
    return [first, *(make() for _ in range(count - 1))]
