"""Layer normalisation of rows, alone or after a residual sum; forward and backward.

s = x + residual                                        (s = x without one)
y = (s - mean(s)) * rstd * weight + bias                rstd = 1 / sqrt(var(s) + eps)
ds = rstd * (h - mean(h) - n * mean(h * n)) + dsum      h = dy * weight,  n = (s - mean(s)) * rstd
dweight = sum(dy * n),  dbias = sum(dy)                 over the rows

A row lies in registers from its only load to its only store, so the traffic is that of a copy: forward
2 T H elements (4 T H with the sum), backward 3 T H (4 T H). The statistics are computed again in the backward: that
costs no traffic, since the row is there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch, rows

PROGRAMS = 528  # of the backward, each with its own partial sums: four for each of an H200's 132 SMs
BACKWARD_ELEMENTS = 2048  # of each: 16 warps on an SM have to keep 32 KB of loads in flight, and have the registers


@triton.jit
def _load_rows(x_ptr, residual_ptr, row, column, inside, x_row, x_col, residual_row, residual_col):
    x = tl.load(x_ptr + row * x_row + column.to(tl.int64) * x_col, inside, 0.0)
    s = x.to(tl.float32)
    if residual_ptr is not None:
        s += tl.load(residual_ptr + row * residual_row + column.to(tl.int64) * residual_col, inside, 0.0).to(tl.float32)
        s = s.to(x.dtype).to(tl.float32)  # the sum is stored in the dtype of x, and that is what is normalised
    return s


@triton.jit
def normalise(s, inside, H, eps):
    """The normalised rows, and 1 / their deviation."""
    mean = tl.sum(s, 1, keep_dims=True) / H
    centred = tl.where(inside, s - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1, keep_dims=True) / H + eps)
    return centred * rstd, rstd


@triton.jit
def _layer_norm_kernel(
    x_ptr,  # [T, H]
    residual_ptr,  # [T, H] or None
    weight_ptr,  # [H]
    bias_ptr,  # [H]
    sum_ptr,  # [T, H] or None
    out_ptr,  # [T, H]
    T,
    H,
    x_row,
    x_col,
    residual_row,
    residual_col,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < T) & (column < H)
    s = _load_rows(x_ptr, residual_ptr, row, column, inside, x_row, x_col, residual_row, residual_col)
    if sum_ptr is not None:
        tl.store(sum_ptr + row * H + column, s.to(sum_ptr.dtype.element_ty), inside)
    normal, _ = normalise(s, inside, H, eps)
    weight = tl.load(weight_ptr + column, column < H, 0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, column < H, 0.0).to(tl.float32)
    tl.store(out_ptr + row * H + column, (normal * weight + bias).to(out_ptr.dtype.element_ty), inside)


@triton.jit
def _layer_norm_backward_kernel(
    grad_ptr,  # [T, H], of y
    grad_sum_ptr,  # [T, H], of s, or None
    x_ptr,  # [T, H]
    residual_ptr,  # [T, H] or None
    weight_ptr,  # [H]
    dx_ptr,  # [T, H]
    dweight_ptr,  # [programs, H] float32, partial sums
    dbias_ptr,  # [programs, H] float32, partial sums
    T,
    H,
    x_row,
    x_col,
    residual_row,
    residual_col,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    weight = tl.load(weight_ptr + column, column < H, 0.0).to(tl.float32)
    dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(program * ROWS, T, tl.num_programs(0) * ROWS):
        row = (first + tl.arange(0, ROWS).to(tl.int64))[:, None]
        inside = (row < T) & (column < H)
        s = _load_rows(x_ptr, residual_ptr, row, column, inside, x_row, x_col, residual_row, residual_col)
        normal, rstd = normalise(s, inside, H, eps)
        grad = tl.load(grad_ptr + row * H + column, inside, 0.0).to(tl.float32)
        dbias += grad
        dweight += grad * normal
        h = grad * weight
        along = tl.sum(h * normal, 1, keep_dims=True) / H
        dx = rstd * (h - tl.sum(h, 1, keep_dims=True) / H - normal * along)
        if grad_sum_ptr is not None:
            dx += tl.load(grad_sum_ptr + row * H + column, inside, 0.0).to(tl.float32)
        tl.store(dx_ptr + row * H + column, dx.to(dx_ptr.dtype.element_ty), inside)
    place = program * H + column
    tl.store(dweight_ptr + place, tl.sum(dweight, 0, keep_dims=True), column < H)
    tl.store(dbias_ptr + place, tl.sum(dbias, 0, keep_dims=True), column < H)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As `ops.layer_norm`."""
    return _forward(x, None, weight, bias, eps)[1]


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `ops.add_layer_norm`."""
    total, out = _forward(x, residual, weight, bias, eps)
    assert total is not None
    return total, out


def layer_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    return _backward(grad, None, x, None, weight, eps)


def add_layer_norm_backward(
    grad_sum: Tensor, grad: Tensor, x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x (that of the residual is the same), weight and bias."""
    return _backward(grad, grad_sum, x, residual, weight, eps)


def _forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor | None, Tensor]:
    width = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = None if residual is None else torch.empty_like(out)
    flat, flat_residual = rows(x), None if residual is None else rows(residual)
    tile, warps = tile_of(width)
    launch(
        _layer_norm_kernel,
        (triton.cdiv(flat.shape[0], tile["ROWS"]),),
        flat,
        flat_residual,
        weight.contiguous(),
        bias.contiguous(),
        total,
        out,
        flat.shape[0],
        width,
        *flat.stride(),
        *(flat.stride() if flat_residual is None else flat_residual.stride()),
        eps,
        **tile,
        num_warps=warps,
    )
    return total, out


def _backward(
    grad: Tensor, grad_sum: Tensor | None, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    width = x.shape[-1]
    flat, flat_residual = rows(x), None if residual is None else rows(residual)
    tile, warps = tile_of(width, BACKWARD_ELEMENTS)
    programs = min(PROGRAMS, triton.cdiv(flat.shape[0], tile["ROWS"]))
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dweight, dbias = torch.empty(2, programs, width, dtype=torch.float32, device=x.device)
    launch(
        _layer_norm_backward_kernel,
        (programs,),
        grad.contiguous(),
        None if grad_sum is None else grad_sum.contiguous(),
        flat,
        flat_residual,
        weight.contiguous(),
        dx,
        dweight,
        dbias,
        flat.shape[0],
        width,
        *flat.stride(),
        *(flat.stride() if flat_residual is None else flat_residual.stride()),
        eps,
        **tile,
        num_warps=warps,
    )
    return dx, dweight.sum(0).to(weight.dtype), dbias.sum(0).to(weight.dtype)


def tile_of(width: int, elements: int = 1024) -> tuple[dict[str, int], int]:
    """About so many elements a program on four warps, so of 1024 eight a thread: loads of 16 bytes in bf16."""
    block = triton.next_power_of_2(max(1, width))
    rows_each = max(1, elements // block)
    return {"ROWS": rows_each, "BLOCK": block}, min(16, max(1, rows_each * block // (elements // 4)))
