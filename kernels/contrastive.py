"""The joint head of a dual encoder: similarities and what is made of them, without the N x M matrix where possible.

s[i, j] = scale * (a[i] . b[j]) / (|a[i]| |b[j]|)                    a [N, D], b [M, D]; without normalising no norms
softmax = exp(s - m) / l,  m[i] = max_j s[i, j],  l[i] = sum_j exp(s[i, j] - m[i])
loss = mean_i(m[i] + log l[i] - s[i, i]) / 2 + the same over columns               a the texts, b the images, M = N
dloss/ds = (P + Q - 2 I) / 2N,   P = softmax over rows, Q = over columns;   da[i] = sum_j ds[i, j] b[j], db likewise

A tile of scores is computed in registers, 2 * D operations each, scaled there by the rows' inverse norms (which one
pass over a and b finds before), and used there; in bf16 an H200 needs 1.9 ps a score at D = 768.

- similarity writes it: 2 or 4 bytes a score.
- similarity_softmax needs one pass where a tile holds all of b (the labels of a classifier), else two, of which the
  first leaves m and l of every part of b's rows. A second product costs 1.9 ps a score; to write scores and read them
  twice would cost as much and round them.
- contrastive_loss finds m and l of rows and columns in one sweep. Columns need partial results for every block of
  rows, so it goes by chunks of `CHUNK` rows: 8 * (parts + CHUNK / 128) bytes a row stay, as the embeddings themselves.
- its backward sweeps again and then writes P + Q - 2 I, 4 * D rows at a time, for two products: 8 * N^2 * D
  operations, memory O(N * D), no atomics, and so the same bits every time.

Tiles are 128 x 128: 64 products a value read, which is what a multiprocessor's tensor cores need, and room in the
registers for the epilogue's second tile. In float32 a row's scores have the same bits in any batch: its tiles depend on
M and k only, and so does how the rows of b are parted where sums are made of them.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch, rows
from .linear import multiplying, product
from .norm import tile_of
from .tuning import Config, configuration

CHUNK = 8192  # rows of a sweep of contrastive_loss
GRADIENT_ROWS = 1024  # of its backward, or 4 * D if that is more: the chunk's gradient is as large as 4 embeddings
PARTS = 256  # of b's rows at most, where each part leaves a partial sum

LOG2E = math.log2(math.e)
SMALLEST = tl.constexpr(1e-24)  # of a squared norm: EPS of ops/contrastive.py, squared


def tile_config(rows: int, cols: int, block_k: int, warps: int, stages: int) -> Config:
    return {"ROWS": rows, "COLS": cols, "BLOCK_K": block_k, "num_warps": warps, "num_stages": stages}


# Of "similarity" (softmax included), "similarity_topk" with k up to 32, and "contrastive_loss", for the tuner. In
# float32 all have one BLOCK_K: that is the order of summation.
CANDIDATES = (  # of bf16 and fp16
    tile_config(128, 128, 64, 8, 3),
    tile_config(128, 128, 32, 8, 4),
    tile_config(128, 64, 64, 8, 3),
    tile_config(64, 128, 64, 8, 3),
    tile_config(64, 64, 64, 8, 4),
)
CANDIDATES_FLOAT32 = (tile_config(64, 64, 32, 8, 3), tile_config(64, 128, 32, 8, 3))
FEW_ROWS = CANDIDATES[3]


@triton.jit
def _inverse_norm(x):
    """1 / |x| of rows, at most 1e12, so that a zero row stays zero; and whether it is less. NaN stays NaN."""
    total = tl.sum(x * x, 1, keep_dims=True)
    return tl.rsqrt(tl.where(total < SMALLEST, SMALLEST, total)), total >= SMALLEST


@triton.jit
def _l2_normalize_kernel(
    x_ptr,  # [T, D]
    out_ptr,  # [T, D] or None
    inverse_ptr,  # [T] float32, 1 / |x|, or None
    T,
    D,
    x_row,
    x_col,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK).to(tl.int64)[None, :]
    inside = (row < T) & (column < D)
    x = tl.load(x_ptr + row * x_row + column * x_col, inside, 0.0).to(tl.float32)
    inverse, _ = _inverse_norm(x)
    if out_ptr is not None:
        tl.store(out_ptr + row * D + column, (x * inverse).to(out_ptr.dtype.element_ty), inside)
    if inverse_ptr is not None:
        tl.store(inverse_ptr + row, inverse, row < T)


@triton.jit
def scores(
    a,  # (pointer to [N, D], pointer to its inverse norms or None, N, its strides)
    b,  # likewise, [M, D]
    scale,
    row,
    column,
    D,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """scale * normalize(a) @ normalize(b)^T of these rows and columns, in float32; zero outside of N and M."""
    a_ptr, a_inverse_ptr, N, a_row, a_col = a
    b_ptr, b_inverse_ptr, M, b_row, b_col = b
    total = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    a_row_ptr = a_ptr + row.to(tl.int64)[:, None] * a_row
    b_row_ptr = b_ptr + column.to(tl.int64)[None, :] * b_row
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        x = tl.load(a_row_ptr + k[None, :] * a_col, (row < N)[:, None] & (k < D)[None, :], 0.0)
        y = tl.load(b_row_ptr + k[:, None] * b_col, (k < D)[:, None] & (column < M)[None, :], 0.0)
        total = tl.dot(x.to(DOT), y.to(DOT), total, input_precision=PRECISION)
    if a_inverse_ptr is not None:
        total *= tl.load(a_inverse_ptr + row, row < N, 0.0)[:, None] * scale
        total *= tl.load(b_inverse_ptr + column, column < M, 0.0)[None, :]
    else:
        total *= scale
    return total


@triton.jit
def _similarity_kernel(
    a_ptr,  # [N, D]
    b_ptr,  # [M, D]
    a_inverse_ptr,  # [N] float32, or None
    b_inverse_ptr,  # [M] float32, or None
    stats_ptr,  # [2, N] float32: m and l of the softmax, or None
    out_ptr,  # [N, M]
    scale,
    N,
    M,
    D,
    a_row,
    a_col,
    b_row,
    b_col,
    SOFTMAX: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    a = a_ptr, a_inverse_ptr, N, a_row, a_col
    b = b_ptr, b_inverse_ptr, M, b_row, b_col
    row, column = _place(tl.program_id(0), N, M, ROWS, COLS)
    s = scores(a, b, scale, row, column, D, DOT, PRECISION, BLOCK_K)
    if SOFTMAX:
        if stats_ptr is None:  # one tile holds the whole row
            largest, total = _log_sum(tl.where((column < M)[None, :], s, float("-inf")), 1)
        else:
            largest = tl.load(stats_ptr + row, row < N, 0.0)
            total = tl.load(stats_ptr + N + row, row < N, 1.0)
        s = tl.exp2(s - largest[:, None]) / total[:, None]
    inside = (row < N)[:, None] & (column < M)[None, :]
    place = row.to(tl.int64)[:, None] * M + column[None, :]
    tl.store(out_ptr + place, s.to(out_ptr.dtype.element_ty), inside)


@triton.jit
def _place(tile, N, M, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Rows and columns of a tile; eight blocks of rows go over the columns together and share them in the L2."""
    GROUP: tl.constexpr = 8
    down = tl.cdiv(N, ROWS)
    across = tl.cdiv(M, COLS)
    top = tile // (GROUP * across) * GROUP
    height = min(down - top, GROUP)
    within = tile % (GROUP * across)
    row = (top + within % height) * ROWS + tl.arange(0, ROWS)
    column = within // height * COLS + tl.arange(0, COLS)
    return row, column


