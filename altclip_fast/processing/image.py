"""CLIPImageProcessor: PIL images, arrays, tensors and files to `pixel_values`, float32 [N, 3, 224, 224].

    pixels = (crop(resize(rgb(image))) * rescale_factor - image_mean) / image_std

with Pillow's resize on 8-bit pixels, the product in float64 rounded to float32, and the rest in float32: bit by
bit what transformers' CLIPImageProcessorPil gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from .arrays import array_to_rgb, channels_first, crop_array, to_numpy, to_pil
from .batch import BatchFeature
from .image_base import BaseImageProcessor
from .image_settings import LAST, Settings, check_fits
from .loading import ImageSource, flatten_images, load_image, loaded, to_rgb
from .resize import crop_window, output_size, resize_and_crop

__all__ = ["CLIPImageProcessor", "load_image"]


class CLIPImageProcessor(BaseImageProcessor):
    """Resize, centre crop, rescale and normalise on the CPU with Pillow and numpy."""

    def preprocess(
        self,
        images: Any,
        do_resize: bool | None = None,
        size: int | tuple[int, int] | dict[str, int] | None = None,
        resample: int | Image.Resampling | None = None,
        do_center_crop: bool | None = None,
        crop_size: int | tuple[int, int] | dict[str, int] | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: float | list[float] | None = None,
        image_std: float | list[float] | None = None,
        do_convert_rgb: bool | None = None,
        return_tensors: str | None = None,
        data_format: str | None = None,
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """`{"pixel_values": ..}` of one image or a (nested) list of them, in order.

        Args:
            images: PIL images of any mode; arrays or tensors [H, W], [C, H, W], [H, W, C], or four axes for a
                batch, with values 0 to 255 (for fractions 0 to 1 pass `do_rescale=False`); paths, `data:` URIs, or
                the bytes of files. Transparent pixels of PIL images and arrays become white; files are read as
                `load_image` does.
            return_tensors: "pt": a tensor, "np": an array, [N, C, H, W]; None: a list of arrays [C, H, W].
            data_format: "channels_last" for [.., H, W, C].
            input_data_format: "channels_first", "channels_last" or "none" ([H, W]) of arrays; unset: the axis of
                1, 3 or 4 entries, the first one if both are.
            kwargs: `do_pad`, `pad_size` (zeros below and to the right), `default_to_square`, and `device` for "pt".
            Every other option, and all of them when None: see the constructor.

        Raises:
            TypeError, ValueError: an option or an image is wrong; it is named. Options are checked first.
            OSError: a file cannot be read.
        """
        overrides = {name: value for name, value in locals().items() if name not in ("self", "images", "kwargs")}
        settings = self._settings(overrides | kwargs)
        named = flatten_images(images)
        if settings.return_tensors is None or settings.do_pad:
            arrays = [_finish(_pixels(image, name, settings), settings) for name, image in named]
            if settings.do_pad:
                arrays = _pad(arrays, [name for name, _ in named], settings.pad_size)
            result: Any = arrays if settings.return_tensors is None else np.stack(arrays)
        else:
            result = _batch(named, settings)
        return BatchFeature({"pixel_values": _deliver(result, settings)})

    def normalisation(self) -> tuple[list[float], list[float]] | None:
        """As the base class; not where zeros are added after the normalisation (`do_pad`)."""
        settings = self._settings({})
        if settings.do_pad:
            return None
        factor = 255 * settings.rescale_factor if settings.do_rescale else 255.0
        mean, std = (settings.image_mean, settings.image_std) if settings.do_normalize else (0.0, 1.0)
        return [m / factor for m in _three(mean)], [s / factor for s in _three(std)]

    def eight_bit(self, picture: Image.Image) -> np.ndarray:
        """As the base class."""
        return np.ascontiguousarray(_pixels(picture, "the image", self._settings({})))


def _three(value: float | list[float]) -> list[float]:
    return [value] * 3 if isinstance(value, float) else value


def _batch(named: list[tuple[str, ImageSource]], settings: Settings) -> np.ndarray:
    """[N, C, H, W], each image written into its place."""
    result = np.empty(0)
    for i, (name, image) in enumerate(named):
        pixels = _pixels(image, name, settings)
        dtype = _result_dtype(pixels.dtype, settings)
        if i == 0:
            result = np.empty((len(named), *pixels.shape), dtype)
        if pixels.shape != result.shape[1:]:
            raise ValueError(
                f"{name} becomes {pixels.shape}, {named[0][0]} {result.shape[1:]} (channels, height, width): no batch; "
                "pass do_center_crop=True, do_pad=True, or return_tensors=None"
            )
        if result.dtype != (common := np.promote_types(result.dtype, dtype)):
            wider = np.empty(result.shape, common)
            wider[:i] = result[:i]
            result = wider
        if dtype == result.dtype:
            _finish(pixels, settings, result[i])
        else:
            result[i] = _finish(pixels, settings)
    return result


def _pixels(image: ImageSource, name: str, settings: Settings) -> np.ndarray:
    """[C, H, W], resized and cropped; a view where that is possible."""
    if not isinstance(image, Image.Image | np.ndarray | torch.Tensor):
        image = load_image(image)
    if isinstance(image, Image.Image):
        picture = to_rgb(image, name) if settings.do_convert_rgb else loaded(image, name)
        if picture.mode in ("RGB", "L"):
            return _from_picture(picture, name, settings)
        array = channels_first(np.asarray(picture), LAST, name)
    else:
        array = channels_first(to_numpy(image, name), settings.input_data_format, name)
        if settings.do_convert_rgb:
            array = array_to_rgb(array, name)
    settings.check_channels(len(array), name)
    if settings.do_resize:
        picture, unit = to_pil(array, name)
        pixels = _from_picture(picture, name, settings)
        return (pixels.astype(np.float64) * (1 / 255)).astype(np.float32) if unit else pixels
    if settings.crop:
        return crop_array(array, crop_window(array.shape[1], array.shape[2], settings.crop))
    return array


def _from_picture(picture: Image.Image, name: str, settings: Settings) -> np.ndarray:
    settings.check_channels(len(picture.getbands()), name)
    if settings.do_resize:
        size = output_size(picture.height, picture.width, settings.size, name)
        picture = resize_and_crop(picture, size, settings.crop, settings.resample)
    elif settings.crop:
        picture = picture.crop(crop_window(picture.height, picture.width, settings.crop))
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _result_dtype(dtype: np.dtype, settings: Settings) -> np.dtype:
    if settings.do_rescale or (settings.do_normalize and dtype.kind != "f"):
        return np.dtype(np.float32)
    return dtype


def _finish(pixels: np.ndarray, settings: Settings, out: np.ndarray | None = None) -> np.ndarray:
    """Rescale and normalise [C, H, W] into `out`, or into a new array."""
    if out is None:
        out = np.empty(pixels.shape, _result_dtype(pixels.dtype, settings))
    if settings.do_rescale:
        np.multiply(pixels, settings.rescale_factor, out=out, dtype=np.float64, casting="same_kind")
    else:
        np.copyto(out, pixels, casting="same_kind")
    if settings.do_normalize:
        np.subtract(out, _column(settings.image_mean, out.dtype), out=out)
        np.divide(out, _column(settings.image_std, out.dtype), out=out)
    return out


def _column(values: float | list[float], dtype: np.dtype) -> np.ndarray:
    return np.asarray(values, dtype).reshape(-1, 1, 1)


def _pad(arrays: list[np.ndarray], names: list[str], size: dict[str, int] | None) -> list[np.ndarray]:
    """Zeros below and to the right, up to `size` or to the largest of the arrays."""
    height = size["height"] if size else max(array.shape[1] for array in arrays)
    width = size["width"] if size else max(array.shape[2] for array in arrays)
    for name, array in zip(names, arrays, strict=True):
        check_fits(array.shape, height, width, name)
    return [crop_array(array, (0, 0, width, height)) for array in arrays]


def _deliver(result: Any, settings: Settings) -> Any:
    """To the layout, the kind and the device that were asked for."""
    if settings.return_tensors is None:
        return [np.moveaxis(a, 0, -1) for a in result] if settings.data_format == LAST else result
    if settings.data_format == LAST:
        result = np.ascontiguousarray(np.moveaxis(result, 1, -1))
    if settings.return_tensors == "np":
        return result
    tensor = torch.from_numpy(result)
    return tensor if settings.device is None else tensor.to(settings.device)
