"""Layer normalisation, alone and after a residual sum.

layer_norm(x) = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias        over the last dimension
add_layer_norm(x, residual) = (s, layer_norm(s)),  s = x + residual
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .. import native
from ..dispatch import op
from . import checks


def _check(x: Tensor, weight: Tensor, bias: Tensor, eps: float, name: str = "layer_norm") -> None:
    checks.tensors(name, x=x, weight=weight, bias=bias)
    checks.rows(name, "x", x)
    checks.shape(name, "weight", weight, x.shape[-1])
    checks.shape(name, "bias", bias, x.shape[-1])
    if not eps > 0:
        raise ValueError(f"{name}: eps is {eps}; a positive number is needed")


def _check_add(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    _check(x, weight, bias, eps, "add_layer_norm")
    checks.tensors("add_layer_norm", x=x, residual=residual)
    checks.shape("add_layer_norm", "residual", residual, *x.shape)


@op(check=_check)
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension to mean 0 and variance 1, then scale and shift (Ba et al., arXiv 1607.06450).

    Args:
        x: [.., H], floating; the statistics are float32 for lower precisions.
        weight, bias: [H].
        eps: added to the variance.

    Returns:
        [.., H], the dtype of x.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit.
    """
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _triton_takes(x: Tensor, *_: object) -> bool | str:
    if x.shape[-1] > 16384:
        return f"a row of {x.shape[-1]} elements is longer than 16384"
    return checks.kernel_dtype(x)


def _cpu_takes(x: Tensor, *_: object) -> bool | str:
    return native.missing() or checks.kernel_dtype(x)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).contiguous()


@layer_norm.backend("cpu", when=_cpu_takes)
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return native.kernels().layer_norm_cpu(_rows(x), weight.contiguous(), bias.contiguous(), eps).view(x.shape)


@layer_norm.backend("triton", when=_triton_takes)
def _(*args: Any) -> Tensor:
    from ..kernels import norm

    return norm.layer_norm(*args)


@layer_norm.backward("triton")
def _(grads: Sequence[Tensor], x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Sequence[Tensor]:
    from ..kernels import norm

    return norm.layer_norm_backward(grads[0], x, weight, eps)


@op(check=_check_add)
def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual sum and its normalised rows, out of one pass.

    Args:
        x, residual: [.., H], floating.
        weight, bias: [H].
        eps: added to the variance.

    Returns:
        (x + residual, layer_norm(x + residual)), each [.., H].

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit.
    """
    total = (x + residual).contiguous()
    return total, F.layer_norm(total, total.shape[-1:], weight, bias, eps)


@add_layer_norm.backend("cpu", when=_cpu_takes)
def _(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    parameters = weight.contiguous(), bias.contiguous()
    found = native.kernels().add_layer_norm_cpu(_rows(x), _rows(residual), *parameters, eps)
    return tuple(y.view(x.shape) for y in found)


@add_layer_norm.backend("triton", when=_triton_takes)
def _(*args: Any) -> tuple[Tensor, Tensor]:
    from ..kernels import norm

    return norm.add_layer_norm(*args)


@add_layer_norm.backward("triton")
def _(
    grads: Sequence[Tensor], x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Sequence[Tensor]:
    from ..kernels import norm

    dx, dweight, dbias = norm.add_layer_norm_backward(*grads, x, residual, weight, eps)
    return dx, dx, dweight, dbias
