"""What the compiler makes of every Triton kernel, for GPUs that need not be here.

The launchers are called on tensors of the meta device while `launch.recording` keeps what they would start; each
launch is then compiled for sm_80 or sm_90, and its machine code is read: registers, spills, shared memory, tensor
core instructions, wide loads. Beside that stands what the call costs at least by `roofline`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import native_specialize_impl

from altclip_fast.kernels import attention, contrastive, contrastive_topk, embedding, launch, linear, norm, tuning
from altclip_fast.report import Table

from . import roofline
from .costs import Cost, cost, size
from .shapes import MODELS, Work, asked, candidates, works

CAPABILITIES = (80, 90)
DTYPES = (torch.float32, torch.bfloat16)
ROWS, HIDDEN = 16 * 257, 1024
DEVICES = {80: roofline.DEVICES["a100"], 90: roofline.DEVICES["h200"]}  # whose numbers the rooflines are of


class Machine(NamedTuple):
    """What a multiprocessor of an architecture has."""

    shared: int  # bytes that one program may take
    all_shared: int  # bytes, of which each program also takes 1 KiB
    registers: int = 65536
    warps: int = 64
    programs: int = 32


MACHINES = {80: Machine(163 * 1024, 164 * 1024), 90: Machine(227 * 1024, 228 * 1024)}


class Code(NamedTuple):
    """The machine code of one kernel."""

    registers: int
    spilled: int  # bytes of stack a thread
    shared: int  # bytes a program
    occupancy: float  # warps that fit on a multiprocessor, of those that it can hold
    hgmma: int
    hmma: int
    wide_loads: int  # global loads of 16 bytes, asynchronous ones and those by descriptor included
    loads: int  # all global loads
    local: int  # accesses to local memory
    dot_rows: int  # of the tallest product, 0 where there is none
    precision: str  # how float32 products are made: "tf32x3", "ieee"; "" where there are none


class Case(NamedTuple):
    """One call of a launcher at a size that the models have."""

    op: str
    name: str
    run: Callable[[], Any]
    flops: float
    bytes: float


class Row(NamedTuple):
    """One kernel of one case, compiled for one architecture."""

    op: str
    case: str
    kernel: str
    dtype: str
    capability: int
    configuration: str
    registers: int
    spilled: int
    shared: int
    occupancy: float
    hgmma: int
    hmma: int
    wide_loads: int
    loads: int
    local: int
    dot_rows: int
    precision: str
    flops: float
    bytes: float
    roofline_us: float
    source: int  # rows of one number are one piece of machine code


class Source(NamedTuple):
    """What decides the machine code of a launch: equal ones need to be compiled once."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, int]
    capability: int


def source(recorded: launch.Launch, capability: int) -> Source:
    """As a call on such a GPU would specialise the kernel."""
    kernel, _, arguments, options = recorded
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments.get(parameter.name, parameter.default)
        kind, alignment = "constexpr", None
        if not parameter.is_constexpr:
            kind, alignment = native_specialize_impl(_backend(capability), value, False, True, True)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[(i,)] = value
        elif alignment == "D":
            attributes[(i,)] = [["tt.divisibility", 16]]
    return Source(kernel, signature, constants, attributes, options, capability)


def compile_source(source: Source) -> tuple[Any, Code]:
    """Triton's kernel (`.asm["ptx"]`) and what its machine code is like."""
    compiled = triton.compile(
        ASTSource(source.kernel, source.signature, source.constants, source.attributes),
        target=GPUTarget("cuda", source.capability, 32),
        options={**source.options, "enable_fp_fusion": True},
    )
    return compiled, _read(compiled, source.capability)


def _backend(capability: int) -> type:
    return type(triton.compiler.make_backend(GPUTarget("cuda", capability, 32)))


