"""Small tensors: more threads would only wait for each other."""

import pytest
import torch
from interpreter import no_bfloat16_arithmetic  # noqa: F401  for every test here


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """A limit on recompilations is counted per code object, and `Op.__call__` is one for all ops."""
    yield
    torch._dynamo.reset()
