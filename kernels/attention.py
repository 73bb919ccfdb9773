"""Attention over packed rows, forward and backward, without the matrix of scores in memory.

S = scale * Q K^T,  P = softmax(S),  O = P V                      for every sequence and head
dP = dO V^T,  delta = rowsum(P * dP),  dS = scale * P * (dP - delta)
dQ = dS K,  dK = dS^T Q,  dV = P^T dO

Forward: a program holds BLOCK_M queries of one head of one sequence and walks over its keys, BLOCK_N at a time
(the online softmax of FlashAttention-2, Dao, arXiv 2307.08691). Keys that fit in one tile need neither a loop nor a
rescaling (ONE_PASS: all text of CLIP, 77 tokens). Backward: nothing is kept from the forward. `.._q_kernel` finds
the softmax statistics and dQ, `.._kv_kernel` walks over the queries for dK and dV; where queries and keys fit in
one tile each, the first alone does all (WHOLE). No atomics: the same bits every time.

What decides the tiles. A 128 x 128 tile at D = 64 is 4.2 MFLOP, 1024 cycles of an H100's tensor cores, and 16384
exponentials, 1024 cycles at 16 a cycle: neither waits for memory (K and V of a head are 66 KB at 257 tokens and stay
in the caches), so tiles are chosen for what they waste and for several programs on a multiprocessor, whose products
and exponentials overlap. 257 queries are 5 tiles of 64 (320 rows) rather than 3 of 128 (384). 257 keys are four whole
tiles of 64, which need no mask, and a last one of TAIL columns (272 in all) rather than of 64 (320).

A head is held in one part of a power of two columns, or in two where that is less: 80 = 64 + 16 takes 160 registers
and 50 KB on sm_90, as 128 columns it takes 234 and 80 KB, half the programs, and 1.6 times the products.

float32 gives the same bits whatever a sequence is batched with: its tiles do not depend on max_seqlen, and which of
them a sequence takes is decided by its own length, inside the kernel. So it never takes ONE_PASS, which the longest
sequence decides; with one tile of keys the walk is the same arithmetic but for a factor of exp2(LOWEST - peak) = 0.
Its products are three of TF32, and have a loop over the columns of a head, see `_product`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .launch import INTERPRETED, capability, launch
from .linear import precision

WIDE = tl.constexpr(INTERPRETED)  # the interpreter's bfloat16 products are wrong: it multiplies in float32
TAIL = tl.constexpr(16)  # columns of the narrow last tile: the least that a tensor core takes
LOWEST = tl.constexpr(-3.0e38)  # below every score, and finite: LOWEST - LOWEST is a number


@triton.constexpr_function
def _width(head, part):
    """Of a part of a head. An entry of a tuple is a constant only so, in Triton 3.6 and 3.7."""
    return head[part]


def _config(rows: int, columns: int, num_warps: int, num_stages: int) -> tuning.Config:
    return {"BLOCK_M": rows, "BLOCK_N": columns, "num_warps": num_warps, "num_stages": num_stages}


# The tuner measures these and the default, and leaves out what spills on its GPU: with 64 and 80 columns none on sm_90.
CANDIDATES = (  # of bf16 and fp16
    _config(64, 64, 4, 2),
    _config(64, 64, 4, 3),
    _config(64, 32, 4, 3),
    _config(128, 64, 8, 2),
    _config(128, 32, 8, 2),
    _config(128, 128, 8, 2),
    _config(64, 128, 8, 2),
    _config(32, 64, 4, 2),
)
CANDIDATES_BACKWARD = (
    _config(64, 32, 4, 2),
    _config(64, 32, 4, 1),
    _config(128, 32, 8, 2),
    _config(32, 32, 4, 2),
)
CANDIDATES_FLOAT32 = (_config(64, 32, 4, 1), _config(64, 16, 4, 1))


def candidates(dtype: torch.dtype, backward: bool = False) -> tuple[tuning.Config, ...]:
    """What a tuner may choose from, beside the default."""
    if dtype is torch.float32:
        return CANDIDATES_FLOAT32
    return CANDIDATES_BACKWARD if backward else CANDIDATES


@triton.constexpr_function
def _begin(head, part):
    """The first column of a part of a head, (its width, the size of its first part, of its second, ..)."""
    return sum(head[1:part])


@triton.jit
def _locate(cu_q_ptr, cu_k_ptr, tiles, heads):
    """What this program works on: its tile and head; its sequence's first row and number of rows, in q and in k."""
    program = tl.program_id(0)
    sequence = program // tiles // heads
    q_start = tl.load(cu_q_ptr + sequence).to(tl.int64)
    k_start = tl.load(cu_k_ptr + sequence).to(tl.int64)
    q_rows = (tl.load(cu_q_ptr + sequence + 1) - q_start).to(tl.int32)
    k_rows = (tl.load(cu_k_ptr + sequence + 1) - k_start).to(tl.int32)
    return program % tiles, program // tiles % heads, q_start, q_rows, k_start, k_rows


