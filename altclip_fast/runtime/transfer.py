"""Between the host and a device, without either waiting for the other.

What is copied to a CUDA device starts from pinned memory, and what comes back ends in it: such copies run beside the
host and the kernels. torch keeps a pinned block until the copies from it are done, so blocks need no bookkeeping here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Key = TypeVar("Key")


def stacked(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Arrays of one shape and dtype as a tensor [N, ..] in memory of the host, pinned where `device` is CUDA."""
    dtype = torch.from_numpy(arrays[0]).dtype
    batch = torch.empty(len(arrays), *arrays[0].shape, dtype=dtype, pin_memory=device.type == "cuda")
    np.stack(arrays, out=batch.numpy())
    return batch


class Arrival:
    """A tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.to("cpu", non_blocking=True)
        self._event = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def wait(self) -> Tensor:
        """The tensor, on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor


def arriving(launched: Iterable[tuple[Key, Tensor]]) -> Iterator[tuple[Key, Tensor]]:
    """The pairs with their tensors on the host. The next one is launched before one is waited for."""
    last: tuple[Key, Arrival] | None = None
    for key, tensor in launched:
        next_one = key, Arrival(tensor)
        if last is not None:
            yield last[0], last[1].wait()
        last = next_one
    if last is not None:
        yield last[0], last[1].wait()
