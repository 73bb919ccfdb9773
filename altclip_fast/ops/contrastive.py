"""The joint head of a dual encoder: normalised embeddings, their similarities, and the contrastive loss.

    similarity(a, b) = scale * normalize(a) @ normalize(b)^T
    contrastive_loss = (cross_entropy(s, diagonal) + cross_entropy(s^T, diagonal)) / 2,
                       s = exp(logit_scale) * normalize(text) @ normalize(image)^T

Radford et al., CLIP (arXiv 2103.00020), figure 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import op
from . import checks

EPS = 1e-12


def _check_normalize(x: Tensor) -> None:
    checks.tensors("l2_normalize", x=x)
    checks.rows("l2_normalize", "x", x)


def _check_pair(name: str, a: Tensor, b: Tensor) -> None:
    checks.tensors(name, a=a, b=b)
    checks.shape(name, "a", a, None, None)
    checks.shape(name, "b", b, None, a.shape[1])
    checks.one_dtype(name, a=a, b=b)


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
    checks.tensors("contrastive_loss", image=image, text=text, logit_scale=logit_scale)
    checks.one_dtype("contrastive_loss", image=image, text=text)
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
def _(a: Tensor, b: Tensor, scale: float, normalize: bool) -> Tensor:
    from ..kernels import contrastive

    return contrastive.similarity(a, b, scale, normalize)


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
def _(a: Tensor, b: Tensor, k: int, scale: float, normalize: bool) -> tuple[Tensor, Tensor]:
    from ..kernels import contrastive

    return contrastive.similarity_topk(a, b, k, scale, normalize)


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
def _(a: Tensor, b: Tensor, scale: float, normalize: bool) -> Tensor:
    from ..kernels import contrastive

    return contrastive.similarity_softmax(a, b, scale, normalize)


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
def _(a: Tensor, b: Tensor, scale: float, normalize: bool) -> Tensor:
    from ..kernels import contrastive

    return contrastive.similarity_argmax(a, b, scale, normalize)


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
def _(image: Tensor, text: Tensor, logit_scale: Tensor, normalize: bool) -> Tensor:
    from ..kernels import contrastive

    return contrastive.contrastive_loss(image, text, logit_scale, normalize)


@contrastive_loss.backward("triton")
def _(grads: Sequence[Tensor], image: Tensor, text: Tensor, logit_scale: Tensor, normalize: bool) -> Sequence[Tensor]:
    from ..kernels import contrastive

    return contrastive.contrastive_loss_backward(grads[0], image, text, logit_scale, normalize)
