"""Every kernel writes all of its results and nothing beside them; and what the interpreter cannot do is not done."""

from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from fences import fenced_outputs

from altclip_fast.dispatch import OPS, use_backend
from altclip_fast.kernels.launch import INTERPRETED, LAUNCHES
from altclip_fast.testing import samples

ROOT = Path(__file__).parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LARGEST = 2_000  # elements of a sample's tensors
WRITTEN = {
    line.split("(")[0].removeprefix("def ")
    for file in (ROOT / "kernels").glob("*.py")
    for line in file.read_text().splitlines()
    if line.startswith("def _") and line.split("(")[0].endswith("_kernel")
}
# In float32 K is never split; in bfloat16 a small backward of attention is one kernel.
ELSEWHERE = {torch.float32: {"_linear_reduce_kernel"}, torch.bfloat16: {"_attention_backward_kv_kernel"}}


def floating(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def small(op, dtype):
    for name, args in samples(op, dtype, DEVICE):
        if sum(a.numel() for a in args if isinstance(a, torch.Tensor)) <= LARGEST:
            yield name, args
    if op == "linear":
        x, weight = (torch.randn(rows, 4096, device=DEVICE).to(dtype) for rows in (3, 24))
        yield "K is split", (x, weight, None, "gelu", None)


def outputs_and_gradients(op, args):
    args = tuple(a.detach().requires_grad_() if floating(a) else a for a in args)
    outputs = op(*args)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    inputs = [a for a in args if floating(a)]
    to_add = [o.sum() for o in outputs if o.requires_grad]
    return outputs + list(torch.autograd.grad(to_add, inputs, allow_unused=True) if to_add else ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_kernel_stays_inside_of_its_results_and_fills_them(dtype):
    before = LAUNCHES.copy()
    for op in (op for op in OPS.values() if "triton" in op.backends):
        for name, args in small(op.name, dtype):
            with use_backend("triton"), fenced_outputs():
                found = outputs_and_gradients(op, args)
            left = [i for i, x in enumerate(found) if x is not None and x.is_floating_point() and x.isnan().any()]
            assert not left, f"{op.name}, {name}: results {left} are not filled"
    assert WRITTEN - set(LAUNCHES - before) <= ELSEWHERE[dtype]


def without_columns(rows):
    x, none, table = (torch.ones(*shape, 0, device=DEVICE) for shape in ([rows], [], [2]))
    ids = torch.zeros(rows, dtype=torch.int64, device=DEVICE)
    yield "layer_norm", (x, none, none, 1e-5)
    yield "add_layer_norm", (x, x, none, none, 1e-5)
    yield "text_embed", (ids, ids, None, table, table, None, none, none, 1e-5)
    yield "l2_normalize", (x,)


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # the mean of nothing, which is not stored
@pytest.mark.parametrize("rows", [0, 3])
def test_rows_without_columns(rows):
    for op, args in without_columns(rows):
        with use_backend("triton"):
            assert outputs_and_gradients(OPS[op], args)[0].shape == (rows, 0)


def test_the_fence_is_seen():
    with pytest.raises(AssertionError, match="written beyond 3"), fenced_outputs():
        out = torch.empty(3)
        torch.as_strided(out, (1,), (1,), out.storage_offset() + 3).zero_()


@triton.jit
def _product_kernel(x_ptr, out_ptr, DOT: tl.constexpr):
    place = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    x = tl.load(x_ptr + place).to(DOT)
    tl.store(out_ptr + place, tl.dot(x, x))


@triton.jit
def _sum_kernel(x_ptr, out_ptr, DOT: tl.constexpr):
    place = tl.arange(0, 16)
    x = tl.load(x_ptr + place).to(DOT)
    tl.store(out_ptr + place, (x + x).to(tl.float32))


@pytest.mark.skipif(not INTERPRETED, reason="of the interpreter")
@pytest.mark.parametrize("kernel", [_product_kernel, _sum_kernel])
def test_bfloat16_arithmetic_is_seen(kernel):
    x, out = torch.ones(16, 16, dtype=torch.bfloat16), torch.empty(16, 16)
    kernel[(1,)](x, out, DOT=tl.float32)
    with pytest.raises(Exception, match="of bfloat16 in the interpreter"):
        kernel[(1,)](x, out, DOT=tl.bfloat16)
