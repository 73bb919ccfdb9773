"""Systems side by side: started, checked, and then measured in rounds, so that the machine's drift meets all alike.

No row without parity: a system whose embeddings are off is refused. The ceilings of the machine take turns with the
systems, in the same rounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from altclip_fast.report import Table
from altclip_fast.testing.embeddings import Verdict, judge

from . import ceiling, rows
from .rows import Row
from .systems import SYSTEMS, Running, System, Unavailable
from .worker import InProcess, Worker
from .workloads import Job

GIB = 2**30
Key = TypeVar("Key", bound=Hashable)


class Entry(NamedTuple):
    """One system to measure; `step` is its place in a ladder."""

    name: str
    start: Callable[[Job], Running]
    dtype: str
    step: int = 0


@dataclass(frozen=True)
class Limits:
    """What a run may take."""

    rounds: int
    memory: float = 8 * GIB  # anonymous bytes of all systems together
    patience: float = 600  # seconds for one system to start, and to make its first embeddings
    start_until: float = math.inf  # of time.monotonic(): no system starts later
    until: float = math.inf  # no round begins later, but for the first

    def left(self) -> float:
        """Seconds that the next system has.

        Raises:
            Unavailable: there is no time left.
        """
        if (left := self.start_until - time.monotonic()) <= 0:
            raise Unavailable("there was no time left to start it")
        return min(left, self.patience)


@dataclass
class Outcome:
    """Rows, and why the other systems have none: not at hand here, or refused because they are wrong."""

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        self.rows += other.rows
        self.left_out |= other.left_out
        self.refused |= other.refused

    @property
    def code(self) -> int:
        """Of the process: 1 when a system was refused, or nothing was measured."""
        return 1 if self.refused or not self.rows else 0

    def __str__(self) -> str:
        reasons = [f"left out: {name}: {reason}" for name, reason in self.left_out.items()]
        reasons += [f"REFUSED: {name}: {reason}" for name, reason in self.refused.items()]
        return "\n".join([str(self.table), *reasons])

    @property
    def table(self) -> Table:
        """To be read; "x" is how many times as fast as the slowest of the same run a system is."""
        shown = []
        for row in (r for r in self.rows if r.kind != "ceiling"):
            slowest = max(r.median for r in self.rows if r.run == row.run and r.kind != "ceiling")
            memory = "" if row.peak_memory is None else f"{row.peak_memory / GIB:.2f}"
            shown.append(
                Line(
                    *(row.subject, row.work, row.shape, row.system, row.dtype),
                    *(f"{row.median * 1e3:.2f}", f"{row.spread * 1e3:.2f}", f"{row.throughput:.2f}"),
                    f"{slowest / row.median:.2f}",
                    *("" if row.share is None else f"{row.share:.0%}", memory),
                    *("" if row.cosine is None else f"{row.cosine:.6f}", row.backend),
                )
            )
        return Table(Line._fields, shown)


class Line(NamedTuple):
    """What is printed of a row."""

    subject: str
    work: str
    shape: str
    system: str
    dtype: str
    ms: str
    spread: str
    per_s: str
    x: str
    of_ceiling: str
    GiB: str
    cosine: str
    backend: str


def in_rounds(turns: Mapping[Key, Callable[[], float]], count: int, until: float = math.inf) -> dict[Key, list[float]]:
    """`count` rounds over all, one turn each, every round beginning with another one; fewer when it gets late."""
    keys: list[Key] = list(turns)
    found: dict[Key, list[float]] = {key: [] for key in turns}
    for i in range(count):
        if i and time.monotonic() > until:
            break
        start = i % max(1, len(keys))
        for key in keys[start:] + keys[:start]:
            found[key].append(turns[key]())
    return found


def judges(systems: Mapping[str, System], dtype: str) -> tuple[Callable[[Job], Running], ...]:
    """Whom a job is judged by: transformers, eager in float32 and sdpa in lower precision.

    Where transformers is not installed, this library's reference.
    """
    names = ("transformers-eager" if dtype == "float32" else "transformers-sdpa", "reference")
    return tuple(systems[name].start for name in names)


def _place(apart: bool) -> type[Worker] | type[InProcess]:
    return Worker if apart else InProcess


@cache
def truth(starts: tuple[Callable[[Job], Running], ...], job: Job, patience: float, apart: bool = True) -> Tensor:
    """The embeddings of the first of these systems that is installed."""
    for start in starts:
        try:
            worker = _place(apart)(start, job, patience)
        except Unavailable as error:
            if start is starts[-1] or "not installed" not in str(error):
                raise
            continue
        try:
            return worker.embeddings(patience)
        finally:
            worker.close()
    raise AssertionError("unreachable")


def check(
    worker: Worker | InProcess,
    job: Job,
    patience: float,
    systems: Mapping[str, System] = SYSTEMS,
    apart: bool = True,
) -> Verdict:
    """What the embeddings of a system are like."""
    expected = truth(judges(systems, "float32"), replace(job, dtype="float32"), patience, apart)
    baseline = truth(judges(systems, "bfloat16"), job, patience, apart) if job.dtype == "bfloat16" else None
    return judge(worker.embeddings(patience), expected, job.dtype, baseline)


def run(
    entries: Sequence[Entry],
    job: Job,
    limits: Limits,
    tell: Callable[[str], None],
    *,
    kind: str,
    subject: str,
    systems: Mapping[str, System] = SYSTEMS,
    apart: bool = True,
) -> Outcome:
    """Measure all entries on a job, interleaved.

    Args:
        job: its dtype is replaced by that of each entry.
        tell: is given the progress, a line at a time.
        kind, subject: of the rows.
        systems: those that can do such a job; transformers' among them are what the others are judged by.
        apart: every system in a process of its own, else all in this one.
    """
    outcome, workers = Outcome(), {}
    torch.set_num_threads(job.threads)
    with ExitStack() as stack:
        for entry in entries:
            own = replace(job, dtype=entry.dtype)
            label = f"{entry.name} {entry.dtype}"
            tell(f"{subject} {job.work} batch {job.batch}: starting {label}")
            try:
                worker = _place(apart)(entry.start, own, limits.left())
                stack.callback(worker.close)
                verdict = check(worker, own, limits.patience, systems, apart)
                _refuse_memory([w for w, _ in workers.values()] + [worker], limits.memory)
            except Unavailable as error:
                outcome.left_out[label] = str(error)
                tell(f"{label} is left out: {error}")
                continue
            if verdict.refusal is None:
                workers[entry] = worker, verdict
            else:
                outcome.refused[label] = verdict.refusal
                tell(f"{label} is refused: {verdict.refusal}")
                worker.close()
        found = _measure(workers, job, limits, tell)
    this = rows.this_run(job.threads, job.device)
    outcome.rows += _rows(this, found, workers, job, kind, subject)
    return outcome


def _refuse_memory(workers: Sequence[Worker | InProcess], limit: float) -> None:
    held = sum(worker.memory or 0 for worker in workers)
    if held > limit:
        workers[-1].close()
        raise Unavailable(f"all systems would hold {held / GIB:.1f} GiB, and {limit / GIB:.1f} are allowed (--memory)")


def _measure(
    workers: Mapping[Entry, Any], job: Job, limits: Limits, tell: Callable[[str], None]
) -> dict[Any, list[float]]:
    if not workers:
        return {}
    probes = {}
    for dtype in dict.fromkeys(entry.dtype for entry in workers):
        probes |= {(p.quantity, p.path): p for p in ceiling.probes(dtype, job.device)}
    turns: dict[Any, Callable[[], float]] = {entry: worker.turn for entry, (worker, _) in workers.items()}
    turns |= {probe: probe.turn for probe in probes.values()}
    tell(f"measuring {len(workers)} systems, batch {job.batch}, {limits.rounds} rounds")
    for turn in turns.values():
        turn()
    return in_rounds(turns, limits.rounds, limits.until)


def _rows(
    this: rows.Run,
    found: Mapping[Any, list[float]],
    workers: Mapping[Entry, Any],
    job: Job,
    kind: str,
    subject: str,
) -> list[Row]:
    probes = {probe: times for probe, times in found.items() if isinstance(probe, ceiling.Probe)}
    made = ceiling_rows(this, probes)
    for entry, (worker, verdict) in workers.items():
        cost = replace(job, dtype=entry.dtype).cost()
        row = rows.make(
            this,
            found[entry],
            cost.flops,
            cost.bytes,
            kind=kind,
            subject=subject,
            work=job.work,
            step=entry.step,
            system=entry.name,
            backend=worker.backend,
            dtype=entry.dtype,
            batch=job.batch,
            shape=cost.shape,
            peak_memory=worker.peak_memory,
            cosine=verdict.cosine,
            error=verdict.error,
        )
        made.append(replace(row, share=ceiling.ceiling(entry.dtype, probes).share(cost.flops, cost.bytes, row.median)))
    return made


def ceiling_rows(this: rows.Run, probes: Mapping[ceiling.Probe, Sequence[float]]) -> list[Row]:
    """What the machine itself did in the run."""
    return [
        rows.make(
            this,
            times,
            0 if probe.quantity == "copy" else probe.amount,
            probe.amount if probe.quantity == "copy" else 0,
            kind="ceiling",
            subject=probe.quantity,
            work="",
            system="torch",
            backend=probe.path,
            dtype="" if probe.quantity == "copy" else probe.quantity,
            batch=1,
            shape="",
        )
        for probe, times in probes.items()
    ]
