"""The native libraries, built from `csrc/` by setup.py: C++ kernels for the CPU and CUDA kernels, as
`torch.ops.altclip_fast_native`. They are two, so that the second is loaded only where torch has CUDA.

They take what the Python op has checked, and are called from its body. Without them Triton or the reference runs.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

LIBRARY = Path(__file__).with_name("altclip_fast_native.so")
CUDA_LIBRARY = Path(__file__).with_name("altclip_fast_cuda.so")


@functools.cache
def missing() -> str | None:
    """Why there are no native kernels here, or None; the first call loads the library."""
    return _why_not_loaded(LIBRARY, "native", "a C++ compiler, ninja and --no-build-isolation")


def cuda_missing() -> str | None:
    """Why there are no CUDA kernels here, or None; the first call loads the library."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    return _why_not_loaded(CUDA_LIBRARY, "CUDA", "nvcc, a C++ compiler, ninja and --no-build-isolation")


@functools.cache
def _why_not_loaded(library: Path, kind: str, tools: str) -> str | None:
    if not library.exists():
        return f"the {kind} library was not built (reinstall with {tools})"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"the {kind} library does not load: {error}"
    return None


def kernels() -> Any:
    """The native operators; only where `missing()`, or for those of CUDA `cuda_missing()`, is None."""
    return torch.ops.altclip_fast_native


def instruction_set() -> str | None:
    """Of the C++ kernels that run here: "avx512_bf16" (and VNNI), "avx512", "avx2" or "portable"; None without them."""
    return kernels().cpu_capability() if missing() is None else None


@functools.cache
def verified() -> dict[str, list[str]]:
    """Op -> the architectures (as "sm_90") on which its CUDA kernel has passed the truth check on hardware."""
    return json.loads(Path(__file__).with_name("verified.json").read_text(encoding="utf-8"))


def description() -> str:
    """What was built, with which compiler, and which instruction set runs."""
    if (reason := missing()) is not None:
        return reason
    built = _built(LIBRARY)
    sets = ", ".join(built["instruction_sets"])
    return f"{instruction_set()} (of {sets}); {built['compiler']}, {' '.join(built['flags'])}"


def cuda_description() -> str:
    """What was built, with which compiler, whether it runs here, and which ops take it unasked."""
    reason = cuda_missing()
    if not CUDA_LIBRARY.exists():
        return reason or ""
    built = _built(CUDA_LIBRARY)
    architectures = ", ".join(f"sm_{name}" for name in built["architectures"])
    proven = "; ".join(f"{op} on {', '.join(where)}" for op, where in verified().items())
    runs = "runs" if reason is None else f"does not run: {reason}"
    return f"{architectures}; {built['compiler']}, {' '.join(built['flags'])}; {runs}; verified: {proven or 'none'}"


def _built(library: Path) -> dict[str, Any]:
    return json.loads(library.with_suffix(".json").read_text(encoding="utf-8"))
