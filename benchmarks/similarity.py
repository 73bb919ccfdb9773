"""The joint head on the CPU: top-k, softmax and the contrastive loss beside what one would write or install.

Peers: torch.matmul with topk, softmax or cross_entropy; the same in chunks of the index, which is what memory allows
for a large one; numpy; faiss' flat inner-product index, if installed. All see normalised rows, as faiss does. One query
is as fast as memory: the ceiling of its rows is the fastest of a copy and of a sum over the index, measured in turns
with them.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from altclip_fast import ops, retrieval
from altclip_fast.testing import assert_parity

from . import ceiling, harness, models, rows
from .harness import Outcome
from .systems import OURS
from .worker import Clock, anonymous

KIND = "head"  # of the rows
DIM, K, CHUNK = 768, 10, 16384
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Case(NamedTuple):
    """One op at one size: ours and its peers, each a call without arguments.

    Attributes:
        batch: rows that are asked for, or pairs.
        flops, bytes: of its products; of what has to be read.
        read: what a case that reads more than it computes is measured against.
    """

    op: str
    work: str
    dtype: str
    batch: int
    flops: float
    bytes: float
    check: Callable[[], None]
    systems: dict[str, Callable[[], Any]]
    read: Tensor | None = None


def cases(count: int, dtype: str) -> Iterator[Case]:
    """The cases for an index of this many rows."""
    draw = torch.Generator().manual_seed(0)
    index, queries = (F.normalize(torch.randn(n, DIM, generator=draw), dim=1).to(DTYPES[dtype]) for n in (count, 1024))
    flops, size = 2.0 * DIM * count, float(index.nbytes)
    for n in (1, 1024):
        asked = queries[:n]
        systems = {
            OURS: functools.partial(ops.similarity_topk, asked, index, K, 1.0, False),
            "torch chunks": functools.partial(_chunked, asked, index),
        }
        if n * count * index.element_size() < 1 << 30:
            systems["torch"] = lambda asked=asked: (asked @ index.t()).topk(K)
        if dtype == "float32":
            systems["numpy chunks"] = functools.partial(_numpy, asked.numpy(), index.numpy())
            if find_spec("faiss"):
                systems["faiss flat"] = functools.partial(_faiss(index).search, asked.numpy(), K)
        check = functools.partial(_check, "similarity_topk", asked[:64], index[:4096], K)
        yield Case("similarity_topk", f"{n} x {count}", dtype, n, n * flops, size, check, systems, index)
    labels, images = index[:1000], index[:10000]
    softmax = {
        OURS: lambda: ops.similarity_softmax(images, labels, 100.0, False),
        "torch": lambda: (100.0 * images @ labels.t()).softmax(-1),
    }
    check = functools.partial(_check, "similarity_softmax", images[:64], labels, 100.0)
    cost = 2.0 * DIM * len(images) * len(labels), float(images.nbytes)
    yield Case("similarity_softmax", f"{len(images)} x {len(labels)}", dtype, len(images), *cost, check, softmax)
    yield _loss(dtype, 4096)


def _loss(dtype: str, n: int) -> Case:
    image, text, scale = _pairs(dtype, n)
    systems = {
        OURS: functools.partial(_train, ops.contrastive_loss, image, text, scale),
        "torch": functools.partial(_train, ops.contrastive_loss.reference, image, text, scale),
    }
    check = functools.partial(_check, "contrastive_loss", image[:256].detach(), text[:256].detach(), scale.detach())
    cost = 6.0 * DIM * n * n, 2.0 * image.nbytes
    return Case("contrastive_loss", f"{n} pairs, gradients", dtype, n, *cost, check, systems)


def _pairs(dtype: str, n: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, DIM, generator=draw).to(DTYPES[dtype]).requires_grad_() for _ in range(2))
    return image, text, torch.tensor(2.6592, requires_grad=True)


def _train(loss: Callable[..., Tensor], *inputs: Tensor) -> None:
    torch.autograd.grad(loss(*inputs), inputs)


def _check(op: str, *args: Any) -> None:
    assert_parity(op, args, backend="cpu")


def _chunked(queries: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    found = []
    for start in range(0, len(index), CHUNK):
        values, indices = (queries @ index[start : start + CHUNK].t()).topk(min(K, len(index) - start))
        found.append((values, indices + start))
    values, indices = (torch.cat(x, 1) for x in zip(*found, strict=True))
    best, order = values.topk(K)
    return best, indices.gather(1, order)


def _numpy(queries: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for start in range(0, len(index), CHUNK):
        scores = queries @ index[start : start + CHUNK].T
        best = np.argpartition(scores, max(0, scores.shape[1] - K), axis=1)[:, -K:]
        found.append((np.take_along_axis(scores, best, 1), best + start))
    values, indices = (np.concatenate(x, 1) for x in zip(*found, strict=True))
    order = np.argsort(-values, axis=1)[:, :K]
    return np.take_along_axis(values, order, 1), np.take_along_axis(indices, order, 1)


def _faiss(index: Tensor) -> Any:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    flat = faiss.IndexFlatIP(index.shape[1])
    flat.add(index.numpy())
    return flat


def measure(case: Case, rounds: int, threads: int) -> Outcome:
    """Check an op on a part of the arguments, then measure it beside its peers."""
    try:
        case.check()
    except AssertionError as error:
        return Outcome(refused={f"{case.op} {case.work} {case.dtype}": str(error).replace("\n", " ")})
    probes = ceiling.probes(case.dtype)
    if case.read is not None:
        total = Clock(case.read.view(torch.int64).sum).turn
        probes.append(ceiling.Probe("copy", "Tensor.sum", float(case.read.nbytes), total))
    turns: dict[Any, Callable[[], float]] = {name: Clock(call).turn for name, call in case.systems.items()}
    found = harness.in_rounds({**turns, **{probe: probe.turn for probe in probes}}, rounds)
    measured = {probe: found[probe] for probe in probes}
    this, top = rows.this_run(threads), ceiling.ceiling(case.dtype, measured)
    made = harness.ceiling_rows(this, measured)
    for name in case.systems:
        row = _row(this, found[name], case.flops, case.bytes, case, name)
        made.append(replace(row, share=top.share(case.flops, case.bytes, row.median)))
    return Outcome(rows=made)


def _row(this: rows.Run, times: list[float], flops: float, bytes: float, case: Any, system: str) -> rows.Row:
    return rows.make(
        this,
        times,
        flops,
        bytes,
        kind=KIND,
        subject=case.op,
        work=case.work,
        system=system,
        backend="cpu" if system == OURS else "",
        dtype=case.dtype,
        batch=case.batch,
        shape=f"{DIM} columns",
    )


class Large(NamedTuple):
    """One call that must not hold what it works on: made and measured in a process of its own."""

    op: str
    work: str
    dtype: str
    batch: int
    flops: float
    bytes: float
    make: Callable[[str, str], Callable[[], Any]]  # of the dtype and an empty folder


def large(dtype: str) -> Iterator[Large]:
    """A million rows in a file, and a loss whose scores would take 4 GB."""
    pairs, indexed, size = 32768, 1_000_000, DTYPES[dtype].itemsize
    if dtype == "bfloat16":
        cost = 2.0 * DIM * 1024 * indexed, float(indexed * DIM * size)
        yield Large("search", f"1024 x {indexed} in a file", dtype, 1024, *cost, _search)
    yield Large("contrastive_loss", f"{pairs} pairs, gradients", dtype, pairs, 6.0 * DIM * pairs**2, 0.0, _large_loss)


def _search(dtype: str, folder: str) -> Callable[[], Any]:
    file = Path(folder, "index.safetensors")
    index = torch.empty(1_000_000, DIM, dtype=DTYPES[dtype])
    for part in index.split(10_000):
        part.copy_(torch.randn(part.shape))
    save_file({"embeddings": index}, file)
    return functools.partial(retrieval.search, file, torch.randn(1024, DIM), K)


def _large_loss(dtype: str, folder: str) -> Callable[[], Any]:
    inputs = _pairs(dtype, 32768)
    _train(ops.contrastive_loss, *(x[:8192] if x.dim() else x for x in inputs))  # torch's own buffers
    return functools.partial(_train, ops.contrastive_loss, *inputs)


def measure_alone(case: Large, threads: int) -> Outcome:
    """Seconds of one call, and what it added to the anonymous memory of its process."""
    with tempfile.TemporaryDirectory(prefix="altclip-fast-bench-") as folder, get_context("spawn").Pool(1) as pool:
        seconds, grown = pool.apply(_alone, (case, folder, threads))
    row = _row(rows.this_run(threads), [seconds], case.flops, case.bytes, case, OURS)
    return Outcome(rows=[replace(row, peak_memory=grown)])


def _alone(case: Large, folder: str, threads: int) -> tuple[float, int]:
    torch.set_num_threads(threads)
    call, held, done = case.make(case.dtype, folder), [anonymous() or 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            held.append(anonymous() or 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return seconds, max(held) - held[0]


def add_command(commands: Any) -> None:
    """Add `similarity` to the command line."""
    parser = commands.add_parser("similarity", help="time the joint head against its peers", description=__doc__)
    parser.add_argument("--index", type=models.positive, default=1_000_000, metavar="N", help="rows (3 GB in float32)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), metavar="DTYPE")
    parser.add_argument("--memory", action="store_true", help="instead, what large calls add to a process")
    parser.add_argument("--rounds", type=models.positive, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=models.positive, default=torch.get_num_threads(), metavar="N")
    models.add_output(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    outcome = Outcome()
    torch.set_num_threads(options.threads)
    for dtype in options.dtypes:
        for case in large(dtype) if options.memory else cases(options.index, dtype):
            models.tell(f"{case.op} {case.work} {dtype}")
            if isinstance(case, Large):
                found = measure_alone(case, options.threads)
            else:
                found = measure(case, options.rounds, options.threads)
            outcome.add(found)
            models.write(found, options.output)
    print(outcome)
    return outcome.code
