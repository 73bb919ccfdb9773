"""attention, masked_attention and attention_weights against loops over queries and keys; what they refuse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from altclip_fast import ops, use_backend


def plain_weights(q, k, allowed, scale=None, added=None):
    """softmax over the allowed keys of one sequence, query by query. q [Lq, heads, D] -> [heads, Lq, Lk]."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    weights = torch.zeros(q.shape[1], q.shape[0], k.shape[0], dtype=q.dtype)
    for h in range(q.shape[1]):
        for i in range(q.shape[0]):
            scores = {
                j: scale * sum((q[i, h] * k[j, h]).tolist()) + (0 if added is None else added[i, j].item())
                for j in range(k.shape[0])
                if allowed(i, j)
            }
            total = sum(math.exp(s - max(scores.values())) for s in scores.values())
            for j, s in scores.items():
                weights[h, i, j] = math.exp(s - max(scores.values())) / total
    return weights


def plain(q, k, v, allowed=lambda i, j: True, scale=None, added=None):
    return torch.einsum("hqk,khd->qhd", plain_weights(q, k, allowed, scale, added), v)


def doubles(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def offsets(lengths, dtype=torch.int32):
    return torch.tensor([0, *lengths], dtype=dtype).cumsum(0, dtype=dtype)


def packed(q_lengths, k_lengths=None, heads=2, dim=5):
    """q, k, v and the rest of the arguments of `attention`, without causal and scale."""
    keys = q_lengths if k_lengths is None else k_lengths
    cu = offsets(q_lengths)
    return (
        doubles(sum(q_lengths), heads, dim),
        doubles(sum(keys), heads, dim),
        doubles(sum(keys), heads, dim + 1),
        cu,
        cu if k_lengths is None else offsets(keys),
        max(q_lengths),
        max(keys),
    )


LENGTHS = [
    ([4], None),
    ([3, 3], None),
    ([3, 0, 5, 1], None),
    ([2, 1, 4], [5, 1, 7]),
    ([4, 3], [2, 5]),
    ([3, 2, 1], [0, 4, 0]),
    ([2, 2], [4, 4]),
    ([2, 0], [0, 3]),
    ([0, 0], None),
    ([3], [0]),
]


@pytest.mark.parametrize("q_lengths, k_lengths", LENGTHS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_packed_is_a_loop_over_sequences(q_lengths, k_lengths, causal, scale):
    args = packed(q_lengths, k_lengths)
    keys = q_lengths if k_lengths is None else k_lengths
    parts = []
    for q, k, v in zip(args[0].split(q_lengths), args[1].split(keys), args[2].split(keys), strict=True):
        ahead = k.shape[0] - q.shape[0]  # bottom-right: the last query is at the last key

        def allowed(i, j, ahead=ahead):
            return not causal or j <= i + ahead

        parts.append(plain(q, k, v, allowed, scale))
    torch.testing.assert_close(ops.attention(*args, causal, scale), torch.cat(parts))


@pytest.mark.parametrize("q_lengths, k_lengths", LENGTHS[:6])
@pytest.mark.parametrize("causal", [False, True])
def test_gradcheck_packed(q_lengths, k_lengths, causal):
    assert torch.autograd.gradcheck(ops.attention, (*packed(q_lengths, k_lengths, dim=3), causal))


def test_nothing_to_look_at_gives_zeros_and_finite_gradients():
    q, k, v, *rest = packed([3, 2], [0, 4])
    out = ops.attention(q, k, v, *rest)
    assert not out[:3].any() and out[3:].any()
    out.sum().backward()
    assert not q.grad[:3].any() and all(t.grad.isfinite().all() for t in (q, k, v))

    q, k, v, *rest = packed([5], [2])
    out = ops.attention(q, k, v, *rest, causal=True)
    assert not out[:3].any() and out[3:].all()
    out.sum().backward()
    assert not q.grad[:3].any() and all(t.grad.isfinite().all() for t in (q, k, v))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("causal", [False, True])
def test_nan_stays_in_its_sequence(causal, backend):
    q, k, v, *rest = (t.detach().float() if t.dim() == 3 else t for t in packed([3, 4, 2])[:4])
    args = *rest, rest[0], 4, 4, causal
    with use_backend(backend):
        clean = ops.attention(q, k, v, *args)
        for t in (q, k, v):
            t[3:7] = torch.nan
        found = ops.attention(q, k, v, *args)
    assert found[3:7].isnan().all()
    assert torch.equal(found[:3], clean[:3]) and torch.equal(found[7:], clean[7:])


def test_longest_may_be_more():
    q, k, v, cu, _, longest, _ = packed([3, 1, 4])
    for causal in (False, True):
        expected = ops.attention(q, k, v, cu, cu, longest, longest, causal)
        torch.testing.assert_close(ops.attention(q, k, v, cu, cu.long(), longest + 3, longest + 1, causal), expected)


def test_packed_qkv_rows():
    """Views into [T, 3, heads, D]: the same bits as from tensors of their own."""
    qkv, cu = torch.randn(9, 3, 2, 8), offsets([4, 5])
    expected = ops.attention(*(t.contiguous() for t in qkv.unbind(1)), cu, cu, 5, 5)
    torch.testing.assert_close(ops.attention(*qkv.unbind(1), cu, cu, 5, 5), expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=5), st.booleans(), st.randoms())
def test_batching_and_order_change_nothing(lengths, causal, random):
    q_lengths, k_lengths = (list(n) for n in zip(*lengths, strict=True))
    q, k, v, *rest = packed(q_lengths, k_lengths)
    parts = list(zip(q.split(q_lengths), k.split(k_lengths), v.split(k_lengths), strict=True))
    together = ops.attention(q, k, v, *rest, causal).split(q_lengths)
    order = random.sample(range(len(lengths)), len(lengths))
    shuffled = [parts[i] for i in order]
    q_lengths, k_lengths = [p[0].shape[0] for p in shuffled], [p[1].shape[0] for p in shuffled]
    found = ops.attention(
        *(torch.cat(t) for t in zip(*shuffled, strict=True)),
        offsets(q_lengths),
        offsets(k_lengths),
        max(q_lengths),
        max(k_lengths),
        causal,
    ).split(q_lengths)
    for place, i in enumerate(order):
        torch.testing.assert_close(found[place], together[i])
        alone = ops.attention(
            *parts[i],
            offsets(q_lengths[place : place + 1]),
            offsets(k_lengths[place : place + 1]),
            q_lengths[place],
            k_lengths[place],
            causal,
        )
        torch.testing.assert_close(alone, together[i])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(0, 2**32))
