"""End to end as users call it: JPEG files in, embeddings out, beside the image tower alone on pixels that are ready.

Files are read, decoded, resized and embedded in the timed calls, `CHUNK` at a time. transformers gets the same files
by its image processor and its model, in the same batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from altclip_fast.auto import AutoProcessor
from altclip_fast.dispatch import use_backend
from altclip_fast.encoder import Encoder

from . import models, whole
from .harness import Outcome
from .systems import FLOATS, OURS, Running, System, embedding, own_model, package, transformers_model
from .workloads import CHECKED, Cost, Job

CHUNK = 32  # photos that go through a model at once
SIZES = ((1632, 1224), (1224, 1632), (1728, 1152), (1440, 1440), (1920, 1080))  # width and height: 2 megapixels
GRAIN = 5  # standard deviation of the grain: the photos are enlarged, and would be too smooth to take their time
TOWER = "the tower alone"


def add_command(commands: Any) -> None:
    """Add `photos` to the command line."""
    parser = commands.add_parser("photos", help="time JPEG files to embeddings", description=__doc__)
    parser.add_argument("--photos", nargs="+", type=models.positive, default=[8, 64], metavar="N", help="a call")
    chosen = [name for name in SYSTEMS if name not in JUDGES]
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=chosen, metavar="SYSTEM")
    parser.add_argument("--dtypes", nargs="+", choices=models.DTYPES, default=["float32"], metavar="DTYPE")
    models.add_measuring_options(parser, whole.CHOICES)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    outcome = Outcome()
    with models.weights(options.weights) as parent:
        folder, photos = whole.checkpoint(options.model, parent), parent / "photos"
        make(photos, max(options.photos) + CHECKED)
        for count in options.photos:
            for dtype in options.dtypes:
                job = Photos(str(folder), "photos", count, dtype, options.threads, str(photos))
                found = models.measure(options.systems, dtype, job, options, SYSTEMS)
                outcome.add(found)
                models.write(found, options.output)
    print(outcome)
    return outcome.code


def make(folder: Path, count: int) -> None:
    """Write `count` JPEG files of 2 megapixels, unless they are there: pieces of scikit-learn's two photos, enlarged.

    Raises:
        Unavailable: scikit-learn is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(count) if not _file(folder, i).exists()]
    if not missing:
        return
    originals = [Image.fromarray(x) for x in package("sklearn.datasets", "scikit-learn").load_sample_images().images]
    for i in missing:
        _photo(originals[i % len(originals)], SIZES[i % len(SIZES)], i).save(_file(folder, i), quality=90)


def _photo(original: Image.Image, size: tuple[int, int], number: int) -> Image.Image:
    """A random piece of `original`, enlarged to `size`, with grain."""
    draw = torch.Generator().manual_seed(number)
    share, x, y = torch.rand(3, generator=draw).tolist()
    scale = (0.5 + 0.5 * share) * min(original.width / size[0], original.height / size[1])
    width, height = (scale * side for side in size)
    left, top = x * (original.width - width), y * (original.height - height)
    piece = original.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
    pixels = torch.from_numpy(np.array(piece)) + GRAIN * torch.randn(size[1], size[0], 1, generator=draw)
    return Image.fromarray(pixels.clamp(0, 255).byte().numpy())


def _file(folder: str | Path, number: int) -> Path:
    return Path(folder, f"{number}.jpg")


@dataclass(frozen=True)
class Photos(Job):
    """`batch` files to be embedded."""

    photos: str

    def _inputs(self, numbers: range) -> dict[str, Tensor]:
        return {"photos": torch.tensor(list(numbers))}

    def files(self, inputs: dict[str, Tensor]) -> list[Path]:
        """Those that inputs stand for."""
        return [_file(self.photos, number) for number in inputs["photos"].tolist()]

    def cost(self) -> Cost:
        """Of the tower."""
        found = Job(self.folder, "image", self.batch, self.dtype, self.threads).cost()
        return found._replace(shape=f"{self.batch} JPEG files of 2 megapixels")


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


def _encoder(job: Photos) -> Encoder:
    return Encoder(own_model(job), AutoProcessor.from_pretrained(job.folder))


def _own(job: Photos, backend: str | None) -> Running:
    encoder = _encoder(job)

    def embed(inputs: dict[str, Tensor]) -> Tensor:
        with use_backend(backend) if backend else nullcontext():
            return encoder.encode_image(job.files(inputs), batch_size=CHUNK, show_progress_bar=False)

    return Running(embed, f"encode_image, backend {backend or 'chosen by itself'}")


def _tower(job: Photos) -> Running:
    """This library's, on pixels that are prepared before."""
    encoder, ready = _encoder(job), {}
    for inputs in job.batches():
        for number, file in zip(inputs["photos"].tolist(), job.files(inputs), strict=True):
            ready[number] = encoder.processor.image_processor(file, return_tensors="pt")["pixel_values"]

    def embed(inputs: dict[str, Tensor]) -> Tensor:
        pixels = [ready[number] for number in inputs["photos"].tolist()]
        with torch.inference_mode():
            return torch.cat([encoder.model.get_image_features(torch.cat(chunk)) for chunk in _chunks(pixels)])

    return Running(embed, "get_image_features")


def _transformers(job: Photos, attention: str) -> Running:
    model = transformers_model(job, attention)
    processor = package("transformers").AutoImageProcessor.from_pretrained(job.folder)

    def embed(inputs: dict[str, Tensor]) -> Tensor:
        parts = []
        with torch.inference_mode():
            for chunk in _chunks(job.files(inputs)):
                opened = [Image.open(file) for file in chunk]
                pixels = processor(images=opened, return_tensors="pt")["pixel_values"].to(model.dtype)
                parts.append(embedding(model, "image", {"pixel_values": pixels}))
        return torch.cat(parts)

    return Running(embed, f"{type(processor).__name__} and get_image_features, {attention}")


JUDGES = ("reference", "transformers-eager")
SYSTEMS = {
    OURS: System(partial(_own, backend=None), (*FLOATS, "int8")),
    TOWER: System(_tower, (*FLOATS, "int8")),
    "reference": System(partial(_own, backend="reference"), FLOATS),
    "transformers-eager": System(partial(_transformers, attention="eager"), FLOATS),
    "transformers-sdpa": System(partial(_transformers, attention="sdpa"), FLOATS),
}
