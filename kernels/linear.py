"""The affine layer with everything around it in the epilogue, the MLP made of it, and their gradients: one GEMM.

linear(x) = activation(s) + residual,  s = x @ weight^T + bias        x [T, K], weight [N, K]
qkv(x) = linear(x, wq, bq), linear(x, wk, bk), linear(x, wv, bv)
mlp(x) = linear(linear(x, w1, b1, activation), w2, b2, residual)
ds = dy * activation'(s),  dx = ds @ weight,  dweight = ds^T @ x,  dbias = sum(ds),  dresidual = dy

Products are summed in float32, and what follows is float32 too, with one rounding at the end. No s is kept for the
backward: it is computed again, by the same kernel with the derivative in its epilogue. In float32 a row has the same
bits in any batch: the configuration depends on N and K only, and the sum over K is never split.

A tile of BLOCK_M x BLOCK_N reads BLOCK_M + BLOCK_N values for BLOCK_M * BLOCK_N products, for every k. An H200's
multiprocessor does 2048 bf16 products a clock and can be fed 64 bytes, so a tile has to do 64 products a value:
128 x 128 just does, 128 x 256 does with a third to spare, and its accumulators are half of the registers. Programs
are persistent, so that the loads of the next tile run under the epilogue of this one, and walk the tiles in groups
of rows, so that the tiles in flight share their operands in the L2. With few rows the weights' bytes decide: then
tiles are small, and K is split over programs until all multiprocessors read. The parts are summed in one order, by a
second pass that has the epilogue.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .launch import INTERPRETED, capability, launch, rows
from .tuning import Config, configuration

DOT = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
ROWS_FLOAT32 = 256  # float32 is configured for this many rows (about one image), whatever their number is
MLP_BYTES = 36 << 20  # of a chunk's hidden rows: they stay in the L2 (A100 40 MB, H100 50 MB, H200 60 MB)


def _config(block_m: int, block_n: int, block_k: int, warps: int, stages: int, split: int = 1) -> Config:
    tile = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 8, "SPLIT_K": split}
    return {**tile, "num_warps": warps, "num_stages": stages}


CANDIDATES = (  # of bf16 and fp16
    _config(128, 256, 64, 8, 3),
    _config(256, 128, 64, 8, 3),
    _config(128, 128, 64, 8, 4),
    _config(128, 128, 64, 8, 4, 2),
    _config(128, 128, 64, 8, 4, 4),
    _config(128, 128, 64, 4, 3),
    _config(128, 64, 64, 4, 4),
    _config(64, 128, 64, 4, 4),
    _config(64, 64, 128, 4, 4),
    _config(64, 64, 128, 4, 4, 4),
    _config(32, 64, 128, 4, 4),
    _config(32, 64, 128, 4, 4, 4),
    _config(16, 64, 128, 4, 5),
    _config(16, 64, 128, 4, 5, 4),
    _config(16, 64, 128, 4, 5, 8),
)
# One BLOCK_K, and 64 rows or more, so that all are summed by the same instruction in the same order.
CANDIDATES_FLOAT32 = (
    _config(64, 64, 32, 4, 3),
    _config(128, 64, 32, 8, 3),
    _config(64, 128, 32, 8, 3),
)


class _Machine(NamedTuple):
    processors: int
    products: int  # of bf16, a clock and multiprocessor
    bytes: int  # from the L2, likewise
    shared: int  # bytes a multiprocessor
    tile: int  # values of the largest tile: mma.sync keeps its operands in registers too, wgmma does not


MACHINES = {
    80: _Machine(108, 1024, 48, 163 << 10, 128 * 128),
    90: _Machine(132, 2048, 64, 227 << 10, 128 * 256),
}


@triton.jit
def _gate(h, APPROX: tl.constexpr):
    """sigmoid(2 h) = (1 + tanh(h)) / 2; APPROX: one instruction, good to 2^-11."""
    if APPROX:
        h = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [h], dtype=tl.float32, is_pure=True, pack=1)
        gate = 0.5 * h + 0.5
    else:
        gate = 1.0 / (1.0 + tl.exp(-2.0 * h))
    return gate


@triton.jit
def _normal_cdf(x, APPROX: tl.constexpr):
    """Of the standard normal distribution; APPROX: x times it is good to 3e-5, and costs a third of erf."""
    if APPROX:
        # A least-squares fit of atanh(erf(x / sqrt(2))) / x in x^2, on 0 to 8; beyond 5 it is 1 either way.
        square = tl.minimum(x * x, 25.0)
        cdf = _gate(x * (0.79750786 + square * (0.037005665 - 3.5151965e-4 * square)), APPROX)
    else:
        cdf = 0.5 + 0.5 * tl.erf(0.7071067811865476 * x)
    return cdf


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr, APPROX: tl.constexpr):
    """As `ACTIVATION` of altclip_fast/ops/linear.py."""
    if ACTIVATION == "quick_gelu":
        x = x * _gate(0.851 * x, APPROX)
    elif ACTIVATION == "gelu":
        x = x * _normal_cdf(x, APPROX)
    elif ACTIVATION == "gelu_new":
        x = x * _gate(x * (0.7978845608028654 + 0.035677408136300125 * x * x), APPROX)
    elif ACTIVATION == "silu":
        x = x * _gate(0.5 * x, APPROX)
    elif ACTIVATION == "relu":
        x = tl.where(x < 0.0, 0.0, x)
    elif ACTIVATION == "selu":
        x = 1.0507009873554805 * tl.where(x > 0.0, x, 1.6732632423543772 * (tl.exp(x) - 1.0))
    else:
        tl.static_assert(ACTIVATION == "none")
    return x


@triton.jit
def _derivative(x, ACTIVATION: tl.constexpr, APPROX: tl.constexpr):
    """Of `_activate`."""
    if ACTIVATION == "quick_gelu":
        gate = _gate(0.851 * x, APPROX)
        slope = gate + 1.702 * x * gate * (1.0 - gate)
    elif ACTIVATION == "gelu":
        slope = _normal_cdf(x, APPROX) + 0.3989422804014327 * x * tl.exp(-0.5 * x * x)
    elif ACTIVATION == "gelu_new":
        # Exact: the polynomial below grows as 1 - gate vanishes, and would multiply what an approximate gate leaves.
        gate = _gate(x * (0.7978845608028654 + 0.035677408136300125 * x * x), False)
        slope = gate + x * gate * (1.0 - gate) * (1.5957691216057308 + 0.21406444881780074 * x * x)
    elif ACTIVATION == "silu":
        gate = _gate(0.5 * x, APPROX)
        slope = gate + x * gate * (1.0 - gate)
    elif ACTIVATION == "relu":
        slope = tl.where(x > 0.0, 1.0, 0.0)
    elif ACTIVATION == "selu":
        slope = 1.0507009873554805 * tl.where(x > 0.0, 1.0, 1.6732632423543772 * tl.exp(x))
    else:
        tl.static_assert(ACTIVATION == "none")
        slope = tl.full(x.shape, 1.0, tl.float32)
    return slope


@triton.jit
def _load(
    source,  # [count, K], or a descriptor of its blocks, or one of the blocks of its transpose
    first,
    k,
    count,
    K,
    row_stride,
    k_stride,
    SOURCE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The block of an operand that starts at row `first` and at `k`; zero beyond its edges."""
    if SOURCE == "row blocks":
        block = source.load([first, k])
    elif SOURCE == "column blocks":
        block = source.load([k, first]).T
    else:
        row = first + tl.arange(0, BLOCK).to(tl.int64)
        column = k + tl.arange(0, BLOCK_K).to(tl.int64)
        if SOURCE == "rows":
            places = row[:, None] * row_stride + column[None, :] * k_stride
            block = tl.load(source + places, (row < count)[:, None] & (column < K)[None, :], 0.0)
        else:  # loaded as it lies, then transposed: only so is the load asynchronous
            places = row[None, :] * row_stride + column[:, None] * k_stride
            block = tl.load(source + places, (row < count)[None, :] & (column < K)[:, None], 0.0).T
    return block


