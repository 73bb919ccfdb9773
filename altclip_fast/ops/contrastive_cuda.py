"""The CUDA backend of the joint head: what the kernels of `csrc/cuda` leave to be put together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import native
from . import checks
from .contrastive import (
    contrastive_loss,
    l2_normalize,
    similarity,
    similarity_argmax,
    similarity_softmax,
    similarity_topk,
)

MAX_K = 448  # of 512 slots a row; 64 are for what arrives
GRADIENT_ROWS = 1024  # of the backward at once, or 4 * D if that is more: the chunk is as large as 4 embeddings


def _takes(x: Tensor, *_: object) -> bool | str:
    return checks.kernel_dtype(x)


def _takes_k(a: Tensor, b: Tensor, k: int, *_: object) -> bool | str:
    return _takes(a) if k <= MAX_K else f"k is {k}; up to {MAX_K} are kept"


def _tf32() -> bool:
    """Whether torch's own switch allows products of TF32 numbers."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def _rows(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


@l2_normalize.backend("cuda", when=_takes)
def _(x: Tensor) -> Tensor:
    return native.kernels().l2_normalize_cuda(_rows(x)).view(x.shape)


@similarity.backend("cuda", when=_takes)
def _(a: Tensor, b: Tensor, scale: float, normalize: bool) -> Tensor:
    return native.kernels().similarity_cuda(a, b, scale, normalize, False, _tf32())


@similarity_softmax.backend("cuda", when=_takes)
def _(a: Tensor, b: Tensor, scale: float, normalize: bool) -> Tensor:
    return native.kernels().similarity_cuda(a, b, scale, normalize, True, _tf32())


@similarity_topk.backend("cuda", when=_takes_k)
def _(a: Tensor, b: Tensor, k: int, scale: float, normalize: bool) -> tuple[Tensor, Tensor]:
    return native.kernels().similarity_topk_cuda(a, b, k, scale, normalize, _tf32())


@similarity_argmax.backend("cuda", when=_takes)
def _(a: Tensor, b: Tensor, scale: float, normalize: bool) -> Tensor:
    return native.kernels().similarity_argmax_cuda(a, b, scale, normalize, _tf32())


@contrastive_loss.backend("cuda", when=_takes)
def _(image: Tensor, text: Tensor, logit_scale: Tensor, normalize: bool) -> Tensor:
    scale = _exponential(logit_scale)
    by_row, by_column, diagonal = native.kernels().contrastive_statistics_cuda(text, image, scale, normalize, _tf32())
    cross_entropies = [((most - diagonal) * math.log(2) + total.log()).mean() for most, total in (by_row, by_column)]
    return (sum(cross_entropies) / 2).to(image.dtype)


@contrastive_loss.backward("cuda")
def _(grads: Sequence[Tensor], image: Tensor, text: Tensor, logit_scale: Tensor, normalize: bool) -> Sequence[Tensor]:
    """d(loss)/d(scores) = (P + Q - 2 I) / 2N, a chunk of rows at a time, and its products with both sides."""
    kernels, tf32, scale = native.kernels(), _tf32(), _exponential(logit_scale)
    by_row, by_column, _ = kernels.contrastive_statistics_cuda(text, image, scale, normalize, tf32)
    units = [kernels.l2_normalize_cuda(x) if normalize else x for x in (image, text)]
    count, width = image.shape
    image_grad, text_grad = (image.new_zeros(count, width, dtype=torch.float32) for _ in range(2))
    along = image.new_zeros(1, dtype=torch.float32)
    rows = max(GRADIENT_ROWS, 4 * width)
    for first in range(0, count, rows):
        some = slice(first, min(first + rows, count))
        part, part_along = kernels.contrastive_gradient_cuda(
            text, image, scale, by_row, by_column, first, some.stop - first, normalize, tf32
        )
        along += part_along.sum()
        text_grad[some] = _product(part, units[0])
        image_grad += _product(part.t(), units[1][some])
    share = grads[0].float().reshape(1) / (2 * count)
    image_grad, text_grad = (
        kernels.l2_normalize_backward_cuda(grad, share * scale, x, normalize)
        for grad, x in ((image_grad, image), (text_grad, text))
    )
    logit_scale_grad = share * along * math.log(2)
    return image_grad, text_grad, logit_scale_grad.to(logit_scale.dtype).view(logit_scale.shape)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b if a.dtype == torch.float32 else torch.mm(a, b, out_dtype=torch.float32)


def _exponential(logit_scale: Tensor) -> Tensor:
    return logit_scale.reshape(1).float().exp()