@triton.jit
def _log_sum(s, AXIS: tl.constexpr):
    """m = max(s) and l = sum(2^(s - m)); nothing but -inf gives m = -inf and l = 0."""
    largest = tl.max(s, AXIS)
    finite = tl.where(largest == float("-inf"), 0.0, largest)
    return largest, tl.sum(tl.exp2(s - tl.expand_dims(finite, AXIS)), AXIS)


@triton.jit
def _log_sum_kernel(
    a_ptr,  # [N, D]
    b_ptr,  # [M, D]
    a_inverse_ptr,  # [N] float32, or None
    b_inverse_ptr,  # [M] float32, or None
    scale_ptr,  # [1] float32 that scale is multiplied with, or None
    row_stats_ptr,  # [2, parts, N] float32: m and l of the rows over the columns of each part
    column_stats_ptr,  # [2, blocks of rows, M] float32: of the columns over the rows of each block, or None
    diagonal_ptr,  # [N] float32: s[i, first + i], or None
    scale,
    first,
    N,
    M,
    D,
    span,
    a_row,
    a_col,
    b_row,
    b_col,
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
    if scale_ptr is not None:
        scale *= tl.load(scale_ptr)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(part * span, min(part * span + span, M), COLS):
        column = start + tl.arange(0, COLS)
        s = scores(a, b, scale, row, column, D, DOT, PRECISION, BLOCK_K)
        if diagonal_ptr is not None:
            top = first + tl.program_id(0) * ROWS
            if (start < top + ROWS) & (top < start + COLS):
                matching = ((first + row)[:, None] == column[None, :]) & (row < N)[:, None]
                tl.store(diagonal_ptr + row[:, None] + 0 * column[None, :], s, matching)
        if column_stats_ptr is not None:
            most, sum_of = _log_sum(tl.where((row < N)[:, None], s, float("-inf")), 0)
            place = column_stats_ptr + tl.program_id(0).to(tl.int64) * M + column
            tl.store(place, most, column < M)
            tl.store(place + tl.num_programs(0).to(tl.int64) * M, sum_of, column < M)
        most, sum_of = _log_sum(tl.where((column < M)[None, :], s, float("-inf")), 1)
        largest, total = _add_log_sums(largest, total, most, sum_of)
    place = row_stats_ptr + part.to(tl.int64) * N + row
    tl.store(place, largest, row < N)
    tl.store(place + tl.num_programs(1).to(tl.int64) * N, total, row < N)


@triton.jit
def _add_log_sums(largest, total, most, sum_of):
    """m and l of two disjoint sets together."""
    both = tl.maximum(largest, most)
    finite = tl.where(both == float("-inf"), 0.0, both)
    return both, total * tl.exp2(largest - finite) + sum_of * tl.exp2(most - finite)


@triton.jit
def _log_sum_combine_kernel(
    stats_ptr,  # [2, parts, n] float32
    out_ptr,  # [2, n] float32, its planes out_plane apart
    parts,
    n,
    out_plane,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, parts, PARTS):
        part = (start + tl.arange(0, PARTS).to(tl.int64))[:, None]
        inside = (part < parts) & (column < n)[None, :]
        each_largest = tl.load(stats_ptr + part * n + column[None, :], inside, float("-inf"))
        each_total = tl.load(stats_ptr + (parts + part) * n + column[None, :], inside, 0.0)
        most = tl.max(each_largest, 0)
        finite = tl.where(most == float("-inf"), 0.0, most)
        sum_of = tl.sum(each_total * tl.exp2(each_largest - finite[None, :]), 0)
        largest, total = _add_log_sums(largest, total, most, sum_of)
    tl.store(out_ptr + column, largest, column < n)
    tl.store(out_ptr + out_plane + column, total, column < n)


@triton.jit
def _contrastive_loss_backward_kernel(
    a_ptr,  # [N, D], the texts from `first` on
    b_ptr,  # [M, D], the images
    a_inverse_ptr,  # [N] float32, or None
    b_inverse_ptr,  # [M] float32, or None
    scale_ptr,  # [1] float32
    row_stats_ptr,  # [2, N] float32, its planes row_plane apart
    column_stats_ptr,  # [2, M] float32
    grad_ptr,  # [N, M]: P + Q - 2 I
    along_ptr,  # [tiles] float32: the sum of grad * s
    scale,
    first,
    N,
    M,
    D,
    row_plane,
    a_row,
    a_col,
    b_row,
    b_col,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    a = a_ptr, a_inverse_ptr, N, a_row, a_col
    b = b_ptr, b_inverse_ptr, M, b_row, b_col
    row, column = _place(tl.program_id(0), N, M, ROWS, COLS)
    s = scores(a, b, scale * tl.load(scale_ptr), row, column, D, DOT, PRECISION, BLOCK_K)
    row_largest = tl.load(row_stats_ptr + row, row < N, 0.0)
    row_total = tl.load(row_stats_ptr + row_plane + row, row < N, 1.0)
    column_largest = tl.load(column_stats_ptr + column, column < M, 0.0)
    column_total = tl.load(column_stats_ptr + M + column, column < M, 1.0)
    grad = tl.exp2(s - row_largest[:, None]) * (1.0 / row_total)[:, None]
    grad += tl.exp2(s - column_largest[None, :]) * (1.0 / column_total)[None, :]
    grad -= tl.where((first + row)[:, None] == column[None, :], 2.0, 0.0)
    inside = (row < N)[:, None] & (column < M)[None, :]
    along = tl.sum(tl.where(inside, grad * s, 0.0), 1)
    tl.store(along_ptr + tl.program_id(0), tl.sum(along, 0))
    place = row.to(tl.int64)[:, None] * M + column[None, :]
    tl.store(grad_ptr + place, grad.to(grad_ptr.dtype.element_ty), inside)


@triton.jit
def _l2_normalize_backward_kernel(
    grad_ptr,  # [T, D] float32, of the normalised rows
    factor_ptr,  # [1] float32 that it is multiplied with
    x_ptr,  # [T, D]
    dx_ptr,  # [T, D]
    T,
    D,
    x_row,
    x_col,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK).to(tl.int64)[None, :]
    inside = (row < T) & (column < D)
    grad = tl.load(grad_ptr + row * D + column, inside, 0.0) * tl.load(factor_ptr)
    if NORMALIZE:
        x = tl.load(x_ptr + row * x_row + column * x_col, inside, 0.0).to(tl.float32)
        inverse, long = _inverse_norm(x)
        unit = x * inverse
        along = tl.where(long, tl.sum(unit * grad, 1, keep_dims=True), 0.0)
        grad = inverse * (grad - unit * along)
    tl.store(dx_ptr + row * D + column, grad.to(dx_ptr.dtype.element_ty), inside)


def l2_normalize(x: Tensor) -> Tensor:
    """As `ops.l2_normalize`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _normalize(rows(x), out, None)
    return out


def similarity(a: Tensor, b: Tensor, scale: float, normalize: bool) -> Tensor:
    """As `ops.similarity`."""
    return _similarity(a, b, inverses_of(a, b, normalize), float(scale), tiles_of("similarity", a, b))


def similarity_softmax(a: Tensor, b: Tensor, scale: float, normalize: bool) -> Tensor:
    """As `ops.similarity_softmax`."""
    inverses, scale = inverses_of(a, b, normalize), scale * LOG2E
    config = tiles_of("similarity", a, b)
    stats = None
    if b.shape[0] > config["COLS"]:
        stats = torch.empty(2, a.shape[0], dtype=torch.float32, device=a.device)
        _log_sums(a, b, inverses, scale, None, stats, None, None, 0, config)
    return _similarity(a, b, inverses, scale, config, stats, softmax=True)


def contrastive_loss(image: Tensor, text: Tensor, logit_scale: Tensor, normalize: bool) -> Tensor:
    """As `ops.contrastive_loss`."""
    by_row, by_column, diagonal = _sweep(text, image, inverses_of(text, image, normalize), _exponential(logit_scale))

    def cross_entropy(stats: Tensor) -> Tensor:
        return ((stats[0] - diagonal) * math.log(2) + stats[1].log()).mean()

    return ((cross_entropy(by_row) + cross_entropy(by_column)) / 2).to(image.dtype)


def contrastive_loss_backward(
    grad: Tensor, image: Tensor, text: Tensor, logit_scale: Tensor, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of image, text and logit_scale."""
    count, width = image.shape
    scale, inverses = _exponential(logit_scale), inverses_of(text, image, normalize)
    by_row, by_column, _ = _sweep(text, image, inverses, scale)
    image_unit, text_unit = (l2_normalize(image), l2_normalize(text)) if normalize else (image, text)
    image_grad, text_grad = (torch.empty(count, width, dtype=torch.float32, device=image.device) for _ in range(2))
    chunk = triton.cdiv(max(GRADIENT_ROWS, 4 * width), 128) * 128
    along = []
    for first in range(0, count, chunk):
        some = slice(first, first + chunk)
        part, part_along = _score_gradient(text[some], image, inverses, scale, by_row[:, some], by_column, first)
        along.append(part_along.sum())
        product(part, image_unit.t(), out=text_grad[some])
        product(part.t(), text_unit[some].t(), other=image_grad if first else None, out=image_grad)
    share = grad.float().reshape(1) / (2 * count)
    dlogit_scale = share * torch.stack(along).sum() * math.log(2)
    factor = share * scale
    return (
        _unnormalize(image_grad, factor, image, normalize),
        _unnormalize(text_grad, factor, text, normalize),
        dlogit_scale.to(logit_scale.dtype).view(logit_scale.shape),
    )


Inverses = tuple[Tensor | None, Tensor | None]


def inverses_of(a: Tensor, b: Tensor, normalize: bool) -> Inverses:
    """1 / |row| of a and of b."""
    if not normalize:
        return None, None
    found = [torch.empty(x.shape[0], dtype=torch.float32, device=x.device) for x in (a, b)]
    for x, inverse in zip((a, b), found, strict=True):
        _normalize(x, None, inverse)
    return found[0], found[1]


def _normalize(x: Tensor, out: Tensor | None, inverse: Tensor | None) -> None:
    tile, warps = tile_of(x.shape[1])
    grid = (triton.cdiv(x.shape[0], tile["ROWS"]),)
    launch(_l2_normalize_kernel, grid, x, out, inverse, *x.shape, *x.stride(), **tile, num_warps=warps)


def _unnormalize(grad: Tensor, factor: Tensor, x: Tensor, normalize: bool) -> Tensor:
    """The gradient of x from that of its normalised rows."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tile, warps = tile_of(x.shape[1])
    launch(
        _l2_normalize_backward_kernel,
        (triton.cdiv(x.shape[0], tile["ROWS"]),),
        grad,
        factor,
        x,
        dx,
        *x.shape,
        *x.stride(),
        NORMALIZE=normalize,
        **tile,
        num_warps=warps,
    )
    return dx


def _similarity(
    a: Tensor,
    b: Tensor,
    inverses: Inverses,
    scale: float,
    config: Config,
    stats: Tensor | None = None,
    softmax: bool = False,
) -> Tensor:
    n, m = a.shape[0], b.shape[0]
    out = torch.empty(n, m, dtype=a.dtype, device=a.device)
    launch(
        _similarity_kernel,
        (triton.cdiv(n, config["ROWS"]) * triton.cdiv(m, config["COLS"]),),
        a,
        b,
        *inverses,
        stats,
        out,
        scale,
        n,
        m,
        a.shape[1],
        *a.stride(),
        *b.stride(),
        SOFTMAX=softmax,
        **multiplying(a.dtype),
        **config,
    )
    return out


def _log_sums(
    a: Tensor,
    b: Tensor,
    inverses: Inverses,
    scale: float,
    scale_tensor: Tensor | None,
    by_row: Tensor,
    by_column: Tensor | None,
    diagonal: Tensor | None,
    first: int,
    config: Config,
) -> None:
    """Fill m and l, [2, N] and [2, M], of the rows and columns of the scores in base 2, and their diagonal."""
    n, m = a.shape[0], b.shape[0]
    tiles, blocks = triton.cdiv(m, config["COLS"]), triton.cdiv(n, config["ROWS"])
    span = triton.cdiv(tiles, PARTS) * config["COLS"]
    parts = triton.cdiv(m, span)
    row_parts = torch.empty(2, parts, n, dtype=torch.float32, device=a.device)
    column_parts = None
    if by_column is not None:
        column_parts = torch.empty(2, blocks, m, dtype=torch.float32, device=a.device)
    launch(
        _log_sum_kernel,
        (blocks, parts),
        a,
        b,
        *inverses,
        scale_tensor,
        row_parts,
        column_parts,
        diagonal,
        scale,
        first,
        n,
        m,
        a.shape[1],
        span,
        *a.stride(),
        *b.stride(),
        **multiplying(a.dtype),
        **config,
    )
    _combine(row_parts, by_row)
    if by_column is not None:
        _combine(column_parts, by_column)


def _combine(stats: Tensor, out: Tensor) -> None:
    """[2, parts, n] -> [2, n]."""
    _, parts, n = stats.shape
    tile = {"PARTS": 32, "BLOCK": 64}
    launch(_log_sum_combine_kernel, (triton.cdiv(n, tile["BLOCK"]),), stats, out, parts, n, out.stride(0), **tile)


def _sweep(text: Tensor, image: Tensor, inverses: Inverses, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """m and l of the rows [2, N] and columns [2, N] of the scores in base 2, and their diagonal [N]."""
    count = text.shape[0]
    config = tiles_of("contrastive_loss", text, image)
    diagonal = torch.empty(count, dtype=torch.float32, device=text.device)
    by_row = torch.empty(2, count, dtype=torch.float32, device=text.device)
    starts = range(0, count, CHUNK)
    chunks = torch.empty(2, len(starts), count, dtype=torch.float32, device=text.device)
    for i, first in enumerate(starts):
        some = slice(first, first + CHUNK)
        _log_sums(
            text[some],
            image,
            _rows_from(inverses, some),
            LOG2E,
            scale,
            by_row[:, some],
            chunks[:, i],
            diagonal[some],
            first,
            config,
        )
    by_column = torch.empty_like(by_row)
    _combine(chunks, by_column)
    return by_row, by_column, diagonal


def _score_gradient(
    text: Tensor, image: Tensor, inverses: Inverses, scale: Tensor, by_row: Tensor, by_column: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """P + Q - 2 I of the rows from `first` on, and the sums over tiles of its products with the scores in base 2."""
    n, m = text.shape[0], image.shape[0]
    config = tiles_of("contrastive_loss", text, image)
    tiles = triton.cdiv(n, config["ROWS"]) * triton.cdiv(m, config["COLS"])
    grad = torch.empty(n, m, dtype=text.dtype, device=text.device)
    along = torch.empty(tiles, dtype=torch.float32, device=text.device)
    launch(
        _contrastive_loss_backward_kernel,
        (tiles,),
        text,
        image,
        *_rows_from(inverses, slice(first, first + n)),
        scale,
        by_row,
        by_column,
        grad,
        along,
        LOG2E,
        first,
        n,
        m,
        text.shape[1],
        by_row.stride(0),
        *text.stride(),
        *image.stride(),
        **multiplying(text.dtype),
        **config,
    )
    return grad, along


def _rows_from(inverses: Inverses, some: slice) -> Inverses:
    return (None if inverses[0] is None else inverses[0][some]), inverses[1]


def _exponential(logit_scale: Tensor) -> Tensor:
    return logit_scale.reshape(1).float().exp()


def tiles_of(op: str, a: Tensor, b: Tensor, most: Config = CANDIDATES[0]) -> Config:
    """The configuration of a kernel over tiles of scores; `most` where none is tuned, for many rows in 16 bits."""
    # Float32 is configured as for one row, whatever their number is: a row has the same bits in any batch.
    n, m = 1 if a.dtype == torch.float32 else a.shape[0], b.shape[0]

    def default() -> Config:
        if a.dtype == torch.float32:
            return CANDIDATES_FLOAT32[0]
        return FEW_ROWS if n <= 64 else most

    return configuration(op, a.device, a.dtype, (n, m, a.shape[1]), default)


def candidates(dtype: torch.dtype) -> tuple[Config, ...]:
    """What a tuner may choose from."""
    return CANDIDATES_FLOAT32 if dtype == torch.float32 else CANDIDATES
