"""CLIPImageProcessorFast: the same steps as CLIPImageProcessor on tensors, on any device, many images per call.

    pixels = (crop(resize(image)) - image_mean / rescale_factor) / (image_std / rescale_factor)

in float32. The resize is torch's own, antialiased; on 8-bit images it is rounded and clamped to 8 bits. On the
CPU the 8-bit kernel of torch is used, which is near Pillow's, but not equal to the bit. The values are those of
transformers' torchvision processor.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..notices import warn_once
from .arrays import layout_of
from .batch import BatchFeature
from .image_base import BaseImageProcessor
from .image_settings import FIRST, LAST, Settings, check_fits
from .loading import ImageSource, flatten_images, load_image, loaded, to_rgb
from .resize import output_size

_MODES = {
    Image.Resampling.NEAREST: "nearest-exact",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
    Image.Resampling.LANCZOS: "lanczos",
}


class CLIPImageProcessorFast(BaseImageProcessor):
    """Resize, centre crop, rescale and normalise with torch, on the device of the images or on `device`."""

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """`{"pixel_values": ..}` of one image or a (nested) list of them, in order.

        Args:
            images: as for CLIPImageProcessor.
            kwargs: the options of the constructor, and
                `return_tensors`: "pt" or "np": one [N, C, H, W]; None: a list of tensors [C, H, W];
                `device`: where to compute; else where the images are;
                `do_pad`, `pad_size`: zeros below and to the right, up to `pad_size` or to the largest image;
                `disable_grouping`: False computes images of one shape together, True one by one, None (default)
                together unless they are on the CPU; the values are the same;
                `input_data_format`: "channels_first", "channels_last" or "none" ([H, W]) of arrays and tensors;
                `data_format`: "channels_first" only; `image_seq_length`: accepted, not used.

        Raises:
            TypeError, ValueError: an option or an image is wrong; it is named. Options are checked first.
            OSError: a file cannot be read.
        """
        if args:
            raise TypeError(f"preprocess() takes the images and named options, not {len(args)} more by position")
        settings = self._settings(kwargs)
        _check(settings)
        named = flatten_images(images)
        names = [name for name, _ in named]
        tensors = [_tensor(image, name, settings) for name, image in named]
        sizes = [_new_size(tensor, name, settings) for tensor, name in zip(tensors, names, strict=True)]
        if settings.do_resize:
            tensors = _map(lambda batch, i: _resize(batch, sizes[i], settings.resample), tensors, settings)
        tensors = _map(lambda batch, i: _normalize(_crop(batch, settings.crop), settings), tensors, settings)
        if settings.do_pad:
            tensors = _pad(tensors, names, settings.pad_size)
        return BatchFeature({"pixel_values": _deliver(tensors, names, settings.return_tensors)})


def _check(settings: Settings) -> None:
    if settings.data_format == LAST:
        raise ValueError("data_format='channels_last': CLIPImageProcessorFast gives 'channels_first' only")
    if settings.do_resize and settings.resample not in _MODES:
        allowed = ", ".join(f"{item.value} ({item.name})" for item in _MODES)
        raise ValueError(
            f"resample={settings.resample.value} ({settings.resample.name}): torch resizes with {allowed}; "
            "CLIPImageProcessor has the others"
        )


def _tensor(image: ImageSource, name: str, settings: Settings) -> Tensor:
    """[C, H, W] on the device that was asked for; never changed in place, as it may be the caller's."""
    if not isinstance(image, Image.Image | np.ndarray | Tensor):
        image = load_image(image)
    if isinstance(image, Image.Image):
        image = to_rgb(image, name) if settings.do_convert_rgb else loaded(image, name)
        tensor = _channels_first(torch.from_numpy(np.array(image)), LAST, name)
    else:
        tensor = _channels_first(_from_array(image, name), settings.input_data_format, name)
        if settings.do_convert_rgb:
            tensor = _to_rgb(tensor, name)
    settings.check_channels(len(tensor), name)
    return tensor if settings.device is None else tensor.to(settings.device)


def _from_array(image: np.ndarray | Tensor, name: str) -> Tensor:
    if isinstance(image, Tensor):
        if image.is_complex():
            raise TypeError(f"{name} has dtype {image.dtype}; a boolean, integer or floating one is needed")
        return image.detach()
    if image.dtype.kind not in "buif":
        raise TypeError(f"{name} has dtype {image.dtype}; a boolean, integer or floating one is needed")
    native = image.astype(image.dtype.newbyteorder("="), copy=not image.flags.writeable)
    return torch.from_numpy(np.ascontiguousarray(native))


def _channels_first(image: Tensor, layout: str | None, name: str) -> Tensor:
    shape = tuple(image.shape)
    if 0 in shape or len(shape) not in (2, 3):
        raise ValueError(f"{name} has shape {shape}; 2 or 3 axes with at least one entry each are needed")
    if len(shape) == 2:
        return image[None]
    return image if layout_of(shape, layout, name) == FIRST else image.permute(2, 0, 1)