def test_order_of_keys_changes_nothing(keys, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(n, 2, 4, generator=generator, dtype=torch.float64) for n in (3, keys, keys))
    order = torch.randperm(keys, generator=generator)
    rest = offsets([3]), offsets([keys]), 3, keys
    torch.testing.assert_close(ops.attention(q, k[order], v[order], *rest), ops.attention(q, k, v, *rest))


# Padded batches

ALLOWED = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1)) > 0.4
ALLOWED[1, 2] = False  # a query with nothing to look at
MASKS = {
    "none": None,
    "keys": ALLOWED[:, None, :1],
    "full": ALLOWED[:, None],
    "one for all": ALLOWED[1][None, None],
    "every head": ALLOWED[:, None].expand(2, 2, 3, 4),
}


def padded(dim=5):
    return doubles(2, 3, 2, dim), doubles(2, 4, 2, dim), doubles(2, 4, 2, dim + 1)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("kind", ["bool", "added"])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_padded(name, kind, scale):
    q, k, v = padded()
    mask = MASKS[name]
    full = torch.ones(2, 2, 3, 4, dtype=torch.bool) if mask is None else mask.expand(2, 2, 3, 4)
    added = torch.randn(2, 1, 3, 4, dtype=torch.float64)
    given = mask if kind == "bool" or mask is None else torch.where(full[:, :1], added, -torch.inf)
    outputs, weights = [], []
    for b in range(2):
        extra = None if given is mask else added[b, 0]
        args = lambda i, j, b=b: bool(full[b, 0, i, j]), scale, extra
        outputs.append(plain(q[b], k[b], v[b], *args))
        weights.append(plain_weights(q[b], k[b], *args))
    torch.testing.assert_close(ops.masked_attention(q, k, v, given, scale), torch.stack(outputs))
    torch.testing.assert_close(ops.attention_weights(q, k, given, scale), torch.stack(weights))


@pytest.mark.parametrize("name", MASKS)
def test_gradcheck_padded(name):
    q, k, v = padded(3)
    assert torch.autograd.gradcheck(ops.masked_attention, (q, k, v, MASKS[name]))
    assert torch.autograd.gradcheck(ops.attention_weights, (q, k, MASKS[name]))


def test_gradcheck_added_mask():
    q, k, v = padded(3)
    mask = torch.randn(2, 1, 1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.masked_attention, (q, k, v, mask))
    assert torch.autograd.gradcheck(ops.attention_weights, (q, k, mask))


@pytest.mark.parametrize("mask", [torch.zeros(2, 1, 3, 4, dtype=torch.bool), torch.full((1, 1, 1, 4), -torch.inf)])
def test_all_masked_gives_zeros_and_finite_gradients(mask):
    q, k, v = padded()
    for out in (ops.masked_attention(q, k, v, mask), ops.attention_weights(q, k, mask)):
        assert not out.any()
        for gradient in torch.autograd.grad(out.sum(), (q, k)):
            assert not gradient.any()


