"""Whole models on the Triton backend, in the interpreter where there is no GPU, against transformers."""

import pytest
import torch
from oracle import CASES, JOINT, assert_same, assert_same_gradients, gradients, inputs_for, pair

from altclip_fast import use_backend
from altclip_fast.dispatch import OPS
from altclip_fast.kernels.launch import LAUNCHES

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter; on a GPU see test_truth.py")


@pytest.fixture(autouse=True)
def triton_backend():
    with use_backend("triton"):
        yield


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", JOINT)
def test_outputs(name, case):
    found = pair(name, case)
    inputs = inputs_for(found.ours)
    started = LAUNCHES.copy()
    with torch.no_grad():
        ours, theirs = found.ours(**inputs, return_loss=True), found.theirs(**inputs, return_loss=True)
        assert_same(ours, theirs, inputs["attention_mask"])
    run = set(LAUNCHES - started)
    wanted = {"layer_norm", "linear", "attention", "patch_embed", "text_embed", "log_sum"}
    missing = {stem for stem in wanted if not any(stem in kernel for kernel in run)}
    assert not missing, f"these did not run as kernels: {missing}"


@pytest.mark.parametrize("name", JOINT)
def test_gradients(name):
    found = pair(name).copy()
    inputs = inputs_for(found.ours)
    assert_same_gradients(gradients(found.ours, inputs)[1], gradients(found.theirs, inputs)[1])


@pytest.mark.parametrize("name", JOINT)
def test_one_graph(name):
    found = pair(name)
    inputs = inputs_for(found.ours)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(found.ours, fullgraph=True, backend="aot_eager")(**inputs)
        assert_same(compiled, found.theirs(**inputs), inputs["attention_mask"])
    torch._dynamo.reset()


def test_every_hot_op_has_a_kernel():
    padded_only = {"masked_attention", "attention_weights"}  # for what packed rows cannot serve
    assert {name for name, op in OPS.items() if "triton" not in op.backends} == padded_only
