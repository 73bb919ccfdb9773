"""Every operator against torch's own functions, at the sizes of ViT-L/14 and XLM-R large, in this process.

On a GPU every backend that takes the call is measured, as the replay of a graph of calls on inputs that are together
larger than the L2; and attention beside torch's, by cuDNN and by flash attention.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from altclip_fast.dispatch import OPS, Op, use_backend
from altclip_fast.ops import packed
from altclip_fast.testing import assert_parity

from . import ceiling, harness, models, rows
from .clock import Clock, Device, inputs, on_gpu, recorded
from .costs import cost, shape
from .harness import Outcome
from .worker import failure
from .workloads import LENGTHS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HIDDEN, WIDE, HEADS, WIDTH, VOCABULARY = 1024, 4096, 16, 768, 65536
IMAGES = 65536  # that are searched
READS_LENGTHS = {"attention"}  # whose references look at the offsets, which no graph can


class Case(NamedTuple):
    """One call of an op."""

    op: str
    name: str
    args: tuple


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


def measure(case: Case, dtype: str, batch: int, rounds: int, threads: int, device: str = "cpu") -> Outcome:
    """Check an op on the arguments, then measure it beside its reference, and on a GPU beside its other backends."""
    op, label = OPS[case.op], f"{case.op} {case.name} {dtype}".replace("  ", " ")
    outcome, needed = Outcome(), cost(case.op, case.args)
    with torch.inference_mode():
        chosen = op.choose(*case.args)
        able = [name for name in op.backends if takes(op, name, case.args)] if on_gpu(device) else [chosen]
        ours = []
        for name in (name for name in able if name != "reference"):
            try:
                assert_parity(op, case.args, backend=name)
                ours.append(name)
            except AssertionError as error:
                outcome.refused[f"{label} {name}"] = str(error).replace("\n", " ")
        if outcome.refused and not ours:
            return outcome
        systems = {name: forced(op, name) for name in ours} | {"reference": op.reference}
        systems |= PEERS.get(case.op, _no_peers)(case) if on_gpu(device) else {}
        clocks, memory = {}, {}
        for name, call in systems.items():
            try:
                as_graph = name != "reference" or case.op not in READS_LENGTHS
                clocks[name] = _clock(call, case.args, device, as_graph)
                memory[name] = _peak(call, case.args, device)
            except RuntimeError as error:  # a peer that does not take this dtype or shape
                outcome.left_out[f"{label} {name}"] = failure(error)
        probes = {probe: probe.turn for probe in ceiling.probes(dtype, device)}
        found = harness.in_rounds({**{name: clock.turn for name, clock in clocks.items()}, **probes}, rounds)
    this = rows.this_run(threads, device)
    top = ceiling.ceiling(dtype, {probe: found[probe] for probe in probes})
    outcome.rows += harness.ceiling_rows(this, {probe: found[probe] for probe in probes})
    for name in clocks:
        row = rows.make(
            this,
            found[name],
            needed.flops,
            needed.bytes,
            kind="op",
            subject=case.op,
            work=case.name,
            system="altclip_fast" if name in ours else "torch",
            backend=f"{name}, by itself" if on_gpu(device) and name == chosen else name,
            dtype=dtype,
            batch=batch,
            shape=shape(case.args),
            peak_memory=memory[name],
        )
        outcome.rows.append(replace(row, share=top.share(needed.flops, needed.bytes, row.median)))
    return outcome


def takes(op: Op, backend: str, args: tuple) -> bool:
    """Whether a backend runs these arguments where it is asked for."""
    with use_backend(backend):
        return op.reasons(*args)[backend] is None


def forced(op: Op, backend: str) -> Callable[..., Any]:
    """The op on one backend."""

    def call(*args: Any) -> Any:
        with use_backend(backend):
            return op(*args)

    return call


def _clock(call: Callable[..., Any], args: tuple, device: str, as_graph: bool) -> Clock:
    given = inputs(lambda: tuple(a.clone() if isinstance(a, Tensor) else a for a in args), device)

    def run_all() -> None:
        for arguments in given:
            call(*arguments)

    return Clock(recorded(run_all, device) if as_graph else run_all, device, len(given))


def _peak(call: Callable[..., Any], args: tuple, device: str) -> int | None:
    """Bytes of the GPU that a call takes at most, beside its arguments."""
    if not on_gpu(device):
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(*args)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _no_peers(case: Case) -> dict[str, Callable[..., Any]]:
    return {}


def _sdpa(case: Case) -> dict[str, Callable[..., Any]]:
    """torch's attention of sequences of one length, which needs no packing: its best case."""
    q, k, _, _, cu_k, longest_q, longest_k = case.args[:7]
    batch = len(cu_k) - 1
    if len(q) != batch * longest_q or len(k) != batch * longest_k:
        return {}

    def by(kernel: SDPBackend) -> Callable[..., Any]:
        def call(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
            q, k, v = (x.unflatten(0, (batch, -1)).transpose(1, 2) for x in (q, k, v))
            with sdpa_kernel(kernel):
                return F.scaled_dot_product_attention(q, k, v)

        return call

    return {"sdpa, cuDNN": by(SDPBackend.CUDNN_ATTENTION), "sdpa, flash": by(SDPBackend.FLASH_ATTENTION)}


PEERS: dict[str, Callable[[Case], dict[str, Callable[..., Any]]]] = {"attention": _sdpa}


class Make:
    """Random tensors of one dtype on one device."""

    def __init__(self, dtype: torch.dtype, device: Device = "cpu") -> None:
        self.dtype, self.device, self.draw = dtype, device, torch.Generator(device).manual_seed(0)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=self.draw, device=self.device) * scale).to(self.dtype)

    def weight(self, n: int, k: int, factor: float = 1.0) -> Tensor:
        """As the models pass it: packed where that is done here."""
        weight = self(n, k, scale=k**-0.5)
        packs = not on_gpu(self.device) and packed.why_not(self.dtype) is None
        return packed.pack(weight, factor) if packs else weight

    def offsets(self, lengths: list[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self.device)


def _norm(make: Make, batch: int) -> Iterator[Case]:
    x, weight = make(batch * 257, HIDDEN), make(HIDDEN)
    yield Case("layer_norm", "", (x, weight, weight, 1e-5))


def _add_norm(make: Make, batch: int) -> Iterator[Case]:
    x, residual, weight = make(batch * 257, HIDDEN), make(batch * 257, HIDDEN), make(HIDDEN)
    yield Case("add_layer_norm", "", (x, residual, weight, weight, 1e-5))


def _linear(make: Make, batch: int) -> Iterator[Case]:
    x, residual, bias = make(batch * 257, HIDDEN), make(batch * 257, HIDDEN), make(HIDDEN)
    weight = make.weight(HIDDEN, HIDDEN)
    yield Case("linear", "", (x, weight, bias))
    yield Case("linear", "residual", (x, weight, bias, "none", residual))


def _qkv(make: Make, batch: int) -> Iterator[Case]:
    layers = ((make.weight(HIDDEN, HIDDEN), make(HIDDEN)) for _ in "qkv")
    yield Case("qkv", "", (make(batch * 257, HIDDEN), *(part for layer in layers for part in layer)))


def _mlp(make: Make, batch: int) -> Iterator[Case]:
    for activation, rows_, factor in (("quick_gelu", 257 * batch, packed.QUICK_GELU), ("gelu", 14 * batch, 1.0)):
        x, residual = make(rows_, HIDDEN), make(rows_, HIDDEN)
        w1, w2 = make.weight(WIDE, HIDDEN, factor), make.weight(HIDDEN, WIDE, 1 / factor)
        yield Case("mlp", activation, (x, w1, make(WIDE), w2, make(HIDDEN), activation, residual))


def _attention(make: Make, batch: int) -> Iterator[Case]:
    of_texts = [LENGTHS["text"][i % len(LENGTHS["text"])] for i in range(batch)]
    for name, lengths, queries in (
        ("images", [257] * batch, [257] * batch),
        ("images, one query each", [257] * batch, [1] * batch),
        ("texts", of_texts, of_texts),
    ):
        k, v = make(sum(lengths), HEADS, HIDDEN // HEADS), make(sum(lengths), HEADS, HIDDEN // HEADS)
        q = make(sum(queries), HEADS, HIDDEN // HEADS)
        offsets = make.offsets(queries), make.offsets(lengths)
        yield Case("attention", name, (q, k, v, *offsets, max(queries), max(lengths)))


def _patch_embed(make: Make, batch: int) -> Iterator[Case]:
    pixels, weight = make(batch, 3, 224, 224), make(HIDDEN, 3, 14, 14, scale=0.04)
    yield Case("patch_embed", "", (pixels, weight, make(HIDDEN), make(257, HIDDEN)))


def _text_embed(make: Make, batch: int) -> Iterator[Case]:
    count = 14 * batch
    ids = torch.randint(3, VOCABULARY, (count,), generator=make.draw, device=make.device)
    word, position, weight = make(VOCABULARY, HIDDEN), make(514, HIDDEN), make(HIDDEN)
    places = 2 + torch.arange(count, device=make.device) % 14
    args = (ids, places, torch.zeros_like(ids), word, position, make(1, HIDDEN), weight, weight, 1e-5)
    yield Case("text_embed", "", args)


def _normalize(make: Make, batch: int) -> Iterator[Case]:
    x = make(4096 * batch, WIDTH)
    yield Case("l2_normalize", "", (x,))


def _similarity(op: str, *rest: Any) -> Callable[[Make, int], Iterator[Case]]:
    def of(make: Make, batch: int) -> Iterator[Case]:
        a, b = make(batch, WIDTH), make(IMAGES, WIDTH)
        yield Case(op, f"{batch} x {IMAGES}", (a, b, *rest))

    return of


def _loss(make: Make, batch: int) -> Iterator[Case]:
    image, text = make(256 * batch, WIDTH), make(256 * batch, WIDTH)
    scale = torch.tensor(2.6592, dtype=make.dtype, device=make.device)
    yield Case("contrastive_loss", "", (image, text, scale))


CASES: dict[str, Callable[[Make, int], Iterator[Case]]] = {
    "layer_norm": _norm,
    "add_layer_norm": _add_norm,
    "linear": _linear,
    "qkv": _qkv,
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
