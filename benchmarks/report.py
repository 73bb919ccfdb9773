"""What the README shows of the rows: tables between two markers, and plots beside it.

Of each task the newest run counts, and a ratio is one of rows of the same run. `--check` says whether anything is
stale: the tables are compared as text, a plot by the digest of its rows, which it carries.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import rows
from .photos import TOWER
from .rows import RESULTS, Row
from .systems import NO_PEERS, OURS, SYSTEMS

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- benchmarks: written by `python -m benchmarks report` -->", "<!-- /benchmarks -->"
DTYPES = ("float32", "bfloat16", "int8")
NOTHING = "No machine has been measured yet: `python -m benchmarks models` does it."


def add_command(commands: Any) -> None:
    """Add `report` to the command line."""
    parser = commands.add_parser("report", help="write the README's tables and the plots", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when something is stale")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="of the rows")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE")
    parser.add_argument("--plots", type=Path, default=ROOT / "docs", metavar="DIR")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    found = load(options.results)
    if options.check:
        old = stale(found, options.readme, options.plots)
        print("\n".join(f"{path} is stale: run `python -m benchmarks report`" for path in old), end="")
        return 1 if old else 0
    if not found:
        print(f"{options.results} holds no rows", file=sys.stderr)
        return 1
    options.readme.write_text(filled(options.readme.read_text(encoding="utf-8"), found), encoding="utf-8")
    draw(found, options.plots)
    return 0


def load(folder: Path) -> list[Row]:
    """All rows, file by file."""
    return [row for path in sorted(folder.glob("*.jsonl")) for row in rows.read(path)]


def stale(found: Sequence[Row], readme: Path, plots: Path) -> list[Path]:
    """The files that are not what the rows say."""
    text = readme.read_text(encoding="utf-8")
    old = [] if filled(text, found) == text else [readme]
    if shown := plot_rows(found):
        mark = digest(shown)
        files = [plots / name for name in PLOTS]
        old += [file for file in files if not (file.exists() and mark in file.read_text(encoding="utf-8"))]
    return old


def filled(readme: str, found: Sequence[Row]) -> str:
    """The README with the tables of these rows.

    Raises:
        ValueError: it has not both markers, once and in order.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"README.md needs {BEGIN!r} and {END!r} behind it, once each")
    return f"{before}{BEGIN}\n{tables(found) or NOTHING}\n{END}{after}"


def tables(found: Sequence[Row]) -> str:
    """Markdown: for every machine the models, the ladders, the joint head."""
    parts = []
    for machine in dict.fromkeys(row.machine for row in found):
        own = [row for row in found if row.machine == machine]
        models, ladders = newest(own, "model", "dtype"), newest(own, "ladder")
        heads = newest(own, "head", "dtype")
        if not models and not ladders and not heads:
            continue
        some = (models or ladders or heads)[-1][0]
        towers = [run for run in models if run[0].work not in SHOWN]
        threads = f"{some.threads} thread{'s' if some.threads > 1 else ''}"
        versions = ", ".join(f"{name} {version}" for name, version in some.versions.items())
        parts.append(f"On {some.device}, {threads}, with {versions}:")
        if towers:
            parts.append(_model_table(towers))
        for work in SHOWN:
            if runs := [run for run in models if run[0].work == work]:
                parts.append(_table_beside(SHOWN[work], runs))
        parts += [_ladder_table(run) for run in ladders]
        if heads:
            parts.append(_head_table(heads))
    if plot_rows(found):
        parts.append("\n".join(f"![{what}](docs/{name})" for name, (what, _) in PLOTS.items()))
    return "\n\n".join(parts)


def newest(found: Sequence[Row], kind: str, *also: str) -> list[list[Row]]:
    """The rows of the newest run of every task; tasks in the order of their first appearance."""
    runs: dict[tuple, dict[str, list[Row]]] = {}
    for row in found:
        if row.kind == kind:
            task = tuple(getattr(row, name) for name in ("subject", "work", "batch", *also))
            runs.setdefault(task, {}).setdefault(row.run, []).append(row)
    return [max(of_task.values(), key=lambda run: run[0].date) for of_task in runs.values()]


