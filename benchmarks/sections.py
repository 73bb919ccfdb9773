"""What `python -m benchmarks gpu` consists of: sections of items, each a question with a bounded time.

On a CPU the same sections run on tiny sizes, Triton's kernels interpreted, so that all of this is known to work.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from altclip_fast import doctor, native

from . import harness, ladder, ops, rows, shapes, truth, tune, workloads
from .clock import on_gpu
from .harness import GIB, Entry, Limits, Outcome
from .systems import OURS, SYSTEMS, embedding, own_model
from .truth import FULL, SMALL, Extent, Skipped
from .workloads import Job


@dataclass(frozen=True)
class Setting:
    """Where and how much; it travels to the processes.

    Attributes:
        device: "cuda", or "cpu" for a rehearsal.
        output: the folder that everything found is written to.
        weights: the folder of checkpoints.
        rounds: in which systems take turns.
    """

    device: str
    output: Path
    weights: Path
    threads: int
    rounds: int

    @property
    def small(self) -> bool:
        return not on_gpu(self.device)

    @property
    def found(self) -> Path:
        """The folder for all that is no row."""
        return self.output / "gpu"

    @property
    def extent(self) -> Extent:
        return SMALL if self.small else FULL


class Told(NamedTuple):
    """What an item has found: text for the notes, rows, and why it is not good."""

    text: str = ""
    rows: Sequence[rows.Row] = ()
    failure: str | None = None


class Item(NamedTuple):
    """One question.

    `run` returns what it has found or nothing, and raises AssertionError where something is wrong, `Skipped` where it
    cannot be asked. `proves` is the operator whose CUDA kernel the answer is evidence for.
    """

    name: str
    run: Callable[[], Told | None]
    proves: str | None = None


PEERS, PEER_KERNELS = ("transformers", "torch-compile"), ("reference", "sdpa, cuDNN", "sdpa, flash")
Items = Callable[[Setting], Iterator[Item]]


class Section(NamedTuple):
    """Items that are asked one after the other."""

    items: Items
    seconds: float  # for all
    each: float  # for one
    gate: bool = False  # it has to be run to its end
    models: bool = False  # it reads a checkpoint
    shards: int = 1  # processes at once on a GPU: where most of the time goes into compiling


def build(setting: Setting) -> Iterator[Item]:
    """The libraries, the versions of everything, and the clocks."""
    yield Item("extension", partial(_extension, setting))
    yield Item("doctor", partial(_doctor, setting))
    yield Item("versions", partial(_versions, setting))


def _extension(setting: Setting) -> Told:
    if setting.small:
        raise Skipped("a rehearsal takes what is built")
    if not rows.IN_CHECKOUT:
        raise Skipped("this is not a checkout")
    root = rows.HERE.parent
    return Told(_ran([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=root)[-3000:])


def _doctor(setting: Setting) -> Told:
    text = doctor.text()
    missing = None if setting.small else native.cuda_missing()
    return Told(text, failure=missing or native.missing())


def _versions(setting: Setting) -> Told:
    asked = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "temperature.gpu")
    clocks = [] if setting.small else [f"{name}: {rows.ask_driver(name)}" for name in asked]
    found = rows.this_run(setting.threads, setting.device)
    return Told("\n".join([found.device, *(f"{name} {version}" for name, version in found.versions.items()), *clocks]))


def _ran(command: Sequence[str], **options: object) -> str:
    """What a command says.

    Raises:
        AssertionError: it failed; with the end of what it said.
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}: {done.stdout[-2000:]}"
    return done.stdout


def checks(setting: Setting) -> Iterator[Item]:
    """Every check of `truth`."""
    for check in truth.checks(setting.device, setting.extent, setting.weights):
        yield Item(check.name, partial(_quietly, check.run), check.proves)


def _quietly(run: Callable[[], None]) -> None:
    run()