def _read(compiled: Any, capability: int) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _cuobjdump("--dump-resource-usage", file.name)
        code = _cuobjdump("-sass", file.name)
    registers, stack = (int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))

    def count(pattern: str) -> int:
        return len(re.findall(pattern, code))

    products = re.findall(r"tt\.dot [^\n]*?: tensor<(\d+)x\d+x(\w+)>", compiled.asm["ttir"])
    precisions = set(re.findall(r"inputPrecision = (\w+)", compiled.asm["ttir"])) or {"ieee"}
    single = any(kind == "f32" for _, kind in products)
    shared, warps = compiled.metadata.shared, compiled.metadata.num_warps
    wide = count(r"\bLDG\.E(?:\.\w+)*\.128\b") + count(r"\bLDGSTS\.E(?:\.\w+)*\.128\b") + count(r"\bUTMALDG\b")
    return Code(
        registers=registers,
        spilled=stack,
        shared=shared,
        occupancy=_occupancy(MACHINES[capability], registers, shared, warps),
        hgmma=count(r"\bHGMMA\b"),
        hmma=count(r"\bHMMA\b"),
        wide_loads=wide,
        loads=count(r"\bLDG\b") + count(r"\bLDGSTS\b") + count(r"\bUTMALDG\b"),
        local=count(r"\b(?:LDL|STL)\b"),
        dot_rows=max((int(rows) for rows, _ in products), default=0),
        precision="+".join(sorted(precisions)) if single else "",
    )


