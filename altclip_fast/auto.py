"""The Auto classes: the right model, processor or tokenizer for a folder or hub id, by its `config.json`."""

from __future__ import annotations

import os
from typing import Any

from .config import (
    AltCLIPConfig,
    AltCLIPTextConfig,
    AltCLIPVisionConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    Config,
    config_class_for,
    find_config,
    read_json,
)
from .models.altclip import AltCLIPModel, AltCLIPTextModel, AltCLIPVisionModel
from .models.base import Model
from .models.clip import CLIPModel, CLIPTextModel, CLIPVisionModel
from .processing.image import CLIPImageProcessor
from .processing.image_fast import CLIPImageProcessorFast
from .processing.processors import AltCLIPProcessor, CLIPProcessor
from .processing.tokenizers import CLIPTokenizer, XLMRobertaTokenizer

_MODELS: dict[type[Config], type[Model]] = {
    AltCLIPConfig: AltCLIPModel,
    AltCLIPTextConfig: AltCLIPTextModel,
    AltCLIPVisionConfig: AltCLIPVisionModel,
    CLIPConfig: CLIPModel,
    CLIPTextConfig: CLIPTextModel,
    CLIPVisionConfig: CLIPVisionModel,
}
_HUB_ARGUMENTS = ("revision", "local_files_only", "cache_dir", "token")


class _Auto:
    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(f"{name} is not instantiated; call {name}.from_pretrained(path_or_repo)")


def _config_class(path_or_repo: str | os.PathLike[str], options: dict[str, Any]) -> type[Config]:
    where = {name: options[name] for name in _HUB_ARGUMENTS if name in options}
    return config_class_for(read_json(find_config(path_or_repo, **where)))


def _multilingual(path_or_repo: str | os.PathLike[str], options: dict[str, Any]) -> bool:
    """Whether the checkpoint is an AltCLIP."""
    return _config_class(path_or_repo, options) in (AltCLIPConfig, AltCLIPTextConfig, AltCLIPVisionConfig)


class AutoModel(_Auto):
    """AltCLIPModel, CLIPModel, or a tower of theirs."""

    @staticmethod
    def from_pretrained(path_or_repo: str | os.PathLike[str], **options: Any) -> Any:
        """As `Model.from_pretrained` of the class that `config.json` names."""
        return _MODELS[_config_class(path_or_repo, options)].from_pretrained(path_or_repo, **options)

    @staticmethod
    def from_config(config: Config) -> Model:
        """A model with random weights.

        Raises:
            TypeError: config is no configuration of this package.
        """
        if type(config) not in _MODELS:
            raise TypeError(
                f"config is a {type(config).__name__}; one of {', '.join(c.__name__ for c in _MODELS)} is needed"
            )
        return _MODELS[type(config)](config)


class AutoProcessor(_Auto):
    """AltCLIPProcessor or CLIPProcessor."""

    @staticmethod
    def from_pretrained(path_or_repo: str | os.PathLike[str], **options: Any) -> AltCLIPProcessor | CLIPProcessor:
        """The processor that belongs to the model in `config.json`."""
        found = AltCLIPProcessor if _multilingual(path_or_repo, options) else CLIPProcessor
        return found.from_pretrained(path_or_repo, **options)


class AutoTokenizer(_Auto):
    """XLMRobertaTokenizer or CLIPTokenizer."""

    @staticmethod
    def from_pretrained(path_or_repo: str | os.PathLike[str], **options: Any) -> XLMRobertaTokenizer | CLIPTokenizer:
        """The tokenizer that belongs to the model in `config.json`."""
        options.pop("use_fast", None)
        found = XLMRobertaTokenizer if _multilingual(path_or_repo, options) else CLIPTokenizer
        return found.from_pretrained(path_or_repo, **options)


class AutoImageProcessor(_Auto):
    """CLIPImageProcessor, or CLIPImageProcessorFast with `use_fast=True`."""

    @staticmethod
    def from_pretrained(
        path_or_repo: str | os.PathLike[str], *, use_fast: bool = False, **options: Any
    ) -> CLIPImageProcessor | CLIPImageProcessorFast:
        """The image processor of a checkpoint."""
        found = CLIPImageProcessorFast if use_fast else CLIPImageProcessor
        return found.from_pretrained(path_or_repo, **options)
