"""What the interpreter of Triton gets wrong, kept out of the tests of kernels."""

import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder


@pytest.fixture(autouse=True)
def no_bfloat16_arithmetic(monkeypatch):
    """It computes with the bits of bfloat16 as if they were integers: loads, stores and conversions alone are right."""
    for name in ("create_dot", "binary_op", "unary_op"):
        monkeypatch.setattr(InterpreterBuilder, name, _refusing(name, getattr(InterpreterBuilder, name)))


def _refusing(name, run):
    def checked(builder, *arguments):
        for argument in arguments[:2]:
            if getattr(getattr(argument, "dtype", None), "scalar", None) is tl.bfloat16:
                raise AssertionError(f"{name} of bfloat16 in the interpreter")
        return run(builder, *arguments)

    return checked
