"""Linears of 8-bit numbers: the kernels against the formulas of the module."""

import pytest
import torch

from altclip_fast import native, ops, use_backend
from altclip_fast.ops import int8
from altclip_fast.ops.linear import ACTIVATION
from altclip_fast.ops.packed import pack

SHAPES = [(1, 4, 1), (5, 12, 3), (6, 64, 33), (7, 1024, 64), (193, 100, 70), (200, 260, 130)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True, scope="module")
def built():
    assert native.missing() is None


def made(rows, k, n, dtype=torch.float32):
    torch.manual_seed(rows * k + n)
    return torch.randn(rows, k).to(dtype), (torch.randn(n, k) / k**0.5).to(dtype), torch.randn(n).to(dtype)


def quantized(x):
    """The values, and the step and the low of each row."""
    wide = x.float()
    low, high = wide.amin(1, keepdim=True), wide.amax(1, keepdim=True)
    width = high - low
    inverse = torch.where(width > 0, torch.full_like(width, 255) / width, 0)
    return ((wide - low) * inverse).round(), torch.cat((width / 255, low), 1)


def restored(x):
    """What a product with the identity makes of rows: their values, back in floats."""
    weight = int8.pack_int8(torch.eye(x.shape[1]).mul(127).to(torch.int8), torch.full((x.shape[1],), 1 / 127))
    with torch.no_grad():
        return ops.linear(x, weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, k", [(1, 4), (2, 16), (3, 20), (5, 36), (9, 1024), (0, 8)])
def test_rows(rows, k, dtype):
    x = made(rows, k, 1, dtype)[0]
    values, ranges = quantized(x) if rows else (torch.empty(0, k), torch.empty(0, 2))
    torch.testing.assert_close(restored(x), (values.double() * ranges[:, :1] + ranges[:, 1:]).to(dtype))


def test_rows_that_are_constant_or_apart():
    wide = torch.randn(4, 40)
    wide[1] = 3.25
    for x in (wide, wide[:, 3:35], wide[::2]):
        values, ranges = quantized(x)
        torch.testing.assert_close(restored(x), values * ranges[:, :1] + ranges[:, 1:])


def test_weights():
    weight = torch.tensor([[127.0, -254.0, 1.0, 0.0], [0, 0, 0, 0], [0.5, 0.25, -0.5, 0.1]])
    numbers, scale = int8.quantize_weight(weight)
    assert numbers.tolist() == [[64, -127, 0, 0], [0, 0, 0, 0], [127, 64, -127, 25]]
    torch.testing.assert_close(scale, torch.tensor([2.0, 0.0, 0.5 / 127]))


# The other activations see what was rounded to the dtype.
EXACT = [(a, dtype) for a in ACTIVATION for dtype in DTYPES if a in int8.Int8Weight.fused or dtype is torch.float32]


@pytest.mark.parametrize("activation, dtype", EXACT)
@pytest.mark.parametrize("rows, k, n", SHAPES)
def test_product(rows, k, n, activation, dtype):
    x, weight, bias = made(rows, k, n, dtype)
    residual = torch.randn(rows, n).to(dtype)
    numbers, scale = int8.quantize_weight(weight)
    values, ranges = quantized(x)
    exact = (values.double() * ranges[:, :1] + ranges[:, 1:]) @ (numbers.double() * scale[:, None]).T
    with torch.no_grad():
        packed = int8.pack_int8(*int8.quantize_weight(weight))
        for b, r in ((bias, residual), (bias, None), (None, None)):
            activated = ACTIVATION[activation](exact if b is None else exact + b.double())
            expected = activated if r is None else activated + r.double()
            assert ops.linear.choose(x, packed, b, activation, r) == "cpu"
            found = ops.linear(x, packed, b, activation, r)
            if dtype is torch.bfloat16:  # rounded once, after an activation that is found to 1e-4 of itself
                limit = 2**-8 * expected.abs() + 1.2e-4 * activated.abs() + 1e-5
                assert ((found.double() - expected).abs() <= limit).all()
            else:
                torch.testing.assert_close(found, expected.to(dtype))


def test_a_row_is_the_same_in_any_company():
    x, weight, bias = made(400, 96, 130)
    with torch.no_grad():
        packed = int8.pack_int8(*int8.quantize_weight(weight))
        whole = ops.linear(x, packed, bias, "gelu")
        for rows in (slice(0, 1), slice(3, 9), slice(195, 400)):
            assert torch.equal(ops.linear(x[rows], packed, bias, "gelu"), whole[rows])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 20, 63])
