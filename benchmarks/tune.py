"""Which configurations are fastest on this GPU: times the candidates, and writes kernels/tuned/<GPU>.json.

Each work of `shapes` is run with its default and with every candidate whose results are right and whose machine code
spills nothing. Timed is the replay of a CUDA graph of calls on different inputs, together larger than the L2, so
that neither launches nor cached operands are in the figure; the candidates take turns, and medians are compared.
Works that are looked up by the same shape share one choice, the one that loses least on all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from altclip_fast.files import staged, write_text
from altclip_fast.kernels import launch, tuning
from altclip_fast.testing import assert_parity

from . import kernels
from .clock import Clock, inputs, recorded
from .shapes import MODELS, TINY, Sizes, Work, asked, candidates, works

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ROUNDS = {"cuda": 15, "cpu": 1}  # of a GPU the medians count
GAIN = 1.02  # a candidate replaces the default where it is faster by more than the noise

Key = tuple[str, str, tuple[int, ...]]  # op, dtype, shape


def tune(
    device: torch.device, sizes: Sizes, dtypes: Sequence[str], seconds: float, only: Collection[str] = ()
) -> Iterator[tuple[str, list[dict]]]:
    """Yields (op, its rows as `tuning` reads them), one op after the other, until the time is up.

    Args:
        only: these ops; all when empty.
    """
    end = time.monotonic() + seconds
    capability = launch.capability(device)
    by_op: dict[str, dict[Key, list[Work]]] = {}
    for name in dtypes:
        for work in (w for w in works(sizes) if not only or w.op in only):
            key = work.op, name, asked(work, DTYPES[name], capability).shape
            by_op.setdefault(work.op, {}).setdefault(key, []).append(work)
    for op, keys in by_op.items():
        rows = []
        for (_, name, shape), same in keys.items():
            if time.monotonic() > end:
                print(f"{op}, {name}, {list(shape)}: left out, {seconds:.0f} s are up", file=sys.stderr)
                continue
            config, gain = choose(same, DTYPES[name], device)
            rows.append({"dtype": name, "shape": list(shape), "config": config, "gain": round(gain, 3)})
            print(f"{op}, {name}, {list(shape)}: {gain:.2f} x the default with {config}", file=sys.stderr)
        if rows:
            yield op, rows


def choose(same: Sequence[Work], dtype: torch.dtype, device: torch.device) -> tuple[tuning.Config, float]:
    """The configuration that is best for all these works, and how much faster it is than the default."""
    default = asked(same[0], dtype, launch.capability(device)).config
    tried = [default, *(c for c in candidates(same[0].op, dtype) if c != default)]
    tried = [config for config in tried if all(usable(work, config, dtype, device) for work in same)]
    if default not in tried:
        raise RuntimeError(f"{same[0].op}, {same[0].name}, {dtype}: the default {default} is wrong; nothing is tuned")
    rounds = ROUNDS[device.type]
    times = [measure([timer(work, config, dtype, device) for config in tried], rounds) for work in same]
    gains = [math.prod(row[0] / row[i] for row in times) ** (1 / len(times)) for i in range(len(tried))]
    best = max(range(len(tried)), key=gains.__getitem__)
    best = best if gains[best] > GAIN else 0
    return tried[best], gains[best]


def usable(work: Work, config: tuning.Config, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether it compiles, spills nothing and gives the right results."""
    try:
        with tuning.trying(work.op, config):
            if device.type == "cuda" and kernels.spills(work, dtype, launch.capability(device)):
                return False
            assert_parity(work.checked, work.arguments(dtype, device), backend="triton", gradients=work.gradients)
    except (AssertionError, RuntimeError, triton.CompilationError, triton.OutOfResources) as error:
        print(f"{work.op}, {work.name}, {dtype}, {config}: {error}", file=sys.stderr)
        return False
    return True


def timer(work: Work, config: tuning.Config, dtype: torch.dtype, device: torch.device) -> Callable[[], float]:
    """Seconds a call, measured whenever it is called."""
    given = inputs(lambda: work.arguments(dtype, device), device)

    def run_all() -> None:
        with tuning.trying(work.op, config):
            for arguments in given:
                work.run(*arguments)

    return Clock(recorded(run_all, device), device, len(given)).once


def measure(timers: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """The median of each, taken in turns."""
    for each in timers:
        each()
    return [statistics.median(column) for column in zip(*([t() for t in timers] for _ in range(rounds)), strict=True)]


def add_command(commands: Any) -> None:
    """Add `tune` to the command line."""
    parser = commands.add_parser("tune", help="find the fastest configurations on this GPU and write its table")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes, interpreted")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=tuple(DTYPES), metavar="DTYPE")
    parser.add_argument("--seconds", type=float, default=480.0, help="stop after the shape that passes them")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of kernels/tuned/<GPU>.json")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("tune: there is no GPU here; `--device cpu --output FILE` runs tiny sizes in the interpreter")
    if device.type == "cpu" and not launch.INTERPRETED:
        sys.exit("tune: on the CPU kernels are interpreted: set TRITON_INTERPRET=1")
    if device.type == "cpu" and options.output is None:
        sys.exit("tune: the interpreter has no table of its own: name a file with --output")
    file = options.output or table_of(device)
    into(file, device, MODELS if device.type == "cuda" else TINY, options.dtypes, options.seconds)
    print(file)


def table_of(device: torch.device) -> Path:
    """The file that calls on this GPU look into."""
    return tuning.TUNED / f"{tuning.gpu_name(device)}.json"


def into(
    file: Path, device: torch.device, sizes: Sizes, dtypes: Sequence[str], seconds: float, only: Collection[str] = ()
) -> None:
    """Tune, and write after every op: what is measured is not lost if a later one fails.

    What the file holds of other shapes stays, unless other versions of torch or Triton measured it.
    """
    about = {
        "capability": launch.capability(device),
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
    }
    table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if {name: table.get(name) for name in about} != about:
        table = {**about, "ops": {}}
    file.parent.mkdir(parents=True, exist_ok=True)
    for op, rows in tune(device, sizes, dtypes, seconds, only):
        kept = {(row["dtype"], *row["shape"]): row for row in [*table["ops"].get(op, []), *rows]}
        table["ops"][op] = list(kept.values())
        with staged(file.parent) as stage:
            write_text(stage(file.name), json.dumps(table, indent=1) + "\n")