def safety(setting: Setting) -> Iterator[Item]:
    """Tensors of more than 2^31 elements, and NVIDIA's checkers of memory and races, where they run."""
    for check in truth.far_checks(setting.device, setting.extent):
        yield Item(check.name, partial(_quietly, check.run), check.proves)
    for backend in ("triton", "cuda"):
        for tool in ("memcheck", "racecheck"):
            yield Item(f"{tool}, {backend}", partial(_sanitized, tool, backend, setting))


def _sanitized(tool: str, backend: str, setting: Setting) -> Told:
    program = _tool("compute-sanitizer", setting)
    # Without the allocator's cache every tensor ends where its memory does.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", sys.executable]
    probe = [*command, "-c", "import torch; print(torch.ones(8, device='cuda').sum().item())"]
    try:
        _ran(probe, env=environment, timeout=100)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        raise Skipped(f"{tool} does not run here: {str(error)[-500:]}") from error
    return Told(_ran([*command, "-m", f"{__package__}.once", "--backend", backend], env=environment))


def _tool(name: str, setting: Setting) -> str:
    if setting.small:
        raise Skipped("there is no GPU")
    beside = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", name)
    found = shutil.which(name) or (str(beside) if beside.exists() else None)
    if found is None:
        raise Skipped(f"{name} is not installed")
    return found


def _jobs(setting: Setting) -> Iterator[Job]:
    sizes = (("image", 1), ("image", 64), ("image", 256), ("text77", 1), ("text77", 1024))
    folder = str(workloads.whole(setting.extent.model, setting.weights))
    for work, batch in (("image", 2), ("text77", 2)) if setting.small else sizes:
        yield Job(folder, work, batch, "bfloat16", setting.threads, device=setting.device)


def rungs(setting: Setting) -> Iterator[Item]:
    """What each technique is worth: one item a tower and batch."""
    steps = {work: ladder.steps(work, setting.device) for work in workloads.WORKS}
    for job in _jobs(setting):
        yield Item(f"{job.work}, batch {job.batch}", partial(_models, steps[job.work], job, setting, "ladder"))


def peers(setting: Setting) -> Iterator[Item]:
    """Compiled peers, which take minutes to start, beside this library and transformers as it comes."""
    names = [OURS, "transformers-sdpa", *["torch-compile"] * (not setting.small)]
    entries = [Entry(name, SYSTEMS[name].start, "bfloat16") for name in names]
    for job in islice(_jobs(setting), 1 if setting.small else None):
        yield Item(f"{job.work}, batch {job.batch}", partial(_models, entries, job, setting, "model"))


def _models(entries: Sequence[Entry], job: Job, setting: Setting, kind: str) -> Told:
    limits = Limits(setting.rounds, memory=1000 * GIB)
    subject = setting.extent.model
    return _measured(harness.run(entries, job, limits, _tell, kind=kind, subject=subject, apart=False))


def _measured(outcome: Outcome) -> Told:
    """It is good when all that is ours ran and was right; a peer may fail."""
    failed = {
        label: reason
        for label, reason in outcome.left_out.items()
        if reason.startswith("failed:") and not (label.startswith(PEERS) or label.endswith(PEER_KERNELS))
    }
    wrong = "; ".join(f"{label}: {reason}" for label, reason in (outcome.refused | failed).items())
    return Told(str(outcome), outcome.rows, wrong or None)