def _to_rgb(image: Tensor, name: str) -> Tensor:
    """One channel three times; four as RGBA on white, in float32; others as they are."""
    if len(image) == 1:
        return image.expand(3, -1, -1)
    if len(image) != 4:
        return image
    if image.dtype == torch.uint8:
        unit = image.to(torch.float32).mul_(1 / 255)
    elif image.is_floating_point():
        low, high = image.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name}: a floating RGBA image has values from 0 to 1, got {low:g} to {high:g}")
        unit = image.to(torch.float32)
    else:
        raise ValueError(f"{name}: an RGBA image has dtype uint8 or a floating one, not {image.dtype}")
    mixed = unit[:3] * unit[3:] + (1 - unit[3:])
    # 255.999 makes the 256 levels equally wide; 1.0 stays 255.
    return mixed.mul(255.999).to(torch.uint8) if image.dtype == torch.uint8 else mixed.to(image.dtype)


def _new_size(image: Tensor, name: str, settings: Settings) -> tuple[int, int]:
    height, width = image.shape[-2:]
    return output_size(height, width, settings.size, name) if settings.do_resize else (height, width)


def _map(function: Any, tensors: list[Tensor], settings: Settings) -> list[Tensor]:
    """`function(batch [n, C, H, W], index of its first image)` over the images, those of one kind together."""
    groups: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        alone = tensor.device.type == "cpu" if settings.disable_grouping is None else settings.disable_grouping
        groups.setdefault(i if alone else (tensor.shape, tensor.dtype, tensor.device), []).append(i)
    result = list(tensors)
    for members in groups.values():
        batch = torch.stack([tensors[i] for i in members]) if len(members) > 1 else tensors[members[0]][None]
        for i, image in zip(members, function(batch, members[0]), strict=True):
            result[i] = image
    return result


def _resize(images: Tensor, size: tuple[int, int], resample: Image.Resampling) -> Tensor:
    if images.shape[-2:] == size:
        return images
    mode = _mode(resample, images.device)
    nearest = mode == "nearest-exact"
    dtype = images.dtype
    native = dtype in (torch.float32, torch.float64) or (dtype == torch.uint8 and _resizes_uint8(mode, images.device))
    result = F.interpolate(
        images if native else images.float(),
        size=size,
        mode=mode,
        align_corners=None if nearest else False,
        antialias=not nearest,
    )
    if native:
        return result
    if dtype == torch.uint8:
        result.clamp_(0, 255)
    return (result if dtype.is_floating_point else result.round_()).to(dtype)


def _mode(resample: Image.Resampling, device: torch.device) -> str:
    mode = _MODES[resample]
    if mode == "lanczos" and not (device.type == "cpu" and hasattr(torch._C._nn, "_upsample_lanczos2d_aa")):
        warn_once("image-lanczos", f"torch has no LANCZOS resize on {device}; BICUBIC is used in its place")
        return "bicubic"
    return mode


def _resizes_uint8(mode: str, device: torch.device) -> bool:
    """Where torch resizes 8-bit images as such; elsewhere they go through float32. The choice shows in the last bit."""
    if mode == "nearest-exact":
        return True
    if device.type != "cpu":
        return False
    if mode != "bilinear" or platform.machine() in ("aarch64", "arm64"):
        return True
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _crop(images: Tensor, crop: tuple[int, int] | None) -> Tensor:
    """The centre, with zeros around images that are smaller."""
    if crop is None:
        return images
    height, width = images.shape[-2:]
    short_y, short_x = max(crop[0] - height, 0), max(crop[1] - width, 0)
    if short_y or short_x:
        images = F.pad(images, (short_x // 2, short_x - short_x // 2, short_y // 2, short_y - short_y // 2))
    top, left = (height + short_y - crop[0]) // 2, (width + short_x - crop[1]) // 2
    return images[..., top : top + crop[0], left : left + crop[1]]


def _normalize(images: Tensor, settings: Settings) -> Tensor:
    if not settings.do_normalize:
        return images * settings.rescale_factor if settings.do_rescale else images.contiguous()
    scale = 1.0 / settings.rescale_factor if settings.do_rescale else 1.0
    mean, std = (
        (torch.tensor(values, dtype=torch.float32, device=images.device) * scale).view(-1, 1, 1)
        for values in (settings.image_mean, settings.image_std)
    )
    result = images.to(torch.float32, memory_format=torch.contiguous_format)
    result = result.sub_(mean) if result.data_ptr() != images.data_ptr() else result.sub(mean)
    return result.div_(std)


def _pad(tensors: list[Tensor], names: list[str], size: dict[str, int] | None) -> list[Tensor]:
    height = size["height"] if size else max(tensor.shape[1] for tensor in tensors)
    width = size["width"] if size else max(tensor.shape[2] for tensor in tensors)
    for name, tensor in zip(names, tensors, strict=True):
        check_fits(tensor.shape, height, width, name)
    return [F.pad(tensor, (0, width - tensor.shape[2], 0, height - tensor.shape[1])) for tensor in tensors]


def _deliver(tensors: list[Tensor], names: list[str], return_tensors: str | None) -> Any:
    if return_tensors is None:
        return tensors
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.shape != tensors[0].shape or tensor.device != tensors[0].device:
            raise ValueError(
                f"{name} becomes {tuple(tensor.shape)} on {tensor.device}, {names[0]} {tuple(tensors[0].shape)} on "
                f"{tensors[0].device} (channels, height, width): no batch; pass do_center_crop=True, do_pad=True, "
                "device=.., or return_tensors=None"
            )
    batch = torch.stack(tensors)
    return batch if return_tensors == "pt" else batch.cpu().numpy()
