"""The joint head of a dual encoder: normalised embeddings, their similarities, and the contrastive loss.

    similarity(a, b) = scale * normalize(a) @ normalize(b)^T
    contrastive_loss = (cross_entropy(s, diagonal) + cross_entropy(s^T, diagonal)) / 2,
                       s = exp(logit_scale) * normalize(text) @ normalize(image)^T

Radford et al., CLIP (arXiv 2103.00020), figure 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import native
from ..dispatch import forced_backend, op
from . import checks

EPS = 1e-12
LAST_ROW = 2**32 - 2  # of b, for similarity_topk on the CPU: an index takes 32 bits there
# Measured with D = 768; torch's own products of float16 are 40 times slower.
PAYING_ROWS = {torch.float32: 512, torch.bfloat16: 2048, torch.float16: 1}
FINISHED_ROWS = 4096  # whose gradients are taken through the normalisation at once


def _check_normalize(x: Tensor) -> None:
    checks.tensors("l2_normalize", x=x)
    checks.rows("l2_normalize", "x", x)


def _check_pair(name: str, a: Tensor, b: Tensor) -> None:
    checks.tensors(name, a=a, b=b)
    checks.shape(name, "a", a, None, None)
    checks.shape(name, "b", b, None, a.shape[1])


def _check_similarity(a: Tensor, b: Tensor, scale: float, normalize: bool) -> None:
    _check_pair("similarity", a, b)


def _check_softmax(a: Tensor, b: Tensor, scale: float, normalize: bool) -> None:
    _check_pair("similarity_softmax", a, b)


def _check_argmax(a: Tensor, b: Tensor, scale: float, normalize: bool) -> None:
    _check_pair("similarity_argmax", a, b)
    if b.shape[0] == 0:
        raise ValueError(f"similarity_argmax: b is {checks.describe(b)}; at least one row is needed")


def _check_topk(a: Tensor, b: Tensor, k: int, scale: float, normalize: bool) -> None:
    _check_pair("similarity_topk", a, b)
    if not 1 <= k <= b.shape[0]:
        raise ValueError(f"similarity_topk: k is {k}; b has {b.shape[0]} rows, so 1 to {b.shape[0]} is allowed")


def _check_loss(image: Tensor, text: Tensor, logit_scale: Tensor, normalize: bool) -> None:
    checks.tensors("contrastive_loss", image=image, text=text)
    checks.tensors("contrastive_loss", one_dtype=False, image=image, logit_scale=logit_scale)
    checks.shape("contrastive_loss", "image", image, None, None)
    checks.shape("contrastive_loss", "text", text, image.shape[0], image.shape[1])
    if logit_scale.numel() != 1:
        raise ValueError(f"contrastive_loss: logit_scale is {checks.describe(logit_scale)}; one number is needed")
    if image.shape[0] == 0:
        raise ValueError("contrastive_loss: image and text are empty; at least one pair is needed")


@op(check=_check_normalize)
def l2_normalize(x: Tensor) -> Tensor:
    """x / |x| over the last dimension; a zero row stays zero.

    Args:
        x: [.., D], floating; the norm is computed in float32 for lower precisions.

    Returns:
        [.., D], the dtype of x.

    Raises:
        ValueError, TypeError: x is no floating tensor, or has no dimension.
    """
    wide = x.contiguous().to(torch.promote_types(x.dtype, torch.float32))
    norm = wide.square().sum(-1, keepdim=True).clamp_min(EPS * EPS).sqrt()
    return (wide / norm).to(x.dtype)


def _triton_takes(x: Tensor, *_: object) -> bool | str:
    if x.shape[-1] > 16384:
        return f"a row of {x.shape[-1]} elements is longer than 16384"
    return checks.kernel_dtype(x)


@l2_normalize.backend("triton", when=_triton_takes)
def _(x: Tensor) -> Tensor:
    from ..kernels import contrastive

    return contrastive.l2_normalize(x)


def _cpu_takes(x: Tensor, *_: object) -> bool | str:
    return native.missing() or checks.kernel_dtype(x)


def _rows(x: Tensor) -> Tensor:
    """The same rows, the numbers of each side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


