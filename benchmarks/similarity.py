"""Similarity, top-k, softmax and the contrastive loss on the CPU against what one would write or install instead.

Peers: torch.matmul with topk, softmax or cross_entropy; the same in chunks of the index, which is what memory allows
for a large one; numpy; faiss' flat inner-product index, if installed. All see normalised rows, as faiss does.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from altclip_fast import ops
from altclip_fast.report import Table
from altclip_fast.testing import assert_parity

DIM, K, CHUNK = 768, 10, 16384
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Case(NamedTuple):
    """One op at one size: ours and its peers, each a call without arguments."""

    op: str
    shape: str
    dtype: str
    flops: float
    bytes: float
    check: Callable[[], None]
    systems: dict[str, Callable[[], Any]]


class Row(NamedTuple):
    """What one system needs; `ratio` is its time over ours."""

    op: str
    shape: str
    dtype: str
    system: str
    milliseconds: float
    gflops: float
    gigabytes: float  # a second
    ratio: float


def cases(rows: int, dtypes: tuple[str, ...] = tuple(DTYPES)) -> Iterator[Case]:
    """The cases for an index of this many rows."""
    for dtype in dtypes:
        index, queries = (F.normalize(torch.randn(n, DIM), dim=1).to(DTYPES[dtype]) for n in (rows, 1024))
        flops, size = 2.0 * DIM * rows, float(index.nbytes)
        for n in (1, 1024):
            asked = queries[:n]
            systems = {
                "altclip_fast": functools.partial(ops.similarity_topk, asked, index, K, 1.0, False),
                "torch chunks": functools.partial(_chunked, asked, index),
            }
            if n * rows * index.element_size() < 1 << 30:
                systems["torch"] = lambda asked=asked, index=index: (asked @ index.t()).topk(K)
            if dtype == "float32":
                systems["numpy chunks"] = functools.partial(_numpy, asked.numpy(), index.numpy())
                if find_spec("faiss"):
                    systems["faiss flat"] = functools.partial(_faiss(index).search, asked.numpy(), K)
            if n == 1:
                systems["read only"] = index.view(torch.int64).sum
            check = functools.partial(_check, "similarity_topk", asked[:64], index[:4096], K)
            yield Case("similarity_topk", f"{n} x {rows}, k={K}", dtype, n * flops, size, check, systems)
        labels, images = index[:1000], index[:10000]
        softmax = {
            "altclip_fast": lambda a=images, b=labels: ops.similarity_softmax(a, b, 100.0, False),
            "torch": lambda a=images, b=labels: (100.0 * a @ b.t()).softmax(-1),
        }
        check = functools.partial(_check, "similarity_softmax", images[:64], labels, 100.0)
        flops = 2.0 * DIM * len(images) * len(labels)
        yield Case("similarity_softmax", "10000 x 1000", dtype, flops, float(images.nbytes), check, softmax)
        yield _loss(dtype, 4096)


def _loss(dtype: str, n: int) -> Case:
    image, text = (torch.randn(n, DIM).to(DTYPES[dtype]).requires_grad_() for _ in range(2))
    scale = torch.tensor(2.6592, requires_grad=True)

    def run(loss: Callable[..., Tensor]) -> None:
        torch.autograd.grad(loss(image, text, scale), [image, text, scale])

    systems = {
        "altclip_fast": functools.partial(run, ops.contrastive_loss),
        "torch": functools.partial(run, ops.contrastive_loss.reference),
    }
    check = functools.partial(_check, "contrastive_loss", image[:256].detach(), text[:256].detach(), scale.detach())
    return Case(
        "contrastive_loss", f"{n}, with gradients", dtype, 6.0 * DIM * n * n, 2.0 * image.nbytes, check, systems
    )


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


def measure(case: Case, rounds: int) -> list[Row]:
    """Medians of interleaved rounds, after a check of parity and a warm-up."""
    case.check()
    times: dict[str, list[float]] = {name: [] for name in case.systems}
    for turn in range(rounds + 1):
        for name, call in case.systems.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(found) for name, found in times.items()}
    ours = medians["altclip_fast"]
    return [
        Row(
            case.op,
            case.shape,
            case.dtype,
            name,
            round(seconds * 1e3, 3),
            round(case.flops / seconds / 1e9),
            round(case.bytes / seconds / 1e9, 1),
            round(seconds / ours, 2),
        )
        for name, seconds in medians.items()
    ]


def add_command(commands: Any) -> None:
    """`python -m benchmarks similarity`."""
    parser = commands.add_parser("similarity", help="the joint head on the CPU", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the index (3 GB in float32)")
    parser.add_argument("--dtype", nargs="+", choices=tuple(DTYPES), default=tuple(DTYPES))
    parser.add_argument("--op", help="only this one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    rows = [
        row
        for case in cases(options.rows, tuple(options.dtype))
        if options.op in (None, case.op)
        for row in measure(case, options.rounds)
    ]
    print(Table(Row._fields, rows))