def test_what_is_not_finite_stays_in_its_row(bad, place):
    x, weight, bias = made(8, 64, 40)
    with torch.no_grad():
        packed = int8.pack_int8(*int8.quantize_weight(weight))
        clean = ops.linear(x, packed, bias)
        x[3, place] = bad
        found = ops.linear(x, packed, bias)
    assert found[3].isnan().all()
    assert torch.equal(found[:3], clean[:3]) and torch.equal(found[4:], clean[4:])


def test_other_backends_compute_in_floats():
    x, weight, bias = made(5, 16, 8)
    numbers, scale = int8.quantize_weight(weight)
    packed = int8.pack_int8(numbers, scale)
    with use_backend("reference"):
        assert torch.equal(ops.linear(x, packed, bias), ops.linear(x, numbers * scale[:, None], bias))


def test_qkv_is_three_linears():
    x, *first = made(9, 32, 48)
    layers = [first, made(9, 32, 8)[1:], made(9, 32, 70)[1:]]
    with torch.no_grad():
        weights = [int8.pack_int8(*int8.quantize_weight(w)) for w, _ in layers]
        found = ops.qkv(x, *(part for w, (_, bias) in zip(weights, layers, strict=True) for part in (w, bias)))
        for y, w, (_, bias) in zip(found, weights, layers, strict=True):
            assert torch.equal(y, ops.linear(x, w, bias))


@pytest.mark.parametrize("quantised", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_some_layers_of_8_bits_are_computed_in_floats(quantised):
    """A kernel takes all of them or none: it would read one kind of numbers as the other."""
    x, *layer = made(9, 32, 32)
    layers = [layer, made(9, 32, 32)[1:], made(9, 32, 32)[1:]]
    floats, mixed = [], []
    for i, (weight, bias) in enumerate(layers):
        numbers, scale = int8.quantize_weight(weight)
        floats += [numbers * scale[:, None] if i in quantised else weight, bias]
        mixed += [int8.pack_int8(numbers, scale) if i in quantised else pack(weight), bias]
    with torch.no_grad():
        assert ops.qkv.choose(x, *mixed) == "reference"
        for found, wanted in zip(ops.qkv(x, *mixed), ops.qkv(x, *floats), strict=True):
            torch.testing.assert_close(found, wanted)
        if {0, 1} & set(quantised):
            assert ops.mlp.choose(x, *mixed[:4], "gelu") == "reference"
            torch.testing.assert_close(ops.mlp(x, *mixed[:4], "gelu"), ops.mlp(x, *floats[:4], "gelu"))


def test_mlp_is_two_linears():
    x, w1, b1 = made(9, 32, 48)
    _, w2, b2 = made(9, 48, 32)
    with torch.no_grad():
        p1, p2 = (int8.pack_int8(*int8.quantize_weight(w)) for w in (w1, w2))
        expected = ops.linear(ops.linear(x, p1, b1, "quick_gelu"), p2, b2, residual=x)
        assert torch.equal(ops.mlp(x, p1, b1, p2, b2, "quick_gelu", x), expected)


def test_any_shape_of_rows():
    x, weight, bias = made(12, 16, 8)
    with torch.no_grad():
        packed = int8.pack_int8(*int8.quantize_weight(weight))
        flat = ops.linear(x, packed, bias)
        assert torch.equal(ops.linear(x.view(3, 4, 16), packed, bias), flat.view(3, 4, 8))
        spread = x.t().contiguous().t()
        assert torch.equal(ops.linear(spread, packed, bias), flat)
        assert ops.linear(x[:0], packed, bias).shape == (0, 8)