@l2_normalize.backend("cpu", when=_cpu_takes)
def _(x: Tensor) -> Tensor:
    if x.numel() == 0:
        return x.new_empty(x.shape)
    return native.kernels().l2_normalize_cpu(_rows(x.reshape(-1, x.shape[-1]))).reshape(x.shape)


def _scores(a: Tensor, b: Tensor, scale: float, normalize: bool) -> Tensor:
    if normalize:
        a, b = l2_normalize.reference(a), l2_normalize.reference(b)
    scores = a @ b.t()
    return scores if scale == 1.0 else scores * scale


@op(check=_check_similarity)
def similarity(a: Tensor, b: Tensor, scale: float = 1.0, normalize: bool = True) -> Tensor:
    """scale * a @ b^T of rows that are normalised first.

    Args:
        a: [N, D]; b: [M, D], one floating dtype.
        scale: a number, exp(logit_scale) for the logits of CLIP.
        normalize: False where the rows already have length 1 or dot products are wanted.

    Returns:
        [N, M], the dtype of a.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit.
    """
    return _scores(a, b, scale, normalize)


@similarity.backend("triton", when=_triton_takes)
def _(*args: Any) -> Tensor:
    from ..kernels import contrastive

    return contrastive.similarity(*args)


@similarity.backend("cpu", when=_cpu_takes)
def _(a: Tensor, b: Tensor, scale: float, normalize: bool) -> Tensor:
    return native.kernels().similarity_cpu(_rows(a), _rows(b), scale, normalize)


@op(check=_check_topk)
def similarity_topk(a: Tensor, b: Tensor, k: int, scale: float = 1.0, normalize: bool = True) -> tuple[Tensor, Tensor]:
    """The k most similar rows of b for every row of a, best first.

    Args:
        a: [N, D]; b: [M, D], one floating dtype; scale, normalize: as in `similarity`.
        k: 1 to M.

    Returns:
        (values [N, k], indices [N, k] int64). Of equal values the lower index comes first; NaN before all numbers.

    Raises:
        ValueError, TypeError: shapes, dtypes, devices or k do not fit.
    """
    values, indices = _scores(a, b, scale, normalize).sort(dim=-1, descending=True, stable=True)
    return values[:, :k].contiguous(), indices[:, :k].contiguous()


def _triton_takes_k(a: Tensor, b: Tensor, k: int, *_: object) -> bool | str:
    return _triton_takes(a) if k <= 512 else f"k is {k}; up to 512 fit in the registers"


@similarity_topk.backend("triton", when=_triton_takes_k)
def _(*args: Any) -> tuple[Tensor, Tensor]:
    from ..kernels import contrastive_topk

    return contrastive_topk.similarity_topk(*args)


def _cpu_counts(a: Tensor, b: Tensor, *_: object) -> bool | str:
    return _cpu_takes(a) if b.shape[0] <= LAST_ROW else f"b has {b.shape[0]} rows; up to {LAST_ROW} are covered"


@similarity_topk.backend("cpu", when=_cpu_counts)
def _(a: Tensor, b: Tensor, k: int, scale: float, normalize: bool) -> tuple[Tensor, Tensor]:
    return native.kernels().similarity_topk_cpu(_rows(a), _rows(b), k, scale, normalize, False)


def wide_topk(a: Tensor, b: Tensor, k: int, normalize: bool = True) -> tuple[Tensor, Tensor]:
    """`similarity_topk` whose values are float32, and ordered as such, whatever the dtype of the rows is."""
    if similarity_topk.choose(a, b, k, 1.0, normalize) == "cpu":
        return native.kernels().similarity_topk_cpu(_rows(a), _rows(b), k, 1.0, normalize, True)
    return similarity_topk(a.float(), b.float(), k, 1.0, normalize)


