"""Is an implementation as right as its dtype allows? Judged by what the reference loses in the same dtype.

    truth    = the reference in float64          baseline = the reference in the tested dtype
    error(tested) <= 2 * error(baseline) + floor      (3 * for gradients), on the maximum and on the RMS

The rule is that of Dao's flash-attention tests, with a floor that is relative to the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from .. import ops  # noqa: F401  fills OPS
from ..dispatch import OPS, Op, use_backend
from ..ops import similarity
from ..ops.checks import describe

FACTOR = 2.0
GRADIENT_FACTOR = 3.0

# What is allowed where the baseline happens to be exact, in units of max |truth| (of its RMS, for the RMS).
# float16, bfloat16: two roundings of half an ulp, one inside and one of the result. float32, float64: fast exp,
# erf and rsqrt are good to about 2 ulp, and there are up to four of them in a row.
FLOOR = {
    torch.float16: torch.finfo(torch.float16).eps,
    torch.bfloat16: torch.finfo(torch.bfloat16).eps,
    torch.float32: 8 * torch.finfo(torch.float32).eps,
    torch.float64: 8 * torch.finfo(torch.float64).eps,
}

# The scores that an op's indices select from, by the op's arguments.
SCORES: dict[str, Callable[..., Tensor]] = {
    "similarity_argmax": lambda a, b, scale, normalize: similarity.reference(a, b, scale, normalize),
    "similarity_topk": lambda a, b, k, scale, normalize: similarity.reference(a, b, scale, normalize),
}


def assert_parity(
    op: Op | str,
    args: Sequence[Any],
    *,
    backend: str | None = None,
    dtype: torch.dtype | None = None,
    gradients: bool = False,
    seed: int = 0,
) -> None:
    """Check an implementation of an op on these arguments.

    Outputs have the reference's shapes and dtypes, are contiguous and new, and the inputs stay as they were.
    Places where the truth does not fit the dtype, or where the baseline itself is not finite, are not compared;
    everywhere else the result must be finite.

    Indices are compared through the scores that they select: nothing else may be better by more than what two
    scores can be wrong by. Values that come with indices are the scores of these, and equal ones are in the order
    of their indices. Integers of other ops are compared as they are.

    Args:
        op: an `Op`, or the name of one in `OPS`.
        args: its arguments, in order; defaults may be left out.
        backend: forced; None takes what a call would.
        dtype: floating tensors are converted to it first.
        gradients: also compare the gradients of all floating tensors, for random gradients of the outputs.
        seed: of these.

    Raises:
        AssertionError: with the op, backend, dtype, shapes, errors and bounds.
        ValueError: the op has no such backend, or it does not take these arguments (`BackendUnavailableError`).
    """
    op = OPS[op] if isinstance(op, str) else op
    if backend is not None and backend not in op.backends:
        raise ValueError(f"{op.name} has no backend {backend!r}, only {', '.join(op.backends)}")
    args = op.signature.bind(*args).args + tuple(p.default for p in op.signature.parameters.values())[len(args) :]
    args = tuple(a.to(dtype) if dtype is not None and _floating(a) else a for a in args)
    with use_backend(backend) if backend else nullcontext():
        judge = _Judge(op, args, backend or op.choose(*args))
        judge.outputs()
        if gradients:
            judge.gradients(seed)


class _Errors(NamedTuple):
    largest: float
    rms: float


class _Judge:
    """Compares one implementation with the truth and the baseline; every failure says what was run."""

    def __init__(self, op: Op, args: tuple, backend: str) -> None:
        self.op, self.args = op, args
        self.wide = tuple(a.double() if _floating(a) else a for a in args)
        self.dtype = next(a.dtype for a in args if _floating(a))
        shown = ", ".join(f"{p}={describe(a)}" for p, a in zip(op.signature.parameters, args, strict=True))
        self.title = f"{op.name} on {backend}, {str(self.dtype).removeprefix('torch.')}: ({shown})"

    def require(self, fine: bool, message: str) -> None:
        if not fine:
            raise AssertionError(f"{self.title}\n  {message}")

    def outputs(self) -> None:
        truths, baselines = _tuple(self.op.reference(*self.wide)), _tuple(self.op.reference(*self.args))
        before = [a.clone() if isinstance(a, Tensor) else a for a in self.args]
        with nan_filled_outputs():
            found = _tuple(self.op(*self.args))
        for name, old, new in zip(self.op.signature.parameters, before, self.args, strict=True):
            self.require(not isinstance(new, Tensor) or _same(old, new), f"the input {name} was written to")
        self.layout(found, baselines)
        indices = [(i, t) for i, t in enumerate(truths) if not t.is_floating_point()]
        if self.op.name in SCORES:
            values = next((o for o in found if o.is_floating_point()), None)
            self.selection(values, found[indices[0][0]], indices[0][1])
        else:
            for i, truth in indices:
                self.require(torch.equal(found[i], truth), f"output {i} is not that of the reference")
        for i, (out, truth, baseline) in enumerate(zip(found, truths, baselines, strict=True)):
            if truth.is_floating_point():
                self.close(f"output {i}", out, truth, baseline, FACTOR)

    def layout(self, found: tuple, baselines: tuple) -> None:
        self.require(len(found) == len(baselines), f"{len(found)} outputs; the reference has {len(baselines)}")
        taken = {a.untyped_storage().data_ptr() for a in self.args if isinstance(a, Tensor) and a.numel()}
        for i, (out, expected) in enumerate(zip(found, baselines, strict=True)):
            same = out.shape == expected.shape and out.dtype == expected.dtype and out.device == expected.device
            self.require(same, f"output {i} is {describe(out)}; the reference's is {describe(expected)}")
            self.require(out.is_contiguous(), f"output {i} is not contiguous: strides {out.stride()}")
            fresh = not out.numel() or out.untyped_storage().data_ptr() not in taken
            self.require(fresh, f"output {i} shares memory with an input or with another output")
            taken.add(out.untyped_storage().data_ptr())

    def selection(self, values: Tensor | None, found: Tensor, truth: Tensor) -> None:
        scores, baseline = (SCORES[self.op.name](*args).double() for args in (self.wide, self.args))
        if not found.numel():
            return
        found, truth = (i.reshape(scores.shape[0], -1) for i in (found, truth))
        inside = bool(((found >= 0) & (found < scores.shape[1])).all())
        self.require(inside, f"an index is outside of 0 to {scores.shape[1] - 1}")
        ordered = found.sort(-1).values
        self.require(bool((ordered[:, 1:] != ordered[:, :-1]).all()), "an index comes twice in a row")
        one_score = FACTOR * _largest(baseline - scores) + FLOOR[self.dtype] * _largest(scores)
        lost = _largest(scores.gather(1, truth) - scores.gather(1, found))
        self.require(
            lost <= 2 * one_score,
            f"the indices select scores that are {lost:.3g} off; {2 * one_score:.3g} "
            "is what two scores can be wrong by",
        )
        if values is not None:
            apart = _largest(values.double() - scores.gather(1, found))
            self.require(
                apart <= one_score,
                f"values are {apart:.3g} off the scores of their indices; {one_score:.3g} is allowed",
            )
            descending = (values[:, 1:] == values[:, :-1]) & (found[:, 1:] < found[:, :-1])
            self.require(not descending.any(), "of equal values the lower index does not come first")

    def close(
        self, what: str, out: Tensor, truth: Tensor, baseline: Tensor, factor: float, scale: _Errors | None = None
    ) -> None:
        compared = truth.to(out.dtype).isfinite() & baseline.isfinite()
        missing = int((compared & ~out.isfinite()).sum())
        self.require(missing == 0, f"{what}: {missing} of {out.numel()} values are not finite, but the truth is")
        truth = truth[compared]
        errors, allowed = _errors(out[compared] - truth), _errors(baseline[compared] - truth)
        scale = scale or _errors(truth)
        bounds = _Errors(*(factor * a + FLOOR[out.dtype] * s for a, s in zip(allowed, scale, strict=True)))
        fine = errors.largest <= bounds.largest and errors.rms <= bounds.rms
        self.require(
            fine,
            f"{what}: largest error {errors.largest:.3g}, allowed {bounds.largest:.3g}; "
            f"RMS {errors.rms:.3g}, allowed {bounds.rms:.3g}; "
            f"the baseline's are {allowed.largest:.3g} and {allowed.rms:.3g}",
        )

    def gradients(self, seed: int) -> None:
        truths = _gradients(self.op.reference, self.wide, self.dtype, seed)
        baselines = _gradients(self.op.reference, self.args, self.dtype, seed)
        with nan_filled_outputs():
            found = _gradients(self.op, self.args, self.dtype, seed)
        # One scale for all: where a gradient cancels to zero, as those of q and k with a single key, what is left
        # is the noise of the others.
        every = [_errors(t) for t in truths.values()]
        scale = _Errors(max((e.largest for e in every), default=0.0), max((e.rms for e in every), default=0.0))
        for i, name in enumerate(self.op.signature.parameters):
            if i in truths:
                shape = found[i].shape == truths[i].shape and found[i].dtype == baselines[i].dtype
                self.require(shape, f"the gradient of {name} is {describe(found[i])}")
                self.close(f"gradient of {name}", found[i], truths[i], baselines[i], GRADIENT_FACTOR, scale)


def _gradients(run: Callable[..., Any], args: tuple, dtype: torch.dtype, seed: int) -> dict[int, Tensor]:
    """Place of an argument -> its gradient; the random gradients of the outputs are values of `dtype`."""
    args = tuple(a.detach().requires_grad_() if _floating(a) else a for a in args)
    inputs = {i: a for i, a in enumerate(args) if _floating(a)}
    outputs = [o for o in _tuple(run(*args)) if o.requires_grad]
    if not outputs:
        return {}
    generator = torch.Generator().manual_seed(seed)
    given = [torch.randn(o.shape, generator=generator).to(dtype).to(o) for o in outputs]
    found = torch.autograd.grad(outputs, list(inputs.values()), given, allow_unused=True)
    return {i: torch.zeros_like(x) if g is None else g for (i, x), g in zip(inputs.items(), found, strict=True)}


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _largest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def _errors(x: Tensor) -> _Errors:
    return _Errors(_largest(x), x.double().square().mean().sqrt().item() if x.numel() else 0.0)


def _poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def filled(*args: Any, **kwargs: Any) -> Tensor:
        out = make(*args, **kwargs)
        if out.is_floating_point():
            return out.fill_(torch.nan)
        return out if out.dtype is torch.bool else out.fill_(torch.iinfo(out.dtype).max)

    return filled


@contextmanager
def nan_filled_outputs() -> Iterator[None]:
    """`torch.empty` and its kin give NaN (integers: the largest), so that an element no kernel wrote is seen.

    It replaces `torch.empty`, `torch.empty_like`, `torch.empty_strided` and `Tensor.new_empty` for the whole
    process; memory that C++ allocates itself stays as it is.
    """
    with ExitStack() as stack:
        for home, name in ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty")):
            stack.enter_context(mock.patch.object(home, name, _poison(getattr(home, name))))
        yield
