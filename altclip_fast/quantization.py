"""Lower precision for the linears of the encoders: `quantization="int8"`, on the CPU.

The parameters stay what they are; each `layers.Linear` packs its weight as 8-bit numbers on first use, and quantises
the rows that it is given (see `ops.int8`). Embeddings, norms, attention and projections keep the model's dtype.
"""

from __future__ import annotations

from torch import nn

from .models.layers import Linear
from .ops.int8 import why_not

QUANTIZATIONS = (None, "int8")


def quantize(model: nn.Module, quantization: str) -> None:
    """Let the model's linears compute in lower precision. Its parameters stop recording gradients.

    Args:
        quantization: "int8".

    Raises:
        ValueError: another name; or this model cannot run so here, for the reason that is given.
    """
    check_quantization(quantization)
    linears = {name: module for name, module in model.named_modules() if type(module) is Linear}
    for name, module in linears.items():
        if (reason := why_not(module.weight)) is not None:
            raise ValueError(f"quantization='int8': {name}: {reason}")
    for module in linears.values():
        module.int8 = True
    model.requires_grad_(False)


def check_quantization(quantization: str | None) -> None:
    """Raise ValueError unless it is one of `QUANTIZATIONS`."""
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization is {quantization!r}; None or 'int8' is supported")
