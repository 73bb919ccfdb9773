"""The shapes that graphs are made for hold what comes, and little more."""

import random
from itertools import pairwise

import pytest

from altclip_fast.runtime.buckets import (
    full_rows,
    image_buckets,
    image_parts,
    power,
    rounded,
    text_bucket,
    text_parts,
)


def test_vit_l_on_132_multiprocessors():
    assert full_rows(1024, 132) == 4224
    assert image_buckets(4224, 257) == (1, 2, 4, 8, 16)


@pytest.mark.parametrize(("rows", "tokens"), [(4224, 257), (5632, 50), (5632, 197), (100, 257), (257, 257)])
def test_image_parts_cover_the_batch(rows, tokens):
    buckets = image_buckets(rows, tokens)
    assert list(buckets) == sorted(set(buckets)) and buckets[0] == 1
    assert buckets[-1] * tokens <= max(rows, tokens)
    for count in range(3 * buckets[-1] + 2):
        parts = image_parts(count, buckets)
        assert [i for start, stop, _ in parts for i in range(start, stop)] == list(range(count))
        for start, stop, bucket in parts:
            assert bucket in buckets and bucket / 2 < stop - start <= bucket
        assert all(bucket == buckets[-1] == stop - start for start, stop, bucket in parts[:-1])


def test_rounded_wastes_a_quarter_at_most():
    for rows in range(1, 5000):
        assert rows <= rounded(rows) <= max(1.25 * rows, rows + 15) and rounded(rows) % 16 == 0
    assert len({rounded(rows) for rows in range(1, 4225)}) < 32


def test_power():
    assert [power(i) for i in (1, 2, 3, 4, 5, 16, 17)] == [1, 2, 4, 4, 8, 16, 32]
    assert power(3, 16) == 16


def test_text_buckets_hold_the_texts_and_their_padding():
    draw = random.Random(0)
    for _ in range(500):
        lengths = [draw.randint(1, draw.choice((8, 77, 512))) for _ in range(draw.randint(1, 100))]
        most = draw.choice((64, 1000, 4224))
        rows, texts, longest = text_bucket(lengths, most)
        padding = rows - sum(lengths)
        assert padding >= 0 and longest >= max(lengths)
        assert texts >= len(lengths) and (texts - len(lengths)) * longest >= padding
        assert rows <= max(most, sum(lengths))


def test_text_parts_cover_the_texts():
    draw = random.Random(1)
    for _ in range(200):
        lengths = [draw.randint(1, 60) for _ in range(draw.randint(0, 40))]
        parts = text_parts(lengths, 50)
        assert [i for start, stop in parts for i in range(start, stop)] == list(range(len(lengths)))
        for start, stop in parts:
            assert stop - start == 1 or sum(lengths[start:stop]) <= 50
        for (start, stop), (_, following) in pairwise(parts):
            assert sum(lengths[start : stop + 1]) > 50 and following > stop