@op(check=_check_softmax)
def similarity_softmax(a: Tensor, b: Tensor, scale: float = 1.0, normalize: bool = True) -> Tensor:
    """softmax over the rows of b of `similarity`: the zero-shot probabilities of b for every row of a.

    Args:
        a: [N, D]; b: [M, D], one floating dtype; scale, normalize: as in `similarity`.

    Returns:
        [N, M], the dtype of a; the softmax is computed in float32 for lower precisions.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit.
    """
    scores = _scores(a, b, scale, normalize)
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)


@similarity_softmax.backend("triton", when=_triton_takes)
def _(*args: Any) -> Tensor:
    from ..kernels import contrastive

    return contrastive.similarity_softmax(*args)


@similarity_softmax.backend("cpu", when=_cpu_takes)
def _(a: Tensor, b: Tensor, scale: float, normalize: bool) -> Tensor:
    return native.kernels().similarity_softmax_cpu(_rows(a), _rows(b), scale, normalize)


@op(check=_check_argmax)
def similarity_argmax(a: Tensor, b: Tensor, scale: float = 1.0, normalize: bool = True) -> Tensor:
    """The most similar row of b for every row of a; the lowest index among equals.

    Args:
        a: [N, D]; b: [M, D], M >= 1, one floating dtype; scale, normalize: as in `similarity`.

    Returns:
        [N] int64.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit.
    """
    return similarity_topk.reference(a, b, 1, scale, normalize)[1][:, 0].contiguous()


@similarity_argmax.backend("triton", when=_triton_takes)
def _(*args: Any) -> Tensor:
    from ..kernels import contrastive_topk

    return contrastive_topk.similarity_argmax(*args)


@similarity_argmax.backend("cpu", when=_cpu_counts)
def _(a: Tensor, b: Tensor, scale: float, normalize: bool) -> Tensor:
    return native.kernels().similarity_topk_cpu(_rows(a), _rows(b), 1, scale, normalize, False)[1][:, 0].contiguous()


