"""`assert_parity` lets right implementations pass and no wrong one; the samples are what they say."""

import itertools

import pytest
import torch
from torch import Tensor

from altclip_fast import dispatch, ops
from altclip_fast.dispatch import BackendUnavailableError, Op
from altclip_fast.testing import assert_parity, nan_filled_outputs, samples

counter = itertools.count()
HALVES = [torch.bfloat16, torch.float16]
EVERY = [torch.float32, *HALVES]


def implemented(run, reference=None, backward=None):
    """An op whose `cpu` backend is `run`, with the reference of layer_norm unless another is given."""

    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return ops.layer_norm.reference(x, weight, bias, eps)

    reference = reference or layer_norm
    reference.__name__ += f"_{next(counter)}"
    op = Op(reference, namespace="altclip_fast_test")
    op.backend("cpu")(run)
    if backward:
        op.backward("cpu")(backward)
    return op


def inputs(dtype, rows=33, shift=0.0):
    return ((torch.randn(rows, 96) + shift).to(dtype), torch.randn(96).to(dtype), torch.randn(96).to(dtype), 1e-5)


def two_pass(x, weight, bias, eps):
    """In float32, rounded once: what a good kernel does."""
    wide = x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (centred * rstd * weight.float() + bias.float()).to(x.dtype).contiguous()


@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_a_good_kernel_passes(dtype, shift):
    assert_parity(implemented(two_pass), inputs(dtype, shift=shift), backend="cpu")


def test_a_good_kernel_passes_on_every_sample_of_layer_norm():
    op = implemented(two_pass)
    for dtype, seed in itertools.product(EVERY, range(3)):
        for _, args in samples("layer_norm", dtype, seed=seed):
            assert_parity(op, args, backend="cpu")


WRONG = {
    "one-pass variance": (
        1e4,
        torch.float32,
        lambda x, w, b, eps: (
            (x - x.mean(-1, keepdim=True))
            * torch.rsqrt((x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True).square()).clamp_min(0) + eps)
            * w
            + b
        ),
    ),
    "half statistics": (
        100.0,
        torch.bfloat16,
        lambda x, w, b, eps: (
            (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True, correction=0) + eps) * w + b
        ),
    ),
    "sample variance": (
        0.0,
        torch.float32,
        lambda x, w, b, eps: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + eps) * w + b,
    ),
    "no eps": (0.0, torch.float32, lambda x, w, b, eps: two_pass(x, w, b, 1e-12)),
    "float32 by way of bfloat16": (0.0, torch.float32, lambda x, w, b, eps: two_pass(x.bfloat16(), w, b, eps).float()),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_fails(name):
    shift, dtype, run = WRONG[name]
    scale = 1e-2 if name == "no eps" else 1.0
    x, *rest = inputs(dtype, shift=shift)
    with pytest.raises(AssertionError, match="largest error"):
        assert_parity(implemented(run), (x * scale, *rest), backend="cpu")


def changed(change):
    def run(*args):
        out = two_pass(*args)
        return change(out, args[0])

    return run


def fill(value):
    def change(out, x):
        out[3, 5] = value
        return out

    return changed(change)


def write_input(out, x):
    x[0, 0] += 1
    return out


@pytest.mark.parametrize(
    "run, message",
    [
        (fill(torch.nan), "1 of 3168 values are not finite"),
        (fill(torch.inf), "1 of 3168 values are not finite"),
        (fill(9.0), "largest error"),
        (lambda *args: torch.empty(33, 96), "3168 of 3168 values are not finite"),
        (changed(lambda out, x: out[:-1]), "output 0 is float32.32, 96."),
        (changed(lambda out, x: out.double()), "output 0 is float64"),
        (changed(lambda out, x: out.t().contiguous().t()), "not contiguous"),
        (changed(lambda out, x: x.copy_(out)), "the input x was written to"),
        (changed(write_input), "the input x was written to"),
        (changed(lambda out, x: (out, out)), "2 outputs; the reference has 1"),
    ],
)
def test_what_else_fails(run, message):
    with pytest.raises(AssertionError, match=message):
        assert_parity(implemented(run), inputs(torch.float32), backend="cpu")


