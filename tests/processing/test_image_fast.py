"""CLIPImageProcessorFast against plain torch formulas, bit by bit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from altclip_fast.notices import forget
from altclip_fast.processing import image_fast
from altclip_fast.processing.image import CLIPImageProcessor
from altclip_fast.processing.image_fast import CLIPImageProcessorFast

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


@pytest.fixture(scope="module")
def processor():
    return CLIPImageProcessorFast()


def noise(channels, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=generator)


def shortest_edge(image, side):
    height, width = image.shape[-2:]
    long = int(side * max(height, width) / min(height, width))
    return (long, side) if width <= height else (side, long)


def resized(image, size, mode="bicubic"):
    if image.shape[-2:] == size:
        return image
    options = {} if mode == "nearest-exact" else {"antialias": True, "align_corners": False}
    return F.interpolate(image[None], size=size, mode=mode, **options)[0]


def cropped(image, side=224):
    height, width = image.shape[-2:]
    top, left = int((height - side) / 2), int((width - side) / 2)
    return image[:, top : top + side, left : left + side]


def normalized(image):
    return (image.float() - MEAN * 255.0) / (STD * 255.0)


def expected(image):
    return normalized(cropped(resized(image, shortest_edge(image, 224))))


def one(processor, image, **options):
    return processor(image, return_tensors="pt", **options)["pixel_values"][0]


class TestValues:
    def test_photos(self, processor, photos):
        tensors = [torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous() for photo in photos]
        want = torch.stack([expected(tensor) for tensor in tensors])
        got = processor(photos, return_tensors="pt").pixel_values
        assert torch.equal(got, want) and got.is_contiguous()

    def test_close_to_pillow(self, processor, photos):
        """In levels of 8 bits: torch's weights have 16 bits, Pillow's 22."""
        options = dict(do_normalize=False, do_rescale=False, return_tensors="pt")
        ours = processor(photos, **options).pixel_values.int()
        pillow = CLIPImageProcessor()(photos, **options).pixel_values.int()
        assert (ours - pillow).abs().max() <= 1

    @pytest.mark.parametrize("size", [(223, 224), (224, 224), (225, 224), (300, 500), (37, 51), (400, 90), (1, 1)])
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
    def test_sizes_and_dtypes(self, processor, size, dtype):
        image = noise(3, *size).to(dtype)
        got = one(processor, image, input_data_format="channels_first")
        assert got.dtype == torch.float32 and torch.equal(got, expected(image))

    @pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.float16, torch.bfloat16])
    def test_other_dtypes_are_resized_in_float32(self, processor, dtype):
        image = noise(3, 60, 80).to(dtype)
        through = resized(image.float(), (224, 298))
        through = (through if dtype.is_floating_point else through.round()).to(dtype)
        assert torch.equal(one(processor, image), normalized(cropped(through)))

    @pytest.mark.parametrize(("mode", "resample"), [("bicubic", 3), ("bilinear", 2), ("lanczos", 1)])
    def test_uint8_through_float(self, processor, monkeypatch, mode, resample):
        """Where torch has no 8-bit kernel (on a GPU): rounded, and clamped, as the cubic overshoots."""
        monkeypatch.setattr(image_fast, "_resizes_uint8", lambda mode, device: False)
        image = noise(3, 60, 80)
        through = resized(image.float(), (224, 298), mode)
        if mode != "bilinear":
            assert through.min() < -1 and through.max() > 256
        got = one(processor, image, resample=resample, do_rescale=False, do_normalize=False, do_center_crop=False)
        assert got.dtype == torch.uint8 and torch.equal(got, through.clamp(0, 255).round().to(torch.uint8))

    @pytest.mark.parametrize(
        ("resample", "mode"), [(0, "nearest-exact"), (1, "lanczos"), (2, "bilinear"), (3, "bicubic")]
    )
    def test_filters(self, processor, resample, mode):
        image = noise(3, 60, 80).float()
        want = resized(image, (224, 298), mode)
        assert torch.equal(one(processor, image, resample=resample, do_center_crop=False), normalized(want))

    def test_switches(self, processor):
        image = noise(3, 260, 300)
        small = resized(image, (224, 258))
        assert torch.equal(one(processor, image, do_resize=False), normalized(cropped(image)))
        assert torch.equal(one(processor, image, do_center_crop=False), normalized(small))
        assert torch.equal(one(processor, image, do_normalize=False), cropped(small) * (1 / 255))
        assert torch.equal(one(processor, image, do_rescale=False), (cropped(small).float() - MEAN) / STD)
        off = dict(do_resize=False, do_rescale=False, do_normalize=False, do_center_crop=False)
        assert torch.equal(one(processor, image, **off), image)
        unit = image / 255
        assert torch.equal(one(processor, unit, do_resize=False, do_rescale=False), (cropped(unit) - MEAN) / STD)

    def test_one_number_for_all_channels(self, processor):
        image = noise(3, 224, 224)
        got = one(processor, image, image_mean=0.5, image_std=0.25)
        assert torch.equal(got, (image.float() - 127.5) / 63.75)

    @pytest.mark.parametrize(("height", "width"), [(5, 9), (6, 8), (5, 300), (300, 6), (7, 224)])
    def test_crop_larger_than_the_image(self, processor, height, width):
        image = noise(3, height, width)
        off = dict(do_resize=False, do_normalize=False, do_rescale=False)
        got = one(processor, image, input_data_format="channels_first", **off)
        want = torch.zeros(3, max(height, 224), max(width, 224), dtype=torch.uint8)
        top, left = max(224 - height, 0) // 2, max(224 - width, 0) // 2
        want[:, top : top + height, left : left + width] = image
        assert torch.equal(got, cropped(want))

    def test_rgb_from_grey_and_rgba(self, processor):
        off = dict(do_resize=False, do_center_crop=False, do_normalize=False, do_rescale=False)
        grey, rgba = noise(1, 20, 30), noise(4, 20, 30)
        assert torch.equal(one(processor, grey, **off), grey.expand(3, 20, 30))
        assert torch.equal(one(processor, [grey[0]], **off), grey.expand(3, 20, 30))
        unit = rgba.float() * (1 / 255)
        mixed = unit[:3] * unit[3:] + (1 - unit[3:])
        assert torch.equal(one(processor, rgba, **off), (mixed * 255.999).to(torch.uint8))
        assert torch.equal(one(processor, rgba.permute(1, 2, 0).numpy(), **off), (mixed * 255.999).to(torch.uint8))
        assert torch.equal(one(processor, unit.double(), **off), mixed.double())
        rgba[3] = 255
        assert torch.equal(one(processor, rgba, **off), rgba[:3])
        assert torch.equal(one(processor, rgba, do_convert_rgb=False, **off), rgba)

    def test_pil_modes_follow_the_other_processor(self, processor, photos):
        off = dict(do_resize=False, do_center_crop=False, do_normalize=False, do_rescale=False)
        for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "F"):
            image = photos[0].convert(mode)
            want = CLIPImageProcessor()(image, **off).pixel_values[0]
            assert np.array_equal(one(processor, image, **off).numpy(), want)

    def test_files(self, processor, photo_paths, photos):
        want = processor(photos, return_tensors="pt").pixel_values
        files = [photo_paths[0], photo_paths[1].read_bytes()]
        assert torch.equal(processor(files, return_tensors="pt").pixel_values, want)


class TestBatches:
    def test_grouping_changes_no_bit(self, processor):
        images = [noise(3, *size, seed) for seed, size in enumerate([(60, 80), (90, 70), (60, 80), (60, 80), (90, 70)])]
        want = torch.stack([expected(image) for image in images])
        for grouping in (None, True, False):
            assert torch.equal(processor(images, return_tensors="pt", disable_grouping=grouping).pixel_values, want)

    @pytest.mark.parametrize(("disable", "calls"), [(None, 4), (True, 4), (False, 2)])
    def test_grouping_is_one_call_a_shape(self, processor, monkeypatch, disable, calls):
        seen = []
        real = F.interpolate

        def spy(images, **options):
            seen.append(len(images))
            return real(images, **options)

        monkeypatch.setattr(image_fast.F, "interpolate", spy)
        images = [noise(3, 60, 80), noise(3, 60, 80, 1), noise(3, 60, 80).float(), noise(3, 60, 80, 2)]
        processor(images, disable_grouping=disable)
        assert len(seen) == calls and sum(seen) == 4

    def test_returns(self, processor, photos):
        tensor = processor(photos, return_tensors="pt").pixel_values
        listed = processor(photos).pixel_values
        assert isinstance(listed, list) and torch.equal(torch.stack(listed), tensor)
        assert np.array_equal(processor(photos, return_tensors="np").pixel_values, tensor.numpy())

    def test_batch_tensor(self, processor):
        batch = torch.stack([noise(3, 60, 80, seed) for seed in range(3)])
        want = torch.stack([expected(image) for image in batch])
        assert torch.equal(processor(batch, return_tensors="pt", disable_grouping=False).pixel_values, want)
        assert torch.equal(processor(batch.numpy(), return_tensors="pt").pixel_values, want)
        assert torch.equal(processor([batch[:2], batch[2]], return_tensors="pt").pixel_values, want)

    def test_pad(self, processor):
        images = [noise(3, 20, 31), noise(3, 25, 30)]
        options = dict(do_resize=False, do_center_crop=False, do_normalize=False, do_rescale=False, do_pad=True)
        got = processor(images, return_tensors="pt", **options).pixel_values
        assert got.shape == (2, 3, 25, 31)
        assert torch.equal(got[0, :, :20], images[0]) and not got[0, :, 20:].any()
        assert torch.equal(got[1, :, :, :30], images[1]) and not got[1, :, :, 30:].any()
        assert processor(images, pad_size=(40, 50), **options).pixel_values[0].shape == (3, 40, 50)
        with pytest.raises(ValueError, match=r"pad_size=\{'height': 24, 'width': 40\}: images\[1\] has 25 x 30 pixels"):
            processor(images, pad_size=(24, 40), **options)

    def test_no_batch(self, processor):
        images = [noise(3, 20, 31), noise(3, 25, 30)]
        with pytest.raises(ValueError, match=r"images\[1\] becomes \(3, 224, 268\) on cpu, images\[0\] \(3, 224, 34"):
            processor(images, do_center_crop=False, return_tensors="pt")

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
    def test_the_images_are_left_alone(self, processor, dtype):
        image = noise(3, 224, 224).to(dtype)
        before = image.clone()
        one(processor, image)
        one(processor, image[None].numpy())
        assert torch.equal(image, before)

    def test_memory_that_torch_cannot_share(self, processor):
        pixels = noise(3, 60, 80).numpy()
        want = expected(torch.from_numpy(pixels))
        flipped = np.ascontiguousarray(pixels[:, :, ::-1])[:, :, ::-1]
        frozen = pixels.copy()
        frozen.flags.writeable = False
        swapped = pixels.astype(">f4")
        assert torch.equal(one(processor, flipped), want) and torch.equal(one(processor, frozen), want)
        assert torch.equal(one(processor, swapped), expected(torch.from_numpy(pixels).float()))


class TestOptions:
    def test_channels_last_is_refused(self, processor, photos):
        assert one(processor, photos[0], data_format="channels_first").shape == (3, 224, 224)
        with pytest.raises(ValueError, match=r"data_format='channels_last': CLIPImageProcessorFast gives 'channels_f"):
            processor(photos[0], data_format="channels_last")

    @pytest.mark.parametrize("resample", [Image.Resampling.BOX, Image.Resampling.HAMMING])
    def test_filters_torch_lacks(self, processor, photos, resample):
        message = rf"resample={int(resample)} \({resample.name}\): torch resizes with 0 \(NEAREST\)"
        with pytest.raises(ValueError, match=message):
            processor(photos[0], resample=resample)
        assert one(processor, photos[0], resample=resample, do_resize=False).shape == (3, 224, 224)

    def test_lanczos_elsewhere_is_bicubic_and_said(self):
        forget("image-lanczos")
        with pytest.warns(UserWarning, match=r"no LANCZOS resize on meta; BICUBIC is used"):
            assert image_fast._mode(Image.Resampling.LANCZOS, torch.device("meta")) == "bicubic"

    def test_positional_options_are_refused(self, processor, photos):
        with pytest.raises(TypeError, match=r"takes the images and named options, not 1 more by position"):
            processor(photos[0], True)

    def test_accepted_and_not_used(self, processor, photos):
        assert torch.equal(one(processor, photos[0], image_seq_length=5), one(processor, photos[0]))

    def test_device(self, processor, photos):
        assert torch.equal(one(processor, photos[0], device="cpu"), one(processor, photos[0]))
        assert one(processor, photos[0], device="meta", disable_grouping=False).device.type == "meta"

    def test_rgba_of_integers(self, processor):
        with pytest.raises(ValueError, match=r"images: an RGBA image has dtype uint8 or a floating one, not torch\.i"):
            processor(noise(4, 8, 9).int())

    @pytest.mark.gpu
    def test_gpu(self, processor, photos):
        options = dict(do_rescale=False, do_normalize=False)
        there = one(processor, photos[0], device="cuda", **options)
        assert there.is_cuda and (there.cpu().int() - one(processor, photos[0], **options).int()).abs().max() <= 1
