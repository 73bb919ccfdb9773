"""How what was derived from parameters can tell that they are no longer the same."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

Mark = tuple[int, ...]
Stamp = tuple[Mark, ...]


def mark(tensor: Tensor) -> Mark:
    """Changes when it is replaced, moved or written to (where torch's version counter sees that: see `probe`)."""
    return id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def stamp(tensors: Iterable[Tensor]) -> Stamp:
    """The marks of all."""
    return tuple(map(mark, tensors))


def probe(tensor: Tensor) -> Tensor:
    """About 64 of the tensor's values, a view: a fused optimiser's step changes them, and nobody counts that."""
    flat = tensor.detach().view(-1)
    return flat[:: max(1, flat.numel() // 64)]


def structure(module: nn.Module) -> tuple[Stamp, bool]:
    """A stamp of the module: its submodules, their parameters and buffers, and whether they train.

    Returns:
        The stamp, and whether a module in it has hooks, which see every call.
    """
    modules: list[tuple[int, ...]] = []
    tensors: list[Tensor] = []
    hooked = False
    todo: list[nn.Module] = [module]
    while todo:
        state = todo.pop().__dict__
        hooked = hooked or bool(state["_forward_hooks"] or state["_forward_pre_hooks"])
        modules.append((id(state), state["training"]))
        tensors += [t for t in state["_parameters"].values() if t is not None]
        tensors += [t for t in state["_buffers"].values() if t is not None]
        todo += [child for child in state["_modules"].values() if child is not None]
    return (*modules, *stamp(tensors)), hooked
