"""Everything that is to be found out on a GPU, the most valuable first: `python -m benchmarks gpu`.

A section runs in a process of its own. An item that hangs, or ends its process, is a failed item, and the rest of its
section goes on in a new process. What is found is written as it comes: the rows of `<machine>.jsonl`, and in `gpu/`
`checks.jsonl` (one line an item) and `notes.txt`. CUDA kernels whose checks of truth all passed are entered in
`verified.json`, so that calls on this architecture take them from now on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch

from altclip_fast import native
from altclip_fast.dispatch import OPS
from altclip_fast.files import staged, write_text
from altclip_fast.report import Table

from . import clock, models, rows, workloads
from .clock import on_gpu
from .harness import Outcome
from .sections import SECTIONS, Item, Items, Section, Setting, Skipped, Told
from .worker import failure

VERIFIED = Path(native.__file__).with_name("verified.json")
STARTING = 120  # seconds that a process may take to import everything
WRONG = ("failed", "hung", "crashed")
WRITING = Lock()


@dataclass(frozen=True)
class Result:
    """What came of an item."""

    section: str
    name: str
    outcome: str  # "passed", "skipped", "late" when the section's time was up, or one of `WRONG`
    seconds: float
    told: str = ""
    proves: str | None = None


@dataclass
class Course:
    """A section as it went."""

    results: list[Result] = dataclasses.field(default_factory=list)
    rows: list[rows.Row] = dataclasses.field(default_factory=list)
    over: bool = False  # every item was reached
    seconds: float = 0.0


def add_command(commands: Any) -> None:
    """Add `gpu` to the command line."""
    parser = commands.add_parser("gpu", help="check and measure everything on a GPU", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal on tiny sizes")
    names = ",".join(SECTIONS)
    parser.add_argument("--only", type=_sections, default=list(SECTIONS), metavar="A,B", help=f"of {names}")
    parser.add_argument("--seconds", type=models.positive, metavar="N", help="for everything (default: what it takes)")
    parser.add_argument("--rounds", type=models.positive, default=7, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=models.positive, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="keep checkpoints there (default: not)")
    where = "write there (default: the folder of results; for a rehearsal a new one)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=where)
    parser.set_defaults(run=_run)


def _sections(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in SECTIONS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names]


def _run(options: argparse.Namespace) -> int:
    if on_gpu(options.device) and not torch.cuda.is_available():
        sys.exit("gpu: there is no GPU here; `--device cpu` rehearses everything on tiny sizes")
    if not on_gpu(options.device):
        os.environ["TRITON_INTERPRET"] = "1"  # read by the processes to come
        options.output = options.output or Path(tempfile.mkdtemp(prefix="altclip-fast-rehearsal-"))
    output = options.output or rows.RESULTS
    with models.weights(options.weights) as weights:
        weights.mkdir(parents=True, exist_ok=True)
        setting = Setting(options.device, output.resolve(), weights.resolve(), options.threads, options.rounds)
        setting.found.mkdir(parents=True, exist_ok=True)
        return run(options.only, setting, options.seconds)


def run(names: Sequence[str], setting: Setting, seconds: float | None = None) -> int:
    """All these sections; the exit code: 1 where anything is wrong, or a gate was not run to its end."""
    end = None if seconds is None else time.monotonic() + seconds
    # The checkpoint is written while the libraries are built.
    written = ThreadPoolExecutor(1).submit(workloads.whole, setting.extent.model, setting.weights)
    this, courses = rows.this_run(setting.threads, setting.device), {}
    for name in names:
        section = SECTIONS[name]
        left = section.seconds if end is None else min(section.seconds, end - time.monotonic())
        models.tell(f"{name}: at most {max(0, left):.0f} s")
        if section.models:
            written.result()
        courses[name] = follow(name, section, setting, left, this)
        if section.gate and on_gpu(setting.device):
            major, minor = torch.cuda.get_device_capability()
            record(VERIFIED, f"sm_{major}{minor}", courses[name], proof=name == "truth")
            shutil.copy(VERIFIED, setting.found)
    print(told(courses))
    print(f"written to {setting.output}")
    return 1 if any(wrong(SECTIONS[name], course) for name, course in courses.items()) else 0


def wrong(section: Section, course: Course) -> bool:
    """Whether a section ends the program with 1."""
    return any(result.outcome in WRONG for result in course.results) or (section.gate and not course.over)


def follow(name: str, section: Section, setting: Setting, seconds: float, this: rows.Run) -> Course:
    """Run a section in processes, each until it ends, hangs or dies; write what comes.

    Args:
        seconds: for all of it.
    """
    began = time.monotonic()
    count = section.shards if on_gpu(setting.device) else 1
    with ThreadPoolExecutor(count) as pool:
        shards = [Shard(name, section, setting, this, part, count) for part in range(count)]
        courses = list(pool.map(lambda shard: shard.follow(began + seconds), shards))
    results = [result for course in courses for result in course.results]
    found = [row for course in courses for row in course.rows]
    return Course(results, found, all(course.over for course in courses), time.monotonic() - began)


@dataclass(frozen=True)
class Shard:
    """Every `count`-th item of a section, from the `part`-th on."""

    section: str
    what: Section
    setting: Setting
    this: rows.Run
    part: int
    count: int

    def follow(self, end: float) -> Course:
        """Its items in one process after the other, until `end` of time.monotonic()."""
        course = Course()
        while time.monotonic() < end and self._follow_process(end, course):
            pass
        return course

    def _follow_process(self, end: float, course: Course) -> bool:
        """Until it ends; whether another one is to go on after it."""
        context = get_context("spawn")
        here, there = context.Pipe()
        done = frozenset(result.name for result in course.results)
        items = (self.what.items, self.setting, self.part, self.count, done)
        process = context.Process(target=_serve, args=(there, *items))
        process.start()
        there.close()
        item, since, between = "", time.monotonic(), f"the process after {len(done)} items"

        def add(outcome: str, why: str = "", proves: str | None = None, found: Sequence[rows.Row] = ()) -> None:
            result = Result(self.section, item, outcome, time.monotonic() - since, why, proves)
            course.results.append(result)
            course.rows += found
            _write(self.setting, self.this, result, found)

        try:
            while True:
                if not _heard(here, self.what.each if item else STARTING, end):
                    begun, item = item, item or between
                    late = time.monotonic() >= end
                    if begun or not late:
                        add("late" if late else "hung", f"not over after {time.monotonic() - since:.0f} s")
                    return bool(begun)
                kind, value = here.recv()
                if kind == "begin":
                    item, since = value, time.monotonic()
                elif kind == "end":
                    add(*value)
                    item, since = "", time.monotonic()
                else:
                    course.over = True
                    return False
        except EOFError:
            process.join()
            begun, item = item, item or between
            if begun or process.exitcode:
                add("crashed", f"its process ended with {process.exitcode}")
            return bool(begun) or not process.exitcode
        finally:
            for kill in (os.killpg, os.kill):  # a group, once the process has made itself one
                with suppress(ProcessLookupError, PermissionError):
                    kill(process.pid or 0, signal.SIGKILL)
            process.join()
            here.close()


def _heard(connection: Connection, seconds: float, end: float) -> bool:
    """Whether something comes within this time; while the machine is suspended, none passes."""
    for _ in range(max(1, round(seconds))):
        left = end - time.monotonic()
        if connection.poll(max(0.0, min(1.0, left))):
            return True
        if left <= 1:
            return False
    return False


def _serve(connection: Connection, items: Items, setting: Setting, part: int, count: int, done: frozenset[str]) -> None:
    """The life of a section's process."""
    os.setsid()
    warnings.simplefilter("ignore")
    torch.set_num_threads(setting.threads)
    if setting.small:
        clock.TURN = clock.GPU_TURN
    for item in islice(items(setting), part, None, count):
        if item.name not in done:
            connection.send(("begin", item.name))
            connection.send(("end", _ask(item)))
            if _poisoned(setting):
                os._exit(0)
    connection.send(("over", None))


