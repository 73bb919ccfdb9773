"""What tests of equal bits need of the interpreter."""

import pytest
from interpreter import no_bfloat16_arithmetic  # noqa: F401  for every test here
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from altclip_fast.kernels.launch import INTERPRETED


@pytest.fixture
def one_order(monkeypatch):
    """numpy's matmul, which the interpreter calls, sums a row in an order that depends on its place; a GPU does not."""

    def dot(builder, a, b, total, *options):
        sums = total.data.copy()
        for k in range(a.data.shape[1]):
            sums += a.data[:, k : k + 1] * b.data[k]
        return TensorHandle(sums, total.dtype.scalar)

    if INTERPRETED:
        monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)
