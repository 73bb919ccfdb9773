"""The options of an image processor, checked and brought to one form: the fields of `preprocessor_config.json`.

Every message names the option, its value and what is allowed. Nothing is computed on an image before all options hold.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image

MAX_SIDE = 16384
OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]
OPENAI_STD = [0.26862954, 0.26130258, 0.27577711]
FIRST, LAST, NO_CHANNELS = "channels_first", "channels_last", "none"

_RESIZE_KEYS = (
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"height", "width"},
    {"max_height", "max_width"},
)
_SIZE_FORMS = "an int, (height, width), or a dict with " + ", ".join(
    " and ".join(repr(key) for key in sorted(keys)) for keys in _RESIZE_KEYS
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The fields in canonical form; the defaults are CLIP's.

    `size` has one of the four sets of keys above, `crop_size` and `pad_size` have `height` and `width`;
    `image_mean` and `image_std` are a float for all channels, or a list.
    """

    do_resize: bool
    size: dict[str, int]
    resample: Image.Resampling
    do_center_crop: bool
    crop_size: dict[str, int]
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: float | list[float]
    image_std: float | list[float]
    do_convert_rgb: bool
    default_to_square: bool
    do_pad: bool | None
    pad_size: dict[str, int] | None
    return_tensors: str | None
    data_format: str | None
    input_data_format: str | None
    device: str | torch.device | None
    disable_grouping: bool | None
    image_seq_length: int | None

    @property
    def crop(self) -> tuple[int, int] | None:
        return (self.crop_size["height"], self.crop_size["width"]) if self.do_center_crop else None

    def check_channels(self, channels: int, name: str) -> None:
        """`image_mean` and `image_std` fit an image of so many channels."""
        for option, value in (("image_mean", self.image_mean), ("image_std", self.image_std)):
            if self.do_normalize and isinstance(value, list) and len(value) != channels:
                raise ValueError(f"{option}={value}: {name} has {channels} channels; one value for each is needed")


DEFAULTS: dict[str, Any] = {field.name: None for field in fields(Settings)} | {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": Image.Resampling.BICUBIC,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": OPENAI_MEAN,
    "image_std": OPENAI_STD,
    "do_convert_rgb": True,
    "default_to_square": False,
}


def check_fits(shape: tuple[int, ...], height: int, width: int, name: str) -> None:
    """[C, H, W] can be padded to (height, width)."""
    if shape[-2] > height or shape[-1] > width:
        raise ValueError(
            f"pad_size={{'height': {height}, 'width': {width}}}: {name} has {shape[-2]} x {shape[-1]} pixels "
            "(height x width); pad_size must not be smaller"
        )


def check_settings(options: Mapping[str, Any]) -> Settings:
    """`options` (None or absent: the default) as Settings; ValueError or TypeError where one is not allowed."""
    raw = {name: default if options.get(name) is None else options[name] for name, default in DEFAULTS.items()}
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "default_to_square"):
        raw[name] = _flag(name, raw[name])
    for name in ("do_pad", "disable_grouping"):
        raw[name] = None if raw[name] is None else _flag(name, raw[name])
    raw["size"] = _resize_size(raw["size"], raw["default_to_square"])
    raw["crop_size"] = _rectangle("crop_size", raw["crop_size"])
    raw["pad_size"] = None if raw["pad_size"] is None else _rectangle("pad_size", raw["pad_size"])
    raw["resample"] = _resample(raw["resample"])
    raw["rescale_factor"] = _number("rescale_factor", raw["rescale_factor"])
    if raw["rescale_factor"] == 0:
        raise ValueError("rescale_factor=0: a finite number other than 0 is needed")
    raw["image_mean"] = _per_channel("image_mean", raw["image_mean"])
    raw["image_std"] = _per_channel("image_std", raw["image_std"], positive=True)
    raw["return_tensors"] = _choice("return_tensors", raw["return_tensors"], (None, "pt", "np"))
    raw["data_format"] = _choice("data_format", raw["data_format"], (None, FIRST, LAST))
    raw["input_data_format"] = _choice("input_data_format", raw["input_data_format"], (None, FIRST, LAST, NO_CHANNELS))
    raw["device"] = _device(raw["device"])
    if raw["image_seq_length"] is not None:
        raw["image_seq_length"] = _side("image_seq_length", raw["image_seq_length"])
    settings = Settings(**raw)
    if settings.do_convert_rgb:
        settings.check_channels(3, "an RGB image")
    return settings


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={value!r}: True or False is needed")
    return bool(value)


