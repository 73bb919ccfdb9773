"""The CUDA library without a GPU: its kernels on an emulated device, its machine code, its build, when it is chosen."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from altclip_fast import dispatch, native, ops
from altclip_fast.dispatch import OPS
from altclip_fast.ops import contrastive_cuda
from altclip_fast.testing import assert_parity, samples

ROOT = Path(__file__).parents[1]
EPILOGUES = {"Store", "RowSums", "PairSums", "Gradient", "Best", "TopK"}
FEW_ROWS = {"Store", "RowSums", "Best", "TopK"}
CUDA_OPS = {name for name, op in OPS.items() if "cuda" in op.backends}


def test_kernels_on_an_emulated_device(tmp_path):
    """Layouts, pipelines, merges and all epilogues: the kernels' own source, with `tests/cuda/emulated.h` for PTX."""
    program = tmp_path / "similarity"
    folders = [f"-I{ROOT / 'csrc' / 'cuda'}", f"-I{ROOT / 'tests' / 'cuda'}"]
    source = ROOT / "tests" / "cuda" / "similarity.cpp"
    subprocess.run(
        [os.environ.get("CXX", "c++"), "-std=c++17", "-O1", "-w", *folders, source, "-o", program], check=True
    )
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Machine code


def cuobjdump(*arguments):
    packaged = Path(find_spec("triton").origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [packaged if packaged.exists() else shutil.which("cuobjdump"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def library():
    if not native.CUDA_LIBRARY.exists():
        pytest.skip("the CUDA library was not built: there is no nvcc")
    return native.CUDA_LIBRARY


@pytest.fixture(scope="module")
def kernels(library):
    """(architecture, name) -> machine code; names as `similarity_wgmma_kernel<false, Store>`."""
    code = cuobjdump("-sass", library)
    found = {}
    for part in re.split(r"\n(?=Fatbin elf code:)", code):
        architecture = re.search(r"^arch = (\w+)", part, re.MULTILINE)
        for body in part.split("Function : ")[1:]:
            found.setdefault((architecture[1], readable(body.split()[0])), []).append(body)
    return found


def readable(mangled):
    kernel = re.search(r"(?:similarity|l2|combine)_\w*?kernel", mangled)[0]
    epilogue = next((name for name in EPILOGUES if f"{len(name)}{name}E" in mangled), "")
    return f"{kernel} {'few ' if 'ILb1E' in mangled else ''}{epilogue}".strip()


def bodies(kernels, architecture, prefix):
    return [
        (name, body)
        for (arch, name), all in kernels.items()
        if (arch, name.split()[0]) == (architecture, prefix)
        for body in all
    ]


def test_every_kernel_is_there(kernels):
    names = {f"similarity_wgmma_kernel {name}" for name in EPILOGUES}
    names |= {f"similarity_wgmma_kernel few {name}" for name in FEW_ROWS}
    assert {name for arch, name in kernels if arch == "sm_90a" and "wgmma" in name} == names
    assert {name for arch, name in kernels if arch == "sm_80" and "mma" in name} == {
        f"similarity_mma_kernel {name}" for name in EPILOGUES
    }
    for prefix, architecture, elements in (("wgmma", "sm_90a", 2), ("mma", "sm_80", 3), ("mma", "sm_90a", 1)):
        for name, found in kernels.items():
            if name[0] == architecture and name[1].startswith(f"similarity_{prefix}_"):
                assert len(found) == elements, name


def test_nothing_spills(library, kernels):
    usage = cuobjdump("--dump-resource-usage", library)
    assert len(re.findall(r"\bSTACK:", usage)) >= len(kernels)
    assert set(re.findall(r"\b(?:STACK|LOCAL):(\d+)", usage)) == {"0"}
    assert not [name for name, found in kernels.items() for body in found if re.search(r"\b(STL|LDL)\b", body)]


def test_tma_feeds_wgmma_without_a_stop(kernels):
    """A product that waits for the one before carries a barrier: of the four of a step only the last one does."""
    found = bodies(kernels, "sm_90a", "similarity_wgmma_kernel")
    assert found
    for name, body in found:
        products = re.findall(r"\bHGMMA\.64x\d+x16\.F32[^;]*;", body)
        assert len(products) == 4 and sum("gsb0" in product for product in products) == 1, name
        assert len(re.findall(r"\bUTMALDG\.2D\b", body)) == 2, name
        assert re.search(r"\bUSETMAXREG\b", body), name


def test_copies_are_asynchronous_and_products_are_of_matrices(kernels):
    for architecture in ("sm_80", "sm_90a"):
        found = bodies(kernels, architecture, "similarity_mma_kernel")
        assert found
        for name, body in found:
            assert re.search(r"\bLDGSTS\.E\.BYPASS\.(?:LTC128B\.)?128\b", body), name
            assert re.search(r"\bLDSM\.16\.M88\.4\b", body), name
            assert re.search(r"\bHMMA\.(16816\.F32|1688\.F32\.TF32)\b", body), name


def test_other_processors_get_ptx(library):
    listed = cuobjdump("-lptx", library)
    assert len(re.findall(r"sm_80\.ptx", listed)) >= 5


# Building


@pytest.mark.parametrize(
    "variables, reason",
    [
        ({"PATH": "/nowhere", "CUDA_HOME": "/nowhere"}, "nvcc was not found in $CUDA_HOME/bin or on the PATH"),
        ({"CUDA_HOME": "", "ALTCLIP_FAST_CUDA_ARCHS": "80, hopper"}, "ALTCLIP_FAST_CUDA_ARCHS has 'hopper'"),
        ({"CUDA_HOME": "", "ALTCLIP_FAST_CUDA_ARCHS": "86;90a"}, "None"),
    ],
)
def test_what_keeps_it_from_being_built(variables, reason, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    code = "import sys; sys.argv = ['setup.py', '-q', '--name']; import setup; print(setup.why_no_cuda())"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1].startswith(reason), done.stderr


def test_other_architectures():
    code = "import sys; sys.argv = ['setup.py', '-q', '--name']; import setup; print(setup.cuda_ninja_file('x.so'))"
    environment = {**os.environ, "ALTCLIP_FAST_CUDA_ARCHS": "86 120"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "-DWGMMA=0" in done.stdout and "contrastive_wgmma" not in done.stdout, done.stderr
    assert set(re.findall(r",code=(\w+)", done.stdout)) == {"sm_86", "sm_120", "compute_86"}


def test_without_the_library(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert native.cuda_missing() == dispatch._missing.__wrapped__("cuda") == "no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(native, "CUDA_LIBRARY", tmp_path / "absent.so")
    assert "was not built" in native.cuda_missing()
    assert "was not built" in dispatch._missing.__wrapped__("cuda")
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(native, "CUDA_LIBRARY", broken)
    assert "does not load" in native.cuda_missing()


def test_it_loads_without_cuda_and_says_what_it_needs(library):
    """Its symbols are all found; called on tensors of a CPU, torch refuses."""
    call = "torch.ops.altclip_fast_native.l2_normalize_cuda(torch.ones(1, 1))"
    code = f"import torch; torch.ops.load_library({str(library)!r}); {call}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "NotImplementedError" in done.stderr and "'altclip_fast_native::l2_normalize_cuda'" in done.stderr


def test_what_was_built_is_told(library):
    told = native.cuda_description()
    for part in ("sm_80, sm_90a; ", "release", "-O3", "verified: "):
        assert part in told


# Choosing


def test_verified_is_a_table_of_ops_and_architectures():
    table = json.loads((ROOT / "altclip_fast" / "verified.json").read_text())
    assert set(table) <= CUDA_OPS
    assert all(re.fullmatch(r"sm_\d+", where) for places in table.values() for where in places)


def test_a_kernel_is_chosen_unasked_where_it_is_verified(monkeypatch):
    monkeypatch.setattr(dispatch, "_missing", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(native, "verified", lambda: {"similarity": ["sm_90"], "l2_normalize": ["sm_80"]})
    with FakeTensorMode():
        x = torch.empty(3, 8, device="cuda")
        assert ops.similarity.choose(x, x) == "cuda"
        assert ops.l2_normalize.choose(x) == "triton"
        assert "has not passed on sm_90 yet" in ops.l2_normalize.reasons(x)["cuda"]
        with dispatch.use_backend("cuda"):
            assert ops.l2_normalize.choose(x) == "cuda"
            assert ops.similarity_topk.choose(x, x, 3) == "cuda"


def test_k_is_bounded(monkeypatch):
    monkeypatch.setattr(dispatch, "_missing", lambda name: None)
    with FakeTensorMode(), dispatch.use_backend("cuda"):
        x = torch.empty(500, 8, device="cuda")
        assert ops.similarity_topk.choose(x, x, 448) == "cuda"
        with pytest.raises(dispatch.BackendUnavailableError, match="k is 449; up to 448"):
            ops.similarity_topk(x, x, 449)


# What Python makes of the kernels' results


class PlainKernels:
    """The native operators as their schemas promise them, by torch."""

    def l2_normalize_cuda(self, x):
        return ops.l2_normalize.reference(x)

    def l2_normalize_backward_cuda(self, grad, factor, x, normalize):
        with dispatch._recording():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(ops.l2_normalize.reference(x) if normalize else 1 * x, x, grad * factor)[0]

    def similarity_cuda(self, a, b, scale, normalize, softmax, tf32):
        return (ops.similarity_softmax if softmax else ops.similarity).reference(a, b, scale, normalize)

    def similarity_topk_cuda(self, a, b, k, scale, normalize, tf32):
        return ops.similarity_topk.reference(a, b, k, scale, normalize)

    def similarity_argmax_cuda(self, a, b, scale, normalize, tf32):
        return ops.similarity_argmax.reference(a, b, scale, normalize)

    def contrastive_statistics_cuda(self, text, image, factor, normalize, tf32):
        s = self.scores(text, image, factor, normalize)
        by_row, by_column = (torch.stack([x.amax(1), (x - x.amax(1)[:, None]).exp2().sum(1)]) for x in (s, s.t()))
        return by_row, by_column, s.diagonal()

    def contrastive_gradient_cuda(self, text, image, factor, by_row, by_column, first, count, normalize, tf32):
        some = slice(first, first + count)
        s = self.scores(text[some], image, factor, normalize)
        most, total = by_row[:, some, None]
        part = (s - most).exp2() / total + (s - by_column[0]).exp2() / by_column[1]
        part[range(count), range(first, first + count)] -= 2
        return part, (part * s).sum(1, keepdim=True)

    def scores(self, text, image, factor, normalize):
        return ops.similarity.reference(text, image, 1.0, normalize) * factor * math.log2(math.e)


@pytest.mark.parametrize("op", sorted(CUDA_OPS))
def test_parity_around_the_kernels(op, monkeypatch):
    monkeypatch.setattr(dispatch, "_missing", lambda name: None)
    monkeypatch.setattr(dispatch, "_misplaced", lambda name, args: None)
    monkeypatch.setattr(native, "kernels", PlainKernels)
    monkeypatch.setattr(contrastive_cuda, "GRADIENT_ROWS", 1)
    for _, args in samples(op, torch.float32):
        assert_parity(op, args, backend="cuda", gradients=True)
    if op == "contrastive_loss":  # in chunks of 12 rows, the last one shorter
        assert_parity(op, (torch.randn(50, 3), torch.randn(50, 3), torch.tensor(1.0)), backend="cuda", gradients=True)


# On a GPU. tests/ops/test_every_op.py has the samples of every op; these are of more tiles than one.


def rows(n, width, dtype):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(n), dtype=torch.float32).to(dtype).cuda()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n, m, width", [(1, 70_001, 768), (16, 5_000, 2048), (300, 1_111, 770), (1_030, 2_100, 64)])
def test_many_tiles(n, m, width, dtype):
    a, b = rows(n, width, dtype), rows(m, width, dtype)
    for normalize in (True, False):
        scale = 14.3 if normalize else width**-0.5
        for op in ("similarity", "similarity_softmax", "similarity_argmax"):
            assert_parity(op, (a, b, scale, normalize), backend="cuda")
        for k in (1, 10, 448):
            assert_parity("similarity_topk", (a, b, k, scale, normalize), backend="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n, width", [(257, 64), (1_500, 768), (9_000, 96)])
def test_many_pairs(n, width, dtype):
    image = rows(n, width, dtype)
    text = image + rows(n + 1, width, dtype)[1:]
    assert_parity("contrastive_loss", (image, text, torch.tensor(2.66, device="cuda")), backend="cuda", gradients=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_every_time(dtype):
    a, b = rows(200, 512, dtype), rows(3_000, 512, dtype)
    with dispatch.use_backend("cuda"):

        def run():
            values, indices = ops.similarity_topk(a, b, 100)
            return ops.similarity_softmax(a, b, 50.0), values, indices, ops.contrastive_loss(a, b[:200], a.new_ones(()))

        first = run()
        for _ in range(250):
            assert all(torch.equal(x, y) for x, y in zip(first, run(), strict=True))
        if dtype is torch.float32:
            alone = ops.similarity_softmax(a[7:8], b, 50.0)
            assert torch.equal(alone, first[0][7:8])


@pytest.mark.gpu
def test_every_element_is_written():
    """Memory that C++ takes is filled with NaN while torch is asked for determinism."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for dtype in (torch.float32, torch.bfloat16):
            for n, m in ((3, 5), (65, 400), (200, 1000)):
                assert_parity("similarity", (rows(n, 40, dtype), rows(m, 40, dtype)), backend="cuda")
                assert_parity("similarity_topk", (rows(n, 40, dtype), rows(m, 40, dtype), 3), backend="cuda")
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
def test_both_engines():
    """mma.sync in bf16 and fp16 is what sm_80 gets: checked here as PTX of the same source."""
    selected = ["-k", "test_many_tiles or test_many_pairs", "-m", "gpu", "-q", __file__]
    environment = {**os.environ, "ALTCLIP_FAST_CUDA_ENGINE": "mma"}
    if "ALTCLIP_FAST_CUDA_ENGINE" in os.environ:
        pytest.skip("this is that run")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *selected], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
