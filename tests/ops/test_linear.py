"""linear, mlp and the activations against their formulas; what they refuse."""

import math

import pytest
import torch

from altclip_fast import native, ops
from altclip_fast.ops import packed
from altclip_fast.ops.linear import ACTIVATION
from altclip_fast.testing import assert_parity, samples

PLAIN = {
    "none": lambda v: v,
    "quick_gelu": lambda v: v / (1 + math.exp(-1.702 * v)),
    "gelu": lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2,
    "gelu_new": lambda v: v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2,
    "relu": lambda v: max(v, 0.0),
    "silu": lambda v: v / (1 + math.exp(-v)),
    "selu": lambda v: 1.0507009873554805 * (v if v > 0 else 1.6732632423543772 * math.expm1(v)),
}


def plain(x, weight, bias, activation, residual):
    """Sums of products in Python's own floats."""
    rows = [
        [sum(a * w for a, w in zip(row, column, strict=True)) for column in weight.tolist()]
        for row in x.reshape(-1, x.shape[-1]).tolist()
    ]
    y = torch.tensor(rows, dtype=torch.float64).reshape(*x.shape[:-1], weight.shape[0])
    y = y if bias is None else y + bias
    y = torch.tensor([PLAIN[activation](v) for v in y.flatten().tolist()], dtype=torch.float64).reshape(y.shape)
    return y if residual is None else y + residual


