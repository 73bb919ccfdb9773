"""A system measured in this process, in the place of a `Worker`."""

from dataclasses import dataclass

import torch

from benchmarks import workloads
from benchmarks.systems import Running


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
        with self.running.around():
            return torch.cat([self.running.embed(batch).float() for batch in self.job.batches()])

    def turn(self):
        self.embeddings(0)
        return 0.5

    def close(self):
        self.closed = True
