"""Zero-shot classification as users call it: photos and labels in, scores out, in this library and in transformers.

A whole AltCLIP with random weights, in transformers' pipeline and in this library's. transformers' gets all photos in
one batch, so that it embeds the labels once a call, and not once a photo. This library's gets labels that it has not
seen before, unless `--kept`: then it embeds no label in the timed calls.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from altclip_fast.auto import AutoProcessor
from altclip_fast.dispatch import use_backend
from altclip_fast.embedded.scenes import BACKGROUNDS, COLORS, SHAPES, SIZES
from altclip_fast.encoder import Encoder
from altclip_fast.pipelines import TASK, pipeline

from . import models, whole
from .harness import Outcome
from .systems import OURS, Running, System, accelerated, compiled, own_model, package, transformers_model
from .workloads import Cost, Job, layers

TEMPLATE = "a {}"
PHOTO = (480, 640)  # height and width
Classify = Callable[[list[Image.Image]], list[list[dict[str, Any]]]]


def add_command(commands: Any) -> None:
    """Add `zero-shot` to the command line."""
    parser = commands.add_parser("zero-shot", help="time zero-shot pipelines against each other", description=__doc__)
    parser.add_argument(
        "--labels", nargs="+", type=_labels, default=[3, 1000], metavar="N", help="a run each (default: 3 1000)"
    )
    parser.add_argument("--photos", type=models.positive, default=8, metavar="N", help="a call (default: %(default)s)")
    parser.add_argument("--kept", action="store_true", help="the labels of a call are those of the call before")
    chosen = [name for name in SYSTEMS if name not in JUDGES]
    parser.add_argument(
        "--systems",
        nargs="+",
        choices=SYSTEMS,
        default=chosen,
        metavar="SYSTEM",
        help=f"of {', '.join(SYSTEMS)} (default: all but {' and '.join(JUDGES)})",
    )
    models.add_measuring_options(parser, whole.CHOICES)
    parser.set_defaults(run=_run)


def _labels(text: str) -> int:
    count = models.positive(text)
    if count > len(vocabulary()):
        raise argparse.ArgumentTypeError(f"{count} labels are asked for, and there are {len(vocabulary())}")
    return count


def _run(options: argparse.Namespace) -> int:
    outcome = Outcome()
    with models.weights(options.weights) as parent:
        folder = whole.checkpoint(options.model, parent, cut=True)
        for labels in options.labels:
            work = f"zero-shot-{labels}{'-kept' * options.kept}"
            job = ZeroShot(str(folder), work, options.photos, "float32", options.threads, labels, options.kept)
            found = models.measure(options.systems, job.dtype, job, options, SYSTEMS)
            outcome.add(found)
            models.write(found, options.output)
    print(outcome)
    return outcome.code


def vocabulary() -> list[str]:
    """Labels of one to eight words, in an order that mixes short and long ones."""
    grounds = ("", *(f"on a {color} background" for color in BACKGROUNDS))
    found = [" ".join(filter(None, words)) for words in product(("", *SIZES), ("", *COLORS), SHAPES, grounds)]
    random.Random(0).shuffle(found)
    return found


@dataclass(frozen=True)
class ZeroShot(Job):
    """`batch` photos to be classified among labels; its "embeddings" are the scores, [photos, labels]."""

    labels: int
    kept: bool = False

    @property
    def names(self) -> list[str]:
        return vocabulary()[: self.labels]

    def _inputs(self, numbers: range) -> dict[str, Tensor]:
        """uint8 [photos, height, width, 3]: soft patterns with some noise."""
        found = []
        for number in numbers:
            draw = partial(torch.randn, generator=torch.Generator().manual_seed(number))
            pattern = F.interpolate(draw(1, 3, 5, 5), PHOTO, mode="bicubic")[0].permute(1, 2, 0)
            found.append((128 + 30 * draw(3) + 40 * pattern + 5 * draw(*PHOTO, 3)).clamp(0, 255).byte())
        return {"photos": torch.stack(found)}

    def cost(self) -> Cost:
        """Of one call; every label is embedded once, and not at all where they are kept."""
        image = Job(self.folder, "image", self.batch, self.dtype, self.threads).cost()
        config, about = self.text_config(), f"{image.shape}, {self.labels} labels"
        if self.kept:
            return image._replace(shape=f"{about}, kept")
        tokenizer = AutoProcessor.from_pretrained(self.folder).tokenizer
        lengths = [len(ids) for ids in tokenizer([TEMPLATE.format(name) for name in self.names])["input_ids"]]
        flops, weights = layers(config, lengths)
        shape = f"{about}, {sum(lengths)} tokens of a vocabulary cut to {config.vocab_size}"
        return Cost(image.flops + flops, image.bytes + weights * self.itemsize, shape)


def _running(job: ZeroShot, classify: Classify, backend: str) -> Running:
    names = job.names

    def scores(inputs: dict[str, Tensor]) -> Tensor:
        found = classify([Image.fromarray(photo.numpy()) for photo in inputs["photos"]])
        by_label = [{one["label"]: one["score"] for one in of_photo} for of_photo in found]
        return torch.tensor([[of_photo[name] for name in names] for of_photo in by_label])

    return Running(scores, backend)


def _own(job: ZeroShot, backend: str | None) -> Running:
    model, processor = own_model(job), AutoProcessor.from_pretrained(job.folder)
    names, kept = job.names, Encoder(model, processor)

    def classify(photos: list[Image.Image]) -> list[list[dict[str, Any]]]:
        encoder = kept if job.kept else Encoder(model, processor)  # a new one has seen no label
        with use_backend(backend) if backend else nullcontext():
            return pipeline(TASK, encoder)(photos, names, hypothesis_template=TEMPLATE)

    return _running(job, classify, f"pipeline, backend {backend or 'chosen by itself'}")


def _transformers(
    job: ZeroShot, attention: str = "sdpa", prepare: Callable[[nn.Module], nn.Module] | None = None
) -> Running:
    transformers = package("transformers")
    theirs = transformers.pipeline(
        TASK,
        transformers_model(job, attention),
        tokenizer=transformers.AutoTokenizer.from_pretrained(job.folder),
        image_processor=transformers.AutoImageProcessor.from_pretrained(job.folder),
        device="cpu",
    )
    if prepare is not None:
        theirs.model = prepare(theirs.model)
    classify = partial(theirs, candidate_labels=job.names, hypothesis_template=TEMPLATE, batch_size=job.batch)
    made = "" if prepare is None else f"{prepare.__name__}, "
    return _running(job, classify, f"transformers' pipeline, {made}{attention}, one batch")


JUDGES = ("reference", "transformers-eager")
SYSTEMS = {
    OURS: System(partial(_own, backend=None), ("float32",)),
    "accelerated": System(partial(_transformers, prepare=accelerated), ("float32",)),
    "reference": System(partial(_own, backend="reference"), ("float32",)),
    "transformers-eager": System(partial(_transformers, attention="eager"), ("float32",)),
    "transformers-sdpa": System(_transformers, ("float32",)),
    "torch-compile": System(partial(_transformers, prepare=compiled), ("float32",)),
}
