"""Recording and running with CUDA graphs, by torch.cuda.graph."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_ONE_CAPTURE = threading.Lock()  # torch: only one may be underway in a process


class CudaRecorder:
    """CUDA graphs of one stream and one pool of memory.

    They run on the stream that they were recorded on, whoever calls: so they never overlap, and cuBLAS's workspace,
    which belongs to a stream, has one user at a time.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()
            self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """On the graphs' stream; the caller's stream waits for it, the host does not."""
        with torch.cuda.device(self.device):
            outer = torch.cuda.current_stream()
            self._stream.wait_stream(outer)
            with torch.cuda.stream(self._stream):
                yield
            outer.wait_stream(self._stream)

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Runs it once before, so that kernels are compiled and libraries have their handles and workspaces."""
        with _ONE_CAPTURE, torch.cuda.device(self.device):
            with self.turn():
                run()
            graph, outer = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            try:
                # Other threads may allocate meanwhile: "thread_local" looks at this one alone.
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    output = run()
            except BaseException:
                torch.cuda.set_stream(outer)  # torch.cuda.graph leaves its own where ending the capture fails
                raise
        return graph.replay, output

    def bytes(self) -> int:
        """Of the pool."""
        return sum(segment["total_size"] for segment in torch.cuda.memory_snapshot(self._pool))

    def wait(self) -> None:
        """Until nothing runs on the graphs' stream."""
        self._stream.synchronize()


def is_capturing(device: torch.device) -> bool:
    """Whether the caller is capturing a graph of its own on this device."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def check_fork(device: torch.device) -> None:
    """Raises OSError where CUDA cannot work, since this process was forked from one that had used it."""
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise OSError(
            "CUDA cannot be used in this process: it was forked from one that had used CUDA. Start workers with "
            "multiprocessing.get_context('spawn'), or load the model in the worker before anything uses CUDA"
        )
