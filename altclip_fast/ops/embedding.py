"""From pixels and token ids to the first rows of an encoder.

patch_embed(pixels) = [class_embedding, conv(pixels, weight, stride=patch)] + position_embedding
text_embed(ids) = layer_norm(word[ids] + token_type[types] + position[positions])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import op
from . import checks, packed


def _check_patch(
    pixels: Tensor,
    weight: Tensor,
    class_embedding: Tensor,
    position_embedding: Tensor,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> None:
    checks.tensors("patch_embed", weight=weight, class_embedding=class_embedding, position_embedding=position_embedding)
    if not isinstance(pixels, Tensor):
        raise TypeError(f"patch_embed: pixels must be a Tensor, not {type(pixels).__name__}")
    if pixels.dtype is not torch.uint8:
        checks.tensors("patch_embed", pixels=pixels)
    checks.same_device("patch_embed", "pixels", pixels, weight.device)
    checks.shape("patch_embed", "weight", weight, None, None, None, None)
    if 0 in weight.shape:
        raise ValueError(f"patch_embed: weight is {checks.describe(weight)}; no dimension may be empty")
    hidden, channels, height, width = weight.shape
    checks.shape("patch_embed", "pixels", pixels, None, channels, None, None)
    checks.shape("patch_embed", "class_embedding", class_embedding, hidden)
    patches = (pixels.shape[2] // height) * (pixels.shape[3] // width)
    if patches < 1:
        raise ValueError(f"patch_embed: pixels is {checks.describe(pixels)}, less than a patch of {height}x{width}")
    checks.shape("patch_embed", "position_embedding", position_embedding, patches + 1, hidden)
    if (mean is None) != (std is None):
        raise ValueError("patch_embed: mean and std are given together or not at all")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != channels:
            raise ValueError(f"patch_embed: {name} is {list(values)}; {channels} numbers are needed, one a channel")
    if std is not None and 0 in std:
        raise ValueError(f"patch_embed: std is {list(std)}; pixels are divided by it")


@op(check=_check_patch)
def patch_embed(
    pixels: Tensor,
    weight: Tensor,
    class_embedding: Tensor,
    position_embedding: Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """Patches, class token and positions of a vision transformer (Dosovitskiy et al., arXiv 2010.11929).

    Args:
        pixels: [B, C, h, w], floating, or uint8.
        weight: [H, C, p, p]; class_embedding: [H].
        position_embedding: [1 + patches, H], patches = (h // p) * (w // p); see `interpolate_positions`.
        mean, std: C numbers each, or None: pixels are normalised to (x - mean) / std, uint8 ones after a
            division by 255. Without them pixels are taken as they are.

    Returns:
        [B, 1 + patches, H] in the dtype of weight.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit.
    """
    pixels = _normalised(pixels, weight.dtype, mean, std)
    patches = F.conv2d(pixels, weight, stride=weight.shape[2:]).flatten(2).transpose(1, 2)
    return _tokens(patches, class_embedding, position_embedding)


def _normalised(
    pixels: Tensor, dtype: torch.dtype, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Tensor:
    if mean is None or std is None:
        return pixels.to(dtype)
    x = pixels.to(torch.promote_types(dtype, torch.float32))
    x = x / 255 if pixels.dtype is torch.uint8 else x
    shift, spread = (x.new_tensor(values)[:, None, None] for values in (mean, std))
    return ((x - shift) / spread).to(dtype)


def _tokens(patches: Tensor, class_embedding: Tensor, position_embedding: Tensor) -> Tensor:
    tokens = torch.cat([class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1), patches], dim=1)
    return tokens + position_embedding


@patch_embed.backend("cpu", when=lambda _, weight, *__: packed.takes(weight))
def _(
    pixels: Tensor,
    weight: Tensor,
    class_embedding: Tensor,
    position_embedding: Tensor,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Tensor:
    batch, channels, height, width = pixels.shape
    patch = weight.shape[2:]
    grid = height // patch[0], width // patch[1]
    x = _normalised(pixels, weight.dtype, mean, std)[..., : grid[0] * patch[0], : grid[1] * patch[1]]
    x = x.reshape(batch, channels, grid[0], patch[0], grid[1], patch[1]).permute(0, 2, 4, 1, 3, 5)
    patches = packed.packed(weight).product(x.reshape(batch, grid[0] * grid[1], weight[0].numel()), None)
    return _tokens(patches, class_embedding, position_embedding)


def _triton_takes_patches(pixels: Tensor, weight: Tensor, *_: object) -> bool | str:
    taken = True if pixels.dtype is torch.uint8 else checks.kernel_dtype(pixels)
    return checks.kernel_dtype(weight) if taken is True else taken


@patch_embed.backend("triton", when=_triton_takes_patches)
def _(*args: Any) -> Tensor:
    from ..kernels import embedding

    return embedding.patch_embed(*args)


def interpolate_positions(position_embedding: Tensor, height: int, width: int) -> Tensor:
    """The learned grid of positions, resampled (bicubic) to another grid of patches; the class token's stays.

    Args:
        position_embedding: [1 + n * n, H].
        height, width: of the new grid, in patches.

    Returns:
        [1 + height * width, H], the same tensor when the grid is already that.

    Raises:
        ValueError, TypeError: the learned grid is not square, or the new one is empty.
    """
    checks.tensors("interpolate_positions", position_embedding=position_embedding)
    checks.shape("interpolate_positions", "position_embedding", position_embedding, None, None)
    side = int(max(position_embedding.shape[0] - 1, 0) ** 0.5)
    if side == 0 or side * side != position_embedding.shape[0] - 1:
        raise ValueError(
            f"interpolate_positions: position_embedding has {position_embedding.shape[0]} rows; 1 + a square is needed"
        )
    if min(height, width) < 1:
        raise ValueError(f"interpolate_positions: the new grid is {height}x{width}; at least one patch is needed")
    if (height, width) == (side, side):
        return position_embedding
    first, grid = position_embedding[:1], position_embedding[1:]
    grid = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
    return torch.cat([first, grid.permute(0, 2, 3, 1).reshape(height * width, -1)])


def _check_text(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    token_type: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    padding_idx: int | None,
) -> None:
    optional = ("token_type", "weight", "bias")
    checks.tensors(
        "text_embed", optional, word=word, position=position, token_type=token_type, weight=weight, bias=bias
    )
    ids = {"input_ids": input_ids, "position_ids": position_ids, "token_type_ids": token_type_ids}
    checks.integers("text_embed", word.device, ("token_type_ids",), **ids)
    checks.shape("text_embed", "input_ids", input_ids, None)
    checks.shape("text_embed", "position_ids", position_ids, input_ids.shape[0])
    checks.shape("text_embed", "token_type_ids", token_type_ids, input_ids.shape[0])
    checks.shape("text_embed", "word", word, None, None)
    hidden = word.shape[1]
    checks.shape("text_embed", "position", position, None, hidden)
    checks.shape("text_embed", "token_type", token_type, None, hidden)
    checks.shape("text_embed", "weight", weight, hidden)
    checks.shape("text_embed", "bias", bias, hidden)
    if weight is not None and not eps > 0:
        raise ValueError(f"text_embed: eps is {eps}; a positive number is needed")
    if padding_idx is not None and not 0 <= padding_idx < min(word.shape[0], position.shape[0]):
        raise ValueError(
            f"text_embed: padding_idx is {padding_idx}; word has {word.shape[0]} rows and position "
            f"{position.shape[0]}, so it is less, and not negative"
        )
    for pair in ((token_type_ids, token_type), (weight, bias)):
        if (pair[0] is None) != (pair[1] is None):
            raise ValueError("text_embed: token_type_ids and token_type, and weight and bias, come in pairs")


@op(check=_check_text)
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
    """The sum of word, token-type and position embeddings, normalised where a norm is given.

    Args:
        input_ids, position_ids: [T] int32 or int64; token_type_ids: [T] or None. Ids must be in range.
        word: [V, H]; position: [P, H]; token_type: [types, H] or None.
        weight, bias: [H] of the layer norm with `eps`, or None for no norm (CLIP's text tower).
        padding_idx: the row of `word` and of `position` that gets no gradient, or None.

    Returns:
        [T, H].

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit.
    """
    x = F.embedding(input_ids, word, padding_idx)
    if token_type is not None and token_type_ids is not None:
        x = x + F.embedding(token_type_ids, token_type)
    x = x + F.embedding(position_ids, position, padding_idx)
    return x if weight is None else F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _triton_takes_text(
    input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor | None, word: Tensor, *_: object
) -> bool | str:
    if word.shape[1] > 16384:
        return f"a row of {word.shape[1]} elements is longer than 16384"
    return checks.kernel_dtype(word)


@text_embed.backend("triton", when=_triton_takes_text)
def _(*args: Any) -> Tensor:
    from ..kernels import embedding

    return embedding.text_embed(*args)