@triton.jit
def _view(ptr, start, rows, columns, head, row_stride, head_stride, column_stride):
    """One head of one sequence: where it begins, its rows and columns, their strides."""
    return ptr + start * row_stride + head.to(tl.int64) * head_stride, rows, columns, row_stride, column_stride


@triton.jit
def _load(view, first, SIZE: tl.constexpr, HEAD: tl.constexpr, EDGE: tl.constexpr):
    """SIZE rows from `first` on, by the parts of HEAD; zeros where there are none. EDGE: the sequence may end here."""
    ptr, rows, _, row_stride, column_stride = view
    row = tl.arange(0, SIZE)[:, None]
    base = ptr + tl.cast(first, tl.int64) * row_stride
    x = ()
    for i in tl.static_range(1, len(HEAD)):
        column = _begin(HEAD, i) + tl.arange(0, _width(HEAD, i))[None, :]
        place = base + (row * row_stride + column * column_stride)
        if EDGE and _begin(HEAD, i + 1) > HEAD[0]:
            part = tl.load(place, (row < rows - first) & (column < HEAD[0]), 0.0)
        elif EDGE:
            part = tl.load(place, row < rows - first, 0.0)
        elif _begin(HEAD, i + 1) > HEAD[0]:
            part = tl.load(place, column < HEAD[0], 0.0)
        else:
            part = tl.load(place)
        x += (part.to(tl.float32 if WIDE else ptr.dtype.element_ty),)
    return x


