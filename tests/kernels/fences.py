"""Operands in the middle of something that must not be read, results in the middle of what must not be written."""

from contextlib import ExitStack, contextmanager
from unittest import mock

import torch

MARGIN = 64  # elements: what is aligned stays so
UNTOUCHED = 77
BEYOND = {torch.uint8: 255, torch.int64: 2**40}


def fenced(x, margin=5):
    """The same values in the middle of a buffer of NaN (255 for bytes, an id far out for ids)."""
    shape = [n + 2 * margin for n in x.shape]
    buffer = torch.full(shape, BEYOND.get(x.dtype, torch.nan), dtype=x.dtype, device=x.device)
    inside = buffer[tuple(slice(margin, margin + n) for n in x.shape)]
    inside.copy_(x)
    return inside


@contextmanager
def fenced_outputs():
    """`torch.empty` and its kin give NaN (integers: 77) in the middle of 77s, which are checked in the end."""
    buffers = []

    def fenced_by(make):
        def made(*args, **named):
            like = make(*args, **named)
            if like.is_meta:
                return like
            buffer = make_empty(like.numel() + 2 * MARGIN, dtype=like.dtype, device=like.device).fill_(UNTOUCHED)
            buffers.append(buffer)
            inside = buffer[MARGIN:-MARGIN]
            return inside.fill_(torch.nan if like.is_floating_point() else UNTOUCHED).view(like.shape)

        return made

    make_empty = torch.empty
    with ExitStack() as stack:
        for home, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            stack.enter_context(mock.patch.object(home, name, fenced_by(getattr(home, name))))
        yield
    for buffer in buffers:
        around = torch.cat([buffer[:MARGIN], buffer[-MARGIN:]])
        assert bool((around == UNTOUCHED).all()), f"written beyond {buffer.numel() - 2 * MARGIN} {buffer.dtype}"
