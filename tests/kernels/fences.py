"""Operands in the middle of something that must not be read."""

import torch

BEYOND = {torch.uint8: 255, torch.int64: 2**40}


def fenced(x, margin=5):
    """The same values in the middle of a buffer of NaN (255 for bytes, an id far out for ids)."""
    shape = [n + 2 * margin for n in x.shape]
    buffer = torch.full(shape, BEYOND.get(x.dtype, torch.nan), dtype=x.dtype, device=x.device)
    inside = buffer[tuple(slice(margin, margin + n) for n in x.shape)]
    inside.copy_(x)
    return inside
