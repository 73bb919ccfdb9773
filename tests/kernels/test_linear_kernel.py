"""The GEMM behind `linear` and `mlp`: every configuration, way of loading and epilogue, out of the interpreter."""

from contextlib import nullcontext

import pytest
import torch
import triton
import triton.language as tl
from fences import fenced

from altclip_fast.dispatch import BackendUnavailableError, use_backend
from altclip_fast.kernels import linear as kernel
from altclip_fast.kernels.launch import LAUNCHES, assuming, recording
from altclip_fast.ops import linear, mlp
from altclip_fast.ops.linear import ACTIVATION
from altclip_fast.testing import assert_parity, samples

CAPABILITIES = [80, 90]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=CAPABILITIES)
def on_capability(request):
    """On a GPU what is there is tested."""
    with nullcontext() if DEVICE == "cuda" else assuming(request.param):
        yield request.param


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def layer(rows, k, n, dtype=torch.float32):
    """x, weight, bias and residual."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, k), (n, k), (n,), (rows, n))
    x, weight, bias, residual = (torch.randn(s, generator=generator).to(dtype).to(DEVICE) for s in shapes)
    return x, weight * k**-0.5, bias, residual


def close(found, x, weight, bias, residual):
    truth = torch.nn.functional.gelu(x.double() @ weight.double().t() + bias.double()) + residual.double()
    torch.testing.assert_close(found.double(), truth, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("index", range(len(kernel.CANDIDATES)))
def test_candidates(on_capability, index):
    config = kernel.CANDIDATES[index]
    args = layer(config["BLOCK_M"] + 5, 2 * config["BLOCK_K"] + 8, config["BLOCK_N"] + 24, torch.float16)
    x, weight, bias, residual = args
    close(kernel.product(x, weight, bias, "gelu", residual, config=config), *args)


@pytest.mark.parametrize("config", kernel.CANDIDATES_FLOAT32, ids=str)
def test_float32_candidates(on_capability, config):
    args = x, weight, bias, residual = layer(config["BLOCK_M"] + 5, 72, config["BLOCK_N"] + 24)
    close(kernel.product(x, weight, bias, "gelu", residual, config=config), *args)


def test_candidates_of_float32_sum_in_one_order():
    """Which of them a GPU's table names may depend on the number of rows of the calls that were measured."""
    for config in kernel.CANDIDATES_FLOAT32:
        assert config["BLOCK_K"] == kernel.CANDIDATES_FLOAT32[0]["BLOCK_K"]
        assert config["SPLIT_K"] == 1 and config["BLOCK_M"] >= 64


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter's default is that of sm_90")
@pytest.mark.parametrize("op", ["linear", "mlp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parity_on_sm_80(op, dtype):
    names = ["no bias, gelu, residual", "transposed", "gelu", "rows with gaps", "three dimensions"]
    with assuming(80):
        for name, args in samples(op, dtype):
            if name in names:
                assert_parity(op, args, backend="triton", gradients=True)


@pytest.mark.skipif(DEVICE == "cuda", reason="stands in for the instruction that a GPU has")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_approximate_activations(monkeypatch, dtype):
    """tanh.approx.f32 at its worst: 2^-11 off."""

    def tanh(assembly, constraints, arguments, **named):
        assert assembly.startswith("tanh.approx.f32")
        return (2.0 / (1.0 + tl.exp(-2.0 * arguments[0])) - 1.0) * (1 + 2**-11)

    monkeypatch.setattr(kernel, "_approximate", lambda x: True)
    monkeypatch.setattr(tl, "inline_asm_elementwise", tanh)
    for name, args in samples("linear", dtype):
        if name in ACTIVATION:
            assert_parity("linear", args, backend="triton", gradients=True)


@triton.jit
def _gelu_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place)
    tl.store(out_ptr + place, kernel._normal_cdf(x, True) * x)


@pytest.mark.skipif(DEVICE == "cuda", reason="stands in for the instruction that a GPU has")
def test_the_approximate_gelu_is_as_good_as_it_says(monkeypatch):
    """See `_normal_cdf`; with an exact tanh."""

    def tanh(assembly, constraints, arguments, **named):
        return 2.0 / (1.0 + tl.exp(-2.0 * arguments[0])) - 1.0

    monkeypatch.setattr(tl, "inline_asm_elementwise", tanh)
    x = torch.linspace(-9, 9, 4096)
    out = torch.empty_like(x)
    _gelu_kernel[(1,)](x, out, BLOCK=len(x))
    truth = torch.nn.functional.gelu(x.double())
    assert float((out - truth).abs().max()) <= 3e-5


@pytest.mark.parametrize("margin", [8, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_is_read_beyond_the_operands(on_capability, dtype, margin):
    args = layer(41, 56, 40, dtype)
    x, weight, bias, residual = (fenced(a, margin) for a in args)
    assert kernel.linear(x, weight, bias, "gelu", residual).equal(kernel.linear(*args[:3], "gelu", args[3]))
    grad = args[3] + 1
    found = kernel.linear_backward(fenced(grad, margin), x, weight, bias, "gelu", residual)
    expected = kernel.linear_backward(grad, *args[:3], "gelu", args[3])
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


def test_batch_invariance(on_capability, one_order):
    x, weight, bias, residual = layer(150, 200, 48)
    whole = kernel.linear(x, weight, bias, "quick_gelu", residual)
    for some in (slice(0, 1), slice(63, 64), slice(149, 150), slice(3, 70)):
        assert kernel.linear(x[some], weight, bias, "quick_gelu", residual[some]).equal(whole[some])


def test_batch_invariance_of_mlp(on_capability, one_order, monkeypatch):
    x, w1, b1, _ = layer(150, 40, 64)
    _, w2, b2, _ = layer(1, 64, 40)
    whole = kernel.mlp(x, w1, b1, w2, b2, "gelu", x)
    monkeypatch.setattr(kernel, "_mlp_rows", lambda w1: 64)
    assert kernel.mlp(x, w1, b1, w2, b2, "gelu", x).equal(whole)
    assert kernel.mlp(x[70:71], w1, b1, w2, b2, "gelu", x[70:71]).equal(whole[70:71])


def test_mlp_runs_in_chunks(monkeypatch):
    x, w1, b1, _ = layer(150, 40, 64, torch.float16)
    _, w2, b2, _ = layer(1, 64, 40, torch.float16)
    monkeypatch.setattr(kernel, "_mlp_rows", lambda w1: 64)
    started = LAUNCHES["_linear_kernel"]
    assert_parity(mlp, (x, w1, b1, w2, b2, "gelu", x), backend="triton")
    assert LAUNCHES["_linear_kernel"] == started + 6


def test_mlp_chunks_stay_in_the_cache():
    assert kernel._mlp_rows(meta(4096, 1024)) == 4224  # ViT-L/14: 34.6 MB
    assert kernel._mlp_rows(meta(4096, 1024, dtype=torch.float32)) == 2304
    assert kernel._mlp_rows(meta(10**9, 1)) == 128


@pytest.mark.parametrize("rows, k, n", [(0, 8, 4), (5, 0, 4), (5, 8, 0), (0, 0, 0)])
def test_empty(on_capability, rows, k, n):
    x, weight, bias, residual = layer(rows, k, n) if k else (torch.ones(5, 0), torch.ones(n, 0), torch.ones(n), None)
    x, residual = x[:rows], None if residual is None else residual[:rows]
    assert_parity(linear, (x, weight, bias, "gelu", residual), backend="triton", gradients=True)


def test_few_rows_split_k():
    """And the epilogue follows in a second pass."""
    x, weight, bias, residual = layer(3, 4096, 64, torch.float16)
    started = LAUNCHES["_linear_reduce_kernel"]
    close(kernel.linear(x, weight, bias, "gelu", residual), x, weight, bias, residual)
    assert LAUNCHES["_linear_reduce_kernel"] == started + 1
    kernel.linear(x.float(), weight.float())
    assert LAUNCHES["_linear_reduce_kernel"] == started + 1, "in float32 the order would depend on the rows"


def choice(x, weight, capability=90):
    with recording(capability) as launches:
        kernel.product(x, weight)
    return launches[0].arguments


def test_large_products_take_large_tiles():
    arguments = choice(meta(4112, 1024), meta(4096, 1024))
    assert (arguments["BLOCK_M"], arguments["BLOCK_N"], arguments["SPLIT_K"]) == (128, 256, 1)


def test_float32_is_configured_without_regard_to_rows():
    for n, k in ((1024, 1024), (4096, 1024), (1024, 4096), (768, 1024), (1, 1), (101, 13)):
        found = [choice(meta(m, k, dtype=torch.float32), meta(n, k, dtype=torch.float32)) for m in (1, 64, 9999)]
        blocks = [[a[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "SPLIT_K")] for a in found]
        assert blocks[0] == blocks[1] == blocks[2]


@pytest.mark.parametrize(
    "x, on_80, on_90",
    [
        (meta(64, 32), "rows", "row blocks"),
        (meta(32, 64).t(), "columns", "column blocks"),
        (meta(32, 64, dtype=torch.float32).t(), "columns", "columns"),
        (meta(64, 33), "rows", "rows"),
        (meta(64, 40)[:, 3:35], "rows", "rows"),
        (meta(1, 32).expand(64, 32), "rows", "rows"),
        (meta(64, 64)[:, ::2], "rows", "rows"),
    ],
)
def test_ways_of_loading(x, on_80, on_90):
    assert choice(x, x, 80)["X"] == on_80
    assert choice(x, x, 90)["X"] == on_90


def test_tf32_only_by_torchs_switch():
    x = meta(64, 32, dtype=torch.float32)
    assert choice(x, x)["PRECISION"] == "tf32x3"
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert choice(x, x)["PRECISION"] == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_a_plain_product_is_left_to_torch():
    x, weight, bias, _ = layer(3, 8, 4)
    assert linear.choose(x, weight, bias) == "reference"
    with use_backend("triton"):
        assert linear.choose(x, weight, bias) == "triton"
        with pytest.raises(BackendUnavailableError, match="float64"):
            linear(x.double(), weight.double())