@triton.jit
def _finish(
    total,
    row,
    column,
    around,  # bias, other, sum and out; M, N; the strides of other: as the kernel has them
    ACTIVATION: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    APPROX: tl.constexpr,
):
    """The epilogue of some rows and columns whose products are summed."""
    bias_ptr, other_ptr, sum_ptr, out_ptr, M, N, other_row, other_col = around
    inside = (row < M) & (column < N)
    place = row * N + column
    if bias_ptr is not None:
        total += tl.load(bias_ptr + column, column < N, 0.0).to(tl.float32)
    if sum_ptr is not None:
        tl.store(sum_ptr + place, total.to(sum_ptr.dtype.element_ty), inside)
    others = other_ptr + row * other_row + column.to(tl.int64) * other_col if other_ptr is not None else None
    if DERIVATIVE == "of_sum":
        out = _derivative(total, ACTIVATION, APPROX) * tl.load(others, inside, 0.0).to(tl.float32)
    elif DERIVATIVE == "of_other":
        out = _derivative(tl.load(others, inside, 0.0).to(tl.float32), ACTIVATION, APPROX) * total
    else:
        out = _activate(total, ACTIVATION, APPROX)
        if others is not None:
            out += tl.load(others, inside, 0.0).to(tl.float32)
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), inside)