def _side(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: an integer is needed")
    if not 1 <= number <= MAX_SIDE:
        raise ValueError(f"{name}={value!r}: an integer from 1 to {MAX_SIDE} is needed")
    return number


def _resize_size(value: Any, square: bool) -> dict[str, int]:
    if isinstance(value, str | bytes | float) or not hasattr(value, "__iter__"):
        side = _side("size", value)
        return {"height": side, "width": side} if square else {"shortest_edge": side}
    size = _size_dict("size", value, _SIZE_FORMS)
    if set(size) not in _RESIZE_KEYS:
        raise ValueError(f"size={size}: {_SIZE_FORMS} is needed")
    return size


def _rectangle(name: str, value: Any) -> dict[str, int]:
    forms = "an int, (height, width), or a dict with 'height' and 'width'"
    if isinstance(value, str | bytes | float) or not hasattr(value, "__iter__"):
        side = _side(name, value)
        return {"height": side, "width": side}
    size = _size_dict(name, value, forms)
    if set(size) != {"height", "width"}:
        raise ValueError(f"{name}={size}: {forms} is needed")
    return size


def _size_dict(name: str, value: Any, forms: str) -> dict[str, int]:
    """A mapping (or the pairs of transformers' SizeDict) with its None entries left out, or (height, width)."""
    if not isinstance(value, Mapping):
        items = list(value)
        if all(isinstance(item, tuple) and len(item) == 2 for item in items) and items:
            value = dict(items)
        elif len(items) == 2:
            value = dict(zip(("height", "width"), items, strict=True))
        else:
            raise ValueError(f"{name}={value!r}: {forms} is needed")
    return {str(key): _side(f"{name}[{key!r}]", side) for key, side in value.items() if side is not None}


def _resample(value: Any) -> Image.Resampling:
    try:
        if isinstance(value, bool):
            raise ValueError
        return Image.Resampling(value)
    except ValueError:
        allowed = ", ".join(f"{item.value} ({item.name})" for item in Image.Resampling)
        raise ValueError(f"resample={value!r}: one of PIL.Image.Resampling is needed: {allowed}") from None


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}={value!r}: a number is needed")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= np.finfo(np.float32).max:
        raise ValueError(f"{name}={value!r}: a finite float32 number is needed")
    return number


def _per_channel(name: str, value: Any, positive: bool = False) -> float | list[float]:
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        numbers = [_number(f"{name}[{i}]", item) for i, item in enumerate(value)]
    else:
        numbers = [_number(name, value)]
        value = numbers[0]
    # The smallest float32: a std below it would become 0 in the division.
    if not numbers or (positive and min(numbers) < np.finfo(np.float32).tiny):
        allowed = "numbers above 0" if positive else "numbers"
        raise ValueError(f"{name}={value!r}: one number, or one for each channel, is needed; {allowed}")
    return value if isinstance(value, float) else numbers


def _choice(name: str, value: Any, allowed: tuple[str | None, ...]) -> str | None:
    plain = getattr(value, "value", value)  # an enum of transformers
    if plain not in allowed:
        raise ValueError(f"{name}={value!r}: one of {', '.join(map(repr, allowed))} is needed")
    return plain


def _device(value: Any) -> torch.device | None:
    if value is None:
        return None
    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).partition(os.linesep)[0]
        raise ValueError(f"device={value!r}: a device of this machine is needed ({reason})") from error
    return device
