"""An op is its reference, its backends, and when each of them applies.

    @op
    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    @layer_norm.backend("triton", when=lambda x, *_: x.is_contiguous())
    def _(x, weight, bias, eps): ...

The decorated body is the contract: it gives the schema, the shapes under `torch.compile`, and the default
backward (recompute, then differentiate). A call runs the first backend, in the order of `PREFERENCE`, that is
available here and whose `when` accepts the inputs. A forced backend that cannot run raises and says why.

Eager inference calls the chosen body directly, since a registered op costs about 11 us a call and a plain call
under 3. The registered op, `torch.ops.altclip_fast.<name>`, is used while compiling, and around kernels that
autograd or a tensor subclass has to see.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import native
from .notices import warn_once
from .report import Table

PREFERENCE = ("cuda", "triton", "cpu", "reference")
NAMESPACE = "altclip_fast"
OLDEST = (8, 0)  # compute capability: bfloat16 and asynchronous copies

OPS: dict[str, Op] = {}
PLAIN: set[type] = {Tensor, torch.nn.Parameter}  # kinds of tensors that need not see which ops they go through


class BackendUnavailableError(ValueError):
    """A backend was forced that cannot run this op, on this machine or with these inputs."""


def _backend_name(name: str, origin: str) -> str:
    if name not in PREFERENCE:
        raise ValueError(f"{origin}: unknown backend {name!r}; choose one of {', '.join(PREFERENCE)}")
    return name


def _from_environment() -> str | None:
    name = os.environ.get("ALTCLIP_FAST_BACKEND", "")
    return _backend_name(name, "ALTCLIP_FAST_BACKEND") if name else None


_initial = _from_environment()
_forced: ContextVar[str | None] = ContextVar("altclip_fast_backend", default=_initial)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force a backend for the ops that register it, in this thread and its context; other ops run as usual.

    Args:
        name: "reference", "cpu", "triton" or "cuda".

    Raises:
        ValueError: the name is none of these.
        BackendUnavailableError (a ValueError): from a call inside, when the backend cannot run it.
    """
    token = _forced.set(_backend_name(name, "use_backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def forced_backend() -> str | None:
    """The backend forced by `use_backend` or by ALTCLIP_FAST_BACKEND, or None."""
    return _forced.get()


@functools.cache
def _missing(backend: str) -> str | None:
    """Why `backend` cannot run on this machine at all, or None."""
    if backend == "cuda":
        return native.cuda_missing()
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if not torch.cuda.is_available() and not _interpreted():
            return "no CUDA device, and TRITON_INTERPRET is not 1"
    return None


Predicate = Callable[..., "bool | str"]


@dataclass
class Backend:
    """One implementation: `when(*inputs)` is True, False, or a text that says why not."""

    name: str
    run: Callable[..., Any]
    when: Predicate | None = None
    op: str = ""
    backward: Callable[..., Sequence[Tensor | None]] | None = None

    def refuses(self, args: tuple) -> str | None:
        """Why this backend does not take these inputs, or None if it does."""
        if self.name == "reference":
            return None
        device = _device(args)
        if (reason := _missing(self.name) or _misplaced(self.name, device)) is not None:
            return reason
        if _autocasting(device):
            return "autocast is on, and chooses the dtypes of the reference"
        if torch.jit.is_tracing():
            return "a trace is of the reference: a kernel may keep what it has read from the values"
        if self.backward is None and _forced.get() != self.name and _records(args):
            return "gradients are asked for, and without a backward of its own the reference would run again for them"
        if self.name == "cuda" and _forced.get() != "cuda" and (reason := _unverified(self.op, device)) is not None:
            return reason
        answer = True if self.when is None else self.when(*args)
        if answer is True:
            return None
        return answer if isinstance(answer, str) else "these inputs are outside of what it covers"


def _device(args: Iterable[Any]) -> torch.device | None:
    """Of the tensors: the checks have seen that it is one."""
    for value in args:
        if isinstance(value, Tensor):
            return value.device
    return None


def _misplaced(backend: str, device: torch.device | None) -> str | None:
    """Why `backend` cannot run there, or None. The interpreter is slow: it has to be asked for."""
    kind = device.type if device is not None else "cpu" if backend == "cpu" else "cuda"
    if backend == "cpu":
        return None if kind == "cpu" else f"the tensors are on {kind}, not on the CPU"
    if kind == "cuda":
        return None if device is None else _too_old(device)
    if backend == "triton" and _interpreted() and _forced.get() == "triton":
        return None
    return f"the tensors are on {kind}, not on a CUDA device"


@functools.cache
def _too_old(device: torch.device) -> str | None:
    """Why no kernel of ours runs on this GPU, said once, or None."""
    capability = torch.cuda.get_device_capability(device)
    if capability >= OLDEST:
        return None
    reason = "{} is an sm_{}{}, and the kernels need sm_{}{} or later".format(device, *capability, *OLDEST)
    warn_once("old-gpu", f"{reason}: torch's own run instead")
    return reason


def _unverified(op: str, device: torch.device | None) -> str | None:
    """Why the CUDA kernel of `op` has to be asked for there, or None: evidence before default."""
    if device is None or device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    if f"sm_{major}{minor}" in native.verified().get(op, ()):
        return None
    return f"its truth check has not passed on sm_{major}{minor} yet; it has to be asked for"


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _autocasting(device: torch.device | None) -> bool:
    return device is not None and torch.is_autocast_enabled(device.type)


class Op:
    """A callable operator with interchangeable implementations. Made by `@op`."""

    def __init__(
        self, reference: Callable[..., Any], check: Callable[..., None] | None = None, *, namespace: str = NAMESPACE
    ) -> None:
        functools.update_wrapper(self, reference)
        self.name = reference.__name__
        self.reference = reference
        self.check = check
        self.signature = inspect.signature(reference)
        self._parameters = tuple(self.signature.parameters)
        self._defaults = tuple(p.default for p in self.signature.parameters.values())
        self._required = self._defaults.count(inspect.Parameter.empty)
        self._backends = {"reference": Backend("reference", reference)}
        self._order = tuple(self._backends.values())
        self.registered, self._registered_backward = _register(self, f"{namespace}::{self.name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            if _autocasting(_device((*args, *kwargs.values()))):
                return self.reference(*args, **kwargs)  # inline: the compiled code runs with autocast off
            return self.registered(*args, **kwargs)
        args = self._bind(args, kwargs)
        if self.check is not None:
            self.check(*args)
        backend = self._choose(args)
        if backend.name == "reference" or not _seen_by_autograd(args):
            return backend.run(*args)
        return self.registered(*args)

    def backend(self, name: str, when: Predicate | None = None) -> Callable[[Callable], Callable]:
        """Register the decorated function as the `name` implementation.

        It takes the reference's positional arguments, all of them, and gives contiguous new tensors of the
        reference's shapes. `when(*args)` says True, False, or why not; it reads metadata only.
        """
        _backend_name(name, f"{self.name}.backend")

        def register(run: Callable) -> Callable:
            self._backends[name] = Backend(name, run, when, self.name)
            self._order = tuple(self._backends[b] for b in PREFERENCE if b in self._backends)
            return run

        return register

    def backward(self, name: str) -> Callable[[Callable], Callable]:
        """Register the decorated function as the backward of the `name` implementation.

        `backward(grads, *args)` takes the gradients of the outputs and the forward's arguments, and gives one
        gradient for every tensor argument of a floating dtype, in order (None where there is none).
        """

        def register(run: Callable) -> Callable:
            self._backends[name].backward = run
            return run

        return register

    def choose(self, *args: Any, **kwargs: Any) -> str:
        """The name of the backend that a call with these arguments would run."""
        return self._choose(self._bind(args, kwargs)).name

    def reasons(self, *args: Any, **kwargs: Any) -> dict[str, str | None]:
        """Each registered backend with why it refuses these arguments, or None where it takes them."""
        bound = self._bind(args, kwargs)
        return {backend.name: backend.refuses(bound) for backend in self._order}

    @property
    def backends(self) -> tuple[str, ...]:
        """The registered backends, preferred first."""
        return tuple(backend.name for backend in self._order)

    def _choose(self, args: tuple) -> Backend:
        forced = self._backends.get(_forced.get() or "")
        if forced is not None:
            if (reason := forced.refuses(args)) is not None:
                raise BackendUnavailableError(f"{self.name}: backend {forced.name!r} was forced, but {reason}")
            return forced
        return next(backend for backend in self._order if backend.refuses(args) is None)

    def _bind(self, args: tuple, kwargs: dict[str, Any]) -> tuple:
        """The arguments in the reference's order, defaults filled in."""
        given = len(args)
        if not kwargs and self._required <= given <= len(self._parameters):
            return args + self._defaults[given:]
        rest = tuple(kwargs.get(p, d) for p, d in zip(self._parameters[given:], self._defaults[given:], strict=True))
        if (
            inspect.Parameter.empty in rest
            or len(args) + len(kwargs) > len(self._parameters)
            or not kwargs.keys() <= set(self._parameters[given:])
        ):
            self.signature.bind(*args, **kwargs)  # raises the TypeError that names the argument
        return args + rest

    def _run(self, *args: Any) -> Any:
        """The body of the registered op."""
        args = self._bind(args, {})
        if self.check is not None:
            self.check(*args)
        return _contiguous(self._choose(args).run(*args))

    def _run_backward(self, grads: list[Tensor], args: tuple, forced: str) -> list[Tensor]:
        token = _forced.set(forced or None)
        try:
            backward = self._choose(args).backward or self._recompute
        finally:
            _forced.reset(token)
        inputs = [a for a in args if _differentiable(a)]
        found = zip(inputs, backward(grads, *args), strict=True)
        return _unaliased([x.new_zeros(x.shape) if g is None else g.contiguous() for x, g in found], (*grads, *inputs))

    def _recompute(self, grads: Sequence[Tensor], *args: Any) -> Sequence[Tensor | None]:
        with _recording():
            args = tuple(a.detach().requires_grad_() if _differentiable(a) else a for a in args)
            outputs = self.reference(*args)
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
            inputs = [a for a in args if _differentiable(a)]
            return torch.autograd.grad([o for o, _ in pairs], inputs, [g for _, g in pairs], allow_unused=True)


@contextmanager
def _recording() -> Iterator[None]:
    """Autograd records in here. A registered op runs below autograd, where `enable_grad` alone records nothing."""
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _records(args: tuple) -> bool:
    """Autograd would record a call with these arguments."""
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)


def _seen_by_autograd(args: tuple) -> bool:
    """Autograd, or a tensor subclass that wants to know of every op, has to see the call."""
    return _records(args) or any(isinstance(a, Tensor) and type(a) not in PLAIN for a in args)


def _contiguous(outputs: Any) -> Any:
    """The compiler is promised contiguous outputs: the reference may keep the strides of its inputs."""
    return outputs.contiguous() if isinstance(outputs, Tensor) else tuple(o.contiguous() for o in outputs)


def _unaliased(tensors: list[Tensor], taken: Sequence[Tensor]) -> list[Tensor]:
    """A registered op returns memory of its own: the gradient of a sum is its input, once for every addend."""
    seen = {t.untyped_storage().data_ptr() for t in taken}
    for i, tensor in enumerate(tensors):
        if tensor.untyped_storage().data_ptr() in seen:
            tensors[i] = tensor.clone()
        seen.add(tensors[i].untyped_storage().data_ptr())
    return tensors


def _register(op: Op, qualified: str) -> tuple[Any, Any]:
    """Make `torch.ops.<namespace>.<name>` and its backward op; both choose their backend when they run."""
    reference = op.reference
    hints = typing.get_type_hints(reference)
    reference.__annotations__ = hints  # infer_schema reads evaluated types only
    schema = torch.library.infer_schema(reference, mutates_args=())
    forward = torch.library.custom_op(qualified, op._run, mutates_args=(), schema=schema)
    forward.register_fake(lambda *args: _contiguous(reference(*args)))

    parameters = schema[1 : schema.rindex(") -> ")]
    required = ", ".join(part.split("=")[0].strip() for part in _split(parameters))
    backward_schema = f"(Tensor[] grads, str forced, {required}) -> Tensor[]"

    def run_backward(grads: list[Tensor], forced: str, *args: Any) -> list[Tensor]:
        return op._run_backward(grads, args, forced)

    def fake_backward(grads: list[Tensor], forced: str, *args: Any) -> list[Tensor]:
        return [a.new_empty(a.shape) for a in args if _differentiable(a)]

    backward = torch.library.custom_op(f"{qualified}_backward", run_backward, mutates_args=(), schema=backward_schema)
    backward.register_fake(fake_backward)

    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.save_for_backward(*(a for a in inputs if isinstance(a, Tensor)))
        ctx.layout = [None if isinstance(a, Tensor) else (a,) for a in inputs]
        ctx.forced = forced_backend() or ""

    def run_autograd(ctx: Any, *grads: Any) -> tuple:
        tensors = iter(ctx.saved_tensors)
        args = tuple(next(tensors) if kept is None else kept[0] for kept in ctx.layout)
        found = iter(backward([g.contiguous() for g in grads], ctx.forced, *args))
        return tuple(next(found) if _differentiable(a) else None for a in args)

    forward.register_autograd(run_autograd, setup_context=setup_context)
    return forward._opoverload, backward._opoverload


def _split(parameters: str) -> list[str]:
    """The parameters of a schema: split at the commas outside of brackets."""
    parts, depth = [""], 0
    for character in parameters:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


@typing.overload
def op(reference: Callable[..., Any], /) -> Op: ...
@typing.overload
def op(*, check: Callable[..., None] | None = None) -> Callable[[Callable[..., Any]], Op]: ...
def op(reference: Callable[..., Any] | None = None, /, *, check: Callable[..., None] | None = None) -> Any:
    """Make the decorated reference an `Op`, listed in `OPS`.

    Args:
        check: called with the op's arguments before a backend is chosen; raises ValueError or TypeError on
            arguments that no backend can take. It reads metadata (shapes, dtypes, devices), never values.
    """

    def make(body: Callable[..., Any]) -> Op:
        OPS[body.__name__] = Op(body, check)
        return OPS[body.__name__]

    return make if reference is None else make(reference)


class BackendRow(NamedTuple):
    """One line of `backends()`."""

    op: str
    runs: str
    others: str


def backends() -> Table:
    """Which backend each op would use here, and why the others are not available."""
    rows = []
    for operator in OPS.values():
        reasons = {name: _missing(name) for name in operator.backends}
        if "cuda" in reasons and reasons["cuda"] is None and torch.cuda.is_available():
            reasons["cuda"] = _unverified(operator.name, torch.device("cuda", torch.cuda.current_device()))
        forced = forced_backend()
        runs = forced if forced in reasons else next(name for name, why in reasons.items() if why is None)
        absent = {name: "not implemented for this op" for name in PREFERENCE if name not in reasons}
        others = "; ".join(f"{n}: {why}" for n, why in {**absent, **reasons}.items() if why)
        rows.append(BackendRow(operator.name, runs, others))
    return Table(BackendRow._fields, rows)
