"""The joint head's native kernels: many tiles, chunks and parts, ties, NaN, every instruction set, and their memory."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from altclip_fast import ops
from altclip_fast.dispatch import use_backend
from altclip_fast.ops import contrastive
from altclip_fast.testing import assert_parity

ROOT = Path(__file__).parents[2]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAN, INF = math.nan, math.inf
PAIRS = {
    "similarity": (),
    "similarity_softmax": (),
    "similarity_argmax": (),
    "similarity_topk": (7,),
}


def cpu(op, *args):
    with use_backend("cpu"):
        return op(*args)


def call(name, a, b, scale=1.0, normalize=True):
    found = cpu(getattr(ops, name), a, b, *PAIRS[name], scale, normalize)
    return found if isinstance(found, tuple) else (found,)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "n, m, d", [(1, 1, 1), (257, 77, 512), (6, 129, 640), (7, 64, 768), (65, 200, 1024), (2, 131, 1), (3, 70, 2048)]
)
def test_shapes(n, m, d, dtype, two_threads):
    a, b = torch.randn(n, d).to(dtype), torch.randn(m, d).to(dtype)
    for name in ("similarity", "similarity_softmax", "similarity_argmax"):
        assert_parity(name, (a, b, 3.0), backend="cpu")
    for k in {1, min(5, m), min(100, m), m}:
        assert_parity("similarity_topk", (a, b, k), backend="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("n, m, d", [(4096, 4096, 64), (1, 1_000_003, 32)])
def test_large_shapes(n, m, d, two_threads):
    a, b = torch.randn(n, d), torch.randn(m, d)
    for k in (1, 100):
        assert_parity("similarity_topk", (a, b, k), backend="cpu")
    assert_parity("similarity_softmax", (a, b, 50.0), backend="cpu")


# The best


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [3, 20])
@pytest.mark.parametrize("k", [1, 2, 5, 100, 300])
def test_topk_is_a_stable_sort_of_the_scores(k, n, dtype, two_threads):
    """Small integers, so that there are many ties and no rounding."""
    a, b = torch.randint(-2, 3, (n, 3)).to(dtype), torch.randint(-2, 3, (300, 3)).to(dtype)
    values, indices = cpu(ops.similarity_topk, a, b, k, 1.0, False)
    expected, order = (a @ b.t()).sort(dim=-1, descending=True, stable=True)
    assert torch.equal(indices, order[:, :k]) and torch.equal(values, expected[:, :k])
    assert torch.equal(cpu(ops.similarity_argmax, a, b, 1.0, False), order[:, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_best_are_those_of_the_scores(dtype, two_threads):
    """Bit for bit, ties after rounding included."""
    a, b = torch.randn(13, 40).to(dtype), torch.randn(700, 40).to(dtype)
    values, indices = cpu(ops.similarity_topk, a, b, 256, 3.0)
    expected, order = cpu(ops.similarity, a, b, 3.0).sort(dim=-1, descending=True, stable=True)
    assert torch.equal(values, expected[:, :256]) and torch.equal(indices, order[:, :256])


def test_nan_and_infinity_among_the_best():
    b = torch.zeros(200, 1)
    b[[3, 70, 150], 0] = torch.tensor([NAN, INF, NAN])
    b[5] = -INF
    values, indices = cpu(ops.similarity_topk, torch.ones(2, 1), b, 200, 1.0, False)
    assert indices[:, :5].tolist() == [[3, 150, 70, 0, 1]] * 2 and indices[:, -1].tolist() == [5, 5]
    assert values[:, :2].isnan().all() and values[0, 2] == INF and values[0, -1] == -INF
    many = torch.full((150, 1), NAN)
    assert cpu(ops.similarity_topk, torch.ones(1, 1), many, 3)[1].tolist() == [[0, 1, 2]]


def test_minus_zero_equals_zero():
    b = torch.tensor([[-0.0], [0.0], [-0.0]])
    assert cpu(ops.similarity_topk, torch.ones(1, 1), b, 3, 1.0, False)[1].tolist() == [[0, 1, 2]]


# Rows


@pytest.mark.parametrize("name", PAIRS)
def test_a_row_has_the_same_bits_in_any_batch(name, two_threads):
    a, b = torch.randn(203, 100), torch.randn(333, 100)
    whole = call(name, a, b, 20.0)
    for some in (slice(0, 1), slice(5, 11), slice(1, 8), slice(100, 203)):
        assert all(torch.equal(x, y[some]) for x, y in zip(call(name, a[some], b, 20.0), whole, strict=True))
    torch.set_num_threads(1)
    assert all(torch.equal(x, y) for x, y in zip(call(name, a, b, 20.0), whole, strict=True))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_outside_of_the_rows_matters(name, dtype):
    def fenced(x):
        wide = x.new_full((x.shape[0] + 2, x.shape[1] + 5), NAN)
        wide[1:-1, 2:-3] = x
        return wide[1:-1, 2:-3]

    a, b = torch.randn(8, 37).to(dtype), torch.randn(133, 37).to(dtype)
    expected = call(name, a, b, 3.0)
    for other in ((fenced(a), fenced(b)), (a.t().contiguous().t(), b.t().contiguous().t())):
        assert all(torch.equal(x, y) for x, y in zip(call(name, *other, 3.0), expected, strict=True))


@pytest.mark.parametrize("name", ["similarity", "similarity_softmax"])
@pytest.mark.parametrize("n", [5, 20])
def test_nan_stays_in_its_row(name, n):
    a, b = torch.randn(n, 24), torch.randn(150, 24)
    a[2, 7] = NAN
    (found,) = call(name, a, b)
    assert found[2].isnan().all() and found[torch.arange(n) != 2].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_rows_score_zero(dtype):
    a, b = torch.randn(9, 24).to(dtype), torch.randn(70, 24).to(dtype)
    a[3], b[:2] = 0, 0
    (scores,) = call("similarity", a, b, 100.0)
    assert not scores[3].any() and not scores[:, :2].any() and scores.isfinite().all()
    assert not cpu(ops.l2_normalize, a)[3].any()


@pytest.mark.parametrize("normalize", [True, False])
def test_nothing(normalize):
    for n, m, d in ((0, 5, 8), (3, 0, 8), (0, 0, 0), (3, 4, 0)):
        a, b = torch.randn(n, d), torch.randn(m, d)
        assert torch.equal(cpu(ops.similarity, a, b, 1.0, normalize), torch.zeros(n, m))
        assert cpu(ops.similarity_softmax, a, b, 1.0, normalize).shape == (n, m)
        if m:
            values, indices = cpu(ops.similarity_topk, a, b, 2, 1.0, normalize)
            assert values.shape == indices.shape == (n, 2)
    assert cpu(ops.l2_normalize, torch.ones(3, 0)).shape == (3, 0)


# The loss


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, d", [(1, 1), (64, 64), (65, 7), (300, 70), (520, 129)])
def test_loss(n, d, dtype, two_threads):
    image, text = torch.randn(n, d).to(dtype), torch.randn(n, d).to(dtype)
    args = (image, text, torch.tensor(2.3).to(dtype))
    assert_parity("contrastive_loss", args, backend="cpu", gradients=True)
    assert_parity("contrastive_loss", (image * 0.1, text * 0.1, args[2], False), backend="cpu", gradients=True)


def test_loss_of_a_perfect_match():
    eye = torch.eye(70)
    assert cpu(ops.contrastive_loss, eye, eye, torch.tensor(9.0)).item() == 0
    assert_parity("contrastive_loss", (eye, eye, torch.tensor(1.0)), backend="cpu", gradients=True)


@pytest.mark.parametrize("wrong", [NAN, INF])
def test_loss_of_nan_is_nan(wrong):
    image, text = torch.randn(80, 8), torch.randn(80, 8)
    text[70, 3] = wrong
    assert cpu(ops.contrastive_loss, image, text, torch.tensor(1.0)).isnan()


@pytest.mark.parametrize("offset", [0, 3, -20, 75, -100, 500])
def test_parts_of_a_loss(offset, two_threads):
    """Some texts and some images of a batch, natively and in plain torch."""
    text, image = torch.randn(90, 40), torch.randn(150, 40)
    args = (text, image, 7.0, True, offset)
    native = contrastive.contrastive_sums(*args)
    with use_backend("reference"):
        plain = contrastive.contrastive_sums(*args)
        pairs = torch.arange(90)[(torch.arange(90) + offset >= 0) & (torch.arange(90) + offset < 150)]
        gradients = contrastive.contrastive_gradients(text, image, *plain[:2], 7.0, True, offset)
    torch.testing.assert_close(native[:2], plain[:2])
    torch.testing.assert_close(native[2][pairs], plain[2][pairs])
    found = contrastive.contrastive_gradients(text, image, *plain[:2], 7.0, True, offset)
    torch.testing.assert_close(found, gradients)


def test_where_it_runs():
    b = torch.randn(2000, 8)
    assert {op.choose(b, b) for op in (ops.similarity, ops.similarity_softmax, ops.similarity_argmax)} == {"cpu"}
    assert ops.similarity_topk.choose(b, b, 2000) == ops.l2_normalize.choose(b) == "cpu"
    scale = torch.tensor(1.0)
    assert ops.contrastive_loss.choose(b[:2], b[:2], scale) == "cpu"
    trained = b.clone().requires_grad_()
    assert ops.contrastive_loss.choose(trained, b, scale) == "cpu"
    assert ops.contrastive_loss.choose(trained[:2], b[:2], scale) == "reference"
    assert ops.similarity.choose(trained, b) == ops.similarity.choose(b.double(), b.double()) == "reference"


def run_alone(code, **environment):
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("instructions", ["default", "avx2", "avx512"])
def test_every_instruction_set(instructions):
    code = """
import torch
from altclip_fast.testing import assert_parity, samples
for op in ("l2_normalize", "similarity", "similarity_softmax", "similarity_topk", "similarity_argmax"):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for _, args in samples(op, dtype):
            assert_parity(op, args, backend="cpu")
for dtype in (torch.float32, torch.bfloat16):
    for _, args in samples("contrastive_loss", dtype):
        assert_parity("contrastive_loss", args, backend="cpu", gradients=True)
"""
    run_alone(code, ATEN_CPU_CAPABILITY=instructions)


def test_the_matrix_is_never_held():
    """Growth in MiB of the process for 8192 x 8192 scores, which would be 256 MiB."""
    code = """
import resource, torch
from altclip_fast import ops
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def work(n):
    x, scale = torch.randn(n, 32, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    ops.contrastive_loss(x, x, scale).backward()
    ops.similarity_topk(x.detach(), x.detach(), 10)
work(600)
before = peak()
work(8192)
print(peak() - before)
"""
    assert float(run_alone(code)) < 64
