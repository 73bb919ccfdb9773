"""Models side by side: this library and its peers, by tower, precision and batch."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from . import harness, rows
from .harness import GIB, Entry, Limits, Outcome
from .rows import RESULTS
from .systems import SYSTEMS, System
from .workloads import SIZES, WORKS, Job, checkpoint

DTYPES = ("float32", "bfloat16", "int8")


def add_command(commands: Any) -> None:
    """Add `models` to the command line."""
    parser = commands.add_parser("models", help="time whole towers against their peers", description=__doc__)
    add_options(parser)
    parser.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is measured, and how long."""
    add_run_options(parser)
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM", help=_all(SYSTEMS)
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, metavar="DTYPE", help=_all(DTYPES))


def add_run_options(parser: argparse.ArgumentParser, folders: bool = True) -> None:
    """Options that the ladder has, too; `folders`: whether a model may be one."""
    works = "; ".join(f"{name}: {what}" for name, what in WORKS.items())
    parser.add_argument("--works", nargs="+", choices=WORKS, default=["image"], metavar="WORK", help=works)
    parser.add_argument("--batches", nargs="+", type=positive, default=[1, 8], metavar="N", help="default: 1 8")
    add_measuring_options(parser, SIZES, folders)


def add_measuring_options(parser: argparse.ArgumentParser, models: Collection[str], folders: bool = False) -> None:
    """Which model, what a run may take, and where rows go."""
    sizes = f"{', '.join(models)} (random weights){', or a checkpoint folder' * folders} (default: %(default)s)"
    which: dict[str, Any] = {"type": _model} if folders else {"choices": models}
    parser.add_argument("--model", default="vit-l-14", metavar="MODEL", help=sizes, **which)
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), metavar="N", help="default: all")
    parser.add_argument(
        "--memory", type=positive, default=8, metavar="GIB", help="of all systems (default: %(default)s)"
    )
    parser.add_argument("--patience", type=positive, default=600, metavar="S", help="seconds for one system to start")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="keep checkpoints and exports there (default: not)")
    add_output(parser)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where rows go."""
    where = f"append the rows to FILE (default: {os.path.relpath(RESULTS)}/<machine>.jsonl)"
    parser.add_argument("--output", type=Path, metavar="FILE", help=where)


def _all(names: Any) -> str:
    return f"of {', '.join(names)} (default: all)"


def _model(text: str) -> str:
    if text not in SIZES and not Path(text, "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is no checkpoint folder, nor one of {', '.join(SIZES)}")
    return text


def positive(text: str) -> int:
    """A number from 1 on."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def tell(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


def entries(names: Iterable[str], dtype: str, systems: Mapping[str, System] = SYSTEMS) -> list[Entry]:
    """Those of the systems that compute in a dtype."""
    return [Entry(name, systems[name].start, dtype) for name in names if dtype in systems[name].dtypes]


def measure(
    names: Iterable[str], dtype: str, job: Job, options: argparse.Namespace, systems: Mapping[str, System] = SYSTEMS
) -> Outcome:
    """Those of the systems that compute in a dtype, interleaved."""
    chosen, name = entries(names, dtype, systems), subject(options)
    return harness.run(chosen, job, limits(options), tell, kind="model", subject=name, systems=systems)


def limits(options: argparse.Namespace) -> Limits:
    """As asked for on the command line."""
    return Limits(options.rounds, options.memory * GIB, options.patience)


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """One a tower and batch; the checkpoints exist while they are worked on."""
    with weights(options.weights) as parent:
        for work in options.works:
            folder = checkpoint(options.model, work, parent)
            for batch in options.batches:
                yield Job(str(folder), work, batch, "float32", options.threads)


def subject(options: argparse.Namespace) -> str:
    """The model's name in the rows."""
    return options.model if options.model in SIZES else Path(options.model).resolve().name


@contextmanager
def weights(given: Path | None) -> Iterator[Path]:
    """The folder that was given for checkpoints, or one that is gone afterwards."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="altclip-fast-bench-") as folder:
        yield Path(folder)


def run(options: argparse.Namespace) -> int:
    """Measure; one run a tower, batch and precision, so that no more is in memory than belongs together."""
    outcome = Outcome()
    for job in jobs(options):
        for dtype in options.dtypes:
            found = measure(options.systems, dtype, job, options)
            outcome.add(found)
            write(found, options.output)
    print(outcome)
    return outcome.code


def write(outcome: Outcome, output: Path | None) -> None:
    """Append the rows."""
    if outcome.rows:
        path = output or RESULTS / f"{outcome.rows[0].machine}.jsonl"
        rows.append(path, outcome.rows)
        tell(f"{len(outcome.rows)} rows appended to {os.path.relpath(path)}")
