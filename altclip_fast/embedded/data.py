"""What the embedded models are trained on: a pool of rendered scenes and digits, and batches out of it.

A batch holds every trained colour-shape pair `REPEATS` times, so that colour and shape alone tell a picture from nearly
all others; two-object scenes and digits fill it up. Beside them are pictures in colours that no caption names: they
teach what a shape is whatever its colour, for the pairs that are held out.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..processing.image import CLIPImageProcessor
from . import captions, digits, scenes

SIDE = 64
REPEATS = 2
TWO_OBJECTS = 34
DIGITS = 24
BATCH = len(scenes.TRAINED) * REPEATS + TWO_OBJECTS + DIGITS
LANGUAGES = captions.LANGUAGES

Content = scenes.Scene | int  # a scene, or a digit


def image_processor() -> CLIPImageProcessor:
    """Squashes a picture to a square, so that nothing at its edges is cropped away."""
    return CLIPImageProcessor(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, crop_size={"height": SIDE, "width": SIDE}
    )


def describe(content: Content, languages: Sequence[str], rng: np.random.Generator) -> dict[str, str]:
    """The same caption in each language."""
    if isinstance(content, scenes.Scene):
        return captions.parallel(content, languages, rng)
    return captions.parallel_digit(content, languages, rng)


@dataclass
class Pool:
    """Rendered pictures: pixels uint8 [N, 3, SIDE, SIDE], and what each shows."""

    pixels: Tensor
    contents: list[Content]

    def __post_init__(self) -> None:
        self._by_pair: dict[tuple[str, str], list[int]] = {pair: [] for pair in scenes.TRAINED}
        self._by_shape: dict[str, list[int]] = {shape: [] for shape in scenes.SHAPES}
        self._big_by_shape: dict[str, list[int]] = {shape: [] for shape in scenes.SHAPES}
        self._two: list[int] = []
        self._digits: list[int] = []
        for i, content in enumerate(self.contents):
            if isinstance(content, int):
                self._digits.append(i)
            elif len(content.things) == 2:
                self._two.append(i)
            else:
                thing = content.things[0]
                if thing.color not in scenes.UNNAMED:
                    self._by_pair[thing.color, thing.shape].append(i)
                self._by_shape[thing.shape].append(i)
                if thing.size == "big":
                    self._big_by_shape[thing.shape].append(i)

    def batch(self, rng: np.random.Generator) -> list[int]:
        """Indices of one batch."""
        chosen = [members[i] for members in self._by_pair.values() for i in rng.integers(len(members), size=REPEATS)]
        chosen += [self._two[i] for i in rng.integers(len(self._two), size=TWO_OBJECTS)]
        return chosen + [self._digits[i] for i in rng.integers(len(self._digits), size=DIGITS)]

    def one_of_each_shape(self, rng: np.random.Generator, big: bool) -> list[int]:
        """Indices of eight pictures of one thing each (a big one), in the order of SHAPES."""
        kinds = self._big_by_shape if big else self._by_shape
        return [members[int(rng.integers(len(members)))] for members in kinds.values()]


def augment(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Shifted by up to 3 pixels, with other brightness and contrast, and noise; then normalised, float32.

    Args:
        pixels: uint8 [B, 3, SIDE, SIDE].
    """
    batch = len(pixels)
    x = torch.nn.functional.pad(pixels.float(), (3, 3, 3, 3), mode="replicate")
    left, top = rng.integers(0, 7, batch), rng.integers(0, 7, batch)
    x = torch.stack([x[i, :, t : t + SIDE, k : k + SIDE] for i, (t, k) in enumerate(zip(top, left, strict=True))])
    gain = torch.from_numpy(rng.uniform(0.85, 1.1, (batch, 1, 1, 1)).astype(np.float32))
    offset = torch.from_numpy(rng.uniform(-12, 12, (batch, 1, 1, 1)).astype(np.float32))
    x = x * gain + offset + torch.randn_like(x) * 4
    return normalize(x.clamp(0, 255))


def normalize(x: Tensor) -> Tensor:
    """Pixels 0..255 as the image processor leaves them."""
    settings = image_processor().to_dict()
    mean, std = (torch.tensor(settings[name])[:, None, None] for name in ("image_mean", "image_std"))
    return (x.float() / 255 - mean) / std


def make_pool(count: int, seed: int, workers: int, file: Path) -> Pool:
    """Render `count` scenes, a quarter as many in unnamed colours, and a seventh as many digits.

    They are kept in `file`, and read from there the next time.
    """
    if not file.exists():
        jobs = [(seed, chunk) for chunk in range((count + _CHUNK - 1) // _CHUNK)]
        with multiprocessing.get_context("spawn").Pool(workers) as processes:
            parts = list(tqdm(processes.imap(_render_chunk, jobs), total=len(jobs), desc="render", unit="chunk"))
        pixels = torch.cat([torch.from_numpy(part[0]) for part in parts])
        torch.save({"pixels": pixels, "contents": [c for part in parts for c in part[1]]}, file)
    with torch.serialization.safe_globals([scenes.Scene, scenes.Thing]):
        stored = torch.load(file)
    return Pool(stored["pixels"], stored["contents"])


_CHUNK = 500
_UNNAMED_PAIRS = tuple((color, shape) for color in scenes.UNNAMED for shape in scenes.SHAPES)


def _render_chunk(job: tuple[int, int]) -> tuple[np.ndarray, list[Content]]:
    rng = np.random.default_rng(job)
    processor = image_processor()
    handwritten, numbers = digits.load(held_out=False)
    pixels: list[np.ndarray] = []
    contents: list[Content] = []
    for k in range(_CHUNK):
        scene = scenes.sample_scene(rng)
        pixels.append(_squash(processor, scenes.render(scene, rng)))
        contents.append(scene)
        if k % 4 == 0:
            scene = scenes.sample_scene(rng, pairs=_UNNAMED_PAIRS, two_objects=0.0)
            pixels.append(_squash(processor, scenes.render(scene, rng)))
            contents.append(scene)
        if k % 7 == 0:
            which = int(rng.integers(len(numbers)))
            pixels.append(_squash(processor, digits.render_digit(handwritten[which], rng)))
            contents.append(int(numbers[which]))
    return np.stack(pixels), contents


def _squash(processor: CLIPImageProcessor, picture: object) -> np.ndarray:
    """uint8 [3, SIDE, SIDE]."""
    return processor(picture, do_rescale=False, do_normalize=False)["pixel_values"][0].astype(np.uint8)
