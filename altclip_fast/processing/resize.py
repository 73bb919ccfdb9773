"""Sizes of a resized image, and Pillow's resize cut down to what a centre crop keeps.

Pillow resizes in two passes, one along the rows and one along the columns, with 8-bit pixels in between. In each pass
a line depends on nothing but itself, so pixels that the crop throws away need not be computed, and the rest keeps its
bits. That saves 10 to 20 % of the time on photos of 3:2, and turns the 5000 x 1 image, which would become
1,120,000 x 224, from gigabytes into megabytes. Which pass comes first shows in the bits, and is Pillow's own affair:
it is checked once per process, and a Pillow that does something else gets the plain call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from random import Random

import PIL
from PIL import Image

MAX_RESIZED_PIXELS = 2**30
_STRIP_PIXELS = 2**24
# The filters whose support is known here; none reaches over more than 3 pixels (of the smaller image) to a side.
_FILTERS = {
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.HAMMING,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
}
_REACH = 3


def output_size(height: int, width: int, size: Mapping[str, int], name: str) -> tuple[int, int]:
    """(height, width) after the resize that `size` asks for.

    Args:
        size: `shortest_edge`, with or without `longest_edge`; or `max_height` and `max_width`; or `height` and `width`.
            The side that follows from the aspect ratio is truncated, as in transformers.
        name: of the image, for the message.

    Raises:
        ValueError: the aspect ratio is so extreme that a side would vanish, or that the result would have more than
            2**30 pixels.
    """
    if "height" in size:
        new = size["height"], size["width"]
    elif "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        new = int(height * scale), int(width * scale)
    elif "longest_edge" in size:
        new = _between_edges(height, width, size["shortest_edge"], size["longest_edge"])
    else:
        long = int(size["shortest_edge"] * max(height, width) / min(height, width))
        new = (long, size["shortest_edge"]) if width <= height else (size["shortest_edge"], long)
    if min(new) < 1 or new[0] * new[1] > MAX_RESIZED_PIXELS:
        raise ValueError(
            f"{name}: {height} x {width} pixels (height x width) would be resized to {new[0]} x {new[1]}; "
            f"allowed are sides of at least 1 and {MAX_RESIZED_PIXELS} pixels in all: cut the image to shape first"
        )
    return new


def _between_edges(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """The shorter side becomes `shortest`, or less, so that the longer one does not exceed `longest`."""
    short, long = min(height, width), max(height, width)
    exact: float = shortest
    if float(long) / float(short) * shortest > longest:
        exact = longest * float(short) / float(long)
        shortest = round(exact)
    if short == shortest:
        return height, width
    if width < height:
        return int(exact * height / width), shortest
    return shortest, int(exact * width / height)


def crop_window(height: int, width: int, crop: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the centre crop; outside of the image where the image is smaller than the crop."""
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    return left, top, left + crop[1], top + crop[0]


def resize_and_crop(
    image: Image.Image, size: tuple[int, int], crop: tuple[int, int] | None, resample: Image.Resampling
) -> Image.Image:
    """`image.resize`, then the centre crop (zeros around an image that is too small), with the same bits.

    Args:
        size: (height, width) to resize to.
        crop: (height, width), or None for no crop.
    """
    height, width = size
    if crop is None:
        return image.resize((width, height), resample)
    window = crop_window(height, width, crop)
    cuts = window[0] > 0 or window[1] > 0
    # Pillow resizes LA and RGBA premultiplied, and NEAREST in one go: no two passes to take apart.
    if cuts and image.mode in ("L", "RGB") and resample in _FILTERS and _passes_are_known():
        return _by_passes(image, size, window, resample)
    return image.resize((width, height), resample).crop(window)


@cache
def _passes_are_known() -> bool:
    """Do the passes of `_by_passes` give the bits of Pillow's own call, for the shapes that photos come in?"""
    shapes = [(30, 45), (45, 30), (40, 90), (90, 40), (6, 20), (20, 6), (1, 9), (9, 1)]
    return all(_same_bits(height, width) for height, width in shapes)


def _same_bits(height: int, width: int) -> bool:
    image = Image.frombytes("L", (width, height), Random(0).randbytes(height * width))
    size = output_size(height, width, {"shortest_edge": 16}, "")
    window = crop_window(*size, (16, 16))
    whole = image.resize((size[1], size[0]), Image.Resampling.BICUBIC).crop(window)
    return _by_passes(image, size, window, Image.Resampling.BICUBIC).tobytes() == whole.tobytes()


def _by_passes(
    image: Image.Image, size: tuple[int, int], window: tuple[int, int, int, int], resample: Image.Resampling
) -> Image.Image:
    height, width = size
    left, top, right, bottom = window
    if _pillow_resizes_height_first(image, size):
        image = image.resize((image.width, height), resample).crop((0, top, image.width, bottom))
        return image.resize((width, bottom - top), resample).crop((left, 0, right, bottom - top))
    if width != image.width:
        image = _resize_width(image, width, _rows_below(image.height, height, top, bottom), resample)
    if left > 0:
        image = image.crop((left, 0, right, image.height))
        left, right = 0, right - left
    return _resize_height(image, height, (left, top, right, bottom), resample)


def _pillow_resizes_height_first(image: Image.Image, size: tuple[int, int]) -> bool:
    """Pillow 13 does where the height loses more than twice as many pixels as the width; Pillow 12 never does."""
    lost_height, lost_width = image.height - size[0], image.width - size[1]
    return int(PIL.__version__.split(".")[0]) >= 13 and lost_height > max(0, 2 * lost_width)


def _rows_below(old: int, new: int, top: int, bottom: int) -> tuple[int, int]:
    """The rows of the image, first and last + 1, that rows `top` to `bottom` of the resized one are made of."""
    scale = old / new
    margin = math.ceil(_REACH * max(scale, 1.0)) + 1
    return max(0, math.floor(top * scale) - margin), min(old, math.ceil(bottom * scale) + margin)


def _resize_width(image: Image.Image, width: int, rows: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """The first pass, over `rows` alone; the other rows are zeros."""
    first, last = rows
    if (first, last) == (0, image.height):
        return image.resize((width, image.height), resample)
    canvas = Image.new(image.mode, (width, image.height))
    part = image.crop((0, first, image.width, last)).resize((width, last - first), resample)
    canvas.paste(part, (0, first))
    return canvas


def _resize_height(
    image: Image.Image, height: int, window: tuple[int, int, int, int], resample: Image.Resampling
) -> Image.Image:
    """The second pass, then the crop to `window`; in strips where the whole would be large."""
    columns = max(1, _STRIP_PIXELS // height)
    if columns >= image.width:
        return image.resize((image.width, height), resample).crop(window)
    left, top, right, bottom = window
    result = Image.new(image.mode, (right - left, bottom - top))
    for x in range(0, image.width, columns):
        end = min(x + columns, image.width)
        strip = image.crop((x, 0, end, image.height)).resize((end - x, height), resample)
        result.paste(strip.crop((0, top, end - x, bottom)), (x - left, 0))
    return result
