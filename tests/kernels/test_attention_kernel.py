"""The Triton attention where parity on the op's samples does not reach: lengths, tiles, both walks, batches, fences."""

from itertools import accumulate

import pytest
import torch

from altclip_fast import ops
from altclip_fast.dispatch import BackendUnavailableError, use_backend
from altclip_fast.kernels import attention as kernel
from altclip_fast.kernels import tuning
from altclip_fast.kernels.launch import LAUNCHES, assuming, recording
from altclip_fast.testing import assert_parity

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RAGGED = [5, 0, 41, 1, 0, 18]


def offsets(lengths, dtype=torch.int32):
    return torch.tensor([0, *accumulate(lengths)], dtype=dtype, device=DEVICE)


def arguments(lengths, k_lengths=None, heads=1, dim=64, dim_v=None, dtype=torch.float32, causal=False):
    """Of one call; without lengths of the keys, q, k and v are views of packed rows."""
    if k_lengths is None:
        k_lengths = lengths
        q, k, v = torch.randn(sum(lengths), 3, heads, dim, device=DEVICE).to(dtype).unbind(1)
    else:
        shapes = ((sum(lengths), dim), (sum(k_lengths), dim), (sum(k_lengths), dim_v or dim))
        q, k, v = (torch.randn(rows, heads, columns, device=DEVICE).to(dtype) for rows, columns in shapes)
    return q, k, v, offsets(lengths), offsets(k_lengths), max(lengths), max(k_lengths), causal


def gradients(args):
    """The output and the gradients of q, k and v, of the Triton backend."""
    inputs = [x.detach().requires_grad_() for x in args[:3]]
    with use_backend("triton"):
        out = ops.attention(*inputs, *args[3:])
    given = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).reshape(out.shape)
    return out.detach(), *torch.autograd.grad(out, inputs, given)


@pytest.mark.parametrize("tokens", [1, 77, 257])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lengths(tokens, causal, dtype):
    assert_parity("attention", arguments([tokens], dtype=dtype, causal=causal), backend="triton", gradients=True)


def test_long_sequence():
    assert_parity("attention", arguments([1025], dtype=torch.bfloat16), backend="triton", gradients=True)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dim", [1, 12, 64, 80, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_heads(capability, dim, dtype):
    with assuming(capability):
        assert_parity("attention", arguments([37, 3], dim=dim, dtype=dtype), backend="triton", gradients=True)