@pytest.mark.parametrize("kind", ["bool", "added"])
def test_masked_keys_are_not_seen(kind):
    """Whatever finite values padding holds, the result is that without the padding."""
    q, k, v = (t.detach() for t in padded())
    mask = torch.tensor([True, True, True, False])[None, None, None]
    given = mask if kind == "bool" else torch.where(mask, 0.0, -torch.inf).double()
    k[:, 3], v[:, 3] = 1e6, -1e6
    torch.testing.assert_close(ops.masked_attention(q, k, v, given), ops.masked_attention(q, k[:, :3], v[:, :3], None))
    weights = ops.attention_weights(q, k, given)
    assert not weights[..., 3].any()
    torch.testing.assert_close(weights[..., :3], ops.attention_weights(q, k[:, :3], None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_sum_to_one(dtype):
    q, k = torch.randn(2, 3, 2, 8).to(dtype), torch.randn(2, 257, 2, 8).to(dtype)
    weights = ops.attention_weights(q, k, torch.rand(2, 1, 3, 257) > 0.5)
    assert weights.dtype is dtype
    torch.testing.assert_close(weights.double().sum(-1).to(dtype), torch.ones(2, 2, 3, dtype=dtype))


# Bad inputs

Q, K, CU = torch.ones(5, 2, 4), torch.ones(6, 2, 4), torch.tensor([0, 2, 5], dtype=torch.int32)


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("q", None, TypeError),
        ("q", Q.int(), TypeError),
        ("q", Q[0], ValueError),
        ("q", Q[None], ValueError),
        ("k", None, TypeError),
        ("k", K[:, :1], ValueError),
        ("k", K[..., :3], ValueError),
        ("k", K.half(), TypeError),
        ("k", K.to("meta"), ValueError),
        ("v", None, TypeError),
        ("v", K[:5], ValueError),
        ("v", K[:, :1], ValueError),
        ("v", K.double(), TypeError),
        ("cu_seqlens_q", None, TypeError),
        ("cu_seqlens_q", CU.float(), TypeError),
        ("cu_seqlens_q", [0, 2, 5], TypeError),
        ("cu_seqlens_q", CU[None], ValueError),
        ("cu_seqlens_q", CU.to("meta"), ValueError),
        ("cu_seqlens_k", CU[:2], ValueError),
        ("cu_seqlens_k", CU.short(), TypeError),
        ("max_seqlen_q", 2, ValueError),
        ("max_seqlen_q", -1, ValueError),
        ("max_seqlen_k", 2, ValueError),
    ],
)
def test_attention_refuses(name, value, error):
    arguments = {"q": Q, "k": K, "v": K, "cu_seqlens_q": CU, "cu_seqlens_k": CU, "max_seqlen_q": 3, "max_seqlen_k": 3}
    with pytest.raises(error, match=rf"attention: .*\b{name}\b"):
        ops.attention(**arguments | {name: value})


def test_attention_refuses_no_offsets():
    with pytest.raises(ValueError, match="cu_seqlens_q is empty"):
        ops.attention(Q, K, K, CU[:0], CU[:0], 3, 3)


PADDED = {"q": torch.ones(2, 3, 2, 4), "k": torch.ones(2, 5, 2, 4), "mask": None}
WRONG_PADDED = [
    ("q", None, TypeError),
    ("q", PADDED["q"][0], ValueError),
    ("q", PADDED["q"].long(), TypeError),
    ("k", None, TypeError),
    ("k", PADDED["k"][:1], ValueError),
    ("k", PADDED["k"][..., :3], ValueError),
    ("k", PADDED["k"].bfloat16(), TypeError),
    ("mask", torch.ones(2, 5, dtype=torch.bool), ValueError),
    ("mask", torch.ones(2, 1, 3, 4), ValueError),
    ("mask", torch.ones(3, 1, 1, 5), ValueError),
    ("mask", torch.ones(1, 1, 1, 5, dtype=torch.int64), TypeError),
    ("mask", "causal", TypeError),
]


@pytest.mark.parametrize("name, value, error", WRONG_PADDED)
def test_attention_weights_refuses(name, value, error):
    with pytest.raises(error, match=rf"attention_weights: .*\b{name}\b"):
        ops.attention_weights(**PADDED | {name: value})


@pytest.mark.parametrize(
    "name, value, error",
    [*WRONG_PADDED, ("v", None, TypeError), ("v", PADDED["q"], ValueError), ("v", PADDED["k"].half(), TypeError)],
)
def test_masked_attention_refuses(name, value, error):
    with pytest.raises(error, match=rf"masked_attention: .*\b{name}\b"):
        ops.masked_attention(**PADDED | {"v": PADDED["k"]} | {name: value})
