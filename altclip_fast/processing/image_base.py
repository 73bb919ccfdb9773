"""What the two image processors share: their options, and `preprocessor_config.json`.

Reads the forms of transformers 3 to 5: `size` and `crop_size` as ints, no rescale fields, `feature_extractor_type`, and
the `image_processor` object inside `processor_config.json`. Keys that are not known here are kept and written back.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from ..files import staged, write_text
from ..hub import read_json, resolve_file
from .batch import BatchFeature
from .image_settings import DEFAULTS, Settings, check_settings

CONFIG_NAME = "preprocessor_config.json"
PROCESSOR_NAME = "processor_config.json"
# What other classes and other versions write beside the options; it is written anew, or means nothing any more.
_SERVICE_KEYS = {"image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys"}


class BaseImageProcessor:
    """Options as attributes, under the names and with the defaults of transformers' CLIPImageProcessor.

    An attribute may be set later; it is checked at the next call.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        do_resize: bool = True,
        size: int | tuple[int, int] | dict[str, int] | None = None,
        resample: int | Image.Resampling = Image.Resampling.BICUBIC,
        do_center_crop: bool = True,
        crop_size: int | tuple[int, int] | dict[str, int] | None = None,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | list[float] | None = None,
        image_std: float | list[float] | None = None,
        do_convert_rgb: bool = True,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            do_resize: resize to `size`.
            size: `{"shortest_edge": 224}` (or an int), with or without `longest_edge`;
                `{"height": .., "width": ..}` (or a pair); `{"max_height": .., "max_width": ..}`.
            resample: a PIL.Image.Resampling.
            do_center_crop: cut `crop_size` out of the centre, with zeros around an image that is smaller.
            crop_size: `{"height": 224, "width": 224}`, or an int, or a pair.
            do_rescale: multiply by `rescale_factor`, 1/255.
            do_normalize: subtract `image_mean` and divide by `image_std`; one number, or one per channel.
            do_convert_rgb: convert to RGB first.
            kwargs: `do_pad`, `pad_size`, `default_to_square`, `use_square_size`, and the options of a call:
                `return_tensors`, `data_format`, `input_data_format`, `device`, `disable_grouping`, `image_seq_length`.

        Raises:
            TypeError, ValueError: an option is unknown or has a wrong value.
        """
        given = {name: value for name, value in locals().items() if name in DEFAULTS} | kwargs
        given = {name: value for name, value in given.items() if name not in _SERVICE_KEYS}
        self._unknown: dict[str, Any] = {}
        if given.pop("use_square_size", False):
            side = check_settings({"size": given["size"]}).size.get("shortest_edge")
            given["size"] = given["size"] if side is None else {"height": side, "width": side}
        for name, value in _as_fields(check_settings(_known(given, type(self).__name__))).items():
            setattr(self, name, value)

    def _settings(self, overrides: Mapping[str, Any]) -> Settings:
        """The options of one call; those that are None are the processor's own."""
        changed = {name: value for name, value in _known(overrides, "preprocess").items() if value is not None}
        return check_settings({name: getattr(self, name) for name in DEFAULTS} | changed)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """`preprocess`."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        raise NotImplementedError

    def normalisation(self) -> tuple[list[float], list[float]] | None:
        """The mean and the std that turn what `eight_bit` gives into `pixel_values`, (x / 255 - mean) / std; or None
        where this processor cannot be taken apart so."""
        return None

    def eight_bit(self, picture: Image.Image) -> np.ndarray:
        """An RGB picture resized and cropped, [3, H, W] uint8; only where `normalisation` is not None."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        **overrides: Any,
    ) -> Self:
        """From a folder, the JSON file itself, or a hub id; `overrides` are options that replace those in the file.

        Raises:
            OSError: there is no such file, or the hub does not give it.
            ValueError, TypeError: the file does not hold an image processor's options, or an option is wrong.
        """
        source = pretrained_model_name_or_path
        if os.path.isfile(source):
            return cls._from_file(read_json(source), os.fspath(source), overrides)

        def find(filename: str) -> Path | None:
            return resolve_file(
                source,
                filename,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                token=token,
            )

        if (path := find(PROCESSOR_NAME)) and "image_processor" in (nested := read_json(path)):
            return cls._from_file(nested["image_processor"], f"{path} (image_processor)", overrides)
        if path := find(CONFIG_NAME):
            return cls._from_file(read_json(path), str(path), overrides)
        raise OSError(f"{os.fspath(source)!r} has neither {CONFIG_NAME} nor a {PROCESSOR_NAME} with an image_processor")

    @classmethod
    def _from_file(cls, options: Any, where: str, overrides: dict[str, Any]) -> Self:
        try:
            return cls.from_dict(options, **overrides)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {error}") from error

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **overrides: Any) -> Self:
        """From what `to_dict` gives; keys that are not known are kept for `to_dict`."""
        if not isinstance(image_processor_dict, Mapping):
            raise TypeError(f"image_processor_dict is of type {type(image_processor_dict).__name__}; a dict is needed")
        known = DEFAULTS.keys() | _SERVICE_KEYS | {"use_square_size"}
        options = {name: value for name, value in image_processor_dict.items() if name in known}
        processor = cls(**(options | overrides))
        unknown = {name: value for name, value in image_processor_dict.items() if name not in known}
        processor._unknown = copy.deepcopy(unknown)
        return processor

    def to_dict(self) -> dict[str, Any]:
        """The options, without those that are unset, as JSON knows them."""
        options = _as_fields(self._settings({}))
        if not options["default_to_square"]:
            del options["default_to_square"]
        known = {name: value for name, value in options.items() if value is not None}
        return copy.deepcopy(self._unknown) | known | {"image_processor_type": type(self).__name__}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Write `preprocessor_config.json` into a folder, which is made where it is missing.

        Returns:
            The path of the file.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with staged(folder) as path:
            write_text(path(CONFIG_NAME), self.to_json_string())
        return [str(folder / CONFIG_NAME)]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


def _known(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    if unknown := sorted(options.keys() - DEFAULTS.keys()):
        raise TypeError(f"{where}() has no option {unknown[0]!r}; it has {', '.join(DEFAULTS)}")
    return dict(options)


def _as_fields(settings: Settings) -> dict[str, Any]:
    options = asdict(settings)
    options["resample"] = Image.Resampling(options["resample"])
    options["device"] = None if options["device"] is None else str(options["device"])
    return options
