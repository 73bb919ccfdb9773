"""The layer norms where parity on the ops' samples does not reach: long walks of the backward, the sum's rounding."""

import pytest
import torch

from altclip_fast.dispatch import use_backend
from altclip_fast.kernels import norm as kernel
from altclip_fast.ops import add_layer_norm, layer_norm
from altclip_fast.testing import assert_parity

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype).to(DEVICE)


@pytest.mark.parametrize("rows", [64, 150])
def test_backward_of_more_rows_than_the_programs_take_at_once(monkeypatch, rows):
    monkeypatch.setattr(kernel, "PROGRAMS", 2)
    x, residual, weight, bias = make(rows, 64), make(rows, 64), make(64), make(64)
    assert_parity("layer_norm", (x, weight, bias, 1e-5), backend="triton", gradients=True)
    assert_parity("add_layer_norm", (x, residual, weight, bias, 1e-5), backend="triton", gradients=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_sum_is_normalised_as_it_is_stored(dtype):
    x, residual, weight, bias = (make(*shape, dtype=dtype) for shape in ((9, 40), (9, 40), (40,), (40,)))
    with use_backend("triton"):
        total, normed = add_layer_norm(x, residual, weight, bias, 1e-5)
        assert torch.equal(normed, layer_norm(total, weight, bias, 1e-5))
