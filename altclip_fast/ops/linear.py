"""The affine layer with its epilogue; three of them with one input, and the two-layer MLP.

linear(x) = activation(x @ weight^T + bias) + residual
qkv(x) = linear(x, wq, bq), linear(x, wk, bk), linear(x, wv, bv)
mlp(x) = linear(linear(x, w1, b1, activation), w2, b2, residual)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import forced_backend, op
from . import checks, int8, packed


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel, arXiv 1606.08415)."""
    return F.gelu(x, approximate="tanh")


ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_new": gelu_tanh,
    "relu": F.relu,
    "silu": F.silu,
    "selu": F.selu,
}


_OPTIONAL = ("bias", "residual", "bq", "bk", "bv", "b1", "b2")


def _check_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None) -> None:
    checks.tensors("linear", _OPTIONAL, x=x, weight=_unless_int8(weight, x), bias=bias, residual=residual)
    checks.rows("linear", "x", x)
    _check_activation("linear", activation)
    _check_layer("linear", x.shape[-1], weight, bias)
    checks.shape("linear", "residual", residual, *x.shape[:-1], weight.shape[0])


def _check_mlp(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str, residual: Tensor | None
) -> None:
    checks.tensors(
        "mlp", _OPTIONAL, x=x, w1=_unless_int8(w1, x), w2=_unless_int8(w2, x), b1=b1, b2=b2, residual=residual
    )
    checks.rows("mlp", "x", x)
    _check_activation("mlp", activation)
    _check_layer("mlp", x.shape[-1], w1, b1, "w1", "b1")
    _check_layer("mlp", w1.shape[0], w2, b2, "w2", "b2")
    checks.shape("mlp", "residual", residual, *x.shape[:-1], w2.shape[0])


def _unless_int8(weight: Tensor, x: Tensor) -> Tensor:
    """The weight, which must be like x; or x in place of 8-bit numbers, which need not."""
    return x if isinstance(weight, int8.Int8Weight) else weight


def _check_activation(name: str, activation: str) -> None:
    if activation not in ACTIVATION:
        raise ValueError(f"{name}: unknown activation {activation!r}; choose one of {', '.join(ACTIVATION)}")


def _check_layer(name: str, k: int, weight: Tensor, bias: Tensor | None, w: str = "weight", b: str = "bias") -> None:
    checks.shape(name, w, weight, None, k)
    checks.shape(name, b, bias, weight.shape[0])


@op(check=_check_linear)
def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none", residual: Tensor | None = None
) -> Tensor:
    """activation(x @ weight^T + bias) + residual.

    Args:
        x: [.., K], floating.
        weight: [N, K]; bias: [N] or None.
        activation: "none", "quick_gelu", "gelu" (erf), "gelu_new" (tanh), "relu", "silu" or "selu".
        residual: [.., N] or None.

    Returns:
        [.., N].

    Raises:
        ValueError, TypeError: shapes, dtypes, devices or the activation do not fit.
    """
    y = F.linear(x, int8.in_floats(weight, x.dtype), bias)
    if activation != "none":
        y = ACTIVATION[activation](y)
    return y if residual is None else y + residual


def _triton_takes_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> bool | str:
    if activation == "none" and residual is None and forced_backend() != "triton":
        return "there is nothing to fuse, and cuBLAS is faster at a plain product"
    return checks.kernel_dtype(x)


def _cpu_takes(x: Tensor, *weights: Tensor) -> bool | str:
    of_8_bits = sum(isinstance(w, int8.Int8Weight) for w in weights)
    if of_8_bits == 0:
        return packed.takes(*weights)
    return checks.kernel_dtype(x) if of_8_bits == len(weights) else "only some of the weights are of 8 bits"


@linear.backend("cpu", when=lambda x, weight, *_: _cpu_takes(x, weight))
def _(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None) -> Tensor:
    ready = packed.packed(weight)
    if activation in ready.fused:
        return ready.product(x, bias, activation, residual)
    y = ACTIVATION[activation](ready.product(x, bias))
    return y if residual is None else y + residual


@linear.backend("triton", when=_triton_takes_linear)
def _(*args: Any) -> Tensor:
    from ..kernels import linear

    return linear.linear(*args)


@linear.backward("triton")
def _(grads: Sequence[Tensor], *args: Any) -> Sequence[Tensor]:
    from ..kernels import linear

    return linear.linear_backward(grads[0], *args)