def test_an_output_is_new_memory():
    def same(x: Tensor) -> Tensor:
        return x.clone()

    with pytest.raises(AssertionError, match="shares memory"):
        assert_parity(implemented(lambda x: x, same), (torch.randn(3),), backend="cpu")


def test_one_wrong_row_of_many_fails():
    """The maximum sees one element, the RMS a small error everywhere."""
    args = inputs(torch.float32, rows=257)

    def one(out, x):
        out[200, 7] += 1e-5
        return out

    with pytest.raises(AssertionError, match="largest error"):
        assert_parity(implemented(changed(one)), args, backend="cpu")


def test_message_says_what_was_run():
    op = implemented(fill(9.0))
    with pytest.raises(AssertionError) as error:
        assert_parity(op, inputs(torch.bfloat16), backend="cpu")
    for part in (op.name, "on cpu", "bfloat16", "x=bfloat16[33, 96]", "eps=1e-05", "allowed", "RMS", "baseline"):
        assert part in str(error.value)


def test_gradients():
    def right(grads, x, weight, bias, eps):
        centred = x - x.mean(-1, keepdim=True)
        rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
        normed, given = centred * rstd, grads[0] * weight
        inner = given - given.mean(-1, keepdim=True) - normed * (given * normed).mean(-1, keepdim=True)
        return inner * rstd, (grads[0] * normed).sum(0), grads[0].sum(0)

    def wrong(grads, *args):
        x, weight, bias = right(grads, *args)
        return x, weight * 1.01, bias

    assert_parity(implemented(two_pass), inputs(torch.float32), backend="cpu", gradients=True)
    assert_parity(implemented(two_pass, backward=right), inputs(torch.float32), backend="cpu", gradients=True)
    op = implemented(two_pass, backward=wrong)
    assert_parity(op, inputs(torch.float32), backend="cpu")
    with pytest.raises(AssertionError, match="gradient of weight: largest error"):
        assert_parity(op, inputs(torch.float32), backend="cpu", gradients=True)
    with pytest.raises(AssertionError, match="gradient of bias: 96 of 96 values are not finite"):
        missing = implemented(two_pass, backward=lambda grads, *args: (*right(grads, *args)[:2], torch.empty(96)))
        assert_parity(missing, inputs(torch.float32), backend="cpu", gradients=True)


def test_dtype_converts():
    seen = []

    def run(x, *args):
        seen.append(x.dtype)
        return two_pass(x, *args)

    assert_parity(implemented(run), inputs(torch.float32), backend="cpu", dtype=torch.bfloat16)
    assert seen == [torch.bfloat16]


def test_a_backend_that_does_not_exist_or_refuses():
    with pytest.raises(ValueError, match="has no backend 'triton'"):
        assert_parity(implemented(two_pass), inputs(torch.float32), backend="triton")
    op = implemented(two_pass)
    op.backend("cpu", when=lambda *args: "too small")(two_pass)
    with pytest.raises(BackendUnavailableError, match="too small"):
        assert_parity(op, inputs(torch.float32), backend="cpu")
    assert_parity(op, inputs(torch.float32))


# Indices


@pytest.fixture
def topk(monkeypatch):
    """Set the `cpu` backend of similarity_topk for one test."""
    op = ops.similarity_topk
    monkeypatch.setattr(op, "_backends", dict(op._backends))
    monkeypatch.setattr(op, "_order", op._order)
    return op.backend("cpu")


def in_float32(a, b, k, scale, normalize):
    """Scores in float32, rounded before they are ordered."""
    values = ops.similarity.reference(a.float(), b.float(), scale, normalize).to(a.dtype)
    values, indices = values.sort(dim=-1, descending=True, stable=True)
    return values[:, :k].contiguous(), indices[:, :k].contiguous()


