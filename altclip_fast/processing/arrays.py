"""Images as numpy arrays: which axis holds the channels, RGB from grey and RGBA, and 8 bits from the other dtypes.

Arrays are [height, width], [channels, height, width] or [height, width, channels], of any boolean, integer or floating
dtype. The rules are those of transformers' PIL image processors, to the bit.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ..notices import warn_once
from .image_settings import FIRST, LAST, NO_CHANNELS

_CHANNELS = (1, 3, 4)


def to_numpy(image: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """The array itself, or the values of a tensor of any device; bfloat16 becomes float32, which numpy has."""
    if isinstance(image, torch.Tensor):
        try:
            tensor = image.detach().cpu()
            image = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).resolve_conj().resolve_neg().numpy()
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{name}: this tensor cannot become an array: {error}") from error
    if image.dtype.kind not in "buif":
        raise TypeError(f"{name} has dtype {image.dtype}; a boolean, integer or floating one is needed")
    return image


def layout_of(shape: tuple[int, ...], layout: str | None, name: str) -> str:
    """Which axis of `shape` (3 axes) holds the channels: `layout` where given, else the one with 1, 3 or 4 entries."""
    if layout == NO_CHANNELS:
        raise ValueError(f"{name} has shape {shape}; input_data_format='none' is for [height, width]")
    if layout is not None:
        return layout
    first, last = shape[0] in _CHANNELS, shape[2] in _CHANNELS
    if first and last:
        warn_once(
            "image-layout-ambiguous",
            f"{name} has shape {shape}: the channels may be first or last. Taken as first; input_data_format says it.",
        )
    if not (first or last):
        raise ValueError(
            f"{name} has shape {shape}: neither the first nor the last axis has 1, 3 or 4 channels; "
            "pass input_data_format"
        )
    return FIRST if first else LAST


def channels_first(image: np.ndarray, layout: str | None, name: str) -> np.ndarray:
    """A view [channels, height, width] of `image`; ValueError where it has no pixels or no clear layout."""
    if 0 in image.shape or image.ndim not in (2, 3):
        raise ValueError(f"{name} has shape {image.shape}; 2 or 3 axes with at least one entry each are needed")
    if image.ndim == 2:
        return image[None]
    return image if layout_of(image.shape, layout, name) == FIRST else np.moveaxis(image, -1, 0)


def array_to_rgb(image: np.ndarray, name: str) -> np.ndarray:
    """[C, H, W] to [3, H, W]: one channel three times, four as RGBA on white, others as they are."""
    if image.shape[0] == 1:
        return np.repeat(image, 3, axis=0)
    if image.shape[0] != 4:
        return image
    white = 255 if image.dtype.kind in "ui" else 1.0
    if image.dtype.kind == "f" and not (image.min() >= 0.0 and image.max() <= 1.0):
        raise ValueError(f"{name}: a floating RGBA image has values from 0 to 1, got {image.min()} to {image.max()}")
    alpha = image[3:] / white
    mixed = alpha * image[:3] + (1 - alpha) * white
    return (np.round(mixed) if white == 255 else mixed).astype(image.dtype)


def to_pil(image: np.ndarray, name: str) -> tuple[Image.Image, bool]:
    """[C, H, W] as an 8-bit PIL image, and whether its values were 0 to 1 (they are 0 to 255 now).

    Floats that are whole numbers count as 0 to 255; others have to lie in 0 to 1.
    """
    if image.shape[0] > 4:
        raise ValueError(f"{name} has {image.shape[0]} channels; at most 4 can be resized")
    unit = image.dtype != np.uint8 and _is_unit(image, name)
    if unit:
        image = (image.astype(np.float64) * 255).astype(np.float32)
    pixels = image.astype(np.uint8, copy=False)
    if len(pixels) == 3 and pixels.strides[-1] == 1:  # planes: merging them is faster than interleaving in numpy
        return Image.merge("RGB", [Image.fromarray(plane) for plane in pixels]), unit
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)), unit


def _is_unit(image: np.ndarray, name: str) -> bool:
    low, high = image.min(), image.max()
    in_range = bool(low >= 0 and high <= 255)  # False for NaN
    whole = in_range and np.allclose(image, image.astype(int))
    if not in_range or not (whole or high <= 1):
        raise ValueError(
            f"{name}: values from {low} to {high} cannot become an 8-bit image; "
            "whole numbers from 0 to 255, or fractions from 0 to 1, are needed"
        )
    return not whole


def crop_array(image: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """[C, H, W] cut to (left, top, right, bottom), with zeros outside of the image."""
    left, top, right, bottom = window
    height, width = image.shape[-2:]
    inside = image[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if left >= 0 and top >= 0 and right <= width and bottom <= height:
        return inside
    result = np.zeros((len(image), bottom - top, right - left), image.dtype)
    y, x = max(-top, 0), max(-left, 0)
    result[:, y : y + inside.shape[1], x : x + inside.shape[2]] = inside
    return result
