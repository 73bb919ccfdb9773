"""What holds for every op: parity on all samples, registration, and the compiler."""

import pytest
import torch
from torch import Tensor

from altclip_fast import ops  # noqa: F401  fills OPS
from altclip_fast.dispatch import OPS, BackendUnavailableError, use_backend
from altclip_fast.kernels.launch import LAUNCHES
from altclip_fast.testing import assert_parity, samples

NO_GPU = "needs a CUDA device"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# One sample of usual strides and one of unusual ones, for the checks that take a second each.
CHOSEN = {
    "add_layer_norm": ["shape [13, 101]", "transposed, and the residual"],
    "attention": ["causal, ragged", "packed qkv rows, heads of 12", "one query each"],
    "attention_weights": ["key padding, one row all padding", "heads outside"],
    "contrastive_loss": ["17 pairs of 64", "transposed"],
    "l2_normalize": ["zero rows", "transposed"],
    "layer_norm": ["shape [2, 3, 12]", "transposed"],
    "linear": ["no bias, gelu, residual", "transposed"],
    "masked_attention": ["added mask", "heads outside"],
    "mlp": ["gelu", "transposed"],
    "patch_embed": ["bytes, channels last, normalised", "strided weights"],
    "qkv": ["three sizes", "transposed"],
    "similarity": ["3x5x7", "transposed"],
    "similarity_argmax": ["3x5x7", "transposed"],
    "similarity_softmax": ["scale 100", "transposed"],
    "similarity_topk": ["3x5x7, top 5", "transposed, top 5"],
    "text_embed": ["two types", "transposed table"],
}
CASES = [(op, name) for op, names in CHOSEN.items() for name in names]


def chosen(op, name, dtype=torch.float32):
    return next(sample.args for sample in samples(op, dtype) if sample.name == name)


def with_gradients(args):
    return tuple(a.detach().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def gradients(run, args):
    args = with_gradients(args)
    outputs = run(*args)
    outputs = [o for o in ([outputs] if isinstance(outputs, Tensor) else outputs) if o.requires_grad]
    inputs = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
    if not outputs:
        return []
    return torch.autograd.grad([o.square().sum() for o in outputs], inputs, allow_unused=True, materialize_grads=True)


def test_every_op_has_samples_and_is_checked():
    assert set(CHOSEN) == set(OPS)
    for op in OPS:
        names = [sample.name for sample in samples(op, torch.float32)]
        assert len(names) == len(set(names)) > 8, op


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_reference_parity(op, dtype):
    for _, args in samples(op, dtype):
        assert_parity(op, args, backend="reference", gradients=True)


def backend_cases():
    """Every backend but the reference; on a GPU machine its tensors lie there."""
    return [pytest.param(op, name, id=f"{op}-{name}") for op in OPS for name in OPS[op].backends if name != "reference"]


def device_of(backend):
    if backend == "cuda" and not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return "cuda" if backend in ("cuda", "triton") and torch.cuda.is_available() else "cpu"


# oneDNN has no float16 on most processors: the reference runs.
WITHOUT_FLOAT16 = {("linear", "cpu"), ("mlp", "cpu"), ("patch_embed", "cpu"), ("qkv", "cpu")}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op, backend", backend_cases())
def test_backend_parity(op, backend, dtype):
    if (op, backend) in WITHOUT_FLOAT16 and dtype is torch.float16:
        with use_backend(backend), pytest.raises(BackendUnavailableError, match="float16"):
            OPS[op](*next(samples(op, dtype)).args)
        return
    started = LAUNCHES.total()
    for _, args in samples(op, dtype, device_of(backend)):
        assert_parity(op, args, backend=backend, gradients=True)
    assert backend != "triton" or LAUNCHES.total() > started, "parity of the reference with itself"


@pytest.mark.parametrize("op", OPS)
def test_samples_have_finite_truths(op):
    """Otherwise parity would compare little."""
    for name, args in samples(op, torch.float16):
        for dtype in (torch.float16, torch.float64):
            outputs = OPS[op].reference(*(a.to(dtype) if _floating(a) else a for a in args))
            assert all(o.isfinite().all() for o in ([outputs] if isinstance(outputs, Tensor) else outputs)), name


def _floating(value):
    return isinstance(value, Tensor) and value.is_floating_point()


@pytest.mark.parametrize("op, name", CASES)
def test_registered_op(op, name):
    torch.library.opcheck(OPS[op].registered, with_gradients(chosen(op, name)))


@pytest.mark.parametrize("op, name", [case for case in CASES if "triton" in OPS[case[0]].backends])
def test_registered_op_on_triton(op, name):
    args = tuple(a.to(device_of("triton")) if isinstance(a, Tensor) else a for a in chosen(op, name))
    with use_backend("triton"):
        torch.library.opcheck(OPS[op].registered, with_gradients(args))


@pytest.mark.parametrize("op, name", CASES)
def test_gradients_through_the_registered_op(op, name):
    """The path of a kernel without a backward of its own."""
    args = chosen(op, name, torch.float64)
    torch.testing.assert_close(gradients(OPS[op].registered, args), gradients(OPS[op].reference, args))


@pytest.mark.parametrize("op, name", CASES)
def test_compiled(op, name):
    args = chosen(op, name)
    compiled = torch.compile(OPS[op].__call__, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), OPS[op](*args), rtol=0, atol=0)
    with use_backend("reference"):  # compiled code does not know that gradients are recorded, which decides
        torch.testing.assert_close(gradients(compiled, args), gradients(OPS[op], args))