def _model_table(runs: Sequence[list[Row]]) -> str:
    names = [name for name in SYSTEMS if any(row.system == name for run in runs for row in run)]
    lines = [["model", "inputs a call", "precision", *names, "times the best peer"]]
    for run in runs:
        best = {row.system: row for row in run}
        fastest = max(run, key=lambda row: row.throughput).system
        cells = [_bold(f"{best[n].throughput:.3g}", n == fastest) if n in best else "" for n in names]
        first = run[0]
        lines.append([first.subject, f"{first.batch} {first.work}", first.dtype, *cells, _ahead(best)])
    return f"Inputs a second:\n\n{_markdown(lines)}"


def _ahead(best: dict[str, Row]) -> str:
    peers = [row.throughput for name, row in best.items() if name not in NO_PEERS]
    if OURS not in best or not peers:
        return ""
    return f"{best[OURS].throughput / max(peers):.2f} x"


class Beside(NamedTuple):
    """A table of one quantity, this library's beside that of others."""

    title: str
    others: tuple[str, ...]
    value: Callable[[Row], float]


SHOWN = {
    "photos": Beside(
        "From JPEG files to embeddings by `encode_image`, photos a second",
        (TOWER, "transformers-sdpa"),
        lambda row: row.throughput,
    ),
    "first": Beside(
        "From the start of a process to its first embedding of a photo, seconds",
        ("transformers-sdpa",),
        lambda row: row.median,
    ),
    "memory": Beside(
        "Anonymous memory of a process that loads AltCLIP from float32 and runs it, at its most, GiB",
        ("transformers-sdpa",),
        lambda row: (row.peak_memory or math.nan) / 2**30,
    ),
}


def _table_beside(shown: Beside, runs: Sequence[list[Row]]) -> str:
    lines = [["model", "inputs", "precision", OURS, *shown.others]]
    for run in runs:
        values = {row.system: shown.value(row) for row in run}
        own = values.get(OURS, math.nan)
        cells = [f"{values[n]:.3g} ({own / values[n]:.2f} x)" if n in values else "" for n in shown.others]
        lines.append([run[0].subject, run[0].shape, run[0].dtype, f"{own:.3g}", *cells])
    return f"{shown.title} (in brackets, ours in multiples of it):\n\n{_markdown(lines)}"


def _ladder_table(found: Sequence[Row]) -> str:
    run = sorted(found, key=lambda row: row.step)
    lines = [["technique", "precision", "inputs a second", "speed-up", "of the ceiling", "centred cosine"]]
    for row in run:
        faster = f"{run[0].median / row.median:.2f} x"
        share, cosine = _percent(row.share), "" if row.cosine is None else f"{row.cosine:.6f}"
        lines.append([row.system, row.dtype, f"{row.throughput:.3g}", faster, share, cosine])
    first = run[0]
    return f"What each technique adds, {first.subject}, {first.batch} {first.work} a call:\n\n{_markdown(lines)}"


def _head_table(runs: Sequence[list[Row]]) -> str:
    names = list(dict.fromkeys(row.system for run in runs for row in run))
    lines = [["operator", "rows", "precision", *names, "times the best peer", "of the ceiling", "memory, MiB"]]
    for run in runs:
        of = {row.system: row for row in run}
        own, peers = of[OURS], [row.median for name, row in of.items() if name != OURS]
        fastest = min(row.median for row in run)
        cells = [_bold(_milliseconds(of[n].median), of[n].median == fastest) if n in of else "" for n in names]
        ahead = f"{min(peers) / own.median:.2f} x" if peers else ""
        memory = "" if own.peak_memory is None else f"{own.peak_memory / 2**20:.0f}"
        lines.append([own.subject, own.work, own.dtype, *cells, ahead, _percent(own.share), memory])
    return f"The joint head, milliseconds a call, {runs[0][0].shape}:\n\n{_markdown(lines)}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:,.0f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