def _tell(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def operators(setting: Setting) -> Iterator[Item]:
    """Each operator beside its peers, and the machine's ceilings."""
    sizes = (("float32", 1),) if setting.small else (("bfloat16", 64), ("bfloat16", 1), ("float32", 16))
    for dtype, batch in sizes:
        for op in ("layer_norm",) if setting.small else ops.CASES:
            yield Item(f"{op}, {dtype}, batch {batch}", partial(_operator, op, dtype, batch, setting))


def _operator(op: str, dtype: str, batch: int, setting: Setting) -> Told:
    outcome = Outcome()
    for case in ops.CASES[op](ops.Make(ops.DTYPES[dtype], setting.device), batch):
        outcome.add(ops.measure(case, dtype, batch, setting.rounds, setting.threads, setting.device))
    return _measured(outcome)


def tuning(setting: Setting) -> Iterator[Item]:
    """The fastest configurations, an operator at a time, those of the encoders' layers first."""
    share = {"linear": 0.5, "attention": 0.2, "patch_embed": 0.05}
    found = list(dict.fromkeys(work.op for work in shapes.works(shapes.TINY)))
    chosen = ["linear"] if setting.small else sorted(found, key=lambda op: -share.get(op, 0))
    for op in chosen:
        yield Item(op, partial(_tune, op, share.get(op, 0.05) * SECTIONS["tune"].seconds, setting))


def _tune(op: str, seconds: float, setting: Setting) -> Told:
    device = torch.device(setting.device)
    file = setting.found / "interpreted.json" if setting.small else tune.table_of(device)
    dtypes, sizes = (("float16",), shapes.TINY) if setting.small else (("bfloat16", "float32"), shapes.MODELS)
    tune.into(file, device, sizes, dtypes, seconds, (op,))
    if not setting.small:
        shutil.copy(file, setting.found)
    return Told(file.read_text(encoding="utf-8"))


def why(setting: Setting) -> Iterator[Item]:
    """Where the time goes: the kernels of whole models, and the counters of the operator that loses most."""
    for job in _jobs(setting):
        yield Item(f"kernels, {job.work}, batch {job.batch}", partial(_profile, job))
    yield Item("counters", partial(_counters, setting))


def _profile(job: Job) -> Told:
    """The longest kernels of a tower that runs without graphs."""
    model, inputs = own_model(job), job.batches()[0]
    kinds = [torch.profiler.ProfilerActivity.CPU, *[torch.profiler.ProfilerActivity.CUDA] * on_gpu(job.device)]
    with torch.inference_mode():
        for _ in range(3):
            embedding(model, job.tower, inputs)
        with torch.profiler.profile(activities=kinds) as profile:
            embedding(model, job.tower, inputs)
            if on_gpu(job.device):
                torch.cuda.synchronize()
    key = "self_device_time_total" if on_gpu(job.device) else "self_cpu_time_total"
    return Told(profile.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=60))


def _counters(setting: Setting) -> Told:
    program = _tool("ncu", setting)
    row = widest_gap(rows.read(path) if (path := measured_file(setting)).exists() else [])
    if row is None:
        raise Skipped("no operator was measured")
    backend = row.backend.partition(",")[0]
    once = ["--backend", backend, "--dtype", row.dtype, "--op", row.subject, "--case", row.work]
    command = [program, "--clock-control", "none", "--set", "detailed", "--kernel-name", "regex:_kernel"]
    called = [sys.executable, "-m", f"{__package__}.once", *once, "--batch", str(row.batch)]
    try:
        return Told(f"{row.subject} {row.work} on {row.backend}\n{_ran([*command, *called], timeout=200)}")
    except AssertionError as error:
        raise Skipped(f"ncu does not run here: {str(error)[-500:]}") from error


def widest_gap(found: Sequence[rows.Row]) -> rows.Row | None:
    """Of this library's operators, the newest row that loses most time to its floor."""
    own = {(r.subject, r.work, r.dtype, r.batch): r for r in found if r.kind == "op" and r.system == OURS and r.share}
    return max(own.values(), key=lambda row: row.median * (1 - (row.share or 0)), default=None)


def measured_file(setting: Setting) -> Path:
    """Where rows of this device go."""
    return setting.output / f"{rows.this_run(setting.threads, setting.device).machine}.jsonl"


SECTIONS = {
    "build": Section(build, 420, 400, gate=True),
    "truth": Section(checks, 480, 240, gate=True, models=True, shards=8),
    "safety": Section(safety, 480, 300, gate=True),
    "ladder": Section(rungs, 300, 150, models=True),
    "ops": Section(operators, 300, 60),
    "peers": Section(peers, 540, 300, models=True),
    "tune": Section(tuning, 480, 330),
    "again": Section(rungs, 300, 150, models=True),
    "why": Section(why, 300, 220, models=True),
}
