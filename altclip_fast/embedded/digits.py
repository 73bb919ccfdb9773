"""Handwritten digits: the 1,797 scans of 8 x 8 pixels that come with scikit-learn, kept in `digits.npz`.

They are the test part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998;
CC BY 4.0). `python -m altclip_fast.embedded.digits` writes the file anew from scikit-learn.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

FILE = Path(__file__).with_name("digits.npz")
LEVELS = 16  # pixels are 0 (paper) to 16 (ink)
HELD_OUT_COUNT = 599  # a third of 1,797

RGB = tuple[int, int, int]


@cache
def _all() -> tuple[np.ndarray, np.ndarray]:
    with np.load(FILE) as stored:
        images, labels = stored["images"], stored["labels"]
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


@cache
def split() -> tuple[np.ndarray, np.ndarray]:
    """(indices to train on, held-out indices), int64, ascending: a third of each digit is held out."""
    labels = _all()[1]
    order = np.random.default_rng(0).permutation(len(labels))
    # Sorted by digit, in random order within each; every third of that is a third of every digit.
    by_digit = order[np.argsort(labels[order], kind="stable")]
    held_out = np.zeros(len(labels), bool)
    held_out[by_digit[1::3]] = True
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    train.flags.writeable = test.flags.writeable = False
    return train, test


def load(held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [N, 8, 8] of 0 to 16, labels uint8 [N])."""
    images, labels = _all()
    indices = split()[int(held_out)]
    return images[indices], labels[indices]


def render_digit(image: np.ndarray, rng: np.random.Generator | None = None, side: int | None = None) -> Image.Image:
    """A scan as an RGB picture of `side` x `side` pixels.

    Without `rng` it is black on white, 64 pixels unless `side` is given. With `rng` it is moved, turned, scaled,
    tinted, of 40 to 200 pixels, light on dark in some pictures, noisy or blurred in others.
    """
    if rng is None:
        return _plain(image, 64 if side is None else side)
    if side is None:
        side = round(40 * 5 ** (rng.random() ** 1.5))
    ink = _warped(_upscaled(image, side), rng)
    paper_color, ink_color = _tints(rng)
    picture = Image.new("RGB", (side, side), paper_color)
    picture.paste(ink_color, (0, 0), ink)
    return _degraded(picture, rng)


def _upscaled(image: np.ndarray, side: int) -> Image.Image:
    """Ink as mode L, 255 where the pen was."""
    # Strokes run to the edge of many scans: a margin of a pixel keeps them whole.
    levels = np.pad(np.asarray(image, np.float32), 1) * (255 / LEVELS)
    ink = Image.fromarray((levels + 0.5).astype(np.uint8))
    return ink.resize((side, side), Image.Resampling.BICUBIC)


def _plain(image: np.ndarray, side: int) -> Image.Image:
    ink = np.asarray(_upscaled(image, side))
    return Image.fromarray(255 - ink).convert("RGB")


def _warped(ink: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Moved by up to 8 %, turned by up to 12 degrees, scaled and slanted; sometimes with a crisper edge."""
    side = ink.width
    angle, shear = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(-0.15, 0.15)
    scale = rng.uniform(0.85, 1.35)  # of the source: above 1 the digit gets smaller
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([(cos, sin + shear), (-sin, cos)]) * (rng.uniform(0.92, 1.08), 1)
    moved = rng.uniform(-0.08, 0.08, 2) * side
    offset = side / 2 - matrix @ (side / 2 + moved)
    data = (*matrix[0], offset[0], *matrix[1], offset[1])
    ink = ink.transform((side, side), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)
    if rng.random() < 0.4:
        steepness, middle = rng.uniform(1.5, 5), rng.uniform(105, 150)
        ink = ink.point([int(min(255, max(0, (value - middle) * steepness + 128))) for value in range(256)])
    return ink


def _tints(rng: np.random.Generator) -> tuple[RGB, RGB]:
    """Colours of the paper and of the ink, one light and one dark."""
    light, dark = rng.uniform(200, 256, 3), rng.uniform(0, 90, 3)
    if rng.random() < 0.5:
        light, dark = np.full(3, 255.0), np.zeros(3)
    pale, deep = ((int(r), int(g), int(b)) for r, g, b in (np.minimum(light, 255), dark))
    return (deep, pale) if rng.random() < 0.3 else (pale, deep)


def _degraded(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    if rng.random() < 0.25:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.3 + picture.width * 0.01)))
    if rng.random() < 0.4:
        noise = rng.standard_normal((picture.height, picture.width, 1), dtype=np.float32)
        values = np.asarray(picture) + noise * np.float32(rng.uniform(2, 18))
        picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    return picture


def _make(path: Path = FILE) -> None:
    """Write the file, from scikit-learn."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    data = load_digits()
    np.savez_compressed(path, images=data.images.astype(np.uint8), labels=data.target.astype(np.uint8))


if __name__ == "__main__":
    _make()
