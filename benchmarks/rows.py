"""One measurement is one row: a JSON object on a line of `results/<machine>.jsonl`, which is only ever appended to.

Rows that were measured interleaved, in one run, share its id; a ratio of two rows means something within a run only.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import re
import secrets
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from altclip_fast._version import __version__

from .clock import on_gpu

HERE = Path(__file__).parent
IN_CHECKOUT = (HERE.parent / "setup.py").exists()
RESULTS = HERE / "results" if IN_CHECKOUT else Path("results")
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "nncf", "torchao", "triton", "numpy", "faiss-cpu")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where and when rows were measured together."""

    run: str
    date: str  # UTC
    commit: str  # of altclip_fast, "+" when files were changed
    machine: str  # the name of the file of results
    device: str
    threads: int
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Row(Run):
    """One system at one task."""

    kind: str  # "model", "op", "head", "ladder" or "ceiling"
    subject: str  # the model or op
    work: str  # "image", "text", "text77", "zero-shot-3"; of an op, what is special about the call
    step: int  # of a ladder, from 0
    system: str
    backend: str  # how the system was set up, precisions included
    dtype: str  # computed in: "float32", "bfloat16", "int8"
    batch: int
    shape: str
    rounds: int
    median: float  # seconds a call
    spread: float  # seconds between the quartiles
    throughput: float  # items a second
    gflops: float  # a second, counting the products that the plain model makes of real tokens
    gbytes: float  # a second, counting weights once, and an op's inputs and outputs
    share: float | None  # of what the measured ceilings allow
    peak_memory: int | None  # bytes at most: anonymous ones of the system's process, or of the GPU
    cosine: float | None  # mean centred cosine with float32
    error: float | None  # max |difference| of normalised embeddings with float32


FIELDS = {field.name for field in dataclasses.fields(Row)}


def this_run(threads: int, device: str = "cpu") -> Run:
    """A new run on this machine, or on its GPU."""
    gpu = on_gpu(device)
    name = torch.cuda.get_device_name() if gpu else _processor()
    versions = {package: version_of(package) for package in PACKAGES} | (_gpu_versions() if gpu else {})
    return Run(
        run=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        commit=_commit(),
        machine=re.sub(r"[^a-z0-9]+", "-", (name if gpu else f"{name} {threads} threads").lower()).strip("-"),
        device=name,
        threads=threads,
        versions={package: version for package, version in versions.items() if version is not None},
    )


def make(run: Run, times: Sequence[float], flops: float, bytes: float, **values: Any) -> Row:
    """A row from the seconds of one call in each round; `values` are the fields that say what was run."""
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else (median,) * 3
    return Row(
        **dataclasses.asdict(run),
        rounds=len(times),
        median=median,
        spread=high - low,
        throughput=values["batch"] / median,
        gflops=flops / median / 1e9,
        gbytes=bytes / median / 1e9,
        **{"step": 0, "share": None, "peak_memory": None, "cosine": None, "error": None, **values},
    )


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a file, which is made if absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows)


def read(path: Path) -> list[Row]:
    """The rows of a file, in order.

    Raises:
        ValueError: a line is no row; the file and the line are named.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        if not isinstance(values, dict) or set(values) != FIELDS:
            given = set(values) if isinstance(values, dict) else set()
            raise ValueError(
                f"{path}:{number} is no row: missing {sorted(FIELDS - given)}, unknown {sorted(given - FIELDS)}"
            )
        rows.append(Row(**values))
    return rows


def version_of(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu_versions() -> dict[str, str | None]:
    cudnn = torch.backends.cudnn.version()
    return {
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "driver": ask_driver("driver_version"),
    }


def ask_driver(what: str) -> str | None:
    """What nvidia-smi says of the first GPU, such as "clocks.sm"; None where there is no nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _commit() -> str:
    if not IN_CHECKOUT:
        return f"v{__version__}"
    try:
        told = [
            subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return f"v{__version__}"
    return told[0] + ("+" if told[1] else "")


def _processor() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8"))):
        name = found[1]
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
