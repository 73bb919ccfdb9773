"""The machine code of every Triton kernel, compiled here for GPUs that are not: `python -m benchmarks kernels`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = {80: 163 * 1024, 90: 227 * 1024}
MOST = 155  # configurations to compile
GATHERS = {"_similarity_topk_merge_kernel"}  # candidates of 8 bytes, from many places


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """In a process of its own: here the kernels are interpreted, and cannot be compiled."""
    output = tmp_path_factory.mktemp("kernels") / "rows.jsonl"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks", "kernels", "--output", output, "--workers", "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert output.exists(), done.stderr
    return [json.loads(line) for line in output.read_text().splitlines()]


def described(found):
    return [f"{r['kernel']} {r['dtype']} sm_{r['capability']} {r['configuration']}" for r in found]


def test_every_kernel_is_there_for_both_architectures(rows):
    assert 0 < len(set(described(rows))) <= MOST
    kernels = {row["kernel"] for row in rows}
    written = {
        line.split("(")[0].removeprefix("def ")
        for file in (ROOT / "kernels").glob("*.py")
        for line in file.read_text().splitlines()
        if line.startswith("def _") and line.split("(")[0].endswith("_kernel")
    }
    assert kernels == written
    for capability in SHARED:
        assert {row["kernel"] for row in rows if row["capability"] == capability} == kernels


def test_nothing_spills(rows):
    assert not described(row for row in rows if row["spilled"] or row["local"])


def test_shared_memory_fits(rows):
    assert not described(row for row in rows if row["shared"] > SHARED[row["capability"]])


def test_low_precision_products_use_the_tensor_cores(rows):
    products = [row for row in rows if row["dot_rows"] and row["dtype"] != "float32"]
    assert products
    tall = [row for row in products if row["capability"] == 90 and row["dot_rows"] >= 64 and warps(row) >= 4]
    assert tall and not described(row for row in tall if not row["hgmma"])
    assert not described(row for row in products if not row["hgmma"] and not row["hmma"])


def warps(row):
    return int(row["configuration"].split("num_warps=")[1].split(",")[0])


def test_float32_products_are_float32(rows):
    """A single TF32 product has 10 bits of mantissa."""
    products = [row for row in rows if row["precision"]]
    assert products and not described(row for row in products if row["precision"] not in ("tf32x3", "ieee"))


def test_global_loads_are_wide(rows):
    """Some loads are of single numbers (offsets, norms); the tensors come 16 bytes at a time."""
    assert not described(r for r in rows if r["loads"] and not r["wide_loads"] and r["kernel"] not in GATHERS)
