"""A system in a process of its own: it shares no threads, no memory and no crashes with those beside it.

On a GPU, where nothing spins and starting costs more than measuring, systems share a process: `InProcess`.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .clock import Clock, on_gpu
from .systems import Running, Unavailable
from .workloads import Job


class Worker:
    """Starts a system and measures it.

    Attributes:
        backend: how the system was set up.
        peak_memory: anonymous bytes of its process at their most, until now; None where the system does not tell.

    Raises:
        Unavailable: the system cannot do the job here, or did not start within `patience` seconds.
    """

    def __init__(self, start: Callable[[Job], Running], job: Job, patience: float) -> None:
        context = get_context("spawn")
        self._connection, other = context.Pipe()
        self._folder = tempfile.TemporaryDirectory(prefix="altclip-fast-bench-")
        self._log = Path(self._folder.name, "log")
        self._process = context.Process(target=_serve, args=(other, start, job, self._log), daemon=True)
        self.peak_memory: int | None = None
        self._process.start()
        other.close()
        try:
            self.backend = self._receive(patience)
        except BaseException:
            self.close()
            raise

    def embeddings(self, patience: float) -> Tensor:
        """Of all batches of the job, [N, D] float32."""
        return torch.from_numpy(self._ask("embeddings", patience))

    def turn(self) -> float:
        """Seconds a call: the median of the calls of one turn."""
        return self._ask("turn", None)

    @property
    def memory(self) -> int | None:
        """Anonymous bytes of the process now."""
        return anonymous(self._process.pid)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._folder.cleanup()

    def _ask(self, request: str, patience: float | None) -> Any:
        self._connection.send(request)
        return self._receive(patience)

    def _receive(self, patience: float | None) -> Any:
        """The answer. Memory is watched while there is patience, and not during a turn, which it would disturb."""
        deadline = None if patience is None else time.monotonic() + patience
        try:
            while deadline is not None and not self._connection.poll(0.02):
                self.peak_memory = max((m for m in (self.peak_memory, self.memory) if m is not None), default=None)
                if time.monotonic() > deadline:
                    raise Unavailable(f"not ready after {patience:.0f} s")
            kind, value = self._connection.recv()
        except EOFError:
            self._process.join()
            raise Unavailable(f"its process ended with {self._process.exitcode}: {self._last_words()}") from None
        if kind == "unavailable":
            raise Unavailable(value)
        return value

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def anonymous(pid: int | str | None = "self") -> int | None:
    """Bytes of a process that are of no file, or None where there is no such process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"RssAnon:\s*(\d+) kB", status)
    return int(found[1]) * 1024 if found else None


def _serve(connection: Any, start: Callable[[Job], Running], job: Job, log: Path) -> None:
    """The life of the process: start, then answer until the other side hangs up."""
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    warnings.simplefilter("ignore")
    try:
        torch.set_num_threads(job.threads)
        running = start(job)
        batches = running.inputs(job)
        connection.send(("ready", running.backend))
        clock = Clock(lambda: running.embed(batches[0]), job.device)
        while True:
            request = connection.recv()
            if request == "turn":
                connection.send(("turn", _turn(running, clock)))
            else:
                connection.send(("embeddings", _embeddings(running, batches).numpy()))
    except EOFError:
        return
    except Unavailable as error:
        connection.send(("unavailable", str(error)))
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        connection.send(("unavailable", failure(error)))


def _embeddings(running: Running, batches: list[dict[str, Tensor]]) -> Tensor:
    with running.around():
        return torch.cat([running.embed(batch).float().cpu().clone() for batch in batches])


def _turn(running: Running, clock: Clock) -> float:
    with running.around():
        return clock.turn()


def failure(error: Exception) -> str:
    """An exception in one line."""
    told = (str(error).strip() or "no message").splitlines()[0]
    return f"failed: {type(error).__name__}: {told}"


GRAPHED = 3  # calls of one shape, of which the last one is the replay of a graph wherever there is one


class _Started(NamedTuple):
    running: Running
    held: int  # bytes of the GPU that it took


class InProcess:
    """A `Worker` in this process. A system is started once, for all batches; `patience` is that of who runs this.

    Attributes:
        peak_memory: bytes of the GPU that the system and its first embeddings took at most; None on a CPU.
    """

    memory: int | None = None  # of one process there is nothing to compare

    def __init__(self, start: Callable[[Job], Running], job: Job, patience: float) -> None:
        self._started = _attempt(lambda: _start(start, replace(job, work=job.tower, batch=1)))
        self.backend = self._started.running.backend
        self.peak_memory: int | None = None
        self._gpu, self._batches = on_gpu(job.device), self._started.running.inputs(job)
        self._clock = Clock(lambda: self._started.running.embed(self._batches[0]), job.device)

    def embeddings(self, patience: float) -> Tensor:
        before = _taken(self._gpu)
        for _ in range(GRAPHED if self._gpu else 1):
            found = _attempt(lambda: _embeddings(self._started.running, self._batches))
        if self._gpu:
            self.peak_memory = self._started.held + torch.cuda.max_memory_allocated() - before
        return found

    def turn(self) -> float:
        return _turn(self._started.running, self._clock)

    def close(self) -> None:
        """What it has loaded is kept for the next batch."""


@lru_cache(maxsize=64)
def _start(start: Callable[[Job], Running], job: Job) -> _Started:
    before = _taken(on_gpu(job.device))
    running = start(job)
    return _Started(running, _taken(on_gpu(job.device)) - before)


def _taken(gpu: bool) -> int:
    """Bytes of the GPU that are held now; the peak begins anew."""
    if not gpu:
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _attempt(call: Callable[[], Any]) -> Any:
    """A system that fails is not at hand."""
    try:
        return call()
    except Unavailable:
        raise
    except Exception as error:
        raise Unavailable(failure(error)) from error
