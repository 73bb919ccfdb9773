"""Every operator against torch's own functions, at the sizes of ViT-L/14 and XLM-R large, in this process."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from altclip_fast.dispatch import OPS
from altclip_fast.ops import packed
from altclip_fast.testing import assert_parity

from . import ceiling, harness, models, rows
from .harness import Outcome
from .worker import Clock
from .workloads import LENGTHS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HIDDEN, WIDE, HEADS, WIDTH, VOCABULARY = 1024, 4096, 16, 768, 65536
IMAGES = 65536  # that are searched


class Case(NamedTuple):
    """One call of an op.

    Attributes:
        flops: of its products.
        bytes: of its inputs and outputs, each once.
    """

    op: str
    name: str
    args: tuple
    flops: float
    bytes: float


def add_command(commands: Any) -> None:
    """Add `ops` to the command line."""
    parser = commands.add_parser("ops", help="time every operator against torch's own", description=__doc__)
    parser.add_argument(
        "--ops", nargs="+", choices=CASES, default=list(CASES), metavar="OP", help=f"of {', '.join(CASES)}"
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), metavar="DTYPE")
    parser.add_argument("--batches", nargs="+", type=models.positive, default=[1, 8], metavar="N", help="default: 1 8")
    parser.add_argument("--rounds", type=models.positive, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=models.positive, default=torch.get_num_threads(), metavar="N")
    models.add_output(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    outcome = Outcome()
    torch.set_num_threads(options.threads)
    for dtype in options.dtypes:
        for batch in options.batches:
            make = Make(DTYPES[dtype])
            for op in options.ops:
                for case in CASES[op](make, batch):
                    models.tell(f"{case.op} {case.name} {dtype} batch {batch}")
                    found = measure(case, dtype, batch, options.rounds, options.threads)
                    outcome.add(found)
                    models.write(found, options.output)
    print(outcome)
    return outcome.code


def measure(case: Case, dtype: str, batch: int, rounds: int, threads: int) -> Outcome:
    """Check an op on the arguments, then measure it beside its reference."""
    op, label = OPS[case.op], f"{case.op} {case.name} {dtype}".replace("  ", " ")
    with torch.inference_mode():
        backend = op.choose(*case.args)
        try:
            assert_parity(op, case.args)
        except AssertionError as error:
            return Outcome(refused={label: str(error).replace("\n", " ")})
        probes = {probe: probe.turn for probe in ceiling.probes(dtype)}
        run = {backend: Clock(lambda: op(*case.args)).turn, "reference": Clock(lambda: op.reference(*case.args)).turn}
        found = harness.in_rounds({**run, **probes}, rounds)
    this = rows.this_run(threads)
    top = ceiling.ceiling(dtype, {probe: found[probe] for probe in probes})
    outcome = Outcome(rows=harness.ceiling_rows(this, {probe: found[probe] for probe in probes}))
    for name in run:
        row = rows.make(
            this,
            found[name],
            case.flops,
            case.bytes,
            kind="op",
            subject=case.op,
            work=case.name,
            system="torch" if name == "reference" else "altclip_fast",
            backend=name,
            dtype=dtype,
            batch=batch,
            shape=_shape(case.args),
        )
        outcome.rows.append(replace(row, share=top.share(case.flops, case.bytes, row.median)))
    return outcome


def _shape(args: tuple) -> str:
    return ", ".join(" x ".join(map(str, a.shape)) for a in args if isinstance(a, Tensor) and a.dim() > 1)


class Make:
    """Random tensors of one dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.draw = dtype, torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=self.draw) * scale).to(self.dtype)

    def weight(self, n: int, k: int, factor: float = 1.0) -> Tensor:
        """As the models pass it: packed where that is done here."""
        weight = self(n, k, scale=k**-0.5)
        return packed.pack(weight, factor) if packed.why_not(self.dtype) is None else weight

    def offsets(self, lengths: list[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def _bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _norm(make: Make, batch: int) -> Iterator[Case]:
    x, weight = make(batch * 257, HIDDEN), make(HIDDEN)
    yield Case("layer_norm", "", (x, weight, weight, 1e-5), 0, 2 * _bytes(x))


def _add_norm(make: Make, batch: int) -> Iterator[Case]:
    x, residual, weight = make(batch * 257, HIDDEN), make(batch * 257, HIDDEN), make(HIDDEN)
    yield Case("add_layer_norm", "", (x, residual, weight, weight, 1e-5), 0, 4 * _bytes(x))


def _linear(make: Make, batch: int) -> Iterator[Case]:
    x, residual, bias = make(batch * 257, HIDDEN), make(batch * 257, HIDDEN), make(HIDDEN)
    weight = make.weight(HIDDEN, HIDDEN)
    flops, moved = 2 * x.shape[0] * weight.numel(), _bytes(x, weight, x)
    yield Case("linear", "", (x, weight, bias), flops, moved)
    yield Case("linear", "residual", (x, weight, bias, "none", residual), flops, moved + _bytes(residual))


def _mlp(make: Make, batch: int) -> Iterator[Case]:
    for activation, rows_, factor in (("quick_gelu", 257 * batch, packed.QUICK_GELU), ("gelu", 14 * batch, 1.0)):
        x, residual = make(rows_, HIDDEN), make(rows_, HIDDEN)
        w1, w2 = make.weight(WIDE, HIDDEN, factor), make.weight(HIDDEN, WIDE, 1 / factor)
        args = (x, w1, make(WIDE), w2, make(HIDDEN), activation, residual)
        yield Case("mlp", activation, args, 4 * rows_ * w1.numel(), _bytes(x, w1, w2, residual, x))


def _attention(make: Make, batch: int) -> Iterator[Case]:
    of_texts = [LENGTHS["text"][i % len(LENGTHS["text"])] for i in range(batch)]
    for name, lengths, queries in (
        ("images", [257] * batch, [257] * batch),
        ("images, one query each", [257] * batch, [1] * batch),
        ("texts", of_texts, of_texts),
    ):
        k, v = make(sum(lengths), HEADS, HIDDEN // HEADS), make(sum(lengths), HEADS, HIDDEN // HEADS)
        q = make(sum(queries), HEADS, HIDDEN // HEADS)
        args = (q, k, v, make.offsets(queries), make.offsets(lengths), max(queries), max(lengths))
        flops = sum(4 * a * b * HIDDEN for a, b in zip(queries, lengths, strict=True))
        yield Case("attention", name, args, flops, _bytes(q, k, v, q))


def _patch_embed(make: Make, batch: int) -> Iterator[Case]:
    pixels, weight = make(batch, 3, 224, 224), make(HIDDEN, 3, 14, 14, scale=0.04)
    args = (pixels, weight, make(HIDDEN), make(257, HIDDEN))
    moved = _bytes(pixels, weight) + batch * _bytes(args[3])
    yield Case("patch_embed", "", args, 2 * batch * 256 * weight.numel(), moved)


def _text_embed(make: Make, batch: int) -> Iterator[Case]:
    count = 14 * batch
    ids, zero = torch.randint(3, VOCABULARY, (count,), generator=make.draw), torch.zeros(count, dtype=torch.int64)
    word, position, weight = make(VOCABULARY, HIDDEN), make(514, HIDDEN), make(HIDDEN)
    args = (ids, 2 + torch.arange(count) % 14, zero, word, position, make(1, HIDDEN), weight, weight, 1e-5)
    yield Case("text_embed", "", args, 0, 3 * count * _bytes(weight))


def _normalize(make: Make, batch: int) -> Iterator[Case]:
    x = make(4096 * batch, WIDTH)
    yield Case("l2_normalize", "", (x,), 0, 2 * _bytes(x))


def _similarity(op: str, *rest: Any) -> Callable[[Make, int], Iterator[Case]]:
    def of(make: Make, batch: int) -> Iterator[Case]:
        a, b = make(batch, WIDTH), make(IMAGES, WIDTH)
        yield Case(op, f"{batch} x {IMAGES}", (a, b, *rest), 2 * a.shape[0] * b.numel(), _bytes(a, b))

    return of


def _loss(make: Make, batch: int) -> Iterator[Case]:
    image, text = make(256 * batch, WIDTH), make(256 * batch, WIDTH)
    cost = 2 * image.shape[0] * text.numel(), _bytes(image, text)
    yield Case("contrastive_loss", "", (image, text, torch.tensor(2.6592).to(make.dtype)), *cost)


CASES: dict[str, Callable[[Make, int], Iterator[Case]]] = {
    "layer_norm": _norm,
    "add_layer_norm": _add_norm,
    "linear": _linear,
    "mlp": _mlp,
    "attention": _attention,
    "patch_embed": _patch_embed,
    "text_embed": _text_embed,
    "l2_normalize": _normalize,
    "similarity": _similarity("similarity"),
    "similarity_topk": _similarity("similarity_topk", 10),
    "similarity_argmax": _similarity("similarity_argmax"),
    "similarity_softmax": _similarity("similarity_softmax"),
    "contrastive_loss": _loss,
}
