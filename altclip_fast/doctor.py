"""What is installed here, what it runs on, and which backend every operator would use."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any, NamedTuple

import torch

from . import (
    native,
    ops,  # noqa: F401  (registers the operators that backends() lists)
)
from ._version import __version__
from .dispatch import backends, forced_backend
from .report import Table

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "safetensors",
    "pillow",
    "tokenizers",
    "sentencepiece",
    "huggingface_hub",
    "transformers",
)


class Fact(NamedTuple):
    """One line of the report."""

    what: str
    value: str


def facts() -> Table:
    """The machine and the packages."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rows = [
        Fact("altclip_fast", __version__),
        Fact("python", platform.python_version()),
        *(Fact(name, _version(name)) for name in PACKAGES),
        Fact(
            "processor",
            f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        ),
        Fact("native library", native.description()),
        Fact("cuda library", native.cuda_description()),
        Fact("cuda device", cuda),
        Fact("forced backend", forced_backend() or "none"),
    ]
    return Table(Fact._fields, rows)


def report() -> dict[str, Any]:
    """Both tables as plain data, for `doctor --json`."""
    return {
        "facts": {row.what: row.value for row in facts()},
        "operators": [row._asdict() for row in backends()],
    }


def text() -> str:
    """Both tables, to be read."""
    return f"{facts()}\n\n{backends()}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
