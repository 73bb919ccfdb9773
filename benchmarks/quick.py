"""`altclip-fast bench`: what this library gains on this machine, beside whichever peers are installed.

Quick: the image tower of CLIP ViT-B/16, in under two minutes. Else both towers of AltCLIP.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch

from altclip_fast.ops import packed

from . import harness
from .harness import Limits, Outcome
from .models import DTYPES, entries, tell
from .systems import OURS, SYSTEMS
from .workloads import WORKS, Job, checkpoint

SMALL, LARGE, ROUNDS = "vit-b-16", "vit-l-14", 5
STARTING, ALL = 70, 95  # seconds in which systems may start, and rounds may begin
PEERS = ["transformers-sdpa", "openvino", "onnxruntime"]  # the others take minutes to prepare


def run(is_quick: bool, threads: int | None, as_json: bool) -> int:
    """Measure and print; the exit code."""
    threads = threads or torch.get_num_threads()
    outcome = _quick(threads) if is_quick else _whole(threads)
    if as_json:
        print("\n".join(json.dumps(dataclasses.asdict(row)) for row in outcome.rows))
        return outcome.code
    print(outcome)
    if is_quick:
        print(f"\n{told(outcome)}")
    return outcome.code


def _quick(threads: int) -> Outcome:
    began = time.monotonic()
    limits = Limits(ROUNDS, patience=STARTING, start_until=began + STARTING, until=began + ALL)
    dtypes = ["float32"] + ["bfloat16"] * (packed.why_not(torch.bfloat16) is None)
    with tempfile.TemporaryDirectory(prefix="altclip-fast-bench-") as parent:
        job = Job(str(checkpoint(SMALL, "image", Path(parent))), "image", 4, "float32", threads)
        systems = [OURS, *PEERS, *["reference"] * (find_spec("transformers") is None)]
        chosen = [entry for dtype in dtypes for entry in entries(systems, dtype)]
        return harness.run(chosen, job, limits, tell, kind="model", subject=SMALL)


def _whole(threads: int) -> Outcome:
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="altclip-fast-bench-") as parent:
        for work in WORKS:
            folder = checkpoint(LARGE, work, Path(parent))
            for batch, dtype in product((1, 8), DTYPES):
                job = Job(str(folder), work, batch, "float32", threads)
                chosen = entries(list(SYSTEMS), dtype)
                outcome.add(harness.run(chosen, job, Limits(ROUNDS), tell, kind="model", subject=LARGE))
    return outcome


def told(outcome: Outcome) -> str:
    """What was measured, and how many times as fast as each peer this library is."""
    if not outcome.rows:
        return "nothing was measured"
    own = {row.dtype: row for row in outcome.rows if row.system == OURS}
    some = outcome.rows[-1]
    lines = [
        f"The whole image tower of {some.subject} with random weights, {some.batch} images of 224 x 224 a call, on",
        f"{some.threads} threads of {some.device}: medians of {some.rounds} interleaved rounds, after every system's",
        "embeddings were checked. altclip_fast is",
    ]
    for row in outcome.rows:
        if row.kind == "model" and row.system != OURS and row.dtype in own:
            lines.append(f"  {row.dtype}: {row.median / own[row.dtype].median:.2f} x {row.system}")
    return "\n".join(lines)