@triton.jit
def _halves(block):
    """Left and right."""
    return block.reshape(block.shape[0], 2, block.shape[1] // 2).permute(0, 2, 1).split()


@triton.jit
def _linear_kernel(
    x_ptr,  # [M, K], as `_load` takes it
    weight_ptr,  # [N, K], likewise
    bias_ptr,  # [N] or None
    other_ptr,  # [M, N] or None: the residual; with DERIVATIVE what is multiplied, or what the derivative is of
    sum_ptr,  # [M, N] or None: x @ weight^T + bias
    out_ptr,  # [M, N]; with SPLIT_K [SPLIT_K, M, N] float32, the sums of the parts of K
    M,
    N,
    K,
    x_row,
    x_col,
    weight_row,
    weight_col,
    other_row,
    other_col,
    X: tl.constexpr,
    WEIGHT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    APPROX: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SPLIT_K: tl.constexpr,
    PIECES: tl.constexpr,
):
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    steps = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT_K)
    for work in tl.range(tl.program_id(0), tiles_m * tiles_n * SPLIT_K, tl.num_programs(0), flatten=True):
        tile = work // SPLIT_K
        top = tile // (GROUP_M * tiles_n) * GROUP_M
        height = min(tiles_m - top, GROUP_M)
        within = tile % (GROUP_M * tiles_n)
        first_m = (top + within % height) * BLOCK_M
        first_n = within // height * BLOCK_N
        start = work % SPLIT_K * steps
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for step in range(steps):
            k = (start + step) * BLOCK_K
            x = _load(x_ptr, first_m, k, M, K, x_row, x_col, X, BLOCK_M, BLOCK_K)
            weight = _load(weight_ptr, first_n, k, N, K, weight_row, weight_col, WEIGHT, BLOCK_N, BLOCK_K)
            total = tl.dot(x.to(DOT), weight.to(DOT).T, total, input_precision=PRECISION)
        row = (first_m + tl.arange(0, BLOCK_M).to(tl.int64))[:, None]
        if SPLIT_K == 1:
            # In pieces: a whole tile and its residual are more than the registers hold.
            pieces = (total,)
            if PIECES >= 2:
                pieces = _halves(total)
            if PIECES == 4:
                pieces = _halves(pieces[0]) + _halves(pieces[1])
            WIDTH: tl.constexpr = BLOCK_N // PIECES
            around = bias_ptr, other_ptr, sum_ptr, out_ptr, M, N, other_row, other_col
            for i in tl.static_range(PIECES):
                column = (first_n + i * WIDTH + tl.arange(0, WIDTH))[None, :]
                _finish(pieces[i], row, column, around, ACTIVATION, DERIVATIVE, APPROX)
        else:
            column = (first_n + tl.arange(0, BLOCK_N))[None, :]
            part = (work % SPLIT_K) * M
            tl.store(out_ptr + (part + row) * N + column, total, (row < M) & (column < N))


