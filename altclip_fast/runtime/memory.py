"""Batches that do not fit in the memory of the device are computed in halves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..notices import warn_once


def in_halves(run: Callable[[int, int], Tensor], count: int, unit: str, shortage: Callable[[], None]) -> Tensor:
    """`run(0, count)`, or the same rows from several calls where a call runs out of memory.

    Args:
        run: the rows from one index up to another.
        unit: what is counted ("images"), for the message, which comes once.
        shortage: called after each failure, to free what can be done without.

    Raises:
        torch.OutOfMemoryError: a single one does not fit.
    """
    todo, done = [(0, count)], []
    while todo:
        start, stop = todo.pop()
        try:
            done.append(run(start, stop))
            continue
        except torch.OutOfMemoryError:
            if stop - start < 2:
                raise
        shortage()  # not in the handler: there the error still holds the tensors of the call that failed
        warn_once(
            "out-of-memory",
            f"{stop - start} {unit} at once do not fit in the memory of the device; they are computed in halves. "
            "A smaller batch_size saves the failed tries",
        )
        middle = (start + stop) // 2
        todo += [(middle, stop), (start, middle)]
    return done[0] if len(done) == 1 else torch.cat(done)