@triton.jit
def _load_columns(view, first, begin, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    ptr, rows, columns, row_stride, column_stride = view
    row = tl.arange(0, SIZE)[:, None]
    column = begin + tl.arange(0, WIDTH)[None, :]
    place = ptr + tl.cast(first, tl.int64) * row_stride + (row * row_stride + column * column_stride)
    return tl.load(place, (row < rows - first) & (column < columns), 0.0)


@triton.jit
def _store(ptr, x, factor, start, first, rows, head, heads, HEAD: tl.constexpr):
    """x * factor, as rows of one head of a contiguous [T, heads, width]."""
    row = tl.arange(0, x[0].shape[0])[:, None]
    base = ptr + ((start + first) * heads + head) * HEAD[0]
    for i in tl.static_range(1, len(HEAD)):
        column = _begin(HEAD, i) + tl.arange(0, _width(HEAD, i))[None, :]
        inside = (row < rows - first) & (column < HEAD[0])
        tl.store(base + (row * (heads * HEAD[0]) + column), (x[i - 1] * factor).to(ptr.dtype.element_ty), inside)


@triton.jit
def _zeros(SIZE: tl.constexpr, HEAD: tl.constexpr):
    x = ()
    for i in tl.static_range(1, len(HEAD)):
        x += (tl.zeros((SIZE, _width(HEAD, i)), tl.float32),)
    return x


@triton.jit
def _keep(view, first, SIZE: tl.constexpr, HEAD: tl.constexpr):
    """The rows that a program holds during its walk; of float32 the view alone, see `_product`."""
    if view[0].dtype.element_ty == tl.float32:
        return view
    else:
        return _load(view, first, SIZE, HEAD, True)


@triton.jit
def _product(
    x,
    x_first,
    y_view,
    y_first,
    X_SIZE: tl.constexpr,
    Y_SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    EDGE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x @ y^T of what `_keep` gave for X_SIZE rows and of Y_SIZE rows of `y_view`; and these rows, if they are there.

    float32 reads both by few columns at a time, in a loop that stays one: a fragment is split into two TF32 numbers,
    and those of whole rows would not fit in the registers.
    """
    if x[0].dtype.is_ptr():
        product = tl.zeros((X_SIZE, Y_SIZE), tl.float32)
        for begin in range(0, y_view[2], HEAD[1]):
            a = _load_columns(x, x_first, begin, X_SIZE, _width(HEAD, 1))
            b = _load_columns(y_view, y_first, begin, Y_SIZE, _width(HEAD, 1))
            product = tl.dot(a, tl.trans(b), product, input_precision=PRECISION)
        return product, ()
    else:
        y = _load(y_view, y_first, Y_SIZE, HEAD, EDGE)
        product = tl.dot(x[0], tl.trans(y[0]), input_precision=PRECISION)
        for i in tl.static_range(1, len(x)):
            product = tl.dot(x[i], tl.trans(y[i]), product, input_precision=PRECISION)
        return product, y


@triton.jit
def _add_dot(total, fade, a, b, PRECISION: tl.constexpr):
    """total * fade + a @ b; no fade: 1."""
    x = ()
    for i in tl.static_range(len(b)):
        x += (tl.dot(a, b[i], total[i] if fade is None else total[i] * fade, input_precision=PRECISION),)
    return x


@triton.jit
def _scores(
    q,
    query,
    k_view,
    key,
    ahead,
    M: tl.constexpr,
    SIZE: tl.constexpr,
    EDGE: tl.constexpr,
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of M queries from `query` on and SIZE keys from `key` on, -inf where a query may not look; and as `_product`."""
    s, k = _product(q, query, k_view, key, M, SIZE, D, EDGE, PRECISION)
    if EDGE:
        end = k_view[1] - key
        if CAUSAL:
            end = tl.minimum(end, query + ahead - key + 1 + tl.arange(0, M)[:, None])
        s = tl.where(tl.arange(0, SIZE)[None, :] < end, s, float("-inf"))
    return s, k


@triton.jit
def _exponentials(s, peak, scale):
    """exp(S - peak), and the peak that it is taken at: the largest score of a row so far, times `scale`."""
    higher = tl.maximum(peak, tl.max(s, 1) * scale)
    return tl.exp2(s * scale - higher[:, None]), higher


@triton.jit
def _divisor(total):
    """The sums of exponentials; 1 for a query without keys, which gets zeros."""
    return tl.where(total == 0.0, 1.0, total)


@triton.jit
def _attend(
    state,  # of the keys before: peak [M], sum of the exponentials [M], values times exponentials [M, DV]
    mine,  # (q,)
    keys,
    query,
    key,
    SIZE: tl.constexpr,
    EDGE: tl.constexpr,
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A step of the forward: the state after the SIZE keys from `key` on."""
    k_view, v_view, ahead, scale = keys
    M: tl.constexpr = state[0].shape[0]
    s, _ = _scores(mine[0], query, k_view, key, ahead, M, SIZE, EDGE, CAUSAL, D, PRECISION)
    p, peak = _exponentials(s, state[0], scale)
    fade = tl.exp2(state[0] - peak)
    v = _load(v_view, key, SIZE, DV, EDGE)
    out = _add_dot(state[2], fade[:, None], p.to(v[0].dtype), v, PRECISION)
    return peak, state[1] * fade + tl.sum(p, 1), out


@triton.jit
def _add_statistics(
    state,  # of the keys before: peak [M], sum of the exponentials [M], sum of exponentials times dP [M]
    mine,  # q, dO
    keys,
    query,
    key,
    SIZE: tl.constexpr,
    EDGE: tl.constexpr,
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A step of the backward's first walk: the state after the SIZE keys from `key` on."""
    k_view, v_view, ahead, scale = keys
    M: tl.constexpr = state[0].shape[0]
    s, _ = _scores(mine[0], query, k_view, key, ahead, M, SIZE, EDGE, CAUSAL, D, PRECISION)
    dp, _ = _product(mine[1], query, v_view, key, M, SIZE, DV, EDGE, PRECISION)
    p, peak = _exponentials(s, state[0], scale)
    fade = tl.exp2(state[0] - peak)
    return peak, state[1] * fade + tl.sum(p, 1), state[2] * fade + tl.sum(p * dp, 1)


@triton.jit
def _add_dq(
    dq,  # [M, D], before its scale
    mine,  # q, dO, lse [M], delta [M]
    keys,
    query,
    key,
    SIZE: tl.constexpr,
    EDGE: tl.constexpr,
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A step of the backward's second walk: dq after the SIZE keys from `key` on."""
    k_view, v_view, ahead, scale = keys
    M: tl.constexpr = dq[0].shape[0]
    s, k = _scores(mine[0], query, k_view, key, ahead, M, SIZE, EDGE, CAUSAL, D, PRECISION)
    dp, _ = _product(mine[1], query, v_view, key, M, SIZE, DV, EDGE, PRECISION)
    ds = tl.exp2(s * scale - mine[2][:, None]) * (dp - mine[3][:, None])
    if len(k) == 0:
        k = _load(k_view, key, SIZE, D, EDGE)
    return _add_dot(dq, None, ds.to(k[0].dtype), k, PRECISION)


@triton.jit
def _walk_keys(
    STEP: tl.constexpr,  # one of the three above
    state,
    mine,  # what a step needs of the queries
    keys,  # k, v, not loaded yet; the offset of a causal mask, the scale
    query,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The state after all keys that the BLOCK_M queries from `query` on look at. Only the last tiles need a mask."""
    k_view, _, ahead, _ = keys
    k_rows = k_view[1]
    if CAUSAL:
        end = tl.minimum(query + ahead + BLOCK_M, k_rows)
        whole = tl.maximum(tl.minimum(query + ahead + 1, k_rows), 0) // BLOCK_N * BLOCK_N
    else:
        end = k_rows
        whole = k_rows // BLOCK_N * BLOCK_N
    for key in range(0, whole, BLOCK_N):
        state = STEP(state, mine, keys, query, key, BLOCK_N, False, False, D, DV, PRECISION)
    if CAUSAL or BLOCK_N <= 2 * TAIL:
        for key in range(whole, end, BLOCK_N):
            state = STEP(state, mine, keys, query, key, BLOCK_N, True, CAUSAL, D, DV, PRECISION)
    elif end - whole > TAIL:
        state = STEP(state, mine, keys, query, whole, BLOCK_N, True, False, D, DV, PRECISION)
    elif end > whole:
        state = STEP(state, mine, keys, query, whole, TAIL, True, False, D, DV, PRECISION)
    return state


@triton.jit
def _attention_kernel(
    q_ptr,  # [Tq, heads, D]
    k_ptr,  # [Tk, heads, D]
    v_ptr,  # [Tk, heads, DV]
    cu_q_ptr,  # [B + 1]
    cu_k_ptr,  # [B + 1]
    out_ptr,  # [Tq, heads, DV], contiguous
    tiles,  # of queries, in the longest sequence
    heads,
    columns,  # of q and k
    v_columns,
    q_row,
    q_head,
    q_column,
    k_row,
    k_head,
    k_column,
    v_row,
    v_head,
    v_column,
    scale,  # times log2(e)
    CAUSAL: tl.constexpr,
    D: tl.constexpr,  # (width, sizes of the parts)
    DV: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile, head, q_start, q_rows, k_start, k_rows = _locate(cu_q_ptr, cu_k_ptr, tiles, heads)
    query = tile * BLOCK_M
    if query >= q_rows:
        return
    ahead = k_rows - q_rows  # causal: the last query is at the last key
    k_view = _view(k_ptr, k_start, k_rows, columns, head, k_row, k_head, k_column)
    v_view = _view(v_ptr, k_start, k_rows, v_columns, head, v_row, v_head, v_column)
    q = _keep(_view(q_ptr, q_start, q_rows, columns, head, q_row, q_head, q_column), query, BLOCK_M, D)
    peak = tl.full((BLOCK_M,), LOWEST, tl.float32)
    if ONE_PASS:
        s, _ = _scores(q, query, k_view, 0, ahead, BLOCK_M, BLOCK_N, True, CAUSAL, D, PRECISION)
        p, _ = _exponentials(s, peak, scale)
        total = tl.sum(p, 1)
        v = _load(v_view, 0, BLOCK_N, DV, True)
        out = _add_dot(_zeros(BLOCK_M, DV), None, p.to(v[0].dtype), v, PRECISION)
    else:
        state = peak, tl.zeros((BLOCK_M,), tl.float32), _zeros(BLOCK_M, DV)
        keys = k_view, v_view, ahead, scale
        _, total, out = _walk_keys(_attend, state, (q,), keys, query, BLOCK_M, BLOCK_N, CAUSAL, D, DV, PRECISION)
    _store(out_ptr, out, (1.0 / _divisor(total))[:, None], q_start, query, q_rows, head, heads, DV)


@triton.jit
def _attention_backward_q_kernel(
    grad_ptr,  # [Tq, heads, DV], contiguous
    q_ptr,  # [Tq, heads, D]
    k_ptr,  # [Tk, heads, D]
    v_ptr,  # [Tk, heads, DV]
    cu_q_ptr,  # [B + 1]
    cu_k_ptr,  # [B + 1]
    dq_ptr,  # [Tq, heads, D], contiguous
    dk_ptr,  # [Tk, heads, D], contiguous; written if WHOLE
    dv_ptr,  # [Tk, heads, DV], contiguous; written if WHOLE
    lse_ptr,  # [heads, Tq] float32, log2 of the sum of the exponentials; written unless WHOLE
    delta_ptr,  # [heads, Tq] float32; written unless WHOLE
    rows,  # Tq
    tiles,  # of queries, in the longest sequence
    heads,
    columns,  # of q and k
    v_columns,
    q_row,
    q_head,
    q_column,
    k_row,
    k_head,
    k_column,
    v_row,
    v_head,
    v_column,
    scale,  # times log2(e)
    factor,  # the scale alone
    CAUSAL: tl.constexpr,
    D: tl.constexpr,  # (width, sizes of the parts)
    DV: tl.constexpr,
    ONE_PASS: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile, head, q_start, q_rows, k_start, k_rows = _locate(cu_q_ptr, cu_k_ptr, tiles, heads)
    query = tile * BLOCK_M
    if query >= q_rows and not WHOLE:
        return
    ahead = k_rows - q_rows
    k_view = _view(k_ptr, k_start, k_rows, columns, head, k_row, k_head, k_column)
    v_view = _view(v_ptr, k_start, k_rows, v_columns, head, v_row, v_head, v_column)
    q = _keep(_view(q_ptr, q_start, q_rows, columns, head, q_row, q_head, q_column), query, BLOCK_M, D)
    grad = _keep(_view(grad_ptr, q_start, q_rows, v_columns, head, heads * DV[0], DV[0], 1), query, BLOCK_M, DV)
    keys = k_view, v_view, ahead, scale
    peak = tl.full((BLOCK_M,), LOWEST, tl.float32)
    if ONE_PASS:
        s, k = _scores(q, query, k_view, 0, ahead, BLOCK_M, BLOCK_N, True, CAUSAL, D, PRECISION)
        dp, _ = _product(grad, query, v_view, 0, BLOCK_M, BLOCK_N, DV, True, PRECISION)
        p, peak = _exponentials(s, peak, scale)
        total = tl.sum(p, 1)
        p *= (1.0 / _divisor(total))[:, None]
        delta = tl.sum(p * dp, 1)
        ds = (p * (dp - delta[:, None])).to(k[0].dtype)
        dq = _add_dot(_zeros(BLOCK_M, D), None, ds, k, PRECISION)
        if WHOLE:
            dv = _add_dot(_zeros(BLOCK_N, DV), None, tl.trans(p.to(k[0].dtype)), grad, PRECISION)
            _store(dv_ptr, dv, 1.0, k_start, 0, k_rows, head, heads, DV)
            dk = _add_dot(_zeros(BLOCK_N, D), None, tl.trans(ds), q, PRECISION)
            _store(dk_ptr, dk, factor, k_start, 0, k_rows, head, heads, D)
    else:
        state = peak, tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
        mine = q, grad
        peak, total, along = _walk_keys(
            _add_statistics, state, mine, keys, query, BLOCK_M, BLOCK_N, CAUSAL, D, DV, PRECISION
        )
        delta = along / _divisor(total)
    if not WHOLE:
        # infinity where there are no keys: exp2(s - lse) = 0
        lse = tl.where(total == 0.0, float("inf"), peak + tl.log2(_divisor(total)))
        row = query + tl.arange(0, BLOCK_M)
        place = head.to(tl.int64) * rows + q_start + row
        tl.store(lse_ptr + place, lse, row < q_rows)
        tl.store(delta_ptr + place, delta, row < q_rows)
    if not ONE_PASS:
        mine = q, grad, lse, delta
        dq = _walk_keys(_add_dq, _zeros(BLOCK_M, D), mine, keys, query, BLOCK_M, BLOCK_N, CAUSAL, D, DV, PRECISION)
    _store(dq_ptr, dq, factor, q_start, query, q_rows, head, heads, D)


@triton.jit
def _add_dk_dv(
    state,  # dk before its scale [M, D], dv [M, DV]
    kept,  # k, v
    queries,  # q, dO, lse [Lq] and delta [Lq], not loaded yet; the offset of a causal mask, the scale
    key,
    query,
    SIZE: tl.constexpr,
    EDGE: tl.constexpr,
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dk and dv after the SIZE queries from `query` on. Scores are transposed here: a row is a key."""
    q_view, grad_view, lse_ptr, delta_ptr, ahead, scale = queries
    row = query + tl.arange(0, SIZE)
    if EDGE:  # no score of a row behind the last one survives an lse of infinity
        lse = tl.load(lse_ptr + row, row < q_view[1], float("inf"))
        delta = tl.load(delta_ptr + row, row < q_view[1], 0.0)
    else:
        lse = tl.load(lse_ptr + row)
        delta = tl.load(delta_ptr + row)
    M: tl.constexpr = state[0][0].shape[0]
    s, q = _product(kept[0], key, q_view, query, M, SIZE, D, EDGE, PRECISION)
    dp, grad = _product(kept[1], key, grad_view, query, M, SIZE, DV, EDGE, PRECISION)
    p = tl.exp2(s * scale - lse[None, :])
    if CAUSAL:
        p = tl.where(key + tl.arange(0, M)[:, None] <= row[None, :] + ahead, p, 0.0)
    if len(grad) == 0:
        grad = _load(grad_view, query, SIZE, DV, EDGE)
    dv = _add_dot(state[1], None, p.to(grad[0].dtype), grad, PRECISION)
    ds = p * (dp - delta[None, :])
    if len(q) == 0:
        q = _load(q_view, query, SIZE, D, EDGE)
    return _add_dot(state[0], None, ds.to(q[0].dtype), q, PRECISION), dv


@triton.jit
def _attention_backward_kv_kernel(
    grad_ptr,  # [Tq, heads, DV], contiguous
    q_ptr,  # [Tq, heads, D]
    k_ptr,  # [Tk, heads, D]
    v_ptr,  # [Tk, heads, DV]
    cu_q_ptr,  # [B + 1]
    cu_k_ptr,  # [B + 1]
    dk_ptr,  # [Tk, heads, D], contiguous
    dv_ptr,  # [Tk, heads, DV], contiguous
    lse_ptr,  # [heads, Tq] float32
    delta_ptr,  # [heads, Tq] float32
    rows,  # Tq
    tiles,  # of keys, in the longest sequence
    heads,
    columns,  # of q and k
    v_columns,
    q_row,
    q_head,
    q_column,
    k_row,
    k_head,
    k_column,
    v_row,
    v_head,
    v_column,
    scale,  # times log2(e)
    factor,  # the scale alone
    CAUSAL: tl.constexpr,
    D: tl.constexpr,  # (width, sizes of the parts)
    DV: tl.constexpr,
    BLOCK_M: tl.constexpr,  # keys
    BLOCK_N: tl.constexpr,  # queries
    PRECISION: tl.constexpr,
):
    tile, head, q_start, q_rows, k_start, k_rows = _locate(cu_q_ptr, cu_k_ptr, tiles, heads)
    key = tile * BLOCK_M
    if key >= k_rows:
        return
    ahead = k_rows - q_rows
    q_view = _view(q_ptr, q_start, q_rows, columns, head, q_row, q_head, q_column)
    grad_view = _view(grad_ptr, q_start, q_rows, v_columns, head, heads * DV[0], DV[0], 1)
    # Rows behind the last key hold zeros here, and whatever comes of them is not stored.
    k = _keep(_view(k_ptr, k_start, k_rows, columns, head, k_row, k_head, k_column), key, BLOCK_M, D)
    v = _keep(_view(v_ptr, k_start, k_rows, v_columns, head, v_row, v_head, v_column), key, BLOCK_M, DV)
    each = head.to(tl.int64) * rows + q_start
    kept = k, v
    queries = q_view, grad_view, lse_ptr + each, delta_ptr + each, ahead, scale
    state = _zeros(BLOCK_M, D), _zeros(BLOCK_M, DV)
    whole = q_rows // BLOCK_N * BLOCK_N
    if CAUSAL:  # the queries before the first of these tiles look at none of the keys
        whole = tl.maximum(key - ahead, 0) // BLOCK_N * BLOCK_N
    else:
        for query in range(0, whole, BLOCK_N):
            state = _add_dk_dv(state, kept, queries, key, query, BLOCK_N, False, False, D, DV, PRECISION)
    if CAUSAL or BLOCK_N <= 2 * TAIL:
        for query in range(whole, q_rows, BLOCK_N):
            state = _add_dk_dv(state, kept, queries, key, query, BLOCK_N, True, CAUSAL, D, DV, PRECISION)
    elif q_rows - whole > TAIL:
        state = _add_dk_dv(state, kept, queries, key, whole, BLOCK_N, True, False, D, DV, PRECISION)
    elif q_rows > whole:
        state = _add_dk_dv(state, kept, queries, key, whole, TAIL, True, False, D, DV, PRECISION)
    _store(dk_ptr, state[0], factor, k_start, key, k_rows, head, heads, D)
    _store(dv_ptr, state[1], 1.0, k_start, key, k_rows, head, heads, DV)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    scale: float | None,
) -> Tensor:
    """As `ops.attention`."""
    q, k, v = (_addressable(x) for x in (q, k, v))
    out = torch.empty(*q.shape[:2], v.shape[2], dtype=q.dtype, device=q.device)
    config = _configuration("attention", _tile, q, max_seqlen_q, max_seqlen_k)
    tiles = triton.cdiv(max_seqlen_q, config["BLOCK_M"])
    launch(
        _attention_kernel,
        (tiles * q.shape[1] * (cu_seqlens_q.shape[0] - 1),),
        q,
        k,
        v,
        cu_seqlens_q.contiguous(),
        cu_seqlens_k.contiguous(),
        out,
        tiles,
        q.shape[1],
        q.shape[2],
        v.shape[2],
        *q.stride(),
        *k.stride(),
        *v.stride(),
        _scale(q, scale) * math.log2(math.e),
        **_constants(q, v, causal),
        ONE_PASS=_one_tile(q.dtype, max_seqlen_k, config["BLOCK_N"]),
        **config,
    )
    return out


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    if not q.shape[0] or not k.shape[0]:
        return q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    grad = grad.contiguous()
    q, k, v = (_addressable(x) for x in (q, k, v))
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    rows, heads = q.shape[:2]
    lse, delta = torch.empty(2, heads, rows, dtype=torch.float32, device=q.device)
    config = _configuration("attention_backward", _backward_tile, q, max_seqlen_q, max_seqlen_k)
    inputs = grad, q, k, v, cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous()
    factor = _scale(q, scale)
    numbers = heads, q.shape[2], v.shape[2], *q.stride(), *k.stride(), *v.stride(), factor * math.log2(math.e), factor
    constants = _constants(q, v, causal) | config
    one_pass = _one_tile(q.dtype, max_seqlen_k, config["BLOCK_N"])
    whole = one_pass and max_seqlen_q <= config["BLOCK_M"]
    tiles = triton.cdiv(max_seqlen_q, config["BLOCK_M"])
    each = heads * (cu_seqlens_q.shape[0] - 1)
    launch(
        _attention_backward_q_kernel,
        (tiles * each,),
        *inputs,
        dq,
        dk,
        dv,
        lse,
        delta,
        rows,
        tiles,
        *numbers,
        ONE_PASS=one_pass,
        WHOLE=whole,
        **constants,
    )
    if not whole:
        tiles = triton.cdiv(max_seqlen_k, config["BLOCK_M"])
        launch(
            _attention_backward_kv_kernel,
            (tiles * each,),
            *inputs,
            dk,
            dv,
            lse,
            delta,
            rows,
            tiles,
            *numbers,
            **constants,
        )
    return dq, dk, dv


def _addressable(x: Tensor) -> Tensor:
    """`x`, if the offsets inside of a tile of 128 rows or columns fit in 32 bits."""
    return x if max(x.stride(0), x.stride(2)) < 2**23 else x.contiguous()


def _scale(q: Tensor, scale: float | None) -> float:
    return q.shape[2] ** -0.5 if scale is None else scale


def _constants(q: Tensor, v: Tensor, causal: bool) -> dict[str, Any]:
    """What both directions are compiled for, apart from the tiles."""
    return {"CAUSAL": causal, "D": _head(q), "DV": _head(v), "PRECISION": precision()}


def _head(x: Tensor) -> tuple[int, ...]:
    """The width of a head, and the sizes of its parts: those that pad it least."""
    width = x.shape[2]
    if x.dtype is torch.float32:  # few columns at a time, see `_product`; the interpreter has time for fewer steps
        part = 64 if INTERPRETED else 16
        return width, *[part] * triton.cdiv(width, part)
    main = max(16, 1 << (width.bit_length() - 1))
    rest = triton.next_power_of_2(max(16, width - main)) if width > main else 0
    return (width, main) if rest == 0 else (width, main, rest) if rest < main else (width, 2 * main)


def _one_tile(dtype: torch.dtype, longest: int, size: int) -> bool:
    """Whether all keys fit in a tile. Never in float32, where max_seqlen must not be seen in the result."""
    return dtype is not torch.float32 and longest <= size


def _configuration(
    op: str, tile: Callable[..., tuning.Config], q: Tensor, max_seqlen_q: int, max_seqlen_k: int
) -> tuning.Config:
    shape = (max_seqlen_q, max_seqlen_k, q.shape[2])
    if q.dtype is torch.float32:  # one choice for all lengths: that of an image
        shape = (257, 257, q.shape[2])
    return tuning.configuration(op, q.device, q.dtype, shape, lambda: tile(capability(q.device), q.dtype, *shape))


def _tile(capability: int, dtype: torch.dtype, queries: int, keys: int, width: int) -> tuning.Config:
    if dtype is torch.float32:
        return _config(64, 32, 4, 1)
    rows, columns = _rows(queries), 64
    if keys <= 128:
        columns = max(16, triton.next_power_of_2(keys))
    if capability < 90 and width > 96:  # operands of mma.sync lie in registers
        rows, columns = min(rows, 64), min(columns, 32)
    return _config(rows, columns, _warps(rows, columns), 2)


def _backward_tile(capability: int, dtype: torch.dtype, queries: int, keys: int, width: int) -> tuning.Config:
    narrow = width <= 96
    if dtype is torch.float32:
        return _config(64, 32 if width <= 64 else 16, 4, 1) if narrow else _config(32, 16, 8, 1)
    if max(queries, keys) <= (128 if capability >= 90 else 64 if narrow else 32):
        return _tile(capability, dtype, queries, keys, width)
    if capability < 90 and not narrow:
        return _config(32, 32, 4, 2)
    return _config(64, 32, 4, 2 if narrow else 1)


def _rows(queries: int) -> int:
    """Rows of a tile of queries: what holds them all, or the size that pads them least (of equals the larger)."""
    if queries <= 64:
        return max(16, triton.next_power_of_2(queries))
    return min((128, 64), key=lambda size: triton.cdiv(queries, size) * size)


def _warps(rows: int, columns: int) -> int:
    return rows // 16 if rows >= 64 else min(4, rows * columns // 256)
