"""`AltCLIPProcessor` and `CLIPProcessor`: an image processor and a tokenizer behind one call.

    inputs = processor(images=image, text=["a cat", "a dog"], return_tensors="pt", padding=True)
    outputs = model(**inputs)

The result holds `input_ids` and `attention_mask` where text was given, `pixel_values` where images were.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from ..hub import read_json, resolve_file
from .base_tokenizer import BaseTokenizer
from .batch import BatchFeature
from .image import CLIPImageProcessor
from .image_base import BaseImageProcessor
from .image_fast import CLIPImageProcessorFast
from .image_settings import DEFAULTS as IMAGE_OPTIONS
from .tokenizer_files import write_json
from .tokenizers import CLIPTokenizer, XLMRobertaTokenizer

TEXT_OPTIONS = frozenset(inspect.signature(BaseTokenizer.__call__).parameters) - {"self", "text"}

_TOKENIZERS: dict[str, type[BaseTokenizer]] = {
    "XLMRobertaTokenizer": XLMRobertaTokenizer,
    "CLIPTokenizer": CLIPTokenizer,
}


class BaseProcessor:
    """What the two processors share. Not used on its own.

    Args:
        image_processor: a `CLIPImageProcessor` or `CLIPImageProcessorFast`.
        tokenizer: an `XLMRobertaTokenizer` or `CLIPTokenizer`.

    Raises:
        TypeError: one of the two is missing or of another class.
    """

    tokenizer_class: ClassVar[str]

    def __init__(self, image_processor: Any = None, tokenizer: Any = None) -> None:
        self.image_processor: BaseImageProcessor = _checked(
            "image_processor",
            image_processor,
            BaseImageProcessor,
            "CLIPImageProcessor or CLIPImageProcessorFast",
        )
        self.tokenizer: BaseTokenizer = _checked("tokenizer", tokenizer, BaseTokenizer, " or ".join(_TOKENIZERS))

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Images and texts, or one of the two, as the model's inputs.

        Args:
            images: what the image processor takes: one image or a list.
            text: what the tokenizer takes: a str or a list.
            kwargs: options of the tokenizer (`padding`, `truncation`, ...) and of the image processor
                (`size`, ...); `return_tensors` is for both. `text_kwargs`, `images_kwargs` and
                `common_kwargs` are dicts of options for one of them or for both.

        Raises:
            ValueError: neither images nor text, or one option given twice.
            TypeError: an option that neither knows.
        """
        if images is None and text is None:
            raise ValueError(f"{type(self).__name__} needs images, text or both")
        text_options, image_options = self._split(kwargs)
        data: dict[str, Any] = {}
        if text is not None:
            data.update(self.tokenizer(text, **text_options))
        if images is not None:
            data.update(self.image_processor(images, **image_options))
        return BatchFeature(data)

    def _split(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The tokenizer's and the image processor's share of `options`."""
        groups = {name: dict(options.get(name) or {}) for name in ("common_kwargs", "text_kwargs", "images_kwargs")}
        plain = {name: value for name, value in options.items() if name not in groups}
        known = TEXT_OPTIONS | set(IMAGE_OPTIONS)
        if unknown := sorted({*plain, *groups["common_kwargs"]} - known):
            raise TypeError(f"{type(self).__name__} got unknown options: {', '.join(unknown)}")
        shares = []
        for group, names in (("text_kwargs", TEXT_OPTIONS), ("images_kwargs", set(IMAGE_OPTIONS))):
            if twice := sorted(set(groups[group]) & set(plain) & names):
                raise ValueError(f"{twice[0]} was given twice: in {group} and by itself")
            merged = {**groups["common_kwargs"], **plain}
            shares.append({name: value for name, value in merged.items() if name in names} | groups[group])
        # a tokenizer_config.json may hold defaults of the call (max_length, ...): they count here, as in
        # transformers
        stored = {name: value for name, value in self.tokenizer.init_kwargs.items() if name in TEXT_OPTIONS}
        return {**stored, **shares[0]}, shares[1]

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """`tokenizer.decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """`tokenizer.batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """The names of the model's inputs: `pixel_values`, `input_ids`, `attention_mask`."""
        return [*self.image_processor.model_input_names, *self.tokenizer.model_input_names]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        use_fast: bool | None = None,
        **overrides: Any,
    ) -> Self:
        """Load both halves from a folder or a hub id.

        Args:
            pretrained_model_name_or_path: holds preprocessor_config.json or processor_config.json, and a
                tokenizer.
            revision, cache_dir, local_files_only, token: which commit, where to keep it, no network,
                credentials.
            use_fast: True takes `CLIPImageProcessorFast`; there is one tokenizer.
            overrides: options that win over the files: of the image processor, else of the tokenizer.

        Raises:
            OSError: a file is missing or cannot be read.
            TypeError: an option that neither knows.
        """
        where: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "token": token,
        }
        source = pretrained_model_name_or_path
        image_class = CLIPImageProcessorFast if use_fast else CLIPImageProcessor
        image_overrides = {name: overrides.pop(name) for name in list(overrides) if name in IMAGE_OPTIONS}
        image_processor = image_class.from_pretrained(source, **where, **image_overrides)
        tokenizer_class = _TOKENIZERS[_stored_class(source, where) or cls.tokenizer_class]
        tokenizer = tokenizer_class.from_pretrained(source, **where, **overrides)
        return cls(image_processor, tokenizer)

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False) -> list[str]:
        """Write both halves into a folder (made if missing); transformers loads them.

        processor_config.json is what transformers 5 reads first, preprocessor_config.json what older versions
        know.

        Returns:
            The paths of the processor's files.

        Raises:
            OSError: the folder cannot be written.
            ValueError: `push_to_hub=True`; saving is local.
        """
        if push_to_hub:
            raise ValueError("save_pretrained writes to a folder only; upload it with huggingface_hub")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        name = type(self).__name__
        self.tokenizer.processor_class = name
        self.tokenizer.save_pretrained(folder)
        config, older = folder / "processor_config.json", folder / "preprocessor_config.json"
        write_json(config, self.to_dict())
        write_json(older, {**self.image_processor.to_dict(), "processor_class": name})
        return [str(config), str(older)]

    def to_dict(self) -> dict[str, Any]:
        """What processor_config.json holds: the image processor's options and the class."""
        return {"image_processor": self.image_processor.to_dict(), "processor_class": type(self).__name__}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(\n{self.image_processor!r},\n{self.tokenizer!r}\n)"


class AltCLIPProcessor(BaseProcessor):
    """A CLIP image processor and an XLM-RoBERTa tokenizer as one object; see `BaseProcessor`."""

    tokenizer_class = "XLMRobertaTokenizer"


class CLIPProcessor(BaseProcessor):
    """A CLIP image processor and a CLIP tokenizer as one object; see `BaseProcessor`.

    Args:
        kwargs: ignored, as in transformers.
    """

    tokenizer_class = "CLIPTokenizer"

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer)


def _checked(name: str, value: Any, allowed: type, names: str) -> Any:
    if not isinstance(value, allowed):
        raise TypeError(f"{name} must be a {names}, not {type(value).__name__}")
    return value


def _stored_class(source: Any, where: Mapping[str, Any]) -> str | None:
    """The tokenizer class that tokenizer_config.json names, where it is one of ours."""
    path = resolve_file(source, "tokenizer_config.json", **where)
    name = str(read_json(path).get("tokenizer_class")) if path is not None else ""
    name = name.removesuffix("Fast")
    return name if name in _TOKENIZERS else None
