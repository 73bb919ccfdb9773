"""Are embeddings right? The gates of whole models, against transformers in float32.

float32: max |difference| of normalised embeddings. Lower precision is judged on centred embeddings, the batch's mean
taken off: with random weights two different pictures already have cosine 0.99.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

FLOAT32 = 5e-6  # transformers is within 8e-7 of its own float64
BFLOAT16 = 1.5  # times the RMS error of transformers in bfloat16
INT8 = 0.99  # least centred cosine
INT8_LABELS = 0.99  # least share of equal zero-shot labels, of the embedded models


class Verdict(NamedTuple):
    """What embeddings are like beside the true ones."""

    cosine: float  # mean centred cosine
    error: float  # max |difference| of the normalised embeddings
    refusal: str | None  # why they are not good enough for their dtype, or None


def judge(found: Tensor, truth: Tensor, dtype: str, baseline: Tensor | None = None) -> Verdict:
    """Compare embeddings with the true ones by the gate of their precision.

    Args:
        found, truth: [N, D], not normalised; N >= 2.
        dtype: "float32", "bfloat16" or "int8": what was computed in.
        baseline: for bfloat16: transformers' embeddings in bfloat16.

    Raises:
        ValueError: the shapes differ, or there is nothing to compare with.
    """
    if found.shape != truth.shape or truth.dim() != 2 or truth.shape[0] < 2:
        raise ValueError(f"embeddings {list(found.shape)} and {list(truth.shape)}: two of [N, D], N >= 2, are needed")
    if not found.isfinite().all():
        return Verdict(float("nan"), float("inf"), "embeddings are not finite")
    a, b = F.normalize(found.double()), F.normalize(truth.double())
    error = (a - b).abs().max().item()
    cosine = F.cosine_similarity(_centred(a), _centred(b)).mean().item()
    return Verdict(cosine, error, _refusal(a, b, dtype, error, cosine, baseline))


def _refusal(a: Tensor, b: Tensor, dtype: str, error: float, cosine: float, baseline: Tensor | None) -> str | None:
    if dtype == "float32":
        fine = error <= FLOAT32
        return None if fine else f"normalised embeddings differ by {error:.1e}; {FLOAT32:.0e} is allowed in float32"
    if dtype == "bfloat16":
        if baseline is None:
            raise ValueError("bfloat16 is judged by transformers' own error in bfloat16; pass it as baseline")
        of_baseline = _rms(_centred(F.normalize(baseline.double())) - _centred(b))
        ratio = _rms(_centred(a) - _centred(b)) / of_baseline
        fine = ratio <= BFLOAT16
        return None if fine else f"the error is {ratio:.2f} x that of transformers in bfloat16; {BFLOAT16} is allowed"
    if dtype == "int8":
        return None if cosine >= INT8 else f"the centred cosine is {cosine:.4f}; {INT8} is needed in int8"
    raise ValueError(f"dtype is {dtype!r}; float32, bfloat16 or int8 is needed")


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
