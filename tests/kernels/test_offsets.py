"""Offsets of more than 2^31 elements, in memory of which only a few pages are ever touched."""

import pytest
import torch

from altclip_fast import ops  # noqa: F401  fills OPS
from altclip_fast.dispatch import OPS, use_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FAR = 2**31
DTYPE = torch.float16


@pytest.fixture(scope="module")
def memory():
    """As much before the middle as behind it: an offset that has lost its highest bit is wrong, and no crash."""
    return torch.empty(2 * FAR + 2**20, dtype=DTYPE, device=DEVICE)


def far(x, dim, memory):
    """The same values; the last of them along `dim` is more than 2^31 elements behind the first."""
    strides = list(torch.empty(x.shape, device="meta").stride())
    strides[dim] = FAR // (x.shape[dim] - 1) + 1
    if dim != 0:  # the others as if this one had no columns
        others = [n for i, n in enumerate(x.shape) if i != dim]
        dense = iter(torch.empty(others, device="meta").stride())
        strides = [strides[dim] if i == dim else next(dense) for i in range(x.dim())]
    view = torch.as_strided(memory, x.shape, strides, FAR)
    view.copy_(x)
    return view


def make(*shape):
    return torch.randn(shape, device=DEVICE).to(DTYPE)


def ids(high, count):
    return torch.arange(count, device=DEVICE) % high


def calls():
    """(op, its arguments, places of the tensors that any strides are read of)."""
    row = make(24)
    yield "layer_norm", (make(5, 24), row, row, 1e-5), (0,)
    yield "add_layer_norm", (make(5, 24), make(5, 24), row, row, 1e-5), (0, 1)
    yield "linear", (make(5, 24), make(7, 24), make(7), "gelu", make(5, 7)), (0, 1, 4)
    layers = (part for n in (7, 5, 8) for part in (make(n, 24), make(n)))
    yield "qkv", (make(5, 24), *layers), (0, 1, 5)
    sequences = torch.tensor([0, 5], dtype=torch.int32, device=DEVICE)
    yield "attention", (*(make(5, 2, 16) for _ in "qkv"), sequences, sequences, 5, 5, False, None), (0, 1, 2)
    yield "patch_embed", (make(2, 3, 8, 8), make(9, 3, 4, 4), make(9), make(5, 9)), (0, 3)
    tables = make(11, 24), make(5, 24), make(2, 24)
    yield "text_embed", (ids(11, 6), ids(5, 6), ids(2, 6), *tables, row, row, 1e-5), (3, 4, 5)
    yield "l2_normalize", (make(5, 24),), (0,)
    for name, *k in (("similarity",), ("similarity_softmax",), ("similarity_topk", 3), ("similarity_argmax",)):
        yield name, (make(5, 24), make(9, 24), *k, 1.0, True), (0, 1)
    yield "contrastive_loss", (make(9, 24), make(9, 24), make(1)[0], True), (0, 1)


CASES = [
    pytest.param(op, args, i, dim, id=f"{op}-{i}-{dim}")
    for op, args, places in calls()
    for i in places
    for dim in range(args[i].dim())
]


@pytest.mark.parametrize("op, args, place, dim", CASES)
def test_a_far_operand(op, args, place, dim, memory):
    distant = list(args)
    distant[place] = far(args[place], dim, memory)
    with use_backend("triton"):
        found, expected = OPS[op](*distant), OPS[op](*args)
    if isinstance(found, torch.Tensor):
        found, expected = (found,), (expected,)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, equal_nan=False)
