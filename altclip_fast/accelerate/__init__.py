"""Accelerate a transformers model in place: AltCLIP, CLIP, and whatever contains a tower of theirs.

    model = transformers.CLIPModel.from_pretrained(...)
    altclip_fast.accelerate(model)     # the same model, faster
    altclip_fast.explain(model)        # which modules run fused, and why others do not
    altclip_fast.revert(model)

The model keeps its classes, parameters, `state_dict`, configuration and hooks. Importing this also makes
`attn_implementation="altclip_fast"` known to transformers, which nothing outside of this package imports.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from .. import ops
from ..config_rules import parse_dtype
from ..dispatch import PREFERENCE
from ..models.layers import Linear
from ..quantization import check_quantization
from ..report import Table

OLDEST, NEWEST = (5, 6), (5, 23)  # releases of transformers that are tested


def _problem() -> str | None:
    """Why there is no transformers here to work with, or None."""
    wanted = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    try:
        from transformers import __version__ as version
    except ImportError:
        return f"accelerate needs transformers {wanted}: pip install 'altclip_fast[hf]'"
    if not OLDEST <= tuple(int(part) for part in version.split(".")[:2]) <= NEWEST:
        return f"accelerate knows transformers {wanted}; version {version} is installed"
    return None


PROBLEM = _problem()
if PROBLEM is None:
    from . import attention
    from .forwards import METHODS, Fused, FusedEncoder, stand_ins
    from .stack import LAYOUTS, Stack

    attention.register()

THEIRS = "transformers"  # where a backend is named, for what is left to it
Module = TypeVar("Module", bound=nn.Module)


class Row(NamedTuple):
    """A module of a model: whether our code runs it, on which backend, and why not."""

    module: str
    fused: bool
    backend: str
    reason: str


def accelerate(
    model: Module,
    *,
    backend: str | None = None,
    dtype: torch.dtype | str | None = None,
    quantization: str | None = None,
) -> Module:
    """Let the AltCLIP and CLIP towers in `model` be computed by our operators, in place.

    A call that they do not serve (see `explain`) is computed by transformers' code, as before. On a CPU the linear
    layers are kept a second time, packed, from the first call without gradients on; training drops the copies.

    Args:
        model: of transformers 5.6 to 5.23: AltCLIPModel, CLIPModel, one of their towers, CLIPForImageClassification,
            or any module that contains one, with or without its weights (on the meta device).
        backend: forced for the towers' operators, as by `use_backend`.
        dtype: the parameters are converted first, as by `model.to(dtype)`; `revert` does not undo that.
        quantization: "int8" computes the linears of the encoders with 8-bit numbers, on the CPU, in calls that record
            no gradients; the parameters stay what they are. None does not.

    Returns:
        The same object. Accelerating again replaces the options.

    Raises:
        TypeError: it is not a module.
        ValueError: nothing in it can be accelerated, an option is not one of those allowed, or 8-bit linears cannot
            run here.
        ImportError: transformers is absent, or of another version.
    """
    _check(model, "accelerate")
    if backend is not None and backend not in PREFERENCE:
        raise ValueError(f"backend is {backend!r}; choose one of {', '.join(PREFERENCE)} or None")
    check_quantization(quantization)
    if quantization is not None and backend not in (None, "cpu"):
        raise ValueError(f"quantization is {quantization!r} and backend {backend!r}; 8-bit linears run on 'cpu' only")
    wanted = parse_dtype("dtype", dtype)
    found = [found for module in model.modules() for found in stand_ins(module, backend, quantization is not None)]
    if not any(isinstance(fused, FusedEncoder) for fused in found):
        raise ValueError(
            f"there is nothing to accelerate in this {type(model).__name__}: "
            f"it contains no {' and no '.join(kind.__name__ for kind in LAYOUTS)} of transformers"
        )
    if quantization is not None:
        _check_int8(found)
    if wanted is not None:
        model.to(wanted)
    for fused in found:
        setattr(fused.module, fused.method, fused)
    return model


def _check_int8(found: list[Fused]) -> None:
    for fused in found:
        if not isinstance(fused, FusedEncoder) or fused.stack.device.type == "meta":
            continue
        if (reason := fused.stack.why_not_int8()) is not None:
            raise ValueError(reason)


def revert(model: Module) -> Module:
    """Undo `accelerate`, in place; without effect on a model that is not accelerated.

    Returns:
        The same object.

    Raises:
        TypeError: it is not a module.
        ImportError: transformers is absent, or of another version.
    """
    _check(model, "revert")
    for module in model.modules():
        for name in METHODS:
            if isinstance(module.__dict__.get(name), Fused):
                delattr(module, name)
    return model


def explain(model: nn.Module) -> Table:
    """Which modules of `model` our code runs, in the mode and on the device that the model is in now.

    Returns:
        A `Table` of `Row`s: the encoders that could be accelerated, and the linear layers in them that are called
        as they are. A call that asks for more (attention probabilities, say) may still go to transformers' code.

    Raises:
        TypeError: it is not a module.
        ImportError: transformers is absent, or of another version.
    """
    _check(model, "explain")
    rows: list[Row] = []
    for name, module in model.named_modules():
        fused = module.__dict__.get("forward")
        if isinstance(fused, FusedEncoder):
            rows += _rows(name, fused)
        elif type(module) in LAYOUTS:
            why = "it is not accelerated" if fused is None else "it has a forward of its own"
            rows.append(Row(name, False, THEIRS, why))
    return Table(Row._fields, rows)


def _rows(name: str, fused: FusedEncoder) -> Iterator[Row]:
    if (reason := fused.why_not({})) is not None:
        yield Row(name, False, THEIRS, reason)
        return
    with fused.ours():
        yield Row(name, True, _backend(fused.stack), "")
    for part, linear in fused.stack.as_is.items():
        kind = f"{type(linear).__module__}.{type(linear).__qualname__}"
        yield Row(f"{name}.{part}", False, THEIRS, f"a {kind}, called as it is")


def _backend(stack: Stack) -> str:
    """What most of the work, the layers' MLPs, runs on here without gradients."""
    assert stack.kind is not None
    dtype, device = stack.kind
    linear = Linear(8, 8, device=device, dtype=dtype)
    x = torch.zeros(1, 8, device=device, dtype=dtype)
    with torch.no_grad():
        weight, bias = linear.packed(x), linear.bias
        return ops.mlp.choose(x, weight, bias, weight, bias, "gelu")


def _check(model: Any, caller: str) -> None:
    if PROBLEM is not None:
        raise ImportError(PROBLEM)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller} takes a torch module, not a {type(model).__name__}; pass the model in it")


class _Callable(types.ModuleType):
    """`altclip_fast.accelerate` is this module for whoever has imported it by that name, else the function."""

    __call__ = staticmethod(accelerate)


sys.modules[__name__].__class__ = _Callable
