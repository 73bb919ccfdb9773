"""A tiny model, measured without processes of its own and without waiting."""

from dataclasses import dataclass

import pytest
import torch

from benchmarks import ceiling, harness, worker, workloads
from benchmarks.systems import Running


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Where named models are written."""
    return tmp_path_factory.mktemp("weights")


@pytest.fixture
def job(weights):
    """Makes a job of the tiny model."""

    def make(work="image", batch=2, dtype="float32"):
        folder = workloads.checkpoint("tiny", work, weights)
        return workloads.Job(str(folder), work, batch, dtype, torch.get_num_threads())

    return make


@dataclass
class Local:
    """What a `Worker` does, in this process."""

    start: object
    job: workloads.Job
    patience: float

    peak_memory = memory = None

    def __post_init__(self):
        self.running: Running = self.start(self.job)
        self.backend, self.closed = self.running.backend, False

    def embeddings(self, patience):
        return torch.cat([self.running.embed(batch).float() for batch in self.job.batches()])

    def turn(self):
        self.embeddings(0)
        return 0.5

    def close(self):
        self.closed = True


@pytest.fixture
def local(monkeypatch):
    """The harness in one process, with ceilings of small products."""
    harness.truth.cache_clear()
    monkeypatch.setattr(harness, "Worker", Local)
    monkeypatch.setattr(worker, "TURN", 0.0)
    monkeypatch.setattr(ceiling, "INNER", 16)
    monkeypatch.setattr(ceiling, "COLUMNS", 32)
    monkeypatch.setattr(ceiling, "COPIED", 4096)
    yield
    harness.truth.cache_clear()
