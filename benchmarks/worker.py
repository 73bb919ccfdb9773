"""A system in a process of its own: it shares no threads, no memory and no crashes with those beside it."""

from __future__ import annotations

import os
import re
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .systems import Running, Unavailable
from .workloads import Job

TURN = 0.25  # seconds that a turn of a fast system fills with calls


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
        running, batches = start(job), job.batches()
        connection.send(("ready", running.backend))
        clock = Clock(lambda: running.embed(batches[0]))
        while True:
            request = connection.recv()
            if request == "turn":
                connection.send(("turn", clock.turn()))
            else:
                found = [running.embed(batch).float().clone() for batch in batches]
                connection.send(("embeddings", torch.cat(found).numpy()))
    except EOFError:
        return
    except Unavailable as error:
        connection.send(("unavailable", str(error)))
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        told = (str(error).strip() or "no message").splitlines()[0]
        connection.send(("unavailable", f"failed: {type(error).__name__}: {told}"))


class Clock:
    """Times calls of a function in turns."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    def turn(self) -> float:
        """Seconds a call. A fast function is called once before, to find its data in the caches, and then often."""
        first = self._once()
        if first >= TURN:
            return first
        return statistics.median(self._once() for _ in range(min(50, int(TURN / first) + 1)))

    def _once(self) -> float:
        start = time.perf_counter()
        self.call()
        return time.perf_counter() - start