@pytest.mark.parametrize("dim, dim_v", [(12, 80), (80, 12), (128, 1)])
def test_values_of_another_width(dim, dim_v):
    args = arguments([9, 2], [7, 35], dim=dim, dim_v=dim_v)
    assert_parity("attention", args, backend="triton", gradients=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("q_lengths, k_lengths", [([2, 40, 0, 1], [50, 43, 3, 90]), ([50, 43, 3, 90], [2, 40, 0, 1])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fewer_and_more_queries_than_keys(causal, q_lengths, k_lengths, dtype):
    args = arguments(q_lengths, k_lengths, heads=2, dim=12, dtype=dtype, causal=causal)
    assert_parity("attention", args, backend="triton", gradients=True)


BACKWARD = "_attention_backward_q_kernel", "_attention_backward_kv_kernel"
TILES = [  # op, its tile, and the kernels of the op for sequences of at most 41 queries and keys
    ("attention", 64, 64, ("_attention_kernel",)),
    ("attention", 16, 16, ("_attention_kernel",)),
    ("attention_backward", 64, 64, BACKWARD[:1]),
    ("attention_backward", 16, 64, BACKWARD),
    ("attention_backward", 32, 16, BACKWARD),
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("op, rows, columns, kernels", TILES)
def test_one_pass_and_walks(op, rows, columns, kernels, causal):
    """Keys in one tile, queries and keys in one tile each, many tiles."""
    args = arguments(RAGGED, heads=2, dim=12, dtype=torch.float16, causal=causal)
    with tuning.trying(op, {"BLOCK_M": rows, "BLOCK_N": columns, "num_warps": 4, "num_stages": 2}):
        before = LAUNCHES.copy()
        gradients(args)
        started = {name for name in LAUNCHES - before if ("backward" in name) == ("backward" in op)}
        assert started == set(kernels)
        assert_parity("attention", args, backend="triton", gradients=True)


@pytest.mark.parametrize("tail", [1, 16, 17, 63])
def test_last_tile(tail):
    """Of 64 keys and of the narrow 16."""
    config = {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}
    args = arguments([64 + tail], dim=16, dtype=torch.float16)
    for op in ("attention", "attention_backward"):
        with tuning.trying(op, config):
            assert_parity("attention", args, backend="triton", gradients=True)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("causal", [False, True])
def test_batch_invariance(causal, capability):
    """float32: a sequence gives the same bits alone, in a batch, and beside a far longer one."""
    lengths = [7, 77, 0, 130]
    args = arguments(lengths, heads=2, dim=16, causal=causal)
    with assuming(capability):
        together = gradients(args)
        first = 0
        for length in lengths:
            rows = slice(first, first + length)
            cu = offsets([length])
            with use_backend("triton"):
                alone = ops.attention(*(x[rows] for x in args[:3]), cu, cu, length, length, causal)
            assert torch.equal(alone, together[0][rows])
            first += length


@pytest.mark.parametrize("capability", [80, 90])
def test_gradients_are_invariant_too(capability):
    lengths = [130, 20]
    q, k, v, *_ = arguments(lengths, heads=1, dim=16)
    grad = torch.randn_like(q.contiguous())
    cu, alone = offsets(lengths), offsets(lengths[1:])
    with assuming(capability):
        together = kernel.attention_backward(grad, q, k, v, cu, cu, 130, 130, False, None)
        found = kernel.attention_backward(grad[130:], q[130:], k[130:], v[130:], alone, alone, 20, 20, False, None)
    for batched, single in zip(together, found, strict=True):
        assert torch.equal(batched[130:], single)


def fenced(x):
    """The same values, with NaN before, behind and between the rows and heads."""
    buffer = torch.full([n + 2 for n in x.shape], torch.nan, dtype=x.dtype, device=x.device)
    buffer[1:-1, 1:-1, 1:-1] = x
    return buffer[1:-1, 1:-1, 1:-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_nothing_around_the_operands_is_used(causal, dtype):
    args = arguments(RAGGED, RAGGED[::-1], heads=2, dim=12, dim_v=20, dtype=dtype, causal=causal)
    for found, expected in zip(gradients([*map(fenced, args[:3]), *args[3:]]), gradients(args), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:All-NaN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_stays_in_its_sequence(dtype):
    q, k, v, *rest = (x.contiguous() if x.dim() == 3 else x for x in arguments([3, 40, 2], dtype=dtype)[:4])
    rest = (*rest, *rest, 40, 40)
    expected = gradients((q, k, v, *rest))
    for x in (q, k, v):
        x[3:43] = torch.nan
    for found, clean in zip(gradients((q, k, v, *rest)), expected, strict=True):
        assert found[3:43].isnan().all()
        assert torch.equal(found[:3], clean[:3]) and torch.equal(found[43:], clean[43:])


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_that_it_refuses(scale):
    with use_backend("triton"), pytest.raises(BackendUnavailableError, match=f"scale is {scale}"):
        ops.attention(*arguments([3, 2]), scale)


@pytest.mark.parametrize("dim", [129, 256])
def test_heads_that_it_refuses(dim):
    with use_backend("triton"), pytest.raises(BackendUnavailableError, match=f"heads of {dim}"):
        ops.attention(*arguments([3, 2], dim=dim))


def test_recording_reads_no_values():
    """Of tensors without memory, as the ahead-of-time report has them."""
    with recording(90) as launches:
        q, k, v = torch.empty(3 * 77, 3, 2, 64, dtype=torch.bfloat16, device="meta").unbind(1)
        cu = torch.empty(4, dtype=torch.int32, device="meta")
        kernel.attention(q, k, v, cu, cu, 77, 77, True, None)
        kernel.attention_backward(torch.empty_like(q), q, k, v, cu, cu, 77, 77, True, None)
    assert [launch.kernel.fn.__name__ for launch in launches] == ["_attention_kernel", BACKWARD[0]]
