"""Lower precision for the linears of the encoders' layers: `quantization="int8"`, for inference on a CPU.

Weights become 8-bit numbers with a scale for each output, and rows are quantised as they come (see `ops.int8`).
Embeddings, norms, attention and projections keep the model's dtype. A model that is saved so is loaded so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from .models.layers import Linear, PostNormLayer, PreNormLayer
from .ops.int8 import why_not

QUANTIZATIONS = (None, "int8")
STORED = {"quant_method": "altclip_fast", "weights": "int8"}  # `quantization_config` in config.json


def check_quantization(quantization: str | None) -> None:
    """Raise ValueError unless it is one of `QUANTIZATIONS`."""
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization is {quantization!r}; None or 'int8' is supported")


def stored_quantization(config: Mapping[str, Any]) -> str | None:
    """How the weights beside a config.json are quantised.

    Raises:
        ValueError: in a way that is not ours.
    """
    stored = config.get("quantization_config")
    if stored is None:
        return None
    if stored != STORED:
        raise ValueError(f"quantization_config in config.json is {stored!r}; only {STORED!r} is supported")
    return "int8"


def quantize(model: nn.Module) -> None:
    """Turn the linears of the model's layers into 8-bit ones, and stop all its parameters from recording gradients.

    Args:
        model: on the CPU; or on the meta device, before its quantised weights are loaded.

    Raises:
        ValueError: this model cannot run so here, for the reason that is given; it is as it was.
    """
    linears = dict(_linears(model))
    for name, linear in linears.items():
        device = linear.weight.device
        if device.type not in ("cpu", "meta"):
            raise ValueError(f"quantization='int8' runs on the CPU, and {name} is on {device}")
        if (reason := why_not(linear.in_features)) is not None:
            raise ValueError(f"quantization='int8' cannot be used for {name}: {reason}")
    for linear in linears.values():
        linear.use_int8()
    model.requires_grad_(False)


def is_quantized(model: nn.Module) -> bool:
    return any(linear.weight_scale is not None for _, linear in _linears(model))


def _linears(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    for place, layer in model.named_modules():
        if isinstance(layer, PreNormLayer | PostNormLayer):
            for name, module in layer.named_modules(prefix=place):
                if type(module) is Linear:
                    yield name, module
