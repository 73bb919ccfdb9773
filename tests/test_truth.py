"""On a GPU: every operator, backend, dtype and sample, and whole models, as `python -m benchmarks gpu` checks them."""

import pytest
import torch

from benchmarks import truth

WHERE = {"device": "cuda", "extent": truth.FULL}


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Where checkpoints of real size are written."""
    return tmp_path_factory.mktemp("weights")


def names(kind):
    """Of the checks; to list them needs no GPU."""
    return [check.name for check in kind]


def ask(kind, name):
    check = next(check for check in kind if check.name == name)
    try:
        check.run()
    except truth.Skipped as error:
        pytest.skip(str(error))


@pytest.mark.gpu
@pytest.mark.parametrize("name", names(truth.checks(**WHERE, weights=None)))
def test_truth(name, weights):
    ask(truth.checks(**WHERE, weights=weights), name)


@pytest.mark.gpu
@pytest.mark.parametrize("name", names(truth.far_checks(**WHERE)))
def test_many_elements(name):
    torch.cuda.empty_cache()
    ask(truth.far_checks(**WHERE), name)


def test_every_operator_with_a_kernel_is_checked():
    listed = names(truth.checks(**WHERE, weights=None))
    assert len(listed) == len(set(listed))
    for op, backend in truth._kernels("cuda"):
        for dtype in truth.FULL.dtypes:
            assert f"{op} on {backend}, {dtype}: samples" in listed
    assert {backend for _, backend in truth._kernels("cuda")} == {"triton", "cuda"}
    assert {backend for _, backend in truth._kernels("cpu")} == {"triton"}
