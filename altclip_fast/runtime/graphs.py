"""Recorded computations, kept by shape, and run again on new inputs.

A graph reads its input, the parameters and its own scratch memory at the addresses that they had when it was recorded.
So it is used only while the model's stamp is the same; calls take turns, from the copy of the input to the copy of the
output; and what comes out is a copy.

All graphs of a device share one pool of memory and one stream. Once they hold more than the budget, the least recently
used ones are dropped, and the others move to a new pool: each is recorded there when it comes next. For a pool gives
its memory back only as a whole; and torch drops the cuBLAS workspace of a stream together with any graph that was
recorded on it (from 2.12 on, pytorch#193402), which the others still read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..notices import warn_once


class Recorder(Protocol):
    """What records and runs: CUDA graphs (`cuda.CudaRecorder`), or a stand-in that needs no GPU."""

    device: torch.device
    multiprocessors: int

    def turn(self) -> AbstractContextManager[None]:
        """Work in here comes after all that the caller has launched, and before what the caller launches next."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """A function that does again what `run` does now, and the output that it writes anew each time."""

    def bytes(self) -> int:
        """Memory that the recordings hold."""

    def wait(self) -> None:
        """Until nothing runs any more."""


Key = tuple[Any, ...]


class RecordingError(RuntimeError):
    """A computation could not be recorded."""


@dataclass
class Graph:
    """A recording: its input, what runs it, its output, and how often it has run."""

    input: Tensor
    replay: Callable[[], None]
    output: Tensor
    runs: int = 0


class Graphs:
    """The graphs of a model on a device.

    Args:
        recorder: makes one for a new generation of graphs.
        budget: bytes that the graphs may hold.
    """

    def __init__(self, recorder: Callable[[], Recorder], budget: int) -> None:
        self._make_recorder, self._budget = recorder, budget
        self._lock = threading.RLock()
        self._recorder: Recorder | None = None
        self._kept: dict[Key, Graph] = {}
        self._seen: set[Key] = set()
        self._stamps: dict[str, object] = {}

    @property
    def recorder(self) -> Recorder:
        """Of this generation of graphs."""
        with self._lock:
            if self._recorder is None:
                self._recorder = self._make_recorder()
            return self._recorder

    def run(
        self,
        key: Key,
        stamp: object,
        compute: Callable[[Tensor], Tensor],
        given: Tensor,
        size: int,
        rows: int,
    ) -> Tensor:
        """The first `rows` rows of what `compute` makes of `given`, in new memory.

        The first time it just computes, for many shapes of texts come only once; from the second on there is a graph.

        Args:
            key: names the computation and its shapes; its first entry says whose stamp it is.
            stamp: of all that is read besides the input. When it changes, all graphs are dropped.
            compute: takes a tensor on the device, and may look at nothing but its own shapes.
            given: on any device.
            size: of the first axis of a graph's input, which may be longer than `given`.

        Raises:
            RecordingError: this computation cannot be recorded.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if self._stamps.get(key[0], stamp) != stamp:
                self.release()
            if key not in self._seen:
                self._seen.add(key)
                return compute(given.to(self.recorder.device, non_blocking=True))[:rows]
            graph = self._kept.pop(key, None) or self._record(key, compute, given, size)
            self._kept[key] = graph  # the last is the most recently used
            self._stamps[key[0]] = stamp  # here: recording may have dropped all stamps
            return self._replay(graph, given, rows)

    def _replay(self, graph: Graph, given: Tensor, rows: int) -> Tensor:
        result = graph.output.new_empty(rows, *graph.output.shape[1:])  # on the caller's stream
        with self.recorder.turn():
            graph.input[: len(given)].copy_(given, non_blocking=True)
            graph.replay()
            result.copy_(graph.output[:rows])
        graph.runs += 1
        return result

    def _record(self, key: Key, compute: Callable[[Tensor], Tensor], given: Tensor, size: int) -> Graph:
        warn_once(
            "recording",
            "CUDA graphs are being recorded, which takes a moment for each shape that comes again. "
            "The encoder's warmup() does it ahead; runtime='eager' does without",
        )
        if self.bytes() > self._budget:
            self._drop_least_recently_used()
        x = torch.zeros(size, *given.shape[1:], dtype=given.dtype, device=self.recorder.device)
        x[: len(given)] = given
        try:
            return Graph(x, *self.recorder.record(lambda: compute(x)))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RecordingError(f"{key[0]}: {error}") from error

    def _drop_least_recently_used(self) -> None:
        """One half of the graphs, which have to come twice again; the others are recorded when they come next."""
        order = list(self._kept)
        self._seen -= set(order[: (len(order) + 1) // 2])
        self.release()

    def bytes(self) -> int:
        """Memory that the graphs hold."""
        with self._lock:
            held = 0 if self._recorder is None else self._recorder.bytes()
            return held + sum(graph.input.nbytes for graph in self._kept.values())

    def kept(self) -> dict[Key, Graph]:
        """The graphs by key, the most recently used one last."""
        with self._lock:
            return dict(self._kept)

    def release(self) -> None:
        """Drop all graphs."""
        with self._lock:
            if self._recorder is not None:
                self._recorder.wait()
            self._kept.clear()
            self._stamps.clear()
            self._recorder = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles have no graphs."""
        return Graphs, (self._make_recorder, self._budget)
