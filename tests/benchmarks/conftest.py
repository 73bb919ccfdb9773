"""A tiny model, measured without processes of its own and without waiting."""

import importlib

import pytest
import torch
from in_process import Local

from altclip_fast.models.clip import CLIPTextModelWithProjection
from benchmarks import workloads


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Where named models are written."""
    return tmp_path_factory.mktemp("weights")


@pytest.fixture
def job(weights, monkeypatch):
    """Makes a job of the tiny model, or of one whose text tower is CLIP's."""
    text = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    clip = workloads.Size(
        workloads.SIZES["tiny"].vision,
        {
            **text,
            "vocab_size": 99,
            "bos_token_id": 97,
            "eos_token_id": 98,
            "projection_dim": 24,
            "initializer_factor": 4.0,
        },
        CLIPTextModelWithProjection,
    )
    monkeypatch.setitem(workloads.SIZES, "tiny-clip", clip)

    def make(work="image", batch=2, dtype="float32", model="tiny"):
        folder = workloads.checkpoint(model, work, weights)
        return workloads.Job(str(folder), work, batch, dtype, torch.get_num_threads())

    return make


@pytest.fixture(params=["benchmarks"])
def local(request, monkeypatch):
    """The harness in one process, with ceilings of small products; under the name that it is imported by."""
    harness, clock, ceiling = (importlib.import_module(f"{request.param}.{n}") for n in ("harness", "clock", "ceiling"))
    harness.truth.cache_clear()
    monkeypatch.setattr(harness, "Worker", Local)
    monkeypatch.setattr(clock, "TURN", 0.0)
    for name, value in (("INNER", 16), ("COLUMNS", 32), ("COPIED", 4096)):
        monkeypatch.setattr(ceiling, name, value)
    yield
    harness.truth.cache_clear()
