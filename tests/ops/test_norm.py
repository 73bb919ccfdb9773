"""layer_norm and add_layer_norm against their formula; what they refuse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from altclip_fast import ops


def plain(x, weight, bias, eps):
    """One row after the other, in Python's own floats."""
    rows = []
    for row in x.reshape(-1, x.shape[-1]).tolist():
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in row) / len(row) + eps)
        columns = zip(row, weight.tolist(), bias.tolist(), strict=True)
        rows.append([(v - mean) / deviation * w + b for v, w, b in columns])
    return torch.tensor(rows, dtype=torch.float64).reshape(x.shape)


def doubles(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("shape", [(1, 1), (5,), (3, 7), (2, 3, 12)])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_formula(shape, eps):
    x, residual, weight, bias = doubles(*shape), doubles(*shape), doubles(shape[-1]), doubles(shape[-1])
    torch.testing.assert_close(ops.layer_norm(x, weight, bias, eps), plain(x, weight, bias, eps))
    total, normed = ops.add_layer_norm(x, residual, weight, bias, eps)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, plain(x + residual, weight, bias, eps))


def test_gradcheck():
    x, residual, weight, bias = doubles(3, 7), doubles(3, 7), doubles(7), doubles(7)
    assert torch.autograd.gradcheck(ops.layer_norm, (x, weight, bias, 1e-5))
    assert torch.autograd.gradcheck(ops.add_layer_norm, (x, residual, weight, bias, 1e-5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_wider_than_the_dtype(dtype):
    """The squares of 2000 do not fit float16, and their mean is no bfloat16."""
    x = (2000 * torch.randn(9, 64)).to(dtype)
    one, zero = torch.ones(64, dtype=dtype), torch.zeros(64, dtype=dtype)
    found = ops.layer_norm(x, one, zero, 1e-5)
    assert torch.equal(found, plain(x.double(), one, zero, 1e-5).to(dtype))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(2, 33), st.floats(-3, 3), st.integers(0, 2**32))
def test_rows_have_mean_0_and_variance_1_but_for_eps(rows, hidden, shift, seed):
    x = torch.randn(rows, hidden, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift
    y = ops.layer_norm(x, x.new_ones(hidden), x.new_zeros(hidden), 1e-3)
    torch.testing.assert_close(y.mean(-1), y.new_zeros(rows))
    variance = x.var(-1, correction=0)
    torch.testing.assert_close(y.var(-1, correction=0), variance / (variance + 1e-3))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 33), st.floats(-3, 3), st.integers(0, 2**32))
def test_order_and_shift_change_nothing(rows, hidden, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = torch.randn(rows + 2, hidden, generator=generator, dtype=torch.float64).split([rows, 1, 1])
    weight, bias = weight[0], bias[0]
    y = ops.layer_norm(x, weight, bias, 1e-5)
    order, places = torch.randperm(rows, generator=generator), torch.randperm(hidden, generator=generator)
    torch.testing.assert_close(ops.layer_norm(x[order], weight, bias, 1e-5), y[order])
    torch.testing.assert_close(ops.layer_norm(x[:, places], weight[places], bias[places], 1e-5), y[:, places])
    torch.testing.assert_close(ops.layer_norm(x + shift, weight, bias, 1e-5), y)


X, ROW = torch.ones(3, 4), torch.ones(4)
WRONG = [
    ("x", None, TypeError),
    ("x", "x", TypeError),
    ("x", X.long(), TypeError),
    ("x", torch.tensor(1.0), ValueError),
    ("x", X.half(), TypeError),
    ("weight", X[0].to("meta"), ValueError),
    ("weight", None, TypeError),
    ("weight", ROW[:3], ValueError),
    ("weight", X, ValueError),
    ("weight", ROW.double(), TypeError),
    ("bias", ROW.half(), TypeError),
    ("bias", ROW[:1], ValueError),
    ("eps", 0.0, ValueError),
    ("eps", -1e-5, ValueError),
    ("eps", math.nan, ValueError),
]


@pytest.mark.parametrize("name, value, error", WRONG)
def test_layer_norm_refuses(name, value, error):
    with pytest.raises(error, match=rf"layer_norm: .*\b{name}\b"):
        ops.layer_norm(**{"x": X, "weight": ROW, "bias": ROW, "eps": 1e-5, name: value})


@pytest.mark.parametrize(
    "name, value, error",
    [*WRONG, ("residual", None, TypeError), ("residual", X[:2], ValueError), ("residual", X.double(), TypeError)],
)
def test_add_layer_norm_refuses(name, value, error):
    with pytest.raises(error, match=rf"add_layer_norm: .*\b{name}\b"):
        ops.add_layer_norm(**{"x": X, "residual": X, "weight": ROW, "bias": ROW, "eps": 1e-5, name: value})
