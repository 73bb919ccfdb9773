"""The native library, built from `csrc/` by setup.py: C++ kernels for the CPU, as `torch.ops.altclip_fast_native`.

They take what the Python op has checked, and are called from its body. Without the library the reference runs.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

LIBRARY = Path(__file__).with_name("altclip_fast_native.so")


@functools.cache
def missing() -> str | None:
    """Why there are no native kernels here, or None; the first call loads the library."""
    if not LIBRARY.exists():
        return "the native library was not built (reinstall with a C++ compiler, ninja and --no-build-isolation)"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"the native library does not load: {error}"
    return None


def kernels() -> Any:
    """The native operators; only where `missing()` is None."""
    return torch.ops.altclip_fast_native


def description() -> str:
    """What was built, with which compiler, and which instruction set runs."""
    if (reason := missing()) is not None:
        return reason
    built = json.loads(LIBRARY.with_suffix(".json").read_text(encoding="utf-8"))
    sets = ", ".join(built["instruction_sets"])
    return f"{kernels().cpu_capability()} (of {sets}); {built['compiler']}, {' '.join(built['flags'])}"
