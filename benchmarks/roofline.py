"""What a tower takes on a device according to its numbers: of each operator the products and bytes, tiles and waves.

    seconds = max(products / rate, bytes / bandwidth),   products = waves * multiprocessors * those of a tile

since a multiprocessor with one tile more keeps the others waiting. With graphs every kernel costs the gap before it;
without them the host also starts one after the other, and what takes longer, the host or the GPU, is the time:

    with graphs = sum(seconds) + kernels * gap,   without = max(with graphs, kernels * launch)

The operators are those that the model itself calls, on tensors without memory; the tiles are those of the launches
that Triton's kernels would make. It is a model: measured rows of the same device stand beside it where there are any.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from altclip_fast.dispatch import OPS, Op
from altclip_fast.kernels import launch
from altclip_fast.models.base import Model
from altclip_fast.report import Table

from . import ceiling, models, report, rows
from .costs import Cost, cost, shape
from .harness import in_rounds
from .systems import OURS, embedding
from .workloads import LENGTHS, SIZES, WORKS, tower_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Device:
    """What decides the time of a kernel.

    Attributes:
        flops: operations a second, by dtype.
        bandwidth: bytes a second.
        launch: seconds of the host for one call of an operator.
        gap: seconds between two kernels that a graph starts; 0 where calls are all there is.
        processors: multiprocessors, or 0 where a call is not cut into tiles for them.
        capability: of the compiler, 0 where there are no Triton kernels.
    """

    name: str
    flops: dict[str, float]
    bandwidth: float
    launch: float
    gap: float = 0.0
    processors: int = 0
    capability: int = 0

    def floor(self, dtype: str, needed: Cost) -> float:
        """Seconds at least: the arithmetic or the memory, whichever is longer."""
        return max(needed.flops / self.flops[dtype], needed.bytes / self.bandwidth)


def _gpu(name: str, bf16: float, bandwidth: float, processors: int, capability: int) -> Device:
    """float32 is three products of TF32 numbers, each at half the rate of bfloat16."""
    flops = {"float32": bf16 / 6, "bfloat16": bf16, "float16": bf16}
    return Device(name, flops, bandwidth, launch=5e-6, gap=1.2e-6, processors=processors, capability=capability)


# The H200's rates are what a product of 8192^3 and a copy reach; the others are those of the data sheets.
DEVICES = {
    "h200": _gpu("NVIDIA H200", 790e12, 4.3e12, 132, 90),
    "h100": _gpu("NVIDIA H100 80GB HBM3", 989e12, 3.35e12, 132, 90),
    "a100": _gpu("NVIDIA A100-SXM4-80GB", 312e12, 2.04e12, 108, 80),
}
CALL = 3e-6  # seconds that calling an operator costs on a CPU


class Call(NamedTuple):
    """One call of an operator."""

    op: str
    args: tuple


def calls(model: str, work: str, batch: int, dtype: torch.dtype) -> list[Call]:
    """What a tower calls for the embeddings of a batch, one after the other, on tensors of the meta device.

    Args:
        model: a key of `SIZES`.
        work: a key of `WORKS`.
    """
    size, tower, found = SIZES[model], tower_of(work), []
    with torch.device("meta"):
        made = size.model(tower).to(dtype).eval()

    def noted(op: Op, *args: Any, **kwargs: Any) -> Any:
        args = op._bind(args, kwargs)
        found.append(Call(op.name, args))
        if op.name == "attention":
            return args[0].new_empty(*args[0].shape[:2], args[2].shape[2])
        if op.name == "text_embed":
            return args[3].new_empty(len(args[0]), args[3].shape[1])
        return op.reference(*args)

    with mock.patch.object(Op, "__call__", noted), torch.inference_mode():
        if tower == "image":
            side = size.vision["image_size"]
            embedding(made, tower, {"pixel_values": torch.empty(batch, 3, side, side, dtype=dtype, device="meta")})
        else:  # how texts are packed is read off their ids: these are real
            with mock.patch.object(Model, "device", torch.device("cpu")):
                embedding(made, tower, _texts(work, batch))
    return found


def _texts(work: str, batch: int) -> dict[str, Tensor]:
    lengths = torch.tensor([LENGTHS[work][i % len(LENGTHS[work])] for i in range(batch)])
    mask = (torch.arange(77 if work == "text77" else int(lengths.max())) < lengths[:, None]).long()
    return {"input_ids": torch.where(mask > 0, 5, 1), "attention_mask": mask}


class Work(NamedTuple):
    """What a call is made of on a device."""

    kernels: int
    tiles: int
    waves: int
    products: float  # operations, with those of tiles that are not full and of waves that are not


def work_of(call: Call, device: Device) -> Work:
    """The launches of a call, and the operations that they take the time of."""
    needed = cost(*call)
    if not device.processors or "triton" not in OPS[call.op].backends:
        return Work(1, 0, 0, needed.flops)
    with launch.recording(device.capability) as launches:
        OPS[call.op]._backends["triton"].run(*call.args)
    kernels, products = [_tiles(one) for one in launches], 0.0
    tiles, waves = sum(kernels), sum(math.ceil(n / device.processors) for n in kernels)
    for one, n in zip(launches, kernels, strict=True):
        full = math.ceil(n / device.processors) * device.processors
        if (tile := _product(one)) is not None:
            products += full * tile
        elif n == max(kernels):
            products = max(products, needed.flops * full / n)
    return Work(len(launches), tiles, waves, products)


def _tiles(one: launch.Launch) -> int:
    """Of a launch; a persistent program walks through several."""
    given = one.arguments
    if "BLOCK_M" in given and "SPLIT_K" in given:
        return math.ceil(given["M"] / given["BLOCK_M"]) * math.ceil(given["N"] / given["BLOCK_N"]) * given["SPLIT_K"]
    return math.prod(one.grid)


def _product(one: launch.Launch) -> float | None:
    """Operations of a tile of a matrix product; None of other kernels."""
    given = one.arguments
    if "BLOCK_M" not in given or "SPLIT_K" not in given:
        return None
    return 2 * given["BLOCK_M"] * given["BLOCK_N"] * math.ceil(given["K"] / given["SPLIT_K"])


class Line(NamedTuple):
    """All calls of an operator with the same shapes; `floor_us` is of one, were every tile and every wave full."""

    op: str
    shape: str
    calls: int
    gflop: float
    mbytes: float
    kernels: int
    tiles: int
    waves: int
    floor_us: float
    us: float
    total_us: float
    measured_us: float | None


class Total(NamedTuple):
    """Seconds of a whole tower."""

    floor: float
    with_graphs: float
    without_graphs: float
    measured: float | None


def lines(
    model: str, work: str, batch: int, dtype: str, device: Device, measured: Sequence[rows.Row] = ()
) -> list[Line]:
    """One line an operator and shape, in the order of their first calls.

    Args:
        model: a key of `SIZES`.
        work: a key of `WORKS`.
        dtype: a key of `DTYPES`.
        measured: rows of this device.
    """
    made = calls(model, work, batch, DTYPES[dtype])
    first = {(one.op, shape(one.args)): one for one in reversed(made)}
    found = []
    for key, count in Counter((one.op, shape(one.args)) for one in made).items():
        needed, real = cost(*first[key]), work_of(first[key], device)
        us = 1e6 * max(real.products / device.flops[dtype], needed.bytes / device.bandwidth)
        seen = _newest(r for r in measured if (r.kind, r.subject, r.shape, r.dtype) == ("op", *key, dtype))
        about = (count, needed.flops / 1e9, needed.bytes / 1e6, real.kernels, real.tiles, real.waves)
        times = (1e6 * device.floor(dtype, needed), us, count * us, None if seen is None else 1e6 * seen)
        found.append(Line(*key, *about, *times))
    return found


def total(found: Sequence[Line], device: Device, measured: float | None = None) -> Total:
    """The sum, as the first lines of this file say."""
    kernels = sum(line.calls * line.kernels for line in found)
    graphs = sum(line.total_us for line in found) / 1e6 + kernels * device.gap
    floor = sum(line.calls * line.floor_us for line in found) / 1e6
    return Total(floor, graphs, max(graphs, kernels * device.launch), measured)


def _newest(found: Iterable[rows.Row]) -> float | None:
    """Seconds of this library's fastest backend in its last run."""
    own = [row for row in found if row.system == OURS]
    last = max((row.date for row in own), default=None)
    return min((row.median for row in own if row.date == last), default=None)