@triton.jit
def _linear_reduce_kernel(
    parts_ptr,  # [SPLIT_K, M, N] float32
    bias_ptr,  # [N] or None
    other_ptr,  # [M, N] or None
    sum_ptr,  # [M, N] or None
    out_ptr,  # [M, N]
    M,
    N,
    other_row,
    other_col,
    ACTIVATION: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    APPROX: tl.constexpr,
    SPLIT_K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS).to(tl.int64))[:, None]
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (row < M) & (column < N)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for part in tl.static_range(SPLIT_K):
        total += tl.load(parts_ptr + (part * M + row) * N + column, inside, 0.0)
    around = bias_ptr, other_ptr, sum_ptr, out_ptr, M, N, other_row, other_col
    _finish(total, row, column, around, ACTIVATION, DERIVATIVE, APPROX)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none", residual: Tensor | None = None
) -> Tensor:
    """As `ops.linear`."""
    out = product(rows(x), weight, bias, activation, None if residual is None else rows(residual))
    return out.view(*x.shape[:-1], weight.shape[0])


def qkv(x: Tensor, *layers: Tensor | None) -> tuple[Tensor, ...]:
    """As `ops.qkv`."""
    return tuple(linear(x, weight, bias) for weight, bias in _pairs(layers))


def mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    activation: str,
    residual: Tensor | None = None,
) -> Tensor:
    """As `ops.mlp`."""
    flat, flat_residual = rows(x), None if residual is None else rows(residual)
    out = torch.empty(flat.shape[0], w2.shape[0], dtype=x.dtype, device=x.device)
    chunk = _mlp_rows(w1)
    hidden = torch.empty(min(chunk, flat.shape[0]), w1.shape[0], dtype=x.dtype, device=x.device)
    for start in range(0, flat.shape[0], chunk):
        some = slice(start, start + chunk)
        part = hidden[: flat[some].shape[0]]
        product(flat[some], w1, b1, activation, out=part)
        product(part, w2, b2, other=None if flat_residual is None else flat_residual[some], out=out[some])
    return out.view(*x.shape[:-1], w2.shape[0])


def linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> list[Tensor]:
    """The gradients of x, weight, and of bias and residual where they are given."""
    flat, dsum = rows(x), rows(grad)
    if activation != "none":
        dsum = product(flat, weight, bias, activation, dsum, derivative="of_sum")
    return [*_affine_backward(dsum, x, weight, bias), *([] if residual is None else [grad])]


def qkv_backward(grads: Sequence[Tensor], x: Tensor, *layers: Tensor | None) -> list[Tensor]:
    """The gradients of x, and of the weights and the biases that are given."""
    dx, found = None, []
    for grad, (weight, bias) in zip(map(rows, grads), _pairs(layers), strict=True):
        dx = product(grad, weight.t(), other=dx)
        found += [_weight_gradient(grad, rows(x)), *_bias_gradient(grad, bias)]
    return [dx.view(x.shape), *found]


