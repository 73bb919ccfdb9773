"""Where a kernel is started."""

from contextlib import contextmanager

import pytest
import torch

from altclip_fast.dispatch import use_backend
from altclip_fast.kernels import launch
from altclip_fast.ops import layer_norm

X, ROW = torch.randn(3, 8), torch.ones(8)


class Kernel:
    """Notes which device is the current one when it is started."""

    def __init__(self, current):
        self.current, self.started = current, []

    @property
    def fn(self):
        return type(self)

    def __getitem__(self, grid):
        return lambda *arguments, **named: self.started.append(list(self.current))


def test_a_kernel_starts_on_the_device_of_its_tensors(monkeypatch):
    current = []

    @contextmanager
    def device_of(tensor):
        current.append(tensor)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    kernel = Kernel(current)
    launch.launch(kernel, (1,), None, X, 3)
    (started,) = kernel.started
    assert len(started) == 1 and started[0] is X and not current


@pytest.mark.gpu
def test_tensors_on_another_device_than_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    args = (X.to("cuda:1"), ROW.to("cuda:1"), ROW.to("cuda:1"), 1e-5)
    with torch.cuda.device(0), use_backend("triton"):
        torch.testing.assert_close(layer_norm(*args), layer_norm.reference(*args))
