"""Opening images: paths, bytes, data URIs, PIL images, arrays and tensors, one or many.

What comes from a file or from bytes is read by Pillow with a short list of formats, after its pixel count was
checked in the header, turned upright by its EXIF orientation, and converted to RGB, as transformers' `load_image`
does. Only the first frame of an animation is read. URLs are not fetched.
"""

from __future__ import annotations

import base64
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import unquote_to_bytes

import numpy as np
import torch
from PIL import ExifTags, Image

from .arrays import array_to_rgb, channels_first, to_numpy, to_pil

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 178_956_970  # 512 MiB as RGB; where Pillow itself gives up
KINDS = "a path, bytes, a data: URI, a PIL image, a numpy array or a torch tensor"

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray | torch.Tensor

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB image, upright.

    Args:
        source: a path; the bytes of a file; a `data:` URI; a PIL image of any mode; an array or tensor [H, W],
            [C, H, W] or [H, W, C] with values 0 to 255, or fractions 0 to 1.
        max_pixels: the most pixels that a file or bytes may declare.

    Raises:
        OSError: there is no such file, or it cannot be read as an image; FileNotFoundError and its like are kept.
        ValueError: a URL, a malformed data URI, too many pixels, an array of the wrong shape or range.
        TypeError: `source` is something else.
    """
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 1:
        raise ValueError(f"max_pixels={max_pixels!r}: an integer of at least 1 is needed")
    if isinstance(source, Image.Image):
        name = f"PIL image {source.mode}"
        loaded(source, name)
        with _reading(name):
            result = _upright_rgb(source)
            return source.copy() if result is source else result
    if isinstance(source, np.ndarray | torch.Tensor):
        array = channels_first(to_numpy(source, "image"), None, "image")
        return to_pil(array_to_rgb(array, "image"), "image")[0].convert("RGB")
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return _decode(io.BytesIO(data), f"bytes of length {len(data)}", max_pixels)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _decode(io.BytesIO(_data_uri(source)), _short(source), max_pixels)
    if isinstance(source, str | os.PathLike):
        return _load_file(source, max_pixels)
    raise TypeError(f"an image of type {type(source).__name__}; {KINDS} is needed")


def is_source(value: Any) -> bool:
    """Is this one image (or an array of images), and not a list of them?"""
    kinds = str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray | torch.Tensor
    return isinstance(value, kinds)


def flatten_images(images: Any) -> list[tuple[str, ImageSource]]:
    """One image, or (nested) sequences of them and arrays [N, ..] of them, as a flat list of (name, image).

    The name, such as `images[3]`, says in messages which one is meant.

    Raises:
        TypeError: something in it is no image.
        ValueError: there is no image in it, or an array has more than 4 axes or less than 2.
    """
    found = list(_flatten(images, "images"))
    if not found:
        raise ValueError(f"images={_short(repr(images))}: at least one image is needed")
    return found


def _flatten(images: Any, name: str) -> Iterator[tuple[str, ImageSource]]:
    if isinstance(images, np.ndarray | torch.Tensor):
        if images.ndim not in (2, 3, 4):
            raise ValueError(f"{name} has shape {tuple(images.shape)}; an image has 2 or 3 axes, a batch of them 4")
        if images.ndim < 4:
            yield name, images
        else:
            yield from ((f"{name}[{i}]", image) for i, image in enumerate(images))
    elif is_source(images):
        yield name, images
    elif isinstance(images, Sequence):
        for i, image in enumerate(images):
            yield from _flatten(image, f"{name}[{i}]")
    else:
        raise TypeError(f"{name} is of type {type(images).__name__}; {KINDS} is needed, or a list of these")


def loaded(image: Image.Image, name: str) -> Image.Image:
    """The image, with its pixels decoded: OSError where the file behind it is broken."""
    if 0 in image.size:
        raise ValueError(f"{name}: {image.width} x {image.height} pixels; at least one is needed")
    with _reading(name):
        image.load()
    return image


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A PIL image as RGB; what is transparent in it becomes white, as in transformers' image processors.

    (`load_image` drops the transparency of a file instead: also as transformers does.)
    """
    loaded(image, name)
    with _reading(name):
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
        return image if image.mode == "RGB" else image.convert("RGB")


def _load_file(path: str | os.PathLike[str], max_pixels: int) -> Image.Image:
    name = repr(os.fspath(path))
    if isinstance(path, str) and _URL.match(path):
        raise ValueError(f"{_short(name)} is a URL; URLs are not fetched: download it, and pass the path or the bytes")
    if "\0" in str(path):
        raise ValueError(f"{name}: a path has no null character")
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # reading a pipe may never end
        raise OSError(f"{name} is not a regular file")
    with open(path, "rb") as file:
        return _decode(file, name, max_pixels)


def _data_uri(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma:
        raise ValueError(f"{_short(uri)}: a data URI has a comma before its data")
    data = unquote_to_bytes(body)
    if not head.lower().endswith(";base64"):
        return data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except ValueError as error:
        raise ValueError(f"{_short(uri)}: its data is not base64: {error}") from error


def _decode(file: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    # Image.open would load all of Pillow's plugins to find these two.
    from PIL import TiffImagePlugin, WebPImagePlugin  # noqa: F401

    with _reading(name):
        image = Image.open(file, formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise ValueError(
            f"{name}: {image.width} x {image.height} pixels; at most {max_pixels} are decoded (max_pixels)"
        )
    with _reading(name):
        return _upright_rgb(image)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Whatever Pillow raises on broken input (struct.error, SyntaxError, a bomb ..) becomes OSError or ValueError."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name}: more pixels than PIL.Image.MAX_IMAGE_PIXELS allows: {error}") from error
    except Exception as error:
        reason = "not an image, or none of " + ", ".join(FORMATS)
        if not isinstance(error, Image.UnidentifiedImageError):
            reason = f"{type(error).__name__}: {error}"
        raise OSError(f"cannot read {name} as an image: {reason}") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    """The image itself, if there is nothing to do."""
    image.load()  # before the orientation is read: TIFF turns itself while loading
    if (method := _turn(image)) is not None:
        image = image.transpose(method)
        for key in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"):  # or it would be turned again
            image.info.pop(key, None)
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.copy()
        del image.info["transparency"]  # `convert` drops it too, and warns
    return image if image.mode == "RGB" else image.convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block says nothing about the pixels
        return None


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}.. ({len(text)} characters)"