def _pairs(layers: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    return zip(layers[::2], layers[1::2], strict=True)


def mlp_backward(
    grad: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> list[Tensor]:
    """The gradients of x, w1, w2, and of b1, b2 and residual where they are given; in the order of the arguments."""
    flat, dy = rows(x), rows(grad)
    before = torch.empty(flat.shape[0], w1.shape[0], dtype=x.dtype, device=x.device)
    hidden = product(flat, w1, b1, activation, before=before)
    dsum = product(dy, w2.t(), None, activation, before, derivative="of_other")
    first = _affine_backward(dsum, x, w1, b1)
    second = [_weight_gradient(dy, hidden), *_bias_gradient(dy, b2)]
    return [*first, *second, *([] if residual is None else [grad])]


def _affine_backward(dsum: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    dx = product(dsum, weight.t()).view(x.shape)
    return [dx, _weight_gradient(dsum, rows(x)), *_bias_gradient(dsum, bias)]


def _weight_gradient(dsum: Tensor, x: Tensor) -> Tensor:
    return product(dsum.t(), x.t())


def _bias_gradient(dsum: Tensor, bias: Tensor | None) -> list[Tensor]:
    return [] if bias is None else [dsum.sum(0, dtype=torch.float32).to(bias.dtype)]


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    other: Tensor | None = None,
    *,
    derivative: str = "",
    before: Tensor | None = None,
    out: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """activation(s) + other, s = x @ weight^T + bias, with any strides.

    Args:
        x: [M, K]; weight: [N, K]; bias: [N] or None; other: [M, N] or None.
        derivative: "of_sum" gives activation'(s) * other instead, "of_other" activation'(other) * s.
        before: [M, N], contiguous, receives s.
        out: [M, N], contiguous, receives the result.
        config: instead of the one for this shape.
    """
    (m, k), n = x.shape, weight.shape[0]
    out = torch.empty(m, n, dtype=x.dtype, device=x.device) if out is None else out
    config = config or _configuration(x, weight)
    split = config["SPLIT_K"]
    parts = out if split == 1 else torch.empty(split, m, n, dtype=torch.float32, device=x.device)
    x_source, x_kind = _source(x, config["BLOCK_M"], config["BLOCK_K"])
    weight_source, weight_kind = _source(weight, config["BLOCK_N"], config["BLOCK_K"])
    around = (None if bias is None else bias.contiguous(), other, before)
    other_strides = out.stride() if other is None else other.stride()
    epilogue = {"ACTIVATION": activation, "DERIVATIVE": derivative, "APPROX": _approximate(x)}
    launch(
        _linear_kernel,
        (_programs(m, n, config, x),),
        x_source,
        weight_source,
        *(around if split == 1 else (None, None, None)),
        parts,
        m,
        n,
        k,
        *x.stride(),
        *weight.stride(),
        *other_strides,
        X=x_kind,
        WEIGHT=weight_kind,
        **epilogue,
        **multiplying(x.dtype),
        PIECES=_pieces(config),
        **config,
    )
    if split > 1:
        tile = {"ROWS": 4, "BLOCK": 256}
        grid = (triton.cdiv(m, tile["ROWS"]), triton.cdiv(n, tile["BLOCK"]))
        launch(
            _linear_reduce_kernel, grid, parts, *around, out, m, n, *other_strides, **epilogue, SPLIT_K=split, **tile
        )
    return out


def _source(operand: Tensor, block: int, block_k: int) -> tuple[Any, str]:
    """What the kernel reads an operand [rows, K] through, and what that is called in `_load`."""
    stored = _stored(operand)
    columns = stored is not operand
    # wgmma takes float32 only with K as the inner dimension.
    if capability(operand.device) < 90 or not _wide(stored) or (columns and operand.dtype == torch.float32):
        return operand, "columns" if columns else "rows"
    blocks = [block_k, block] if columns else [block, block_k]
    descriptor = TensorDescriptor(stored, list(stored.shape), list(stored.stride()), blocks)
    return descriptor, "column blocks" if columns else "row blocks"


def _stored(operand: Tensor) -> Tensor:
    """The operand, or its transpose where that is how it lies in memory."""
    return operand.t() if operand.stride(0) == 1 and operand.stride(1) != 1 else operand


def _wide(x: Tensor) -> bool:
    """Whether its rows can be read 16 bytes at a time, which is also what sm_90's copy engine asks for."""
    return (
        x.numel() > 0
        and x.stride(1) == 1
        and x.stride(0) >= x.shape[1]
        and x.stride(0) * x.element_size() % 16 == 0
        and x.data_ptr() % 16 == 0
    )


def _approximate(x: Tensor) -> bool:
    return x.dtype != torch.float32 and not INTERPRETED


def multiplying(dtype: torch.dtype) -> dict[str, Any]:
    """What a kernel multiplies numbers of this dtype as; the interpreter's products of bfloat16 are wrong."""
    return {"DOT": tl.float32 if INTERPRETED else DOT[dtype], "PRECISION": precision()}


def precision() -> str:
    """Of float32 products: TF32 only where torch's own switch allows it, else three of them, which is as good."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def _mlp_rows(w1: Tensor) -> int:
    """A chunk's rows: 4224 where they fit, 33 tiles of 128, which are full waves on 132 multiprocessors."""
    fitting = MLP_BYTES // max(1, w1.shape[0] * w1.element_size())
    return max(128, fitting // 4224 * 4224 or fitting // 128 * 128)


def candidates(dtype: torch.dtype) -> tuple[Config, ...]:
    """What a configuration is chosen from, here by `_cost` and by the tuner with a clock."""
    return CANDIDATES_FLOAT32 if dtype == torch.float32 else CANDIDATES


def _configuration(x: Tensor, weight: Tensor) -> Config:
    (m, k), n = x.shape, weight.shape[0]
    float32 = x.dtype == torch.float32
    m = ROWS_FLOAT32 if float32 else m
    wide = float32 or all(_wide(_stored(operand)) for operand in (x, weight))

    def default() -> Config:
        return _default(x.dtype, wide, _machine(x.device), m, n, k)

    return configuration("linear", x.device, x.dtype, (m, n, k), default) if wide else default()


@functools.lru_cache(maxsize=4096)
def _default(dtype: torch.dtype, wide: bool, machine: _Machine, m: int, n: int, k: int) -> Config:
    """The candidate that should take the fewest clocks."""
    found = [config for config in candidates(dtype) if config["BLOCK_M"] * config["BLOCK_N"] <= machine.tile]
    if not wide:  # elements of two bytes come one by one, through registers
        found = [config for config in found if max(config["BLOCK_M"], config["BLOCK_N"]) <= 64]
    return min(found, key=lambda config: _cost(config, dtype.itemsize, machine, m, n, k))


def _cost(config: Config, size: int, machine: _Machine, m: int, n: int, k: int) -> float:
    """Clocks: waves of tiles, each as long as its products or its loads, and then its epilogue."""
    block_m, block_n, split = config["BLOCK_M"], config["BLOCK_N"], config["SPLIT_K"]
    waves = triton.cdiv(triton.cdiv(m, block_m) * triton.cdiv(n, block_n) * split, machine.processors)
    depth = triton.cdiv(k, split * config["BLOCK_K"]) * config["BLOCK_K"]
    # The smallest wgmma has 64 rows; a float32 product is three of TF32, at half the rate of bf16.
    products = max(block_m, 64) * block_n * depth * (1 if size == 2 else 6) / machine.products
    loads = (block_m + block_n) * depth * size / machine.bytes
    second = 0 if split == 1 else 3000 + split * m * n * 4 / (machine.bytes * machine.processors)
    return waves * (max(products, loads) + block_m * block_n / 16 + 500) + second


def _pieces(config: Config) -> int:
    """Of a tile, for the epilogue: so many columns at once that a thread holds 32 values of them."""
    width = max(1024 * config["num_warps"] // config["BLOCK_M"], config["BLOCK_N"] // 4)
    return max(1, config["BLOCK_N"] // width)


def _programs(m: int, n: int, config: Config, x: Tensor) -> int:
    """As many as are resident at once (more would wait for these to end), or fewer where there are fewer tiles."""
    block_m, block_n, warps = config["BLOCK_M"], config["BLOCK_N"], config["num_warps"]
    shared = config["num_stages"] * (block_m + block_n) * config["BLOCK_K"] * x.element_size()
    small = block_m * block_n <= 1024 * warps and x.element_size() == 2  # about 128 registers a thread, else 256
    resident = max(1, min(_machine(x.device).shared // shared, (16 if small else 8) // warps))
    work = triton.cdiv(m, block_m) * triton.cdiv(n, block_n) * config["SPLIT_K"]
    return min(work, processors(x.device) * resident)


def _machine(device: torch.device) -> _Machine:
    return MACHINES[90 if capability(device) >= 90 else 80]


def processors(device: torch.device) -> int:
    if device.type == "cuda":
        return _cuda_processors(device)
    return 3 if INTERPRETED else _machine(device).processors  # three programs: each walks over many tiles


@functools.cache
def _cuda_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
