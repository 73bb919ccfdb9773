"""The joint head against loops and cross entropies: ties, NaN, zero vectors, and what it refuses."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from altclip_fast import ops

NAN, INF = math.nan, math.inf


def doubles(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def plain_scores(a, b, scale, normalize):
    """Cosines (or products), number by number."""

    def length(row):
        return math.sqrt(sum(v * v for v in row)) or 1.0 if normalize else 1.0

    rows = [
        [scale * sum(x * y for x, y in zip(p, q, strict=True)) / length(p) / length(q) for q in b.tolist()]
        for p in a.tolist()
    ]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("scale, normalize", [(1.0, True), (14.3, True), (0.5, False), (1.0, False)])
def test_scores(scale, normalize):
    a, b = doubles(4, 3), doubles(6, 3)
    scores = plain_scores(a, b, scale, normalize)
    torch.testing.assert_close(ops.similarity(a, b, scale, normalize), scores)
    exponents = scores.exp()
    softmax = exponents / exponents.sum(1, keepdim=True)
    torch.testing.assert_close(ops.similarity_softmax(a, b, scale, normalize), softmax)
    order = [sorted(range(6), key=lambda j, row=row: -row[j]) for row in scores.tolist()]
    assert ops.similarity_argmax(a, b, scale, normalize).tolist() == [row[0] for row in order]
    for k in (1, 4, 6):
        values, indices = ops.similarity_topk(a, b, k, scale, normalize)
        assert indices.tolist() == [row[:k] for row in order]
        torch.testing.assert_close(values, scores.gather(1, indices))


@pytest.mark.parametrize("scale, normalize", [(1.0, True), (2.0, False)])
def test_gradcheck(scale, normalize):
    a, b = doubles(3, 4), doubles(5, 4)
    assert torch.autograd.gradcheck(ops.l2_normalize, (a,))
    assert torch.autograd.gradcheck(ops.similarity, (a, b, scale, normalize))
    assert torch.autograd.gradcheck(ops.similarity_softmax, (a, b, scale, normalize))
    assert torch.autograd.gradcheck(lambda *t: ops.similarity_topk(*t, 2, scale, normalize)[0], (a, b))
    logit_scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.contrastive_loss, (a, b[:3], logit_scale, normalize))


# Ties and NaN


def test_ties_go_to_the_lower_index():
    a = torch.eye(3)
    b = torch.stack([a[1], a[0], a[1], a[0], a[2], a[1]])
    for normalize in (True, False):
        values, indices = ops.similarity_topk(a, b, 6, normalize=normalize)
        assert indices.tolist() == [[1, 3, 0, 2, 4, 5], [0, 2, 5, 1, 3, 4], [4, 0, 1, 2, 3, 5]]
        assert values[:, 0].tolist() == [1, 1, 1]
        assert ops.similarity_argmax(a, b, normalize=normalize).tolist() == [1, 0, 4]


def test_zero_rows_tie_everywhere():
    a, b = torch.zeros(2, 3), torch.randn(5, 3)
    assert ops.similarity_topk(a, b, 3)[1].tolist() == [[0, 1, 2]] * 2
    assert ops.similarity_argmax(a, b).tolist() == [0, 0]
    assert torch.equal(ops.similarity_softmax(a, b), torch.full((2, 5), 0.2))


def test_nan_comes_first():
    b = torch.tensor([[1.0], [NAN], [INF], [NAN], [2.0], [-INF]])
    values, indices = ops.similarity_topk(torch.ones(1, 1), b, 6, normalize=False)
    assert indices.tolist() == [[1, 3, 2, 4, 0, 5]]
    assert values[0, :2].isnan().all() and values[0, 2:].tolist() == [INF, 2, 1, -INF]
    assert ops.similarity_argmax(torch.ones(1, 1), b, normalize=False).tolist() == [1]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-2, 2), min_size=1, max_size=12), st.data())
def test_topk_is_a_stable_sort(numbers, data):
    k = data.draw(st.integers(1, len(numbers)))
    _, indices = ops.similarity_topk(torch.ones(1, 1), torch.tensor(numbers)[:, None].float(), k, normalize=False)
    assert indices[0].tolist() == sorted(range(len(numbers)), key=lambda i: -numbers[i])[:k]


# Properties


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 33), st.sampled_from([1e-4, 1.0, 1e4]), st.integers(0, 2**32))
def test_rows_have_norm_1(rows, width, scale, seed):
    x = scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = ops.l2_normalize(x)
    torch.testing.assert_close(y.square().sum(-1), y.new_ones(rows))
    torch.testing.assert_close(ops.l2_normalize(3 * x), y)
    torch.testing.assert_close(y * x.square().sum(-1, keepdim=True).sqrt(), x)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_permuted_rows_give_permuted_scores(n, m, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(rows, 5, generator=generator, dtype=torch.float64) for rows in (n, m))
    rows, columns = torch.randperm(n, generator=generator), torch.randperm(m, generator=generator)
    for op in (ops.similarity, ops.similarity_softmax):
        torch.testing.assert_close(op(a[rows], b[columns]), op(a, b)[rows][:, columns])
    torch.testing.assert_close(columns[ops.similarity_argmax(a[rows], b[columns])], ops.similarity_argmax(a, b)[rows])
    torch.testing.assert_close(ops.similarity_softmax(a, b).sum(1), torch.ones(n, dtype=torch.float64))


# The loss


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("normalize", [True, False])
def test_loss_is_two_cross_entropies(n, normalize):
    image, text, logit_scale = doubles(n, 5), doubles(n, 5), torch.tensor(0.9, dtype=torch.float64)
    logits = plain_scores(text, image, math.exp(0.9), normalize)
    by_hand = [
        sum(math.log(sum(math.exp(v) for v in row)) - row[i] for i, row in enumerate(rows)) / n
        for rows in (logits.tolist(), logits.t().tolist())
    ]
    found = ops.contrastive_loss(image, text, logit_scale, normalize)
    assert found.shape == ()
    torch.testing.assert_close(found.item(), sum(by_hand) / 2)
    torch.testing.assert_close(ops.contrastive_loss(text, image, logit_scale.reshape(1), normalize), found)
    target = torch.arange(n)
    torch.testing.assert_close(found, (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2)


def test_loss_of_a_perfect_match_and_of_no_information():
    eye = torch.eye(4, dtype=torch.float64)
    assert ops.contrastive_loss(eye, eye, torch.tensor(9.0, dtype=torch.float64)).item() == 0
    ones = torch.ones(4, 3, dtype=torch.float64)
    expected = torch.tensor(math.log(4), dtype=torch.float64)
    torch.testing.assert_close(ops.contrastive_loss(ones, ones, torch.tensor(2.0, dtype=torch.float64)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_zero_vectors_give_no_nan(dtype):
    x = torch.randn(4, 6).to(dtype)
    x[1] = 0
    x.requires_grad_()
    assert not ops.l2_normalize(x)[1].any()
    logit_scale = torch.tensor(1.0, dtype=dtype, requires_grad=True)
    outputs = (
        ops.l2_normalize(x),
        ops.similarity(x, x),
        ops.similarity_softmax(x, x),
        ops.similarity_topk(x, x, 2)[0],
        ops.contrastive_loss(x, x, logit_scale),
    )
    for out in outputs:
        assert out.isfinite().all()
        if dtype is not torch.float16:  # it cannot hold 1 / EPS, the slope there
            (gradient,) = torch.autograd.grad(out.double().sum(), x)
            assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_are_wider_than_the_dtype(dtype):
    """The squares of 300 do not fit float16, nor do those of 1e-4."""
    for scale in (300.0, 1e-4):
        x = torch.full((1, 4), scale, dtype=dtype)
        assert torch.equal(ops.l2_normalize(x), torch.full((1, 4), 0.5, dtype=dtype))


# Bad inputs

A, B = torch.ones(3, 4), torch.ones(5, 4)
WRONG = [
    ("a", None, TypeError),
    ("a", A.int(), TypeError),
    ("a", A[0], ValueError),
    ("b", None, TypeError),
    ("b", [[1.0]], TypeError),
    ("b", B[:, :3], ValueError),
    ("b", B[None], ValueError),
    ("b", B.half(), TypeError),
    ("b", B.to("meta"), ValueError),
]


@pytest.mark.parametrize(
    "op", [ops.similarity, ops.similarity_softmax, ops.similarity_argmax, ops.similarity_topk], ids=lambda op: op.name
)
@pytest.mark.parametrize("name, value, error", WRONG)
def test_pairs_refuse(op, name, value, error):
    k = {"k": 1} if op is ops.similarity_topk else {}
    with pytest.raises(error, match=rf"{op.name}: .*\b{name}\b"):
        op(**{"a": A, "b": B, name: value}, **k)


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_is_bounded(k):
    with pytest.raises(ValueError, match=re.escape(f"similarity_topk: k is {k}; b has 5 rows, so 1 to 5")):
        ops.similarity_topk(A, B, k)


def test_argmax_of_nothing():
    with pytest.raises(ValueError, match=r"similarity_argmax: b is .*at least one row"):
        ops.similarity_argmax(A, B[:0])


@pytest.mark.parametrize("x, error", [(None, TypeError), (A.long(), TypeError), (torch.tensor(1.0), ValueError)])
def test_l2_normalize_refuses(x, error):
    with pytest.raises(error, match=r"l2_normalize: x\b"):
        ops.l2_normalize(x)


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("image", None, TypeError),
        ("image", A.long(), TypeError),
        ("image", A[0], ValueError),
        ("image", A[:0], ValueError),
        ("text", B, ValueError),
        ("text", A[:, :3], ValueError),
        ("text", A.double(), TypeError),
        ("text", None, TypeError),
        ("logit_scale", 2.0, TypeError),
        ("logit_scale", torch.ones(2), ValueError),
        ("logit_scale", torch.tensor(1), TypeError),
    ],
)
def test_contrastive_loss_refuses(name, value, error):
    arguments = {"image": A, "text": A, "logit_scale": torch.tensor(1.0), name: value}
    if name == "image" and value is not None and value.shape[0] == 0:
        arguments["text"] = value
    with pytest.raises(error, match=rf"contrastive_loss: .*\b{name}\b"):
        ops.contrastive_loss(**arguments)
