"""The best rows of b for every row of a, by the scores of `contrastive`, without the N x M matrix.

Each part of b's rows leaves k candidates a row of a. They are kept in registers as integers that order as (score, lower
index first, NaN above all); while some row's best score in a tile beats the least of its candidates, it takes that
place. A row takes k * (1 + log(M / k)) in all, so nearly all tiles are passed over with one comparison a score. The
parts are merged by counting, for every candidate, the better ones: that is its place.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contrastive import CANDIDATES, inverses_of, scores, tile_config, tiles_of
from .launch import INTERPRETED, capability, launch
from .linear import multiplying, processors
from .tuning import Config

MERGED = 2048  # candidates of a row that are merged at once
MERGE_BLOCK = 256 if INTERPRETED else 64  # of those, how many are compared at once; the interpreter pays by the step

LEAST_KEY = tl.constexpr(-(2**31))  # below the key of any score
LAST_INDEX = tl.constexpr(2**31 - 1)
EMPTY_SLOT = tl.constexpr((1 - 2**31) * 2**32)  # that, with an index


@triton.jit
def _key(s):
    """Integers in the order of the scores: NaN first, both zeros the same."""
    bits = tl.where(s == 0.0, 0, s.to(tl.int32, bitcast=True))
    return tl.where(s != s, 2147483647, _flip_negative(bits))


@triton.jit
def _flip_negative(bits):
    """The bits of a float32 to an integer that is ordered like it, and back."""
    return bits ^ ((bits >> 31) & 2147483647)


@triton.jit
def _with_index(key, index):
    """The greater the key the better, and of equal keys the lower index."""
    return (key.to(tl.int64) << 32) | (index ^ LAST_INDEX).to(tl.int64)


@triton.jit
def _keep_best(best, key, column):
    """`best` [ROWS, SLOTS] with the keys [ROWS, COLS] of a tile that belong there, one of every row at a time."""
    least = tl.min(best, 1)
    top = tl.max(key, 1)
    # Columns come in ascending order: an equal key of this tile has a higher index, and is not better.
    waiting = tl.max(((top.to(tl.int64) << 32) > least).to(tl.int32), 0)
    while waiting > 0:
        chosen = tl.min(tl.where(key == top[:, None], column[None, :], LAST_INDEX), 1)
        found = _with_index(top, chosen)
        replaced = (best == least[:, None]) & (found > least)[:, None]
        best = tl.where(replaced, found[:, None], best)
        key = tl.where(column[None, :] == chosen[:, None], LEAST_KEY, key)
        least = tl.min(best, 1)
        top = tl.max(key, 1)
        waiting = tl.max(((top.to(tl.int64) << 32) > least).to(tl.int32), 0)
    return best


@triton.jit
def _similarity_topk_kernel(
    a_ptr,  # [N, D]
    b_ptr,  # [M, D]
    a_inverse_ptr,  # [N] float32, or None
    b_inverse_ptr,  # [M] float32, or None
    candidate_ptr,  # [N, parts, k] int64, in no order: `_with_index` of the best scores of each part
    scale,
    N,
    M,
    D,
    k,
    span,
    a_row,
    a_col,
    b_row,
    b_col,
    SLOTS: tl.constexpr,  # k, rounded up; not 64, for which ptxas aims at an occupancy that makes it spill
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    a = a_ptr, a_inverse_ptr, N, a_row, a_col
    b = b_ptr, b_inverse_ptr, M, b_row, b_col
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    slot = tl.arange(0, SLOTS)
    # An empty slot is below any score, and unlike all other ones; a slot beyond k is never the least.
    empty = (part * SLOTS + slot).to(tl.int64) + EMPTY_SLOT
    best = tl.where(slot < k, empty, 9223372036854775807)[None, :] + tl.zeros((ROWS, SLOTS), tl.int64)
    for start in range(part * span, min(part * span + span, M), COLS):
        column = start + tl.arange(0, COLS)
        s = scores(a, b, scale, row, column, D, DOT, PRECISION, BLOCK_K)
        # Scores that are equal in the dtype of the result are ties.
        key = _key(s.to(a_ptr.dtype.element_ty).to(tl.float32))
        key = tl.where((column < M)[None, :] & (row < N)[:, None], key, LEAST_KEY)
        if SLOTS == 1:
            top = tl.max(key, 1)
            chosen = tl.min(tl.where(key == top[:, None], column[None, :], LAST_INDEX), 1)
            best = tl.maximum(best, _with_index(top, chosen)[:, None])
        else:
            best = _keep_best(best, key, column)
    place = (row.to(tl.int64) * tl.num_programs(1) + part)[:, None] * k + slot[None, :]
    tl.store(candidate_ptr + place, best, (row < N)[:, None] & (slot < k)[None, :])


@triton.jit
def _similarity_topk_merge_kernel(
    candidate_ptr,  # [N, parts, k] int64
    merged_ptr,  # [N, groups, k] int64, in order: the best k of `fan` parts each; None when there is one group
    value_ptr,  # [N, k], or None
    index_ptr,  # [N, k] int64, or None
    N,
    parts,
    k,
    fan,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(min(fan, parts) * k, BLOCK)
    groups = tl.cdiv(parts, fan)
    block = tl.program_id(0) % blocks
    group = tl.program_id(0) // blocks % groups
    row = (tl.program_id(0) // (blocks * groups) * ROWS + tl.arange(0, ROWS).to(tl.int64))[:, None]
    count = min(fan, parts - group * fan) * k
    candidates = candidate_ptr + (row * parts + group * fan) * k
    mine = (block * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (row < N) & (mine < count)
    key = tl.load(candidates + mine, inside, 0)
    rank = tl.zeros((ROWS, BLOCK), tl.int32)
    for start in range(0, count, BLOCK):
        other = (start + tl.arange(0, BLOCK))[None, :]
        against = tl.load(candidates + other, (row < N) & (other < count), -9223372036854775808)
        rank += tl.sum((against[:, None, :] > key[:, :, None]).to(tl.int32), 2)
    kept = inside & (rank < k)
    if merged_ptr is not None:
        tl.store(merged_ptr + (row * groups + group) * k + rank, key, kept)
    else:
        value = _flip_negative((key >> 32).to(tl.int32)).to(tl.float32, bitcast=True)
        tl.store(value_ptr + row * k + rank, value.to(value_ptr.dtype.element_ty), kept)
        tl.store(index_ptr + row * k + rank, (key & LAST_INDEX) ^ LAST_INDEX, kept)


def similarity_topk(a: Tensor, b: Tensor, k: int, scale: float, normalize: bool) -> tuple[Tensor, Tensor]:
    """As `ops.similarity_topk`."""
    (n, _), m = a.shape, b.shape[0]
    config = _tiles(a, b, k)
    blocks, tiles = triton.cdiv(n, config["ROWS"]), triton.cdiv(m, config["COLS"])
    span = triton.cdiv(tiles, max(1, 2 * processors(a.device) // max(1, blocks))) * config["COLS"]
    parts = triton.cdiv(m, span)
    candidates = torch.empty(n, parts, k, dtype=torch.int64, device=a.device)
    launch(
        _similarity_topk_kernel,
        (blocks, parts),
        a,
        b,
        *inverses_of(a, b, normalize),
        candidates,
        float(scale),
        n,
        m,
        a.shape[1],
        k,
        span,
        *a.stride(),
        *b.stride(),
        SLOTS=triton.next_power_of_2(k) if k <= 32 else max(128, triton.next_power_of_2(k)),
        **multiplying(a.dtype),
        **config,
    )
    return _merge(candidates, a.dtype)


def similarity_argmax(a: Tensor, b: Tensor, scale: float, normalize: bool) -> Tensor:
    """As `ops.similarity_argmax`."""
    return similarity_topk(a, b, 1, scale, normalize)[1].view(-1)


def _merge(candidates: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The best k of all parts, in order: [N, parts, k] -> values and indices [N, k]."""
    n, parts, k = candidates.shape
    fan = max(2, MERGED // k)
    values = indices = None
    while values is None:
        groups = triton.cdiv(parts, fan)
        count = min(fan, parts) * k
        block = min(MERGE_BLOCK, triton.next_power_of_2(count))
        rows_each = min(triton.next_power_of_2(max(1, n)), (MERGE_BLOCK // block) ** 2)
        merged = None
        if groups > 1:
            merged = torch.empty(n, groups, k, dtype=torch.int64, device=candidates.device)
        else:
            values = torch.empty(n, k, dtype=dtype, device=candidates.device)
            indices = torch.empty(n, k, dtype=torch.int64, device=candidates.device)
        launch(
            _similarity_topk_merge_kernel,
            (triton.cdiv(n, rows_each) * groups * triton.cdiv(count, block),),
            candidates,
            merged,
            values,
            indices,
            n,
            parts,
            k,
            fan,
            ROWS=rows_each,
            BLOCK=block,
        )
        candidates, parts = merged, groups
    return values, indices


def _tiles(a: Tensor, b: Tensor, k: int) -> Config:
    if k > 32:  # of so many candidates in registers there are few rows, and their tiles are bound by loads anyway
        return tile_config(16, 128, 32 if a.dtype == torch.float32 else 64, 8, 3)
    # The keys beside the scores: on sm_80, whose products pass through registers, they are too many for 128 x 128.
    return tiles_of("similarity_topk", a, b, CANDIDATES[0 if capability(a.device) >= 90 else 2])