def this_cpu(dtype: str, threads: int, measured: Sequence[rows.Row]) -> Device:
    """This machine's processor by its newest measured ceilings; they are measured now where there are none."""
    here = rows.this_run(threads)
    tops = [row for row in measured if row.kind == "ceiling" and row.machine == here.machine]
    flops = [row for row in tops if row.subject == dtype]
    copies = [row for row in tops if row.subject == "copy"]
    if flops and copies:
        last = max(row.date for row in flops), max(row.date for row in copies)
        best = max(row.gflops for row in flops if row.date == last[0])
        return Device(here.device, {dtype: best * 1e9}, max(r.gbytes for r in copies if r.date == last[1]) * 1e9, CALL)
    probes = ceiling.probes(dtype)
    top = ceiling.ceiling(dtype, in_rounds({probe: probe.turn for probe in probes}, 3))
    return Device(here.device, {dtype: top.flops}, top.bytes, CALL)


def add_command(commands: Any) -> None:
    """Add `roofline` to the command line."""
    parser = commands.add_parser("roofline", help="what a tower takes by a device's numbers", description=__doc__)
    names = f"cpu, {', '.join(DEVICES)} (default: %(default)s)"
    parser.add_argument("--device", choices=("cpu", *DEVICES), default="h200", metavar="DEVICE", help=f"of {names}")
    parser.add_argument("--model", choices=SIZES, default="vit-l-14", metavar="MODEL", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--work", choices=WORKS, default="image", metavar="WORK", help=f"of {', '.join(WORKS)}")
    parser.add_argument("--batch", type=models.positive, default=1, metavar="N")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", metavar="DTYPE", help=f"of {', '.join(DTYPES)}")
    parser.add_argument(
        "--threads", type=models.positive, default=torch.get_num_threads(), metavar="N", help="cpu only"
    )
    parser.add_argument("--tflops", type=float, metavar="X", help="instead of the device's")
    parser.add_argument("--gbytes", type=float, metavar="X", help="a second, likewise")
    parser.add_argument("--launch", type=float, metavar="US", help="of the host for one kernel, likewise")
    parser.add_argument("--results", type=Path, default=rows.RESULTS, metavar="DIR", help="of measured rows")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    measured = report.load(options.results)
    if options.device == "cpu":
        device = this_cpu(options.dtype, options.threads, measured)
        measured = [row for row in measured if row.threads == options.threads]
    else:
        device = DEVICES[options.device]
    measured = [row for row in measured if row.device == device.name]
    given = {"flops": None if options.tflops is None else {options.dtype: options.tflops * 1e12}}
    given |= {"bandwidth": options.gbytes and options.gbytes * 1e9, "launch": options.launch and options.launch * 1e-6}
    device = dataclasses.replace(device, **{name: value for name, value in given.items() if value is not None})
    task = (options.model, options.work, options.batch, options.dtype)
    found = lines(*task, device, measured)
    print(Table(Line._fields, [Line(*map(_text, line)) for line in found]))
    seen = _newest(r for r in measured if r.kind == "model" and (r.subject, r.work, r.batch, r.dtype) == task)
    print(told(total(found, device, seen), options.batch, device))
    return 0


def told(whole: Total, batch: int, device: Device) -> str:
    """A sum in words."""
    named = {"at the floor": whole.floor, "with graphs": whole.with_graphs, "without": whole.without_graphs}
    if not device.gap:
        named = {"at the floor": whole.floor, "with calls": whole.without_graphs}
    named |= {} if whole.measured is None else {"measured": whole.measured}
    parts = [f"{name} {seconds * 1e3:.3g} ms, {batch / seconds:.4g} a second" for name, seconds in named.items()]
    return f"{device.name}: {'; '.join(parts)}"


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