def _ask(item: Item) -> tuple[str, str, str | None, Sequence[rows.Row]]:
    """Outcome, why, what it proves, rows."""
    try:
        found = item.run() or Told()
    except Skipped as error:
        return "skipped", str(error), item.proves, ()
    except AssertionError as error:
        return "failed", str(error) or "AssertionError", item.proves, ()
    except Exception as error:
        traceback.print_exc()
        return "failed", failure(error), item.proves, ()
    outcome = "passed" if found.failure is None else "failed"
    return outcome, "\n".join(filter(None, [found.failure, found.text])), item.proves, found.rows


def _poisoned(setting: Setting) -> bool:
    """Whether an error of a kernel has made every later call of this process fail."""
    if not on_gpu(setting.device) or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _write(setting: Setting, this: rows.Run, result: Result, found: Sequence[rows.Row]) -> None:
    first = (result.told.splitlines() or [""])[0]
    models.tell(f"{result.outcome}: {result.name}, {result.seconds:.1f} s{f': {first}' * (result.outcome != 'passed')}")
    about = {name: getattr(this, name) for name in ("run", "date", "commit", "device")}
    line = json.dumps({**about, **dataclasses.asdict(result), "told": result.told[:2000]})
    note = f"== {this.run} {result.section}: {result.name}: {result.outcome}\n{result.told}\n\n"
    with WRITING:
        for name, text in (("checks.jsonl", f"{line}\n"), ("notes.txt", note if result.told else "")):
            with open(setting.found / name, "a", encoding="utf-8") as file:
                file.write(text)
        if found:
            rows.append(setting.output / f"{found[0].machine}.jsonl", found)


def record(file: Path, architecture: str, course: Course, proof: bool) -> None:
    """Enter what checks say of the CUDA kernels on an architecture.

    An operator with a wrong answer is taken out; where all passed, and they are `proof` enough, it is entered; one that
    was not checked to the end stays as it is.
    """
    table: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
    for op in OPS:
        outcomes = {result.outcome for result in course.results if result.proves == op}
        places = [place for place in table.get(op, []) if place != architecture]
        if proof and outcomes == {"passed"} and course.over:
            places.append(architecture)
        elif not outcomes & set(WRONG):
            continue
        table[op] = sorted(places)
    table = {op: table[op] for op in sorted(table) if table[op]}
    with staged(file.parent) as stage:
        write_text(stage(file.name), json.dumps(table, indent=1) + "\n")


class Line(NamedTuple):
    """A section in the table."""

    section: str
    passed: int
    failed: int
    skipped: int
    seconds: str
    first: str


def told(courses: dict[str, Course]) -> str:
    """What was measured, then how the sections went."""
    parts = []
    for name, course in courses.items():
        if any(row.kind != "ceiling" for row in course.rows):
            parts.append(f"{name}\n{Outcome(course.rows).table}")
    lines = []
    for name, course in courses.items():
        count = Counter("failed" if r.outcome in WRONG else r.outcome for r in course.results)
        first = next((r for r in course.results if r.outcome in WRONG), None)
        shown = "" if course.over else "not to its end"
        if first is not None:
            shown = f"{first.name}: {first.outcome}: {(first.told.splitlines() or [''])[0][:100]}"
        counts = (count["passed"], count["failed"], count["skipped"])
        lines.append(Line(name, *counts, f"{course.seconds:.0f}", shown))
    return "\n\n".join([*parts, str(Table(Line._fields, [Line(*map(str, line)) for line in lines]))])