def plot_rows(found: Sequence[Row]) -> list[Row]:
    """What the plots show: the newest runs of image towers, of the model that was measured first."""
    images = [row for row in found if row.kind == "model" and row.work == "image"]
    if not images:
        return []
    first = images[0]
    chosen = [row for row in images if (row.machine, row.subject) == (first.machine, first.subject)]
    return [row for run in newest(chosen, "model", "dtype") for row in run]


def digest(found: Iterable[Row]) -> str:
    """A fingerprint of rows."""
    text = json.dumps([dataclasses.asdict(row) for row in found], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def draw(found: Sequence[Row], folder: Path) -> None:
    """Write the plots as SVG, each with the digest of its rows in its description."""
    shown = plot_rows(found)
    if not shown:
        return
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    style = {
        "svg.hashsalt": "altclip_fast",
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with pyplot.rc_context(style):
        for name, (_, plot) in PLOTS.items():
            figure = pyplot.figure(figsize=(8, 4), layout="constrained")
            plot(figure, shown)
            title = f"{shown[0].subject}, images, {shown[0].device}, {shown[0].threads} threads"
            figure.suptitle(title, fontsize="small")
            figure.savefig(folder / name, metadata={"Date": None, "Description": digest(shown)})
            pyplot.close(figure)


def _throughput(figure: Any, shown: Sequence[Row]) -> None:
    largest = max(row.batch for row in shown)
    _bars(figure, [row for row in shown if row.batch == largest], lambda row: row.throughput)
    figure.axes[0].set_ylabel(f"images a second, batch {largest}")


def _share(figure: Any, shown: Sequence[Row]) -> None:
    largest = max(row.batch for row in shown)
    _bars(figure, [row for row in shown if row.batch == largest], lambda row: 100 * (row.share or 0))
    figure.axes[0].set_ylabel(f"% of the measured ceiling, batch {largest}")


def _latency(figure: Any, shown: Sequence[Row]) -> None:
    batches = sorted({row.batch for row in shown})
    dtypes = [dtype for dtype in DTYPES if any(row.dtype == dtype for row in shown)]
    for axes, dtype in zip(figure.subplots(1, len(dtypes), sharey=True, squeeze=False)[0], dtypes, strict=True):
        for index, name in enumerate(SYSTEMS):
            points = sorted((r.batch, r.median * 1e3) for r in shown if r.dtype == dtype and r.system == name)
            if points:
                axes.plot(*zip(*points, strict=True), "o-", label=name, color=f"C{index}")
        axes.set(xlabel="batch", title=dtype, xscale="log", yscale="log")
        axes.set_xticks(batches, map(str, batches))
        axes.tick_params("x", which="minor", bottom=False, labelbottom=False)
    figure.axes[0].set_ylabel("milliseconds a call")
    _legend(figure)


def _bars(figure: Any, shown: Sequence[Row], height: Callable[[Row], float]) -> None:
    axes = figure.subplots()
    dtypes = [dtype for dtype in DTYPES if any(row.dtype == dtype for row in shown)]
    names = [name for name in SYSTEMS if any(row.system == name for row in shown)]
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        own = {dtypes.index(row.dtype): height(row) for row in shown if row.system == name}
        left = [x - 0.4 + (place + 0.5) * width for x in own]
        color = f"C{list(SYSTEMS).index(name)}"
        axes.bar_label(axes.bar(left, own.values(), 0.9 * width, label=name, color=color), fmt="%.3g", fontsize=6)
    axes.set_xticks(range(len(dtypes)), dtypes)
    _legend(figure)


def _legend(figure: Any) -> None:
    labels = {}
    for axes in figure.axes:
        labels |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(labels.values(), labels.keys(), loc="outside right center", frameon=False, fontsize="small")


PLOTS: dict[str, tuple[str, Callable[[Any, Sequence[Row]], None]]] = {
    "throughput.svg": ("Images a second by system and precision", _throughput),
    "latency.svg": ("Milliseconds a call by batch", _latency),
    "ceiling.svg": ("Share of the measured ceiling by system and precision", _share),
}
