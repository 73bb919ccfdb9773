"""Is everything right on this device? Each check raises AssertionError where it is not.

Operators: every backend, dtype and sample against float64, in memory that was filled with NaN; the sizes of the models
as well; the same bits every time; more than 2^31 elements. Whole models: against transformers, the same bits every
time, and of one input alone as in a batch.

`pytest -m gpu` runs these checks on a GPU, and `python -m benchmarks gpu` does, too, so that one that hangs or ends the
process does not cost the others. On a CPU, Triton's kernels are interpreted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from altclip_fast import native
from altclip_fast.dispatch import OPS, use_backend
from altclip_fast.testing import assert_parity, samples

from . import harness, workloads
from .clock import Device, on_gpu
from .shapes import MODELS, TINY, Sizes, Work, works
from .systems import embedding, in_runtime, own, own_model
from .worker import GRAPHED, InProcess
from .workloads import Job


class Skipped(Exception):
    """Why a check cannot be made here."""


class Check(NamedTuple):
    """One question, and the operator whose CUDA kernel the answer is evidence for."""

    name: str
    run: Callable[[], None]
    proves: str | None = None


class Extent(NamedTuple):
    """How much is checked."""

    samples: int | None  # of an operator; None: all
    dtypes: tuple[str, ...]
    sizes: Sizes
    repeats: int  # of a call that has to give the same bits
    model: str
    works: tuple[str, ...]
    batch: int
    far: int  # elements of a tensor whose offsets have to be right


FULL = Extent(None, ("float32", "bfloat16", "float16"), MODELS, 250, "vit-l-14", ("image", "text77"), 5, 2**31)
SMALL = Extent(2, ("float32",), TINY, 2, "tiny", ("image",), 2, 2**12)


def checks(device: str, extent: Extent, weights: Path) -> Iterator[Check]:
    """All of them, the most telling first.

    Args:
        device: "cuda" or "cpu".
        weights: a folder where checkpoints are kept.
    """
    for op, backend in _kernels(device):
        proves = op if backend == "cuda" else None
        for dtype in extent.dtypes:
            title = f"{op} on {backend}, {dtype}"
            yield Check(f"{title}: samples", partial(_samples, op, backend, dtype, device, extent.samples), proves)
            for work in works(extent.sizes):
                if work.checked == op:
                    run = partial(_at_size, work, backend, dtype, device)
                    yield Check(f"{title}: {'gradients, ' * work.gradients}{work.name}", run, proves)
            run = partial(_same_bits, op, backend, dtype, device, extent)
            yield Check(f"{title}: the same bits {extent.repeats} times", run, proves)
    for work in extent.works:
        for backend in (None, "triton"):
            for dtype in ("float32", "bfloat16"):
                run = partial(_as_transformers, work, backend, dtype, device, extent, weights)
                yield Check(f"model, {work}, {backend or 'backends as chosen'}, {dtype}: as transformers", run)
        run = partial(_model_bits, work, device, extent, weights)
        yield Check(f"model, {work}: the same bits every time, alone as in a batch, and by graphs", run)


def far_checks(device: str, extent: Extent) -> Iterator[Check]:
    """Tensors of more than 2^31 elements: their last rows are computed as those rows alone are, or are found."""
    for op, backend in _kernels(device):
        if op in FAR or op in SELECTIONS:
            run = partial(_far if op in FAR else _far_selection, op, backend, device, extent)
            yield Check(f"{op} on {backend}: {extent.far} elements", run, op if backend == "cuda" else None)


def _kernels(device: Device) -> Iterator[tuple[str, str]]:
    for op in OPS:
        for backend in ("triton", *["cuda"] * on_gpu(device)):
            if backend in OPS[op].backends:
                yield op, backend


def _need(backend: str) -> None:
    if backend == "cuda" and (reason := native.cuda_missing()) is not None:
        raise Skipped(reason)


@contextmanager
def _nan_from_cpp() -> Iterator[None]:
    """Memory that C++ takes is filled with NaN while torch is asked for determinism."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _samples(op: str, backend: str, dtype: str, device: str, count: int | None) -> None:
    _need(backend)
    for args in chosen(op, dtype, device, count):
        with _nan_from_cpp():
            assert_parity(op, args, backend=backend, gradients=True)


