"""Which backend runs, what is said when none can, and what autograd, the compiler and autocast make of an op."""

import itertools
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from altclip_fast import dispatch, notices
from altclip_fast.dispatch import BackendUnavailableError, Op, backends, forced_backend, op, use_backend

counter = itertools.count()


def toy(reference, *names, when=None, check=None, calls=None):
    """A fresh op, with backends that compute what the reference does and note in `calls` that they ran."""
    reference.__name__ += f"_{next(counter)}"
    made = Op(reference, check, namespace="altclip_fast_test")
    for name in names:

        def run(*args, name=name):
            if calls is not None:
                calls.append(name)
            return made.reference(*args)

        made.backend(name, when=(when or {}).get(name))(run)
    return made


def scaled(*names, **options):
    def scale(x: Tensor, factor: float = 2.0) -> Tensor:
        return x * factor

    return toy(scale, *names, **options)


def product(*names, **options):
    def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = x @ weight.t()
        return y if bias is None else y + bias

    return toy(multiply, *names, **options)


def total(*names, **options):
    """Its gradients are its gradient, twice: the backward that returns its input."""

    def add(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    return toy(add, *names, **options)


def extremes(*names, **options):
    def both(x: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, indices = (x * x)[places].max(-1)
        return values, indices, x.sin()

    return toy(both, *names, **options)


def doubles(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def anywhere(monkeypatch):
    """A machine on which every backend could run."""
    monkeypatch.setattr(dispatch, "_missing", lambda name: None)
    monkeypatch.setattr(dispatch, "_misplaced", lambda name, args: None)


@pytest.fixture
def only_cpu(monkeypatch):
    monkeypatch.setattr(dispatch, "_missing", {"cuda": "no CUDA device", "triton": "no Triton"}.get)


X = torch.arange(3.0)


# Which one runs


def test_order_of_preference(anywhere):
    calls = []
    some = scaled("cpu", "cuda", "triton", calls=calls)
    assert some.backends == ("cuda", "triton", "cpu", "reference")
    assert torch.equal(some(X), 2 * X)
    assert calls == ["cuda"]


@pytest.mark.parametrize(
    "missing, runs",
    [([], "cuda"), (["cuda"], "triton"), (["cuda", "triton"], "cpu"), (["cuda", "triton", "cpu"], "reference")],
)
def test_what_is_missing_is_passed_over(monkeypatch, missing, runs):
    monkeypatch.setattr(dispatch, "_missing", lambda name: "not here" if name in missing else None)
    monkeypatch.setattr(dispatch, "_misplaced", lambda name, args: None)
    assert scaled("cpu", "cuda", "triton").choose(X) == runs


def test_when_decides(anywhere):
    rules = {"cuda": lambda x, factor: False, "triton": lambda x, factor: "factor is odd" if factor % 2 else True}
    some = scaled("cuda", "triton", "cpu", when=rules)
    assert some.choose(X) == "triton"
    assert some.choose(X, 3.0) == some.choose(X, factor=3.0) == "cpu"
    assert some.reasons(X, 3.0) == {
        "cuda": "these inputs are outside of what it covers",
        "triton": "factor is odd",
        "cpu": None,
        "reference": None,
    }


def test_asking_runs_nothing(anywhere):
    some, calls = scaled(), []
    some.reference = calls.append
    some.backend("cpu")(calls.append)
    assert some.choose(X) == "cpu"
    assert set(some.reasons(X)) == {"cpu", "reference"}
    assert calls == []


def test_an_available_backend_that_raises_is_not_skipped(only_cpu):
    some = scaled()

    @some.backend("cpu")
    def _(x, factor):
        raise RuntimeError("out of registers")

    with pytest.raises(RuntimeError, match="out of registers"):
        some(X)


def test_check_comes_before_any_backend(only_cpu):
    calls = []

    def check(x, factor):
        if factor == 0:
            raise ValueError("factor is 0")

    some = scaled("cpu", check=check, calls=calls)
    for run in (some, some.registered):
        with pytest.raises(ValueError, match="factor is 0"):
            run(X, 0.0)
    assert calls == []


def test_missing_backends_say_why(monkeypatch):
    missing = dispatch._missing.__wrapped__
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert missing("cuda") == "no CUDA device"
    assert "no CUDA device" in missing("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert missing("triton") is None
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    assert missing("triton") == "triton is not installed"
    assert missing("cpu") is missing("reference") is None


def test_gpu_backends_need_gpu_tensors(monkeypatch):
    monkeypatch.setattr(dispatch, "_missing", lambda name: None)
    some = scaled("cuda", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert some.choose(X) == "reference"
    for name in ("cuda", "triton"):
        with use_backend(name), pytest.raises(BackendUnavailableError, match="tensors are on cpu"):
            some(X)


@pytest.mark.parametrize(("capability", "runs"), [((7, 5), "reference"), ((8, 0), "triton"), ((9, 0), "triton")])
def test_an_old_gpu_gets_the_reference_and_that_is_said_once(monkeypatch, capability, runs):
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(dispatch, "_missing", lambda name: None)
    monkeypatch.setattr(dispatch, "_too_old", dispatch.functools.cache(dispatch._too_old.__wrapped__))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    notices.forget("old-gpu")
    some = scaled("triton")
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        x = torch.empty(2, 3, device="cuda:1")
        assert {some.choose(x) for _ in range(3)} == {runs}
        old = runs == "reference"
        assert [str(w.message) for w in said] == [
            "cuda:1 is an sm_75, and the kernels need sm_80 or later: torch's own run instead"
        ] * old
        if old:
            with use_backend("triton"), pytest.raises(BackendUnavailableError, match="need sm_80 or later"):
                some(x)


def test_the_interpreter_runs_only_when_asked_for(monkeypatch):
    monkeypatch.setattr(dispatch, "_missing", lambda name: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    calls = []
    some = scaled("cuda", "triton", calls=calls)
    assert some.choose(X) == "reference"
    with use_backend("triton"):
        some(X)
    assert calls == ["triton"]
    with use_backend("cuda"), pytest.raises(BackendUnavailableError, match="tensors are on cpu"):
        some(X)


# Forced


def test_use_backend_nests_and_is_undone(anywhere):
    some = scaled("cuda", "triton", "cpu")
    with use_backend("cpu"):
        assert forced_backend() == some.choose(X) == "cpu"
        with use_backend("reference"):
            assert some.choose(X) == "reference"
        assert some.choose(X) == "cpu"
        with pytest.raises(KeyError), use_backend("triton"):
            raise KeyError
        assert some.choose(X) == "cpu"
    assert forced_backend() is None
    assert some.choose(X) == "cuda"


@pytest.mark.parametrize("name", ["gpu", "", "CUDA"])
def test_unknown_backend(name):
    with pytest.raises(ValueError, match=r"use_backend.*choose one of cuda, triton, cpu, reference"), use_backend(name):
        pass
    with pytest.raises(ValueError, match=r"scale_\d+\.backend.*choose one of"):
        scaled().backend(name)


def test_forced_backend_missing_on_this_machine(only_cpu):
    some = scaled("cuda", "cpu")
    with use_backend("cuda"), pytest.raises(BackendUnavailableError, match=f"{some.name}.*'cuda'.*no CUDA device"):
        some(X)
    assert issubclass(BackendUnavailableError, ValueError)


def test_forced_backend_refuses(only_cpu):
    some = scaled("cpu", when={"cpu": lambda x, factor: "factor is odd" if factor % 2 else True})
    with use_backend("cpu"):
        assert torch.equal(some(X, 4.0), 4 * X)
        for ask in (some, some.choose):
            with pytest.raises(BackendUnavailableError, match="forced, but factor is odd"):
                ask(X, 3.0)


def test_ops_without_the_forced_backend_run_as_usual(anywhere):
    calls = []
    some = scaled("cpu", calls=calls)
    with use_backend("triton"):
        some(X)
    assert calls == ["cpu"]


def test_threads_do_not_see_each_others_backend(anywhere):
    some = scaled("cuda", "cpu")
    seen = {}

    def other():
        seen["before"] = some.choose(X)
        with use_backend("cpu"):
            inside.set()
            assert leave.wait(10)

    inside, leave = threading.Event(), threading.Event()
    with use_backend("reference"):
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
        seen["here"] = some.choose(X)
        leave.set()
        thread.join()
    assert seen == {"before": "cuda", "here": "reference"}


def test_environment_forces(monkeypatch):
    code = "from altclip_fast import dispatch, ops; print(dispatch.forced_backend(), ops.linear.choose)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(dispatch.__file__).parents[1],
        capture_output=True,
        text=True,
        env={**os.environ, "ALTCLIP_FAST_BACKEND": "cpu"},
    )
    assert done.stdout.startswith("cpu "), done.stderr
    monkeypatch.setenv("ALTCLIP_FAST_BACKEND", "tpu")
    with pytest.raises(ValueError, match=r"ALTCLIP_FAST_BACKEND.*'tpu'.*choose one of"):
        dispatch._from_environment()
    monkeypatch.setenv("ALTCLIP_FAST_BACKEND", "")
    assert dispatch._from_environment() is None


# Arguments


def test_keywords_and_defaults():
    some = scaled("cpu")
    for call in (
        lambda f: f(X),
        lambda f: f(x=X),
        lambda f: f(X, 2.0),
        lambda f: f(X, factor=2.0),
        lambda f: f(factor=2.0, x=X),
    ):
        assert torch.equal(call(some), 2 * X)
        assert torch.equal(call(some.registered), 2 * X)
        assert call(some.choose) == "cpu"


@pytest.mark.parametrize(
    "args, kwargs, message",
    [
        ((), {}, "'x'"),
        ((), {"factor": 2.0}, "'x'"),
        ((X,), {"scale": 2.0}, "'scale'"),
        ((X,), {"x": X}, "'x'"),
        ((X, 2.0), {"factor": 2.0}, "'factor'"),
        ((X, 2.0, 3.0), {}, "too many"),
    ],
)
def test_wrong_arguments(args, kwargs, message):
    some = scaled("cpu")
    for ask in (some, some.choose, some.reasons):
        with pytest.raises(TypeError, match=message):
            ask(*args, **kwargs)


# Autograd


@pytest.mark.parametrize(
    "make, args",
    [
        (scaled, lambda: (doubles(3, 4), 3.0)),
        (product, lambda: (doubles(3, 4), doubles(5, 4))),
        (product, lambda: (doubles(3, 4), doubles(5, 4), doubles(5))),
        (total, lambda: (doubles(3, 4), doubles(3, 4))),
        (extremes, lambda: (doubles(5, 4), torch.tensor([0, 3, 3]))),
        (total, lambda: (doubles(3, 4).t(), doubles(4, 3))),
    ],
    ids=["scalar", "no bias", "bias", "returned gradient", "integer input and output", "transposed"],
)
@pytest.mark.parametrize("names", [(), ("cpu",)], ids=["reference", "recomputed"])
def test_gradcheck(make, args, names):
    some, args = make(*names), args()
    for run in (some, some.registered):
        assert torch.autograd.gradcheck(floating_outputs(run), args)


def floating_outputs(run):
    def floating(*args):
        outputs = run(*args)
        return outputs if isinstance(outputs, Tensor) else [o for o in outputs if o.is_floating_point()]

    return floating


def with_own_backward(calls):
    some = product("cpu", calls=calls)

    @some.backward("cpu")
    def _(grads, x, weight, bias):
        calls.append("backward")
        found = [grads[0] @ weight, grads[0].t() @ x]
        return found if bias is None else [*found, None if bias.shape == (1,) else grads[0].sum(0)]

    return some


def test_own_backward_runs_and_is_right():
    calls = []
    some = with_own_backward(calls)
    for args in ((doubles(3, 4), doubles(5, 4)), (doubles(3, 4), doubles(5, 4), doubles(5))):
        assert torch.autograd.gradcheck(some, args)
    assert set(calls) == {"cpu", "backward"}


def test_backward_is_that_of_the_backend_that_was_forced():
    """The backward runs after the `with`, in another thread on a GPU."""
    calls = []
    some = with_own_backward(calls)
    x, weight = doubles(3, 4), doubles(5, 4)
    with use_backend("reference"):
        y = some.registered(x, weight)
    y.sum().backward()
    assert calls == []
    with use_backend("cpu"):
        y = some(x, weight)
    with use_backend("reference"):
        y.sum().backward()
    assert calls == ["cpu", "backward"]


def test_no_gradient_means_zero():
    some = with_own_backward([])
    x, weight, bias = doubles(3, 4), doubles(5, 4), doubles(1)
    some(x, weight, bias).sum().backward()
    assert torch.equal(bias.grad, torch.zeros(1, dtype=torch.float64))


def test_own_backward_may_return_what_it_got():
    some = total("cpu")
    some.backward("cpu")(lambda grads, x, y: [grads[0], grads[0]])
    x, y, given = doubles(3, 4), doubles(3, 4), torch.randn(3, 4, dtype=torch.float64)
    found = torch.autograd.grad(some(x, y), (x, y), given)
    assert torch.equal(found[0], given) and torch.equal(found[1], given)
    found[0].zero_()
    assert given.any() and found[1].any()


def test_only_one_input_needs_a_gradient():
    some = product("cpu")
    x, weight = doubles(3, 4), doubles(5, 4).detach()
    some(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, 4))
    assert weight.grad is None


def test_gradients_under_a_dispatch_mode():
    some, x = product("cpu"), doubles(3, 4)
    weight = doubles(5, 4)
    with FlopCounterMode(display=False):
        some(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, 4))


def test_second_derivatives_are_refused():
    some, x = scaled("cpu"), doubles(3)
    with use_backend("cpu"):
        (first,) = torch.autograd.grad(some(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="backward"):
        first.sum().backward()


def test_without_a_backward_of_its_own_a_backend_is_not_chosen_for_training():
    some, x = scaled("cpu"), doubles(3)
    assert some.choose(x) == "reference" and "gradients" in some.reasons(x)["cpu"]
    assert some.choose(x.detach()) == "cpu"
    with torch.no_grad():
        assert some.choose(x) == "cpu"
    with use_backend("cpu"):
        assert some.choose(x) == "cpu"
    some.backward("cpu")(lambda grads, x, factor: [grads[0] * factor])
    assert some.choose(x) == "cpu"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_kernel_is_called_directly(mode):
    calls = []
    some = scaled("cpu", calls=calls)
    some.registered = None
    with mode():
        assert not some(doubles(3)).requires_grad
    assert calls == ["cpu"]


# The compiler


@pytest.mark.parametrize("names", [(), ("cpu",)], ids=["reference", "cpu"])
@pytest.mark.parametrize(
    "make, args",
    [
        (scaled, lambda: (doubles(3, 4), 3.0)),
        (product, lambda: (doubles(3, 4), doubles(5, 4), doubles(5))),
        (product, lambda: (doubles(4, 3).t(), doubles(5, 4), None)),
        (total, lambda: (doubles(4, 3).t(), doubles(4, 3).t())),
        (extremes, lambda: (doubles(5, 4), torch.tensor([0, 3, 3]))),
    ],
    ids=["scalar", "bias", "no bias", "strided", "three outputs"],
)
def test_opcheck(make, args, names):
    torch.library.opcheck(
        make(*names).registered,
        tuple(a.detach().requires_grad_() if isinstance(a, Tensor) and a.requires_grad else a for a in args()),
    )


def test_backward_op_gives_what_the_compiler_was_promised():
    """Contiguous gradients in memory of their own, whatever the strides of the inputs."""
    some = total("cpu")
    args = torch.randn(4, 3).t(), torch.randn(4, 3).t()
    given = [torch.randn(3, 4)]
    torch.library.opcheck(some._registered_backward, (given, "", *args), test_utils=("test_schema", "test_faketensor"))


def test_compiled_runs_the_chosen_backend():
    calls = []
    some = scaled("cpu", calls=calls)
    compiled = torch.compile(lambda x: some(x + 1, factor=3.0) - 1, fullgraph=True, backend="aot_eager")
    calls.clear()
    for _ in range(2):
        torch.testing.assert_close(compiled(X), (X + 1) * 3 - 1)
    assert calls == ["cpu", "cpu"]
    with use_backend("reference"):
        compiled(X)
    assert calls == ["cpu", "cpu"]


@pytest.mark.parametrize(
    "make, args",
    [
        (product, lambda: (doubles(3, 4), doubles(5, 4), doubles(5))),
        (total, lambda: (doubles(3, 4), doubles(3, 4))),
    ],
    ids=["product", "sum"],
)
@pytest.mark.parametrize("names", [(), ("cpu",)], ids=["reference", "cpu"])
def test_compiled_gradients(make, args, names):
    some, args = make(*names), args()

    def loss(*args):
        return some(args[0] * 2, *args[1:]).square().sum()

    expected = torch.autograd.grad(loss(*args), args)
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*args), args)
    assert all(g.any() for g in expected)
    torch.testing.assert_close(found, expected)


# Autocast and tensor subclasses


def test_autocast_goes_to_the_reference():
    calls = []
    some = product("cpu", calls=calls)
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert some.choose(x, weight) == "reference"
        assert "autocast" in some.reasons(x, weight)["cpu"]
        assert some(x, weight).dtype is torch.bfloat16
        with use_backend("cpu"), pytest.raises(BackendUnavailableError, match="autocast"):
            some(x, weight)
    assert calls == []


def test_autocast_while_compiling_gives_the_same_dtype():
    some = product("cpu")
    args = torch.randn(3, 4), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.compile(lambda *a: some(*a), fullgraph=True, backend="aot_eager")(*args)
        expected = some(*args)
    assert found.dtype is expected.dtype is torch.bfloat16
    assert torch.equal(found, expected)


class Wrapped(Tensor):
    """Holds a tensor and notes what is done to it."""

    @staticmethod
    def __new__(cls, inner, seen):
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner, seen):
        self.inner, self.seen = inner, seen

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args[0].seen.append(func)
        return func(*(a.inner if isinstance(a, cls) else a for a in args), **(kwargs or {}))


def test_tensor_subclasses_see_the_registered_op():
    some, seen = scaled("cpu"), []
    with torch.no_grad():
        assert torch.equal(some(Wrapped(X, seen)), 2 * X)
    assert seen == [some.registered]


def test_parameters_are_no_subclass():
    some = scaled("cpu")
    some.registered = None
    with torch.no_grad():
        assert torch.equal(some(torch.nn.Parameter(X)), 2 * X)


# Listing


def test_op_lists_what_it_makes(monkeypatch):
    monkeypatch.setattr(dispatch, "OPS", {})

    def check(x):
        raise ValueError("never")

    @op
    def toy_listed(x: Tensor) -> Tensor:
        """Doc."""
        return x + 1

    @op(check=check)
    def toy_checked(x: Tensor) -> Tensor:
        return x + 1

    assert list(dispatch.OPS.items()) == [("toy_listed", toy_listed), ("toy_checked", toy_checked)]
    assert toy_listed.__doc__ == "Doc."
    assert toy_listed.registered is torch.ops.altclip_fast.toy_listed.default
    assert torch.equal(toy_listed(X), X + 1)
    with pytest.raises(ValueError, match="never"):
        toy_checked(X)


def test_backends_table(monkeypatch, only_cpu):
    first, second = scaled("cuda", "cpu"), total()
    monkeypatch.setattr(dispatch, "OPS", {first.name: first, second.name: second})
    rows = {row.op: row for row in backends()}
    assert rows[first.name].runs == "cpu"
    assert rows[first.name].others == "triton: not implemented for this op; cuda: no CUDA device"
    assert rows[second.name].runs == "reference"
    with use_backend("reference"):
        assert [row.runs for row in backends()] == ["reference", "reference"]
    with use_backend("cuda"):
        forced = backends()
    assert [row.runs for row in forced] == ["cuda", "reference"]
    assert "cuda: no CUDA device" in forced[0].others


def test_table_prints_aligned(monkeypatch, only_cpu):
    some = {o.name: o for o in (scaled("cpu"), total())}
    monkeypatch.setattr(dispatch, "OPS", some)
    table = backends()
    header, *lines = str(table).splitlines()
    assert header.split() == ["op", "runs", "others"]
    assert [line.split()[:2] for line in lines] == [[row.op, row.runs] for row in table]
    assert {line.index(row.others) for line, row in zip(lines, table, strict=True)} == {header.index("others")}
    assert repr(table) == str(table)


def test_every_op_is_in_the_table():
    from altclip_fast import ops

    assert [row.op for row in backends()] == list(dispatch.OPS)
    assert {name for name in ops.__all__ if isinstance(getattr(ops, name), Op)} == set(dispatch.OPS)