@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_near_ties_may_change_places(topk, dtype):
    topk(in_float32)
    for _, args in samples("similarity_topk", dtype):
        assert_parity("similarity_topk", args, backend="cpu")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v, i: (v, i + 20), "outside of 0 to 10"),
        (lambda v, i: (v, i[:, :1].expand_as(i).contiguous()), "twice"),
        (lambda v, i: (v, (i + 1) % 11), "indices select scores"),
        (lambda v, i: (v.roll(1, 0), i), "values are"),
        (lambda v, i: (v, i.int()), "output 1 is int32"),
    ],
)
def test_wrong_indices_fail(topk, change, message):
    topk(lambda *args: change(*in_float32(*args)))
    with pytest.raises(AssertionError, match=message):
        assert_parity("similarity_topk", (torch.randn(7, 24), torch.randn(11, 24), 3), backend="cpu")


def test_ties_in_the_wrong_order_fail(topk):
    def last_first(a, b, k, *rest):
        values, indices = in_float32(a, b.flip(0), k, *rest)
        return values, b.shape[0] - 1 - indices

    topk(last_first)
    rows = torch.eye(5)
    with pytest.raises(AssertionError, match="lower index"):
        assert_parity("similarity_topk", (rows, torch.cat([rows, rows]), 2), backend="cpu")


def test_integers_of_other_ops_are_compared_as_they_are():
    def positive(x: Tensor) -> Tensor:
        return (x > 0).long()

    x = torch.randn(7)
    assert_parity(implemented(lambda x: (x > 0).long(), positive), (x,), backend="cpu")
    with pytest.raises(AssertionError, match="output 0 is not that of the reference"):
        assert_parity(implemented(lambda x: (x > 9).long(), positive), (x,), backend="cpu")


# Memory and samples


def test_nan_filled_outputs():
    made = torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty
    x = torch.ones(2, 3)
    with nan_filled_outputs():
        for out in (torch.empty(4), torch.empty_like(x), torch.empty_strided((2, 2), (1, 2)), x.new_empty(3)):
            assert out.isnan().all()
        assert (torch.empty(3, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()
        assert torch.empty(3, dtype=torch.bool).shape == (3,)
    assert (torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty) == made
    with pytest.raises(KeyError), nan_filled_outputs():
        raise KeyError
    assert torch.empty is made[0]


@pytest.mark.parametrize("op", dispatch.OPS)
def test_samples_are_the_same_every_time(op):
    first, again = list(samples(op, torch.bfloat16)), list(samples(op, torch.bfloat16))
    other = list(samples(op, torch.bfloat16, seed=1))
    assert [s.name for s in first] == [s.name for s in again] == [s.name for s in other]
    differ = 0
    for (_, args), (_, same), (_, new) in zip(first, again, other, strict=True):
        for a, b, c in zip(args, same, new, strict=True):
            if isinstance(a, Tensor):
                assert torch.equal(a, b) and a.stride() == b.stride()
                assert a.dtype == torch.bfloat16 or not a.is_floating_point()
                differ += not torch.equal(a, c)
    assert differ


@pytest.mark.parametrize("op", dispatch.OPS)
def test_samples_hold_the_corners(op):
    tensors = [a for _, args in samples(op, torch.float32) for a in args if isinstance(a, Tensor)]
    assert any(not a.is_contiguous() for a in tensors)
    assert any(a.storage_offset() for a in tensors)
    assert any(1000 < a.abs().max() < 65504 for a in tensors if a.is_floating_point() and a.numel()) or op in (
        "attention_weights",
    )
    if op != "contrastive_loss":
        assert any(a.numel() == 0 for a in tensors)


def test_no_samples_for_an_unknown_op():
    with pytest.raises(KeyError):
        list(samples("convolution", torch.float32))