@op(check=_check_loss)
def contrastive_loss(image: Tensor, text: Tensor, logit_scale: Tensor, normalize: bool = True) -> Tensor:
    """The symmetric contrastive loss of matching pairs.

    Args:
        image, text: [N, D], row i of one belongs to row i of the other; N >= 1.
        logit_scale: the logarithm of the scale, one number, as the models hold it.
        normalize: False where the rows already have length 1.

    Returns:
        A scalar: the mean of the cross-entropies over texts and over images.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit.
    """
    logits = _scores(text, image, 1.0, normalize) * logit_scale.reshape(()).exp()
    target = torch.arange(logits.shape[0], device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


@contrastive_loss.backend("triton", when=_triton_takes)
def _(*args: Any) -> Tensor:
    from ..kernels import contrastive

    return contrastive.contrastive_loss(*args)


@contrastive_loss.backward("triton")
def _(grads: Sequence[Tensor], *args: Any) -> Sequence[Tensor]:
    from ..kernels import contrastive

    return contrastive.contrastive_loss_backward(grads[0], *args)


def contrastive_sums(
    text: Tensor, image: Tensor, scale: float, normalize: bool, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What the loss needs to know of the scores of some texts with some images.

    Args:
        text: [n, D]; image: [m, D]; row r of text belongs to row r + offset of image, if there is such a row.
        scale: of the scores; s = log2(e) * scale * scores.

    Returns:
        float32: the largest s and the sum of 2^(s - largest), over images [2, n] and over texts [2, m]; s of the
        pairs [n], where there is one.
    """
    if _native(text):
        return native.kernels().contrastive_sums_cpu(_rows(text), _rows(image), scale, normalize, offset)
    scores = _exponents(text, image, scale, normalize)
    match = scores.new_empty(len(text))
    row, column = _pairs(scores, offset)
    match[row] = scores[row, column]
    return _sums(scores), _sums(scores.t()), match


def contrastive_gradients(
    text: Tensor, image: Tensor, rows: Tensor, columns: Tensor, scale: float, normalize: bool, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What the gradients are made of: g = softmax over images + softmax over texts - (2 for a pair), of s.

    Args:
        rows [2, n], columns [2, m]: of the whole batch, as `contrastive_sums` gives them; the others as there.

    Returns:
        float32: g @ image [n, D] and g^T @ text [m, D], of rows of length 1 where `normalize`; sum(g * s) [1].
    """
    if _native(text):
        text, image = _rows(text), _rows(image)
        return native.kernels().contrastive_gradients_cpu(text, image, rows, columns, scale, normalize, offset)
    scores = _exponents(text, image, scale, normalize)
    g = (scores - rows[0, :, None]).exp2() / rows[1, :, None] + (scores - columns[0]).exp2() / columns[1]
    row, column = _pairs(scores, offset)
    g[row, column] -= 2
    text, image = ((l2_normalize.reference(x) if normalize else x).float() for x in (text, image))
    return g @ image, g.t() @ text, (g * scores).sum().reshape(1)


def _native(x: Tensor) -> bool:
    return x.device.type == "cpu" and forced_backend() in (None, "cpu") and _cpu_takes(x) is True


def _exponents(text: Tensor, image: Tensor, scale: float, normalize: bool) -> Tensor:
    return _scores(text, image, 1.0, normalize).float() * (scale * math.log2(math.e))


def _sums(x: Tensor) -> Tensor:
    most = x.amax(1)
    return torch.stack([most, (x - most[:, None]).exp2().sum(1)])


def _pairs(scores: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    row = torch.arange(scores.shape[0], device=scores.device)
    row = row[(row + offset >= 0) & (row + offset < scores.shape[1])]
    return row, row + offset


def entropy(sums: Tensor, match: Tensor) -> Tensor:
    """The cross-entropy [n] of rows whose sums [2, n] and pair [n] `contrastive_sums` gave."""
    return (sums[0] - match + sums[1].log2()) * math.log(2)


def before_normalizing(x: Tensor, gradient: Tensor, normalize: bool) -> Tensor:
    """The gradient of x from the float32 gradient of l2_normalize(x), which is overwritten."""
    for some, given in zip(x.split(FINISHED_ROWS), gradient.split(FINISHED_ROWS), strict=True):
        if normalize:
            wide = some.float()
            square = wide.square().sum(-1, keepdim=True)
            inverse = square.clamp_min(EPS * EPS).rsqrt()
            unit = wide * inverse
            radial = (given * unit).sum(-1, keepdim=True) * (square >= EPS * EPS)
            given.sub_(unit * radial).mul_(inverse)
    return gradient.to(x.dtype)


def _cpu_pays(image: Tensor, text: Tensor, logit_scale: Tensor, normalize: bool) -> bool | str:
    """The backward forms the scores once more; until they leave the caches, keeping them is as fast."""
    fewest = PAYING_ROWS.get(image.dtype, 1)
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (image, text, logit_scale))
    if trained and image.shape[0] < fewest and forced_backend() != "cpu":
        return f"below {fewest} pairs the plain gradient is as fast"
    return _cpu_takes(image)


@contrastive_loss.backend("cpu", when=_cpu_pays)
def _(image: Tensor, text: Tensor, logit_scale: Tensor, normalize: bool) -> Tensor:
    rows, columns, match = contrastive_sums(text, image, _scale(logit_scale), normalize, 0)
    return (entropy(rows, match).mean() + entropy(columns, match).mean()).div(2).to(image.dtype)


@contrastive_loss.backward("cpu")
def _(grads: Sequence[Tensor], image: Tensor, text: Tensor, logit_scale: Tensor, normalize: bool) -> Sequence[Tensor]:
    scale, share = _scale(logit_scale), grads[0].float().item() / (2 * image.shape[0])
    rows, columns, _ = contrastive_sums(text, image, scale, normalize, 0)
    for_text, for_image, for_scale = contrastive_gradients(text, image, rows, columns, scale, normalize, 0)
    return (
        before_normalizing(image, for_image.mul_(share * scale), normalize),
        before_normalizing(text, for_text.mul_(share * scale), normalize),
        for_scale.mul_(share * math.log(2)).to(logit_scale.dtype).reshape(logit_scale.shape),
    )


def _scale(logit_scale: Tensor) -> float:
    return logit_scale.double().exp().item()
