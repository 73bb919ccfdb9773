"""Which shapes graphs are made for: few enough to keep, close enough to what comes that little is computed in vain.

Large batches run in parts. A GPU computes a product in tiles of about 128 x 256, one a multiprocessor at a time, so a
part has as many rows as give each multiprocessor one tile of the narrowest product, [rows, hidden]: on 132 of them 4224
rows at 1024 columns, which are 16 images of 257 tokens. Its activations also stay in the second-level cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

TILE = 128 * 256  # elements of a product that a multiprocessor computes at a time


def full_rows(columns: int, multiprocessors: int) -> int:
    """Rows of a product of `columns` columns that give each multiprocessor a tile."""
    return max(16, multiprocessors * TILE // columns // 16 * 16)


def image_buckets(rows: int, tokens: int) -> tuple[int, ...]:
    """Batches of images, `tokens` rows each, that graphs are made for: powers of two, and what `rows` holds."""
    largest = max(1, rows // tokens)
    powers = [1 << i for i in range(largest.bit_length()) if 1 << i < largest]
    return (*powers, largest)


def image_parts(count: int, buckets: Sequence[int]) -> list[tuple[int, int, int]]:
    """`count` images as (first, last + 1, bucket): as many of the largest bucket as there are, and the rest in one."""
    largest = buckets[-1]
    whole = [(start, start + largest, largest) for start in range(0, count - largest + 1, largest)]
    rest = count % largest
    if rest:
        whole.append((count - rest, count, next(bucket for bucket in buckets if bucket >= rest)))
    return whole


class TextBucket(NamedTuple):
    """A shape for packed texts.

    Attributes:
        rows: tokens in all.
        texts: sequences, those of padding included.
        longest: tokens of a sequence, at most.
    """

    rows: int
    texts: int
    longest: int


def text_bucket(lengths: Sequence[int], most: int) -> TextBucket:
    """The least one that holds texts of these lengths, and what pads them; `most` rows where that is enough.

    Rows that are padding belong to sequences of their own, which nobody looks at, none of them longer than `longest`.
    """
    total, longest = sum(lengths), power(max(lengths), 16)
    rows = max(total, min(rounded(total), most))
    return TextBucket(rows, power(len(lengths) + -(-(rows - total) // longest)), longest)


def text_parts(lengths: Sequence[int], rows: int) -> list[tuple[int, int]]:
    """Texts, in order, as (first, last + 1) of parts of at most `rows` tokens; a longer text is alone."""
    parts, start, total = [], 0, 0
    for i, length in enumerate(lengths):
        if i > start and total + length > rows:
            parts.append((start, i))
            start, total = i, 0
        total += length
    return [*parts, (start, len(lengths))] if lengths else []


def rounded(rows: int) -> int:
    """Up to a multiple of 16 with three leading bits: four sizes an octave, at most a quarter more."""
    step = max(16, 1 << max(rows - 1, 1).bit_length() >> 3)
    return -(-rows // step) * step


def power(number: int, least: int = 1) -> int:
    """The power of two at or above `number`, `least` or more."""
    return max(least, 1 << max(number - 1, 0).bit_length())