def _cuobjdump(*arguments: str) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def _occupancy(machine: Machine, registers: int, shared: int, warps: int) -> float:
    by_registers = machine.registers // (-(-registers * 32 // 256) * 256 * warps)
    by_shared = machine.all_shared // (shared + 1024)
    programs = min(by_registers, by_shared, machine.warps // warps, machine.programs)
    return programs * warps / machine.warps


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def cases(dtype: torch.dtype, capability: int) -> Iterator[Case]:
    """Every launcher at the sizes of ViT-L/14 (16 images: 4112 rows) and XLM-R large, forward and backward."""
    for of_op in (_norm, _linear, _tiles, _attention, _embedding, _contrastive):
        yield from of_op(dtype, capability)


def _call(op: str, name: str, launcher: Callable[..., Any], *arguments: Any) -> Case:
    return Case(op, name, partial(launcher, *arguments), *cost(op, arguments))


def _norm(dtype: torch.dtype, _: int) -> Iterator[Case]:
    x, weight = meta(ROWS, HIDDEN, dtype=dtype), meta(HIDDEN, dtype=dtype)
    add_backward = partial(norm.add_layer_norm_backward, x, x, x, x, weight, 1e-5)
    yield _call("layer_norm", "", norm.layer_norm, x, weight, weight, 1e-5)
    yield Case("layer_norm", "backward", partial(norm.layer_norm_backward, x, x, weight, 1e-5), 0, size(x, x, x))
    yield _call("add_layer_norm", "", norm.add_layer_norm, x, x, weight, weight, 1e-5)
    yield Case("add_layer_norm", "backward", add_backward, 0, size(x, x, x, x, x))


def _linear(dtype: torch.dtype, _: int) -> Iterator[Case]:
    x, square, bias = (meta(*shape, dtype=dtype) for shape in ((ROWS, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN,)))
    flops = 2 * ROWS * HIDDEN**2
    arguments = (x, square, bias, "none", x)
    yield _call("linear", "residual", linear.linear, *arguments)
    back = partial(linear.linear_backward, x, *arguments)
    yield Case("linear", "residual, backward", back, 2 * flops, size(x, x, square, x, square))
    wide, wide_bias = meta(4 * HIDDEN, HIDDEN, dtype=dtype), meta(4 * HIDDEN, dtype=dtype)
    long = meta(HIDDEN, 4 * HIDDEN, dtype=dtype)
    yield _call("linear", "8 rows", linear.linear, meta(8, 4 * HIDDEN, dtype=dtype), long, bias)
    weights = (wide, wide_bias, long, bias)
    for activation in ("quick_gelu", "gelu"):
        arguments = (x, *weights, activation, x)
        yield _call("mlp", activation, linear.mlp, *arguments)
    back = partial(linear.mlp_backward, x, *arguments)
    yield Case("mlp", "gelu, backward", back, 20 * flops, size(x, wide, wide, x, x))


def _tiles(dtype: torch.dtype, capability: int) -> Iterator[Case]:
    """All that the analytic choice can be. Splitting K changes where a tile begins, and no more."""
    x, wide, bias = (meta(*shape, dtype=dtype) for shape in ((ROWS, HIDDEN), (4 * HIDDEN, HIDDEN), (4 * HIDDEN,)))
    for config in linear.candidates(dtype):
        if config["SPLIT_K"] == 1 and config["BLOCK_M"] * config["BLOCK_N"] <= linear.MACHINES[capability].tile:
            run = partial(_tried, "linear", config, partial(linear.linear, x, wide, bias, "quick_gelu"))
            yield Case("linear", "tile", run, 8 * ROWS * HIDDEN**2, size(x, wide) + 4 * size(x))


def _attention(dtype: torch.dtype, _: int) -> Iterator[Case]:
    for name, heads, dim, tokens, batch, causal in (
        ("images", 16, 64, 257, 16, False),
        ("images, heads of 80", 16, 80, 257, 16, False),
        ("text", 12, 64, 77, 64, True),
    ):
        q, k, v = meta(batch * tokens, 3, heads, dim, dtype=dtype).unbind(1)
        cu_seqlens = meta(batch + 1, dtype=torch.int32)
        arguments = (q, k, v, cu_seqlens, cu_seqlens, tokens, tokens, causal, None)
        yield _call("attention", name, attention.attention, *arguments)
        flops = cost("attention", arguments).flops
        grad = meta(batch * tokens, heads, dim, dtype=dtype)
        back = partial(attention.attention_backward, grad, *arguments)
        yield Case("attention", f"{name}, backward", back, 3.5 * flops, size(q, k, v, q, q, k, v))


def _embedding(dtype: torch.dtype, _: int) -> Iterator[Case]:
    patch, hidden = meta(HIDDEN, 3, 14, 14, dtype=dtype), meta(HIDDEN, dtype=dtype)
    positions = meta(257, HIDDEN, dtype=dtype)
    normalised = ([0.48, 0.46, 0.41], [0.27, 0.26, 0.28])
    for name, pixels, rest in (
        ("", meta(16, 3, 224, 224, dtype=dtype), ()),
        ("bytes", meta(16, 3, 224, 224, dtype=torch.uint8), normalised),
    ):
        yield _call("patch_embed", name, embedding.patch_embed, pixels, patch, hidden, positions, *rest)
    ids, word, position = (
        meta(512, dtype=torch.int64),
        meta(250002, HIDDEN, dtype=dtype),
        meta(514, HIDDEN, dtype=dtype),
    )
    one = meta(1, HIDDEN, dtype=dtype)
    yield _call("text_embed", "", embedding.text_embed, ids, ids, ids, word, position, one, hidden, hidden, 1e-5, 1)


def _contrastive(dtype: torch.dtype, _: int) -> Iterator[Case]:
    a, b, scale = (meta(*shape, dtype=dtype) for shape in ((1024, 768), (65536, 768), ()))
    yield _call("l2_normalize", "", contrastive.l2_normalize, b)
    yield _call("similarity", "", contrastive.similarity, a, b, 1.0, True)
    yield _call("similarity_softmax", "", contrastive.similarity_softmax, a, b, 1.0, True)
    for k in (1, 10, 100):
        yield _call("similarity_topk", f"k={k}", contrastive_topk.similarity_topk, a, b, k, 1.0, True)
    image = meta(6144, 768, dtype=dtype)  # two chunks of the backward
    loss, back = contrastive.contrastive_loss, contrastive.contrastive_loss_backward
    square = 2 * 6144**2 * 768
    yield _call("contrastive_loss", "", loss, image, image, scale, True)
    run = partial(back, scale, image, image, scale, True)
    yield Case("contrastive_loss", "backward", run, 4 * square, 2 * size(image, image))


def _tried(op: str, config: tuning.Config, run: Callable[[], Any]) -> None:
    with tuning.trying(op, config):
        run()


def _tuned(capability: int) -> Iterator[tuple[torch.dtype, Case]]:
    """Every row of every table that was measured on such a GPU."""
    for file in sorted(tuning.TUNED.glob("*.json")):
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["capability"] != capability:
            continue
        for op, rows in tuning.table(file.stem).items():
            for row in rows:
                dtype = getattr(torch, row.dtype)
                same = [work for work in works(MODELS) if work.op == op]
                near = min(same, key=lambda w: tuning.distance(asked(w, dtype, capability).shape, row.shape))
                yield dtype, _of_work(near, dtype, row.config, f"{file.stem}, {near.name}")


def _candidates(capability: int) -> Iterator[tuple[torch.dtype, Case]]:
    """All that a tuner would try, at the sizes of the models."""
    for dtype in DTYPES:
        for work in works(MODELS):
            for config in candidates(work.op, dtype):
                yield dtype, _of_work(work, dtype, config, f"candidate, {work.name}")


def _of_work(work: Work, dtype: torch.dtype, config: tuning.Config, name: str) -> Case:
    run = partial(_tried, work.op, config, lambda: work.run(*work.arguments(dtype, "meta")))
    return Case(work.op, name, run, 0, 0)


def launches(case: Case, capability: int) -> list[launch.Launch]:
    """What a call of the case would start on such a GPU."""
    with launch.recording(capability) as found:
        case.run()
    return found


def spills(work: Work, dtype: torch.dtype, capability: int) -> bool:
    """Whether a kernel of the work, configured as it is here, keeps registers in memory."""
    case = Case(work.op, "", lambda: work.run(*work.arguments(dtype, "meta")), 0, 0)
    return any(compile_source(source(one, capability))[1].spilled for one in launches(case, capability))


class Planned(NamedTuple):
    """A launch of a case, and the number of the source that it is compiled from."""

    case: Case
    dtype: torch.dtype
    launch: launch.Launch
    number: int


@functools.cache
def plan(dtypes: tuple[torch.dtype, ...], with_candidates: bool) -> tuple[list[Planned], list[Source]]:
    """What is reported, and what has to be compiled for it; the same in every process."""
    planned, sources, numbers = [], [], {}
    for capability in CAPABILITIES:
        found = [(dtype, case) for dtype in dtypes for case in cases(dtype, capability)] + list(_tuned(capability))
        for dtype, case in found + (list(_candidates(capability)) if with_candidates else []):
            for recorded in launches(case, capability):
                needed = source(recorded, capability)
                key = repr(needed)
                if key not in numbers:
                    numbers[key] = len(sources)
                    sources.append(needed)
                planned.append(Planned(case, dtype, recorded, numbers[key]))
    return planned, sources


def _compile(dtypes: tuple[torch.dtype, ...], with_candidates: bool, number: int) -> Code:
    return compile_source(plan(dtypes, with_candidates)[1][number])[1]


def report(workers: int, dtypes: tuple[torch.dtype, ...] = DTYPES, with_candidates: bool = False) -> Table:
    """Compile everything; one `Row` a case and kernel.

    Args:
        dtypes: of the operands; without float16 it is two minutes.
        with_candidates: also what `python -m benchmarks tune` would try, which takes many minutes.
    """
    if launch.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is 1: an interpreted kernel cannot be compiled; unset it")
    planned, sources = plan(dtypes, with_candidates)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        codes = list(pool.map(partial(_compile, dtypes, with_candidates), range(len(sources)), chunksize=2))
    rows = []
    for case, dtype, recorded, number in planned:
        constants = {p.name: recorded.arguments[p.name] for p in recorded.kernel.params if p.is_constexpr}
        shown = ", ".join(f"{k}={v}" for k, v in {**constants, **recorded.options}.items())
        name = str(dtype).removeprefix("torch.")
        floor = DEVICES[sources[number].capability].floor(name, Cost(case.flops, case.bytes)) * 1e6
        found = (case.op, case.name, recorded.kernel.fn.__name__, name, sources[number].capability, shown)
        rows.append(Row(*found, *codes[number], case.flops, case.bytes, floor, number))
    return Table(Row._fields, list(dict.fromkeys(rows)))


def add_command(commands: Any) -> None:
    """Add `kernels` to the command line."""
    parser = commands.add_parser("kernels", help="compile every Triton kernel ahead of time and read its machine code")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the rows as JSON lines")
    parser.add_argument("--candidates", action="store_true", help="also what `tune` would try: many minutes")
    names = list(DEVICES[90].flops)
    parser.add_argument("--dtypes", nargs="+", choices=names, metavar="DTYPE", help=f"of {', '.join(names)}")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    dtypes = tuple(getattr(torch, name) for name in options.dtypes) if options.dtypes else DTYPES
    table = report(options.workers, dtypes, options.candidates)
    if options.output:
        lines = [json.dumps({**row._asdict(), "triton": triton.__version__}) for row in table]
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    hidden = {"flops", "bytes", "configuration", "source"}
    shown = [name for name in Row._fields if name not in hidden]
    print(Table(shown, [[_text(getattr(row, name)) for name in shown] for row in table]))
    sys.exit(1 if any(row.spilled or row.local for row in table) else 0)


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