def _check_qkv(
    x: Tensor,
    wq: Tensor,
    bq: Tensor | None,
    wk: Tensor,
    bk: Tensor | None,
    wv: Tensor,
    bv: Tensor | None,
) -> None:
    q, k, v = (_unless_int8(w, x) for w in (wq, wk, wv))
    checks.tensors("qkv", _OPTIONAL, x=x, wq=q, wk=k, wv=v, bq=bq, bk=bk, bv=bv)
    checks.rows("qkv", "x", x)
    for letter, weight, bias in (("q", wq, bq), ("k", wk, bk), ("v", wv, bv)):
        _check_layer("qkv", x.shape[-1], weight, bias, f"w{letter}", f"b{letter}")


@op(check=_check_qkv)
def qkv(
    x: Tensor,
    wq: Tensor,
    bq: Tensor | None,
    wk: Tensor,
    bk: Tensor | None,
    wv: Tensor,
    bv: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs of an attention: x @ wq^T + bq, x @ wk^T + bk, x @ wv^T + bv.

    Args:
        x: [.., K], floating.
        wq: [Nq, K], bq: [Nq] or None; wk, bk, wv, bv: as these.

    Returns:
        [.., Nq], [.., Nk], [.., Nv].

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit.
    """
    layers = (wq, bq), (wk, bk), (wv, bv)
    q, k, v = (F.linear(x, int8.in_floats(w, x.dtype), bias) for w, bias in layers)
    return q, k, v


@qkv.backend("cpu", when=lambda x, wq, bq, wk, bk, wv, bv: _cpu_takes(x, wq, wk, wv))
def _(
    x: Tensor, wq: Tensor, bq: Tensor | None, wk: Tensor, bk: Tensor | None, wv: Tensor, bv: Tensor | None
) -> tuple[Tensor, ...]:
    ready, biases = [packed.packed(w) for w in (wq, wk, wv)], (bq, bk, bv)
    return packed.products(ready, x, biases)


def _triton_takes_qkv(x: Tensor, *_: Tensor | None) -> bool | str:
    return _triton_takes_linear(x, x, None, "none", None)


@qkv.backend("triton", when=_triton_takes_qkv)
def _(*args: Any) -> tuple[Tensor, ...]:
    from ..kernels import linear

    return linear.qkv(*args)


@qkv.backward("triton")
def _(grads: Sequence[Tensor], *args: Any) -> Sequence[Tensor]:
    from ..kernels import linear

    return linear.qkv_backward(grads, *args)


@op(check=_check_mlp)
def mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    activation: str,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(x @ w1^T + b1) @ w2^T + b2 + residual.

    Args:
        x: [.., K], floating.
        w1: [I, K], b1: [I] or None; w2: [N, I], b2: [N] or None.
        activation: as in `linear`.
        residual: [.., N] or None.

    Returns:
        [.., N].

    Raises:
        ValueError, TypeError: shapes, dtypes, devices or the activation do not fit.
    """
    w1, w2 = (int8.in_floats(w, x.dtype) for w in (w1, w2))
    y = F.linear(ACTIVATION[activation](F.linear(x, w1, b1)), w2, b2)
    return y if residual is None else y + residual


@mlp.backend("cpu", when=lambda x, w1, b1, w2, *_: _cpu_takes(x, w1, w2))
def _(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    if activation == "quick_gelu" and packed.form(w1) is packed.BlockedWeight:
        bias = None if b1 is None else b1 * packed.QUICK_GELU
        hidden = packed.packed(w1, packed.QUICK_GELU).product(x, bias, "silu")  # 1.702 quick_gelu
        return packed.packed(w2, 1 / packed.QUICK_GELU).product(hidden, b2, residual=residual)
    first, second = packed.packed(w1), packed.packed(w2)
    if isinstance(first, packed.PanelWeight) and isinstance(second, packed.PanelWeight) and activation in second.fused:
        return first.mlp(x, b1, activation, second, b2, residual)
    return linear(linear(x, first, b1, activation), second, b2, residual=residual)


@mlp.backend("triton", when=lambda x, *_: checks.kernel_dtype(x))
def _(*args: Any) -> Tensor:
    from ..kernels import linear

    return linear.mlp(*args)


@mlp.backward("triton")
def _(grads: Sequence[Tensor], *args: Any) -> Sequence[Tensor]:
    from ..kernels import linear

    return linear.mlp_backward(grads[0], *args)
