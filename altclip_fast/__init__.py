"""altclip_fast: the fastest way to run AltCLIP and CLIP, with results equal to Hugging Face transformers.

    import altclip_fast as af
    enc = af.load("path/to/AltCLIP")
    enc.classifier(["a cat", "a dog"])("photo.jpg")

Public names are imported when they are first used.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from ._version import __version__

# In a checkout the Triton kernels lie in <root>/kernels; as a package they are altclip_fast.kernels.
_root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.exists(os.path.join(_root, "setup.py")):
    __path__.append(_root)
del _root

_HOMES = {
    "accelerate": ("accelerate", "explain", "revert"),
    "auto": ("AutoImageProcessor", "AutoModel", "AutoProcessor", "AutoTokenizer"),
    "config": (
        "AltCLIPConfig",
        "AltCLIPTextConfig",
        "AltCLIPVisionConfig",
        "CLIPConfig",
        "CLIPTextConfig",
        "CLIPVisionConfig",
    ),
    "dispatch": ("backends", "use_backend"),
    "encoder": ("Encoder", "load"),
    "models.altclip": ("AltCLIPModel", "AltCLIPTextModel", "AltCLIPVisionModel"),
    "models.clip": (
        "CLIPForImageClassification",
        "CLIPModel",
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        "CLIPVisionModel",
        "CLIPVisionModelWithProjection",
    ),
    "pipelines": ("pipeline",),
    "processing.image": ("CLIPImageProcessor",),
    "processing.image_fast": ("CLIPImageProcessorFast",),
    "processing.processors": ("AltCLIPProcessor", "CLIPProcessor"),
    "processing.tokenizers": ("CLIPTokenizer", "CLIPTokenizerFast", "XLMRobertaTokenizer", "XLMRobertaTokenizerFast"),
    "retrieval": ("SearchResult", "search"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME), "__version__", "ops"]


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module(".ops", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module("." + _HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
