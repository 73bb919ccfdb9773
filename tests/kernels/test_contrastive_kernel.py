"""The joint head out of the interpreter: ties, NaN, every k, many tiles and parts, and the loss's own backward."""

import math

import pytest
import torch
from fences import fenced

from altclip_fast.dispatch import BackendUnavailableError, use_backend
from altclip_fast.kernels import contrastive as kernel
from altclip_fast.kernels import contrastive_topk, tuning
from altclip_fast.kernels.launch import LAUNCHES, recording
from altclip_fast.ops import (
    contrastive_loss,
    l2_normalize,
    similarity,
    similarity_argmax,
    similarity_softmax,
    similarity_topk,
)
from altclip_fast.testing import assert_parity

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAN, INF = math.nan, math.inf


def make(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype).to(DEVICE)


def run(op, *args):
    before = LAUNCHES.total()
    with use_backend("triton"):
        out = op(*args)
    assert LAUNCHES.total() > before
    return out


OPS = {
    "similarity": (),
    "similarity_softmax": (),
    "similarity_argmax": (),
    "similarity_topk": (7,),
}


def arguments(op, a, b, scale=1.0, normalize=True):
    return (a, b, *OPS[op], scale, normalize)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_configuration(op, dtype):
    a, b = make(131, 71, dtype=dtype), make(197, 71, dtype=dtype)
    name = "similarity_topk" if op in ("similarity_topk", "similarity_argmax") else "similarity"
    for config in kernel.candidates(dtype):
        with tuning.trying(name, config):
            assert_parity(op, arguments(op, a, b, 9.0), backend="triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_configuration_of_the_loss(dtype):
    args = (make(131, 33, dtype=dtype), make(131, 33, dtype=dtype), torch.tensor(2.3, dtype=dtype, device=DEVICE))
    for config in kernel.candidates(dtype):
        with tuning.trying("contrastive_loss", config):
            assert_parity("contrastive_loss", args, backend="triton", gradients=True)


@pytest.mark.parametrize("op", OPS)
def test_nothing_outside_of_the_operands_is_read(op):
    a, b = make(67, 37), make(133, 37)
    for args in (arguments(op, a, b, 3.0), arguments(op, a, b, 3.0, False)):
        with_fences = run(getattr_op(op), fenced(a), fenced(b), *args[2:])
        for one, other in zip(as_tuple(run(getattr_op(op), *args)), as_tuple(with_fences), strict=True):
            assert torch.equal(one, other) and (not one.is_floating_point() or one.isfinite().all())


def home(op):
    """The module of the kernel."""
    return kernel if hasattr(kernel, op) else contrastive_topk


def getattr_op(name):
    return {op.name: op for op in (similarity, similarity_softmax, similarity_argmax, similarity_topk)}[name]


def as_tuple(outputs):
    return (outputs,) if isinstance(outputs, torch.Tensor) else outputs


@pytest.mark.parametrize("op", OPS)
def test_a_row_has_the_same_bits_in_any_batch(op, one_order):
    a, b = make(67, 37), make(203, 37)
    whole = as_tuple(run(getattr_op(op), *arguments(op, a, b, 20.0)))
    for some in (slice(0, 1), slice(66, 67), slice(3, 40)):
        found = as_tuple(run(getattr_op(op), *arguments(op, a[some], b, 20.0)))
        assert all(torch.equal(one, other[some]) for one, other in zip(found, whole, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_float32_takes_one_tile(op):
    """Whatever the number of rows is: the order of summation is that of the tile."""
    tiles = []
    for rows in (1, 100, 10000):
        a, b = (torch.empty(n, 768, device="meta") for n in (rows, 5000))
        with recording(90) as launches:
            getattr(home(op), op)(*arguments(op, a, b))
        tiles.append(
            {
                (one.kernel, *(one.arguments.get(n) for n in ("ROWS", "COLS", "BLOCK_K", "PRECISION")))
                for one in launches
                if "BLOCK_K" in one.arguments
            }
        )
    assert tiles[0] == tiles[1] == tiles[2] and tiles[0]


# Normalising


def test_zero_rows_stay_zero():
    x = make(5, 24)
    x[1::2] = 0
    found = run(l2_normalize, x)
    assert not found[1::2].any()
    torch.testing.assert_close(found[::2].norm(dim=-1), torch.ones(3, device=DEVICE))
    assert not run(similarity, x, x)[1].any()
    torch.testing.assert_close(run(similarity_softmax, x, x)[1], torch.full((5,), 0.2, device=DEVICE))


def test_short_rows():
    """Around the length of 1e-12, below which a row is divided by that."""
    lengths = torch.tensor([1e-6, 1e-9, 2e-12, 5e-13, 1e-14], device=DEVICE)[:, None]
    image, text = (torch.nn.functional.normalize(make(5, 24)) for _ in range(2))
    assert_parity("l2_normalize", (image * lengths,), backend="triton")
    for args in ((image * lengths[i], text) for i in range(5)):
        assert_parity("contrastive_loss", (*args, torch.tensor(1.0, device=DEVICE)), backend="triton", gradients=True)


def test_nan_stays_in_its_row():
    x = make(5, 24)
    x[2, 7] = NAN
    finite = torch.arange(5, device=DEVICE) != 2
    found = run(l2_normalize, x)
    assert found[2].isnan().all() and found[finite].isfinite().all()
    scores = run(similarity, x, make(150, 24))
    assert scores[2].isnan().all() and scores[finite].isfinite().all()
    softmax = run(similarity_softmax, make(3, 24), torch.cat([make(150, 24), x]))
    assert softmax.isnan().all()


def test_no_columns():
    a, b = make(3, 8), make(0, 8)
    for op in (similarity, similarity_softmax):
        assert run_empty(op, a, b).shape == (3, 0) and run_empty(op, b, a).shape == (0, 3)
    nothing = make(3, 0), make(4, 0)
    for normalize in (True, False):
        assert torch.equal(run(similarity, *nothing, 1.0, normalize), torch.zeros(3, 4, device=DEVICE))


def run_empty(op, *args):
    with use_backend("triton"):
        return op(*args)


@pytest.mark.parametrize("rows", [8 * 64, 17 * 64 + 5])
def test_more_blocks_of_rows_than_a_group(rows):
    """Eight of them share their columns."""
    assert_parity("similarity", (make(rows, 8), make(150, 8)), backend="triton")


# Softmax


@pytest.mark.parametrize("columns", [1, 2, 63, 64, 65, 128, 129, 500])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax_in_one_tile_and_in_many(columns, dtype):
    assert_parity(
        "similarity_softmax", (make(5, 24, dtype=dtype), make(columns, 24, dtype=dtype), 50.0), backend="triton"
    )


def test_softmax_of_many_parts(monkeypatch):
    monkeypatch.setattr(kernel, "PARTS", 3)
    a, b = make(5, 24), make(700, 24) * torch.linspace(-40, 40, 700, device=DEVICE)[:, None]
    assert_parity("similarity_softmax", (a, b, 1.0, False), backend="triton")


def test_softmax_of_scores_far_below_zero():
    a = torch.ones(2, 4, device=DEVICE)
    b = -torch.arange(1, 301, device=DEVICE)[:, None].expand(-1, 4) * 1e3
    found = run(similarity_softmax, a, b, 1.0, False)
    assert found[:, 0].eq(1).all() and not found[:, 1:].any()


# Top k


@pytest.mark.parametrize("k", [1, 2, 16, 17, 33, 255, 256, 512])
def test_every_k(k):
    assert_parity("similarity_topk", (make(2, 16), make(max(k, 300), 16), k), backend="triton")


def test_too_large_k_is_refused():
    with use_backend("triton"), pytest.raises(BackendUnavailableError, match="k is 513; up to 512"):
        similarity_topk(make(2, 4), make(600, 4), 513)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 5, 140])
def test_ties_go_to_the_lower_index(k, dtype):
    """Whole numbers: the scores are exact, and most of them come many times."""
    a = torch.randint(-2, 3, (19, 5)).to(dtype).to(DEVICE)
    b = torch.randint(-2, 3, (290, 5)).to(dtype).to(DEVICE)
    for found, expected in zip(run(similarity_topk, a, b, k, 1.0, False), topk(a, b, k), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(run(similarity_argmax, a, b, 1.0, False), topk(a, b, 1)[1][:, 0])


def topk(a, b, k):
    values, indices = (a.double() @ b.double().t()).sort(descending=True, stable=True)
    return values[:, :k].to(a.dtype), indices[:, :k]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scores_that_round_to_one_value_are_ties(dtype):
    """256 and 258 and up to 3 quarters more, which float16 holds and bfloat16 does not, however it rounds."""
    b = torch.tensor([[16.0, i] for i in (1, 0, 3, 2, 9, 8, 11, 10)]).to(dtype).to(DEVICE)
    a = torch.tensor([[16.0, 0.25]]).to(dtype).to(DEVICE)
    values, indices = run(similarity_topk, a, b, 8, 1.0, False)
    truth, order = (a.float() @ b.float().t()).to(dtype).sort(descending=True, stable=True)
    assert torch.equal(values, truth) and torch.equal(indices, order)


@pytest.mark.parametrize("k", [1, 4, 200])
def test_nan_comes_first_and_infinities_are_in_order(k):
    b = torch.zeros(200, 1, device=DEVICE)
    b[150], b[3], b[70], b[40], b[41], b[199] = NAN, NAN, INF, -INF, 2.0, -3.0
    b[5] = -0.0
    a = torch.tensor([[1.0], [-1.0], [NAN]], device=DEVICE)
    values, indices = run(similarity_topk, a, b, k, 1.0, False)
    truth, order = (a @ b.t()).sort(descending=True, stable=True)
    assert torch.equal(indices, order[:, :k])
    torch.testing.assert_close(values, truth[:, :k], equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("k", [1, 9, 50])
@pytest.mark.parametrize("rising", [True, False])
def test_parts_are_merged_in_groups(monkeypatch, k, rising):
    """Rising scores replace every candidate in every tile; falling ones none after the first."""
    monkeypatch.setattr(contrastive_topk, "processors", lambda device: 100)
    monkeypatch.setattr(contrastive_topk, "MERGED", 2 * k)
    monkeypatch.setattr(contrastive_topk, "MERGE_BLOCK", 32)
    b = torch.arange(700, device=DEVICE, dtype=torch.float32)[:, None]
    a = torch.tensor([[1.0], [2.0]] if rising else [[-1.0], [-2.0]], device=DEVICE)
    found = run(similarity_topk, a, b, k, 1.0, False)
    assert all(torch.equal(one, other) for one, other in zip(found, topk(a, b, k), strict=True))


def test_the_same_bits_whatever_the_parts(monkeypatch, one_order):
    a, b = make(3, 24), make(900, 24)
    few = run(similarity_topk, a, b, 20)
    monkeypatch.setattr(contrastive_topk, "processors", lambda device: 100)
    many = run(similarity_topk, a, b, 20)
    assert all(torch.equal(one, other) for one, other in zip(few, many, strict=True))


def test_no_matrix_of_scores_is_made():
    a, b = (torch.empty(n, 768, dtype=torch.bfloat16, device="meta") for n in (1024, 1 << 20))
    with recording(90) as launches:
        similarity = contrastive_topk.similarity_topk(a, b, 100, 1.0, True)
        contrastive_topk.similarity_argmax(a, b, 1.0, True)
    assert similarity[0].shape == (1024, 100)
    largest = max(v.numel() for one in launches for v in one.arguments.values() if isinstance(v, torch.Tensor))
    assert largest == b.numel()


# The loss


def loss_arguments(count, width, dtype=torch.float32, scale=2.6592):
    image = make(count, width, dtype=dtype)
    text = (image.float() + make(count, width)).to(dtype)
    return image, text, torch.tensor(scale, dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("count, width", [(1, 5), (67, 33), (200, 24)])
def test_loss(count, width, normalize, dtype):
    image, text, scale = loss_arguments(count, width, dtype)
    args = (image, text, scale, normalize) if normalize else (image / 8, text / 8, scale, normalize)
    assert_parity("contrastive_loss", args, backend="triton", gradients=True)


def test_loss_by_chunks_of_rows(monkeypatch):
    """As with more than 8192 pairs, and parts of more than one tile."""
    args = loss_arguments(300, 8)
    monkeypatch.setattr(kernel, "CHUNK", 128)
    monkeypatch.setattr(kernel, "GRADIENT_ROWS", 128)
    monkeypatch.setattr(kernel, "PARTS", 3)
    assert_parity("contrastive_loss", args, backend="triton", gradients=True)


def gradients(args, grad=1.0):
    args = [a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
    with use_backend("triton" if args[0].dtype != torch.float64 else "reference"):
        loss = contrastive_loss(*args)
    return torch.autograd.grad(loss * grad, [a for a in args if isinstance(a, torch.Tensor)])


@pytest.mark.parametrize("grad", [1.0, -3.0, 0.0])
def test_gradients_against_float64(grad):
    args = loss_arguments(90, 40)
    truth = gradients([a.double() for a in args], grad)
    for found, true in zip(gradients(args, grad), truth, strict=True):
        torch.testing.assert_close(found.double(), true, rtol=2e-5, atol=2e-8)


def test_gradients_are_the_same_every_time():
    args = loss_arguments(150, 40, torch.bfloat16)
    first, second = gradients(args), gradients(args)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_gradients_of_pairs_that_match_perfectly():
    """P = Q = I: nothing is left but the noise."""
    image = torch.eye(70, device=DEVICE)
    for found in gradients((image, image, torch.tensor(4.6, device=DEVICE))):
        assert found.abs().max() < 1e-6


def test_nothing_outside_of_the_pairs_is_read():
    image, text, scale = loss_arguments(67, 37)
    fences = (fenced(image), fenced(text), scale)
    assert torch.equal(run(contrastive_loss, *fences), run(contrastive_loss, image, text, scale))
    for one, other in zip(gradients(fences), gradients((image, text, scale)), strict=True):
        assert torch.equal(one, other) and one.isfinite().all()


def test_nan_and_shape_of_the_scale():
    image, text, scale = loss_arguments(5, 8)
    assert run(contrastive_loss, image, text, scale).shape == ()
    assert [g.shape for g in gradients((image, text, scale.reshape(1, 1)))] == [(5, 8), (5, 8), (1, 1)]
    mixed = gradients((image.bfloat16(), text.bfloat16(), scale))
    assert [g.dtype for g in mixed] == [torch.bfloat16, torch.bfloat16, torch.float32]
    image[2, 3] = NAN
    assert run(contrastive_loss, image, text, scale).isnan()


def test_memory_of_the_loss_grows_with_the_rows():
    """No tensor is larger than a few times the embeddings."""
    image, scale = torch.empty(1 << 17, 768, dtype=torch.bfloat16, device="meta"), torch.empty((), device="meta")
    with recording(90) as launches:
        kernel.contrastive_loss_backward(scale, image, image, scale, True)
    largest = max(
        v.numel() * v.element_size() for one in launches for v in one.arguments.values() if isinstance(v, torch.Tensor)
    )
    assert largest <= 4 * image.numel() * image.element_size()
