"""From pixels and token ids to the first rows of an encoder, each in one kernel.

patch_embed: out[b, 0] = class + position[0];   out[b, 1 + p] = sum_k pixels[b, p, k] * weight[:, k] + position[1 + p]
text_embed:  out = layer_norm(s),  s = word[id] + token_type[type] + position[place]     (out = s without a norm)

patch_embed is a GEMM of B * (1 + patches) rows, whose left operand is read where it lies in the pictures: a picture is
read once from memory and no patches are written. It costs 2 * B * patches * C * p * p * H operations (0.31 GFLOP for
ViT-L/14) and, a picture, 150 KB of bytes in and 526 KB of bf16 out: about as long in either, 0.4 us of an H200. K runs
along the lines of a patch, each padded to a power of two (14 to 16), so that neither a step nor a vector load crosses
from one line into the next; the padding is masked, 9 % of the products at p = 14, and the weights are copied to that
layout where it is another (p = 16 and 32 have it), so that they come in loads of 16 bytes. The class token is a row
whose pixels are all masked: one row in 257 is cheaper than a second kernel. Tiles are 128 x 128 where these fill the
GPU, since a multiprocessor's tensor cores need 64 products a value read, and 64 x 64 for a few pictures.

Normalised pixels are x * (1 / spread) - mean / spread, one fused multiply-add in float32 with constants rounded from
float64 (for bytes, 255 is in them): the error is at most 2^-24 * (|y| + |y + mean / std| + |mean / std|), which is
5e-7 for CLIP's constants, before the rounding to the dtype of weight that the product's operands have anyway.

text_embed keeps a row in registers from its gathers to its store: 3 T H elements read and T H written, of which the
tables of types and positions stay in the caches. An id outside of its table gives a row of NaN, and reads nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .linear import multiplying
from .norm import normalise, tile_of
from .tuning import Config, configuration


def _config(rows: int, cols: int, block_k: int, warps: int, stages: int) -> Config:
    return {"ROWS": rows, "COLS": cols, "BLOCK_K": block_k, "num_warps": warps, "num_stages": stages}


# Of patch_embed, for the tuner. In float32 all have one BLOCK_K: that is the order of summation.
CANDIDATES = (  # of bf16 and fp16
    _config(128, 128, 64, 8, 3),
    _config(128, 128, 32, 8, 4),
    _config(128, 64, 64, 4, 3),
    _config(64, 128, 64, 4, 3),
    _config(64, 64, 64, 4, 4),
)
CANDIDATES_FLOAT32 = (_config(64, 64, 32, 8, 3), _config(64, 128, 32, 8, 3))


@triton.jit
def _patch_embed_kernel(
    pixels_ptr,  # [B, C, h, w]
    weight_ptr,  # [H, depth], depth = C * PATCH_H * LINE
    class_ptr,  # [H]
    position_ptr,  # [tokens, H]
    affine_ptr,  # [2, C] float32, factors and summands of the pixels, or None
    out_ptr,  # [B, tokens, H]
    count,  # B * tokens
    H,
    C,
    depth,
    tokens,
    across,  # patches in a row of patches
    pixels_image,
    pixels_channel,
    pixels_y,
    pixels_x,
    position_row,
    position_col,
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    LINE: tl.constexpr,  # PATCH_W, padded
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles = tl.cdiv(H, COLS)
    row = tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS).to(tl.int64)
    column = tl.program_id(0) % tiles * COLS + tl.arange(0, COLS)
    token = row % tokens
    patched = (token > 0) & (row < count)
    patch_y = (token - 1) // across * PATCH_H
    patch_x = (token - 1) % across * PATCH_W
    corner = row // tokens * pixels_image + patch_y * pixels_y + patch_x * pixels_x
    total = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = (k % LINE).to(tl.int64)
        y = (k // LINE % PATCH_H).to(tl.int64)
        channel = (k // (LINE * PATCH_H)).to(tl.int64)
        inside = (x < PATCH_W) & (channel < C)
        seen = patched[:, None] & inside[None, :]
        place = channel * pixels_channel + y * pixels_y + x * pixels_x
        pixels = tl.load(pixels_ptr + corner[:, None] + place[None, :], seen, 0)
        if affine_ptr is not None:
            factor = tl.load(affine_ptr + channel, channel < C, 0.0)
            summand = tl.load(affine_ptr + C + channel, channel < C, 0.0)
            pixels = tl.where(seen, pixels.to(tl.float32) * factor[None, :] + summand[None, :], 0.0)
        if pixels.dtype != weight_ptr.dtype.element_ty:
            pixels = pixels.to(tl.float32).to(weight_ptr.dtype.element_ty)
        known = (k < depth)[:, None] & (column < H)[None, :]
        weight = tl.load(weight_ptr + k[:, None] + column.to(tl.int64)[None, :] * depth, known, 0.0)
        total = tl.dot(pixels.to(DOT), weight.to(DOT), total, input_precision=PRECISION)
    first = tl.load(class_ptr + column, column < H, 0.0).to(tl.float32)
    total += tl.where((token == 0)[:, None], first[None, :], 0.0)
    kept = (row < count)[:, None] & (column < H)[None, :]
    position = position_ptr + token[:, None] * position_row + column.to(tl.int64)[None, :] * position_col
    total += tl.load(position, kept, 0.0).to(tl.float32)
    tl.store(out_ptr + row[:, None] * H + column[None, :], total.to(out_ptr.dtype.element_ty), kept)


@triton.jit
def _gather(table_ptr, id_ptr, row, column, inside, T, count, id_stride, table_row, table_col):
    """The rows of a table that the ids name, in float32; NaN where there is no such row."""
    index = tl.load(id_ptr + row * id_stride, row < T, 0).to(tl.int64)
    known = (index >= 0) & (index < count)
    found = tl.load(table_ptr + index * table_row + column * table_col, inside & known, float("nan"))
    return found.to(tl.float32)


@triton.jit
def _text_embed_kernel(
    input_id_ptr,  # [T]
    position_id_ptr,  # [T]
    token_type_id_ptr,  # [T] or None
    word_ptr,  # [V, H]
    position_ptr,  # [P, H]
    token_type_ptr,  # [types, H] or None
    weight_ptr,  # [H] or None
    bias_ptr,  # [H] or None
    out_ptr,  # [T, H]
    T,
    H,
    V,
    P,
    types,
    input_id_stride,
    position_id_stride,
    token_type_id_stride,
    word_row,
    word_col,
    position_row,
    position_col,
    token_type_row,
    token_type_col,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK).to(tl.int64)[None, :]
    inside = (row < T) & (column < H)
    s = _gather(word_ptr, input_id_ptr, row, column, inside, T, V, input_id_stride, word_row, word_col)
    if token_type_ptr is not None:
        s += _gather(
            token_type_ptr,
            token_type_id_ptr,
            row,
            column,
            inside,
            T,
            types,
            token_type_id_stride,
            token_type_row,
            token_type_col,
        )
    s += _gather(
        position_ptr, position_id_ptr, row, column, inside, T, P, position_id_stride, position_row, position_col
    )
    if weight_ptr is not None:
        normal, _ = normalise(tl.where(inside, s, 0.0), inside, H, eps)
        weight = tl.load(weight_ptr + column, column < H, 0.0).to(tl.float32)
        bias = tl.load(bias_ptr + column, column < H, 0.0).to(tl.float32)
        s = normal * weight + bias
    tl.store(out_ptr + row * H + column, s.to(out_ptr.dtype.element_ty), inside)


def patch_embed(
    pixels: Tensor,
    weight: Tensor,
    class_embedding: Tensor,
    position_embedding: Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """As `ops.patch_embed`."""
    hidden, channels, height, width = weight.shape
    images, tokens = pixels.shape[0], position_embedding.shape[0]
    out = torch.empty(images, tokens, hidden, dtype=weight.dtype, device=weight.device)
    line = triton.next_power_of_2(width)
    padded = F.pad(weight, (0, line - width)) if line > width else weight  # of nothing it would be a copy
    lines = padded.reshape(hidden, -1).contiguous()
    config = _configuration(images * tokens, lines)
    affine = None
    if mean is not None and std is not None:
        affine = _affine(tuple(mean), tuple(std), pixels.dtype is torch.uint8, pixels.device)
    launch(
        _patch_embed_kernel,
        (triton.cdiv(images * tokens, config["ROWS"]) * triton.cdiv(hidden, config["COLS"]),),
        pixels,
        lines,
        class_embedding.contiguous(),
        position_embedding,
        affine,
        out,
        images * tokens,
        hidden,
        channels,
        lines.shape[1],
        tokens,
        pixels.shape[3] // width,
        *pixels.stride(),
        *position_embedding.stride(),
        PATCH_H=height,
        PATCH_W=width,
        LINE=line,
        **multiplying(weight.dtype),
        **config,
    )
    return out


def text_embed(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    token_type: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    padding_idx: int | None = None,
) -> Tensor:
    """As `ops.text_embed`; `padding_idx` is for the gradients."""
    count, width = input_ids.shape[0], word.shape[1]
    out = torch.empty(count, width, dtype=word.dtype, device=word.device)
    tile, warps = tile_of(width)
    launch(
        _text_embed_kernel,
        (triton.cdiv(count, tile["ROWS"]),),
        input_ids,
        position_ids,
        token_type_ids,
        word,
        position,
        token_type,
        None if weight is None else weight.contiguous(),
        None if bias is None else bias.contiguous(),
        out,
        count,
        width,
        word.shape[0],
        position.shape[0],
        0 if token_type is None else token_type.shape[0],
        input_ids.stride(0),
        position_ids.stride(0),
        0 if token_type_ids is None else token_type_ids.stride(0),
        *word.stride(),
        *position.stride(),
        *((0, 0) if token_type is None else token_type.stride()),
        eps,
        **tile,
        num_warps=warps,
    )
    return out


@functools.lru_cache(maxsize=64)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], is_byte: bool, device: torch.device) -> Tensor:
    """[2, C]. Kept, so that calls after the first copy nothing to the device, also in a CUDA graph's capture."""
    full = 255.0 if is_byte else 1.0
    factors = [1.0 / (full * s) for s in std]
    summands = [-m / s for m, s in zip(mean, std, strict=True)]
    return torch.tensor([factors, summands], dtype=torch.float32, device=device)


def _configuration(count: int, weight: Tensor) -> Config:
    hidden, depth = weight.shape
    # Float32 is configured as for one row, whatever their number is: a row has the same bits in any batch.
    shape = (1 if weight.dtype == torch.float32 else count, hidden, depth)

    def default() -> Config:
        if weight.dtype == torch.float32:
            return CANDIDATES_FLOAT32[0]
        filled = triton.cdiv(count, 128) * triton.cdiv(hidden, 128) >= 132
        return CANDIDATES[0] if filled else CANDIDATES[-1]

    return configuration("patch_embed", weight.device, weight.dtype, shape, default)


def candidates(dtype: torch.dtype) -> tuple[Config, ...]:
    """What a tuner may choose from, for patch_embed."""
    return CANDIDATES_FLOAT32 if dtype == torch.float32 else CANDIDATES
