"""A process that has just started: how long its first embedding takes, and how much memory a model holds.

`first`: the interpreter starts, imports, loads a whole AltCLIP, whose files the system has in its cache, and embeds one
photo. `memory`: a process loads the model and embeds pictures and texts; its anonymous memory is watched from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from altclip_fast.dispatch import use_backend

from . import models, photos, whole
from .harness import GIB, Outcome
from .photos import Photos
from .systems import FLOATS, OURS, Embed, Running, System, Unavailable, own_model, package, transformers_model
from .workloads import CHECKED, Cost, Job

TEXTS = "text"  # of the works of towers, that gives the texts


def add_command(commands: Any) -> None:
    """Add `fresh` to the command line."""
    parser = commands.add_parser("fresh", help="time to a first embedding, and memory", description=__doc__)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS), metavar="WORK")
    parser.add_argument("--dtypes", nargs="+", choices=models.DTYPES, default=list(models.DTYPES), metavar="DTYPE")
    models.add_measuring_options(parser, whole.CHOICES)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    outcome = Outcome()
    with models.weights(options.weights) as parent:
        folder = whole.checkpoint(options.model, parent)
        for work in options.works:
            for dtype in options.dtypes:
                job = WORKS[work].job(folder, dtype, options.threads)
                found = _measure(work, job, options)
                outcome.add(found)
                models.write(found, options.output)
    print(outcome)
    return outcome.code


def _measure(work: str, job: Job, options: argparse.Namespace) -> Outcome:
    systems = WORKS[work].systems
    found = models.measure([name for name in systems if name not in photos.JUDGES], job.dtype, job, options, systems)
    if work == "first":  # the process that was watched starts another one
        found.rows = [replace(row, peak_memory=None) for row in found.rows]
    return found


OWN = """
import os
os.environ["ALTCLIP_FAST_BACKEND"] = how
import altclip_fast
encoder = altclip_fast.load(folder, device="cpu", dtype=dtype, quantization=quantization)
found = encoder.encode_image(photo, normalize_embeddings=False)
"""
THEIRS = """
import torch, transformers
from PIL import Image
model = transformers.AltCLIPModel.from_pretrained(folder, dtype=dtype, attn_implementation=how)
processor = transformers.AltCLIPProcessor.from_pretrained(folder)
inputs = processor(images=Image.open(photo), return_tensors="pt")
with torch.inference_mode():
    found = model.get_image_features(inputs["pixel_values"].to(model.dtype)).pooler_output
"""


def _process(job: Photos, script: str, told: str, how: str) -> Running:
    """A new interpreter for every photo."""
    quantization = "int8" if job.dtype == "int8" else None
    dtype = job.dtype if quantization is None else "bfloat16"
    given = {"folder": job.folder, "dtype": dtype, "quantization": quantization, "how": how}
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(job.threads)}

    def run(file: Path) -> list[list[float]]:
        values = given | {"photo": str(file)}
        lines = [*(f"{name} = {value!r}" for name, value in values.items()), script, "print(found.tolist())"]
        done = subprocess.run([sys.executable, "-c", "\n".join(lines)], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable((done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1])
        return json.loads(done.stdout)

    return Running(lambda inputs: torch.tensor([row for file in job.files(inputs) for row in run(file)]), told)


@dataclass(frozen=True)
class Whole(Job):
    """`batch` pictures and as many texts; an "embedding" is that of a picture and of a text, one after the other."""

    def _inputs(self, numbers: range) -> dict[str, Tensor]:
        return self._images(numbers) | self._of_texts._inputs(numbers)

    @property
    def _of_texts(self) -> Job:
        return Job(self.folder, TEXTS, self.batch, self.dtype, self.threads)

    def cost(self) -> Cost:
        """Of one call; the shape says what the weights take."""
        image, text = Job(self.folder, "image", self.batch, self.dtype, self.threads).cost(), self._of_texts.cost()
        held = sum(file.stat().st_size for file in Path(self.folder).glob("*.safetensors")) / 4 * self.itemsize
        return Cost(image.flops + text.flops, held, f"{self.batch} pictures and texts, {held / GIB:.2f} GiB of weights")


def _both(model: nn.Module) -> Embed:
    def embed(inputs: dict[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            output = model(**inputs)
        return torch.cat([output.image_embeds, output.text_embeds], 1)

    return embed


def _own_first(job: Photos, backend: str | None = None) -> Running:
    return _process(job, OWN, "load, encode_image", backend or "")


def _transformers_first(job: Photos, attention: str) -> Running:
    package("transformers")
    return _process(job, THEIRS, f"AltCLIPModel, AltCLIPProcessor, {attention}", attention)


def _own_whole(job: Whole, backend: str | None = None) -> Running:
    model = own_model(job)

    def embed(inputs: dict[str, Tensor]) -> Tensor:
        with use_backend(backend) if backend else nullcontext():
            return _both(model)(inputs)

    return Running(embed, backend or "chosen by itself")


def _transformers_whole(job: Whole, attention: str) -> Running:
    return Running(_both(transformers_model(job, attention)), f"attn_implementation={attention}")


def _systems(own: Callable[..., Running], transformers: Callable[..., Running]) -> dict[str, System]:
    return {
        OURS: System(own, (*FLOATS, "int8")),
        "reference": System(partial(own, backend="reference"), FLOATS),
        "transformers-eager": System(partial(transformers, attention="eager"), FLOATS),
        "transformers-sdpa": System(partial(transformers, attention="sdpa"), FLOATS),
    }


def _first_job(folder: Path, dtype: str, threads: int) -> Photos:
    files = folder.with_name("photos")
    photos.make(files, CHECKED)
    return Photos(str(folder), "first", 1, dtype, threads, str(files))


def _memory_job(folder: Path, dtype: str, threads: int) -> Whole:
    return Whole(str(folder), "memory", 8, dtype, threads)


class Work(NamedTuple):
    """What is measured of a process."""

    systems: dict[str, System]
    job: Callable[[Path, str, int], Job]


WORKS = {
    "first": Work(_systems(_own_first, _transformers_first), _first_job),
    "memory": Work(_systems(_own_whole, _transformers_whole), _memory_job),
}