def chosen(op: str, dtype: str, device: str, count: int | None) -> list[tuple]:
    """The samples, or the smallest of them; the largest last."""
    found = sorted((args for _, args in samples(op, getattr(torch, dtype), device)), key=_elements)
    return found if count is None else [args for args in found if _elements(args) > 9][:count]


def _at_size(work: Work, backend: str, dtype: str, device: str) -> None:
    _need(backend)
    torch.manual_seed(0)
    assert_parity(
        work.checked, work.arguments(getattr(torch, dtype), device), backend=backend, gradients=work.gradients
    )


def _same_bits(op: str, backend: str, dtype: str, device: str, extent: Extent) -> None:
    """Of the largest sample, and of the largest size that models have."""
    _need(backend)
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    found = chosen(op, dtype, device, extent.samples)[-1:]
    found += [work.arguments(kind, device) for work in works(extent.sizes) if work.checked == op][-1:]
    for args in found:
        _repeat(lambda args=args: OPS[op](*args), extent.repeats, backend)


def _elements(args: tuple) -> int:
    return sum(a.numel() for a in args if isinstance(a, Tensor))


def _repeat(call: Callable[[], Any], times: int, backend: str | None) -> None:
    if backend is not None:
        with use_backend(backend):
            return _repeat(call, times, None)
    first = _tensors(call())
    for turn in range(1, times):
        for i, (a, b) in enumerate(zip(first, _tensors(call()), strict=True)):
            assert same(a, b), f"call {turn + 1} gives other bits in output {i}: {int((a != b).sum())} of {a.numel()}"


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in every bit; NaN is NaN."""
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def _tensors(output: Any) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)


def _job(work: str, dtype: str, device: str, extent: Extent, weights: Path) -> Job:
    folder = workloads.whole(extent.model, weights)
    return Job(str(folder), work, extent.batch, dtype, torch.get_num_threads(), device=device)


def _as_transformers(work: str, backend: str | None, dtype: str, device: str, extent: Extent, weights: Path) -> None:
    job = _job(work, dtype, device, extent, weights)
    verdict = harness.check(InProcess(partial(own, backend=backend), job, 0), job, 0, apart=False)
    assert verdict.refusal is None, verdict.refusal


def _model_bits(work: str, device: str, extent: Extent, weights: Path) -> None:
    job = _job(work, "float32", device, extent, weights)
    model, (inputs, *_) = own_model(job), job.batches()
    with torch.inference_mode(), use_backend("triton"):
        together = embedding(model, job.tower, inputs)
        _repeat(lambda: embedding(model, job.tower, inputs), extent.repeats, None)
        for row in range(2 if on_gpu(device) else 0):  # numpy, which interprets products, sums a row by its place
            alone = embedding(model, job.tower, {name: x[row : row + 1] for name, x in inputs.items()})
            assert same(alone, together[row : row + 1]), f"input {row} has other bits alone than in a batch"
        runtime = in_runtime(model, job)
        (given, *_) = runtime.inputs(job)
        for turn in range(GRAPHED):
            assert same(runtime.embed(given), together), f"call {turn + 1} of the runtime gives other bits"


def _far(op: str, backend: str, device: str, extent: Extent) -> None:
    """float32, where a row has the same bits in any batch; but not in the interpreter, see `_model_bits`."""
    _need(backend)
    make = partial(torch.randn, device=device)
    whole, last, rows = FAR[op](make, extent.far, device)
    if not on_gpu(device):
        return assert_parity(op, whole, backend=backend)
    with torch.inference_mode(), use_backend(backend):
        assert_parity(op, last, backend=backend)
        alone, together = OPS[op](*last), OPS[op](*whole)
        for i, (a, b) in enumerate(zip(_tensors(alone), _tensors(together), strict=True)):
            assert same(a, b[-rows:]), f"the last {rows} rows of output {i} have other bits than those rows alone"


def _far_selection(op: str, backend: str, device: str, extent: Extent) -> None:
    """The best row is the last one of the index."""
    _need(backend)
    query, index = torch.randn(1, 64, device=device), torch.randn(extent.far // 64 + 9, 64, device=device)
    index[-1] = query
    with torch.inference_mode(), use_backend(backend):
        found = OPS[op](query, index, 3)[1][0, 0] if op == "similarity_topk" else OPS[op](query, index)[0]
    assert found.item() == len(index) - 1, f"row {found.item()} is found, {len(index) - 1} is the query itself"


Far = Callable[[Callable[..., Tensor], int, str], tuple[tuple, tuple, int]]
TAIL = 7  # rows that are looked at


def _far_rows(width: int, *rest: tuple[int, ...], tail: tuple = ()) -> Far:
    """x [T, width] first, then tensors of these shapes."""

    def arguments(make: Callable[..., Tensor], far: int, device: str) -> tuple[tuple, tuple, int]:
        x, others = make(far // width + TAIL + 1, width), [make(*shape) for shape in rest]
        return (x, *others, *tail), (x[-TAIL:].clone(), *others, *tail), TAIL

    return arguments


def _far_attention(make: Callable[..., Tensor], far: int, device: str) -> tuple[tuple, tuple, int]:
    tokens, heads, dim = 257 if far > 1 << 20 else 9, 16, 64
    count = far // (tokens * heads * dim) + 2
    q, k, v = (make(count * tokens, heads, dim) for _ in range(3))
    cu = torch.arange(0, (count + 1) * tokens, tokens, dtype=torch.int32, device=device)
    last = tuple(x[-tokens:].clone() for x in (q, k, v))
    return (q, k, v, cu, cu, tokens, tokens), (*last, cu[:2], cu[:2], tokens, tokens), tokens


def _far_text(make: Callable[..., Tensor], far: int, device: str) -> tuple[tuple, tuple, int]:
    hidden = 1024
    ids = torch.arange(far // hidden + TAIL + 1, device=device) % 89
    zero, tables = torch.zeros_like(ids), (make(89, hidden), make(9, hidden), make(1, hidden))
    rest = (*tables, make(hidden), make(hidden), 1e-5)
    return (ids, ids % 9, zero, *rest), (ids[-TAIL:].clone(), (ids % 9)[-TAIL:], zero[-TAIL:], *rest), TAIL


def _far_pixels(make: Callable[..., Tensor], far: int, device: str) -> tuple[tuple, tuple, int]:
    side, patch, hidden = 224, 32, 64
    count = far // (3 * side * side) + 2
    pixels = torch.randint(256, (count, 3, side, side), device=device, dtype=torch.uint8)
    rest = (make(hidden, 3, patch, patch) * 0.01, make(hidden), make(1 + (side // patch) ** 2, hidden))
    return (pixels, *rest), (pixels[-1:].clone(), *rest), 1


def _far_scores(make: Callable[..., Tensor], far: int, device: str) -> tuple[tuple, tuple, int]:
    """The output is what is large."""
    width = int(far**0.5) + TAIL + 1
    a, b = make(width, 64), make(width, 64)
    return (a, b), (a[-TAIL:].clone(), b), TAIL


FAR: dict[str, Far] = {
    "layer_norm": _far_rows(1024, (1024,), (1024,), tail=(1e-5,)),
    "linear": _far_rows(1024, (64, 1024), (64,), tail=("gelu",)),
    "attention": _far_attention,
    "text_embed": _far_text,
    "patch_embed": _far_pixels,
    "l2_normalize": _far_rows(1024),
    "similarity": _far_scores,
    "similarity_softmax": _far_scores,
}
SELECTIONS = {"similarity_topk", "similarity_argmax"}