def doubles(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_every_activation_has_a_formula():
    assert set(PLAIN) == set(ACTIVATION)


@pytest.mark.parametrize("activation", PLAIN)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
def test_linear(activation, with_bias, with_residual):
    x, weight = doubles(2, 3, 5), doubles(4, 5)
    bias, residual = doubles(4) if with_bias else None, doubles(2, 3, 4) if with_residual else None
    args = x, weight, bias, activation, residual
    torch.testing.assert_close(ops.linear(*args), plain(*args))
    assert torch.autograd.gradcheck(ops.linear, args)


@pytest.mark.parametrize("missing", [(), ("bk",), ("bq", "bk", "bv")])
def test_qkv(missing):
    layers = {}
    for letter, n in (("q", 7), ("k", 4), ("v", 2)):
        layers |= {f"w{letter}": doubles(n, 5), f"b{letter}": doubles(n)}
    given = {"x": doubles(3, 5)} | layers | dict.fromkeys(missing)
    expected = [plain(given["x"], given[f"w{i}"], given[f"b{i}"], "none", None) for i in "qkv"]
    torch.testing.assert_close(ops.qkv(**given), tuple(expected))
    assert torch.autograd.gradcheck(ops.qkv, tuple(given.values()))


@pytest.mark.parametrize("activation", PLAIN)
@pytest.mark.parametrize("missing", [(), ("b1",), ("b2",), ("residual",), ("b1", "b2", "residual")])
def test_mlp(activation, missing):
    given = {
        "x": doubles(3, 5),
        "w1": doubles(7, 5),
        "b1": doubles(7),
        "w2": doubles(4, 7),
        "b2": doubles(4),
        "activation": activation,
        "residual": doubles(3, 4),
    } | dict.fromkeys(missing)
    inner = plain(given["x"], given["w1"], given["b1"], activation, None)
    expected = plain(inner, given["w2"], given["b2"], "none", given["residual"])
    torch.testing.assert_close(ops.mlp(**given), expected)
    assert torch.autograd.gradcheck(ops.mlp, tuple(given.values()))


def test_one_row_and_no_row():
    x, weight, bias = doubles(5), doubles(4, 5), doubles(4)
    torch.testing.assert_close(ops.linear(x, weight, bias), ops.linear(x[None], weight, bias)[0])
    assert ops.linear(x[None][:0], weight, bias).shape == (0, 4)


@pytest.mark.parametrize("activation", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_values_stay_finite(activation, dtype):
    x = torch.tensor([[-3e4], [-100.0], [0.0], [100.0], [3e4]], dtype=dtype)
    y = ops.linear(x, torch.ones(1, 1, dtype=dtype), None, activation)
    assert y.isfinite().all()
    assert (y[-1] >= x[-1]).all() and y[2] == 0


X, W, ROW = torch.ones(3, 4), torch.ones(5, 4), torch.ones(5)


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("x", None, TypeError),
        ("x", [1.0], TypeError),
        ("x", X.long(), TypeError),
        ("x", torch.tensor(1.0), ValueError),
        ("weight", None, TypeError),
        ("weight", W.t(), ValueError),
        ("weight", ROW, ValueError),
        ("weight", torch.tensor(1.0), ValueError),
        ("weight", W.bfloat16(), TypeError),
        ("weight", W.to("meta"), ValueError),
        ("bias", ROW[:4], ValueError),
        ("bias", W, ValueError),
        ("bias", ROW.double(), TypeError),
        ("bias", 1.0, TypeError),
        ("activation", "swish", ValueError),
        ("activation", "", ValueError),
        ("residual", X, ValueError),
        ("residual", torch.ones(2, 5), ValueError),
        ("residual", torch.ones(3, 5).half(), TypeError),
    ],
)
def test_linear_refuses(name, value, error):
    with pytest.raises(error, match=rf"linear: .*\b{name}\b"):
        ops.linear(**{"x": X, "weight": W, "bias": ROW, "residual": torch.ones(3, 5), name: value})


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("x", None, TypeError),
        ("x", X.int(), TypeError),
        ("x", torch.tensor(1.0), ValueError),
        ("wq", None, TypeError),
        ("wk", W.t(), ValueError),
        ("wv", W.half(), TypeError),
        ("bq", ROW[:4], ValueError),
        ("bk", ROW.half(), TypeError),
        ("bv", 1.0, TypeError),
    ],
)
def test_qkv_refuses(name, value, error):
    given = {f"{kind}{letter}": tensor for letter in "qkv" for kind, tensor in (("w", W), ("b", ROW))}
    with pytest.raises(error, match=rf"qkv: .*\b{name}\b"):
        ops.qkv(**{"x": X, **given, name: value})


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("x", None, TypeError),
        ("x", X.int(), TypeError),
        ("x", torch.tensor(1.0), ValueError),
        ("w1", None, TypeError),
        ("w1", W.t(), ValueError),
        ("w1", W.half(), TypeError),
        ("w1", torch.tensor(1.0), ValueError),
        ("b1", ROW[:4], ValueError),
        ("b1", ROW.half(), TypeError),
        ("w2", None, TypeError),
        ("w2", W, ValueError),
        ("w2", torch.ones(2, 5).half(), TypeError),
        ("b2", ROW, ValueError),
        ("b2", torch.ones(2).double(), TypeError),
        ("activation", "tanh", ValueError),
        ("residual", X, ValueError),
        ("residual", torch.ones(3, 2).to("meta"), ValueError),
    ],
)
def test_mlp_refuses(name, value, error):
    with pytest.raises(error, match=rf"mlp: .*\b{name}\b"):
        ops.mlp(
            **{
                "x": X,
                "w1": W,
                "b1": ROW,
                "w2": torch.ones(2, 5),
                "b2": torch.ones(2),
                "activation": "gelu",
                "residual": torch.ones(3, 2),
                name: value,
            }
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", ["linear", "qkv", "mlp"])
@pytest.mark.parametrize("form", ["PanelWeight", "BlockedWeight"])
def test_either_way_of_packing(form, op, dtype, monkeypatch):
    own = packed._own_dtypes()
    if (reason := packed.why_not(dtype)) is not None or (form == "PanelWeight" and dtype not in own):
        pytest.skip(reason or f"{dtype} is left to oneDNN here")
    monkeypatch.setattr(packed, "_own_dtypes", lambda: own if form == "PanelWeight" else set())
    forms = set()
    for _, args in samples(op, dtype):
        with torch.no_grad():
            assert_parity(op, args, backend="cpu")
        forms.add(packed.form(args[1]).__name__)
    assert form in forms


def test_rows_that_are_no_whole_lanes_and_weights_apart():
    if native.missing() is not None:
        pytest.skip(native.missing())
    wide = torch.randn(7, 34)
    for dtype in packed._own_dtypes():
        x, weight = wide.to(dtype)[:, 1:33], torch.randn(70, 40).to(dtype)[:, :32]
        with torch.no_grad():
            assert_parity("linear", (x, weight), backend="cpu")
            assert_parity("linear", (x[::2], weight[::3]), backend="cpu")
