"""The native library: what runs where, and what an installation without it says."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from altclip_fast import native

ROOT = Path(__file__).parents[1]


def test_it_is_built_where_the_tests_run():
    assert native.missing() is None


@pytest.mark.parametrize(
    "asked, allowed",
    [("default", {"portable"}), ("avx2", {"avx2", "portable"}), ("avx512", {"avx512", "avx2", "portable"})],
)
def test_the_instruction_set_can_be_lowered(asked, allowed):
    code = "from altclip_fast import native; assert native.missing() is None; print(native.kernels().cpu_capability())"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": asked}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() in allowed, done.stderr


def test_the_instruction_set_is_the_one_that_torch_uses():
    torchs = torch.backends.cpu.get_cpu_capability()
    ours = native.kernels().cpu_capability().removesuffix("_bf16")
    assert ours == {"AVX512": "avx512", "AVX2": "avx2"}.get(torchs, "portable")


def test_without_the_library(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "absent.so")
    assert "was not built" in native.missing.__wrapped__()
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(native, "LIBRARY", broken)
    assert "does not load" in native.missing.__wrapped__()


@pytest.mark.parametrize(
    "variables, reason",
    [
        ({"ALTCLIP_FAST_NATIVE": "0"}, "ALTCLIP_FAST_NATIVE is 0"),
        ({"CXX": "no-such-compiler"}, "there is no compiler 'no-such-compiler'"),
        ({"CXX": "false"}, "the build failed"),
    ],
)
def test_a_build_that_is_not_possible_is_no_error(variables, reason, tmp_path):
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    command = [sys.executable, "setup.py", "-q", "build_ext", *folders]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert reason in done.stdout and done.stdout.count("without its native library") == 1
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize("rules", ["ninja_file", "cuda_ninja_file"])
def test_only_what_the_oldest_torch_has_is_compiled_in(rules):
    """Newer parts of the stable ABI lie behind TORCH_TARGET_VERSION in torch's headers."""
    code = f"import sys; sys.argv = ['setup.py', '-q', '--name']; import setup; print(setup.{rules}('x.so'))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout
    (version,) = set(re.findall(r"-DTORCH_TARGET_VERSION=0x(\w+)", told))
    major, minor = bytes.fromhex(version)[:2]
    with open(ROOT / "pyproject.toml", "rb") as file:
        assert f"torch>={major}.{minor}" in tomllib.load(file)["project"]["dependencies"]


COMPILER = """#!/bin/sh
for word; do
  [ "$last" = -o ] && touch "$word"
  last=$word
done
echo a compiler
echo of nothing
"""


def test_it_is_built_in_a_folder_with_a_space(tmp_path):
    """From sources, and into a place, whose paths the shell would take apart; by a compiler that makes empty files."""
    folder, binaries = tmp_path / "my code", tmp_path / "my tools"
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copy(ROOT / "setup.py", folder)
    binaries.mkdir()
    for name in ("c++", "nvcc"):
        (binaries / name).write_text(COMPILER)
        (binaries / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("CXX", "CUDA_HOME")}
    environment["PATH"] = f"{binaries}:{environment['PATH']}"
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "without" not in done.stdout, done.stdout
    assert {path.stem for path in folder.rglob("*.so")} == {"altclip_fast_native", "altclip_fast_cuda"}
