"""The host's side of encoding: from what callers give to batches for the towers, in the order of the input.

Images are decoded, resized and cropped on a few threads, since Pillow releases the interpreter's lock; they leave as
bytes, and are normalised where they are embedded. Texts are tokenised in windows of many batches, and go to the tower
with others of their length.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from .notices import warn_once
from .processing.image_base import BaseImageProcessor
from .processing.loading import load_image
from .workers import Workers, processors

WINDOW = 32  # batches of texts that are tokenised at once, and sorted by their lengths
MOST_THREADS = 16  # that prepare images for a GPU
_OPENING = threading.Lock()

Normalisation = tuple[Sequence[float], Sequence[float]]  # mean and std


@dataclass(frozen=True)
class Failure:
    """An image that could not be read: its place in the input, what was given, and why."""

    index: int
    source: str
    error: str


def ahead(device: torch.device) -> int:
    """Batches that are prepared while one is computed: none on a CPU, where a tower uses all of the cores."""
    return 2 if device.type == "cuda" else 0


def threads(images: int, device: torch.device, processor: BaseImageProcessor) -> int:
    """How many prepare images for a device. None where torch does it: it has threads of its own."""
    if images < 2 or processor.normalisation() is None:
        return 0
    most = MOST_THREADS if device.type == "cuda" else torch.get_num_threads()
    return min(images, processors(), most)


def preparation(
    processor: BaseImageProcessor, shape: tuple[int, int, int]
) -> tuple[Callable[[Any], np.ndarray], Normalisation | tuple[()]]:
    """From an image to its pixels, and the mean and the std that are left to apply, if any.

    Args:
        shape: channels, height and width that the model takes; the function raises ValueError where they differ.
    """
    normalisation = processor.normalisation()
    if normalisation is None:
        return partial(_pixels, shape, lambda picture: processor(picture, return_tensors="np")["pixel_values"][0]), ()
    return partial(_pixels, shape, processor.eight_bit), normalisation


def _pixels(shape: tuple[int, int, int], process: Callable[[Image.Image], np.ndarray], source: Any) -> np.ndarray:
    with _OPENING if isinstance(source, Image.Image) else nullcontext():  # it may be given twice, and not be read yet
        picture = load_image(source)
    pixels = process(picture)
    if pixels.shape != shape:
        raise ValueError(
            f"the processor makes it {pixels.shape}, the model takes {shape} (channels, height, width): "
            "set the processor's size and crop_size"
        )
    return pixels


def image_batches(
    workers: Workers,
    prepare: Callable[[Any], np.ndarray],
    sources: Sequence[Any],
    batch_size: int,
    ahead: int,
    failures: list[Failure] | None,
) -> Iterator[list[np.ndarray]]:
    """The pixels of each batch, without the images that cannot be read.

    Args:
        ahead: batches that are prepared while the caller is busy with one.
        failures: gets the images that cannot be read; None: the first of them raises.

    Raises:
        ValueError, TypeError, OSError: an image cannot be read; it is named by its index and path.
    """
    batches = workers.batches(prepare, sources, batch_size, ahead)
    for start, futures in zip(range(0, len(sources), batch_size), batches, strict=True):
        pixels = []
        for index, future in enumerate(futures, start):
            try:
                pixels.append(future.result())
            except (ValueError, TypeError, OSError) as error:
                failure = Failure(index, _name(sources[index]), str(error))
                if failures is None:
                    kind = next(k for k in (TypeError, ValueError, OSError) if isinstance(error, k))
                    raise kind(f"image {index} ({failure.source}): {error}") from error
                failures.append(failure)
        if pixels:
            yield pixels


def text_batches(
    workers: Workers, tokenizer: Any, limit: int, texts: Sequence[str], batch_size: int, ahead: int
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Which texts are in each batch, and their token ids: batches of similar length, longest first in each window.

    Texts of more than `limit` tokens are cut; how many were is said once, at the end.
    """
    window, cut = WINDOW * batch_size, 0
    windows = [texts[start : start + window] for start in range(0, len(texts), window)]
    for i, (future,) in enumerate(workers.batches(partial(_tokenize, tokenizer, limit), windows, 1, ahead)):
        ids, long = future.result()
        cut += long
        order = sorted(range(len(ids)), key=lambda k: -len(ids[k]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            yield [i * window + k for k in chosen], [ids[k] for k in chosen]
    if cut:
        warn_once("text-truncated", f"{cut} of {len(texts)} texts are longer than {limit} tokens and were cut")


def _tokenize(tokenizer: Any, limit: int, texts: Sequence[str]) -> tuple[list[list[int]], int]:
    """The token ids of each text, and how many texts were cut."""
    ids = tokenizer(texts, truncation=True, max_length=limit + 1)["input_ids"]
    long = [i for i, row in enumerate(ids) if len(row) > limit]
    if long:
        cut = tokenizer([texts[i] for i in long], truncation=True, max_length=limit)["input_ids"]
        for i, row in zip(long, cut, strict=True):
            ids[i] = row
    return ids, len(long)


def _name(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)[:200]
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{len(source)} bytes"
    return type(source).__name__
