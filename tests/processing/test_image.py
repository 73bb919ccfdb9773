"""CLIPImageProcessor against transformers' CLIPImageProcessorPil, bit by bit; its options, and its file."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from altclip_fast.notices import forget
from altclip_fast.processing import resize
from altclip_fast.processing.image import CLIPImageProcessor
from altclip_fast.processing.image_fast import CLIPImageProcessorFast

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB"]
SIZES = [(1, 1), (1, 300), (300, 1), (223, 224), (224, 224), (225, 224), (224, 225), (37, 51), (90, 400), (700, 180)]
SWITCHES = ["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"]


@pytest.fixture(scope="module")
def oracle():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil()


@pytest.fixture(scope="module")
def processor():
    return CLIPImageProcessor()


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def picture(mode, height=50, width=70):
    rgba = Image.fromarray(noise(height, width, 4), "RGBA")
    if mode in ("RGBA", "LA"):
        return rgba.convert(mode)
    if mode == "RGBa":
        return rgba.convert("RGBA").convert("RGBa")
    if mode == "PA":
        return rgba.convert("RGB").convert("P").convert("PA")
    if mode == "I;16":
        return Image.fromarray(noise(height, width, 2).view(np.uint16)[..., 0])
    if mode == "LAB":
        return Image.frombytes("LAB", (width, height), noise(height, width).tobytes())
    return rgba.convert("RGB").convert(mode)


def assert_same(processor, oracle, images, **options):
    want = oracle(images, return_tensors="pt", **options)["pixel_values"]
    got = processor(images, return_tensors="pt", **options)["pixel_values"]
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    assert torch.equal(got, want)
    assert got.is_contiguous()


class TestParity:
    def test_photos(self, processor, oracle, photos):
        assert_same(processor, oracle, photos)
        assert_same(processor, oracle, [photo.transpose(Image.Transpose.ROTATE_90) for photo in photos])

    def test_photo_files(self, processor, oracle, photo_paths):
        paths = [str(path) for path in photo_paths]
        assert_same(processor, oracle, paths)
        want = oracle(paths, return_tensors="np")["pixel_values"]
        mixed = [photo_paths[0], photo_paths[1].read_bytes()]
        assert np.array_equal(processor(mixed, return_tensors="np").pixel_values, want)

    @pytest.mark.parametrize("mode", MODES)
    def test_modes(self, processor, oracle, mode):
        assert_same(processor, oracle, picture(mode))

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
    def test_modes_unconverted(self, processor, oracle, mode):
        assert_same(processor, oracle, picture(mode), do_convert_rgb=False, image_mean=0.5, image_std=0.25)

    @pytest.mark.parametrize("transparency", [7, bytes(range(256))])
    def test_transparent_colour_becomes_white(self, processor, oracle, transparency):
        image = picture("P")
        image.info["transparency"] = transparency
        assert_same(processor, oracle, image)

    @pytest.mark.filterwarnings("ignore:.*the channels may be first or last")
    @pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
    @pytest.mark.parametrize("as_array", [False, True])
    def test_sizes(self, processor, oracle, size, as_array):
        pixels = noise(*size)
        assert_same(processor, oracle, pixels if as_array else Image.fromarray(pixels))

    @pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
    def test_very_long(self, processor, oracle, size):
        """At `shortest_edge` 32, which transformers resizes to 160,000 x 32 before it crops."""
        image = Image.fromarray(noise(*size))
        assert_same(processor, oracle, image, size={"shortest_edge": 32}, crop_size=32)

    def test_very_long_at_full_size(self, processor):
        """1,120,000 x 224 is 750 MB as RGB. The middle columns depend on the middle of the row alone."""
        pixels = noise(1, 5000)
        got = processor(Image.fromarray(pixels), do_normalize=False, do_rescale=False, return_tensors="np")
        near = Image.fromarray(pixels[:, 2490:2510]).resize((20 * 224, 224), Image.Resampling.BICUBIC)
        assert np.array_equal(got["pixel_values"][0], np.asarray(near)[:, 2128:2352].transpose(2, 0, 1))

    @pytest.mark.parametrize("off", SWITCHES)
    @pytest.mark.parametrize("kind", ["pil", "uint8", "float"])
    def test_switches(self, processor, oracle, off, kind):
        pixels = noise(61, 83)
        image = {"pil": Image.fromarray(pixels), "uint8": pixels, "float": (pixels / 255).astype(np.float32)}[kind]
        assert_same(processor, oracle, image, **{off: False})

    def test_all_switches_off(self, processor, oracle):
        options = dict.fromkeys(SWITCHES, False)
        assert_same(processor, oracle, noise(61, 83), **options)
        assert_same(processor, oracle, [Image.fromarray(noise(61, 83))] * 2, **options)

    @pytest.mark.parametrize("channels", [1, 3, 4])
    @pytest.mark.parametrize("first", [False, True])
    @pytest.mark.parametrize("dtype", ["uint8", "int64", "uint16", "float16", "float32", "float64", "bool"])
    def test_arrays(self, processor, oracle, channels, first, dtype):
        pixels = noise(40, 57, channels)
        if first:
            pixels = pixels.transpose(2, 0, 1)
        if dtype.startswith("float"):
            pixels = pixels / 255
        assert_same(processor, oracle, (pixels > 99 if dtype == "bool" else pixels).astype(dtype))

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_float_dtype_is_kept_without_rescale(self, processor, oracle, dtype):
        image = (noise(30, 40) / 255).astype(dtype)
        assert_same(processor, oracle, image, do_resize=False, do_rescale=False, crop_size=20)

    def test_mixed_dtypes(self, processor, oracle):
        images = [noise(30, 40), (noise(30, 40) / 255).astype(np.float64), (noise(30, 40) / 255).astype(np.float16)]
        assert_same(processor, oracle, images, do_resize=False, do_rescale=False, crop_size=20)

    def test_tensors(self, processor, oracle):
        image = torch.from_numpy(noise(40, 57).transpose(2, 0, 1).copy())
        assert_same(processor, oracle, image)
        assert_same(processor, oracle, [image.float(), image.permute(1, 2, 0)])
        half = (image / 255).to(torch.bfloat16).requires_grad_()
        want = oracle(half.detach().float(), return_tensors="pt", do_rescale=False)["pixel_values"]
        assert torch.equal(processor(half, return_tensors="pt", do_rescale=False)["pixel_values"], want)

    def test_batches_and_nesting(self, processor, oracle):
        batch = np.stack([noise(40, 57, seed=seed) for seed in range(3)])
        assert_same(processor, oracle, batch)
        assert_same(processor, oracle, torch.from_numpy(batch))
        assert_same(processor, oracle, [batch, batch[:1]])
        assert_same(processor, oracle, [[batch[0]], [batch[1], batch[2]]])

    def test_grey_without_channel_axis(self, processor):
        grey = noise(40, 57, 1)
        want = processor(grey, return_tensors="pt").pixel_values
        for image in (grey[..., 0], [grey[..., 0]], torch.from_numpy(grey[..., 0])):
            assert torch.equal(processor(image, return_tensors="pt").pixel_values, want)
        none = processor(grey[..., 0], return_tensors="pt", input_data_format="none").pixel_values
        assert torch.equal(none, want)

    @pytest.mark.parametrize("shape", [(1, 1, 3), (3, 40, 3), (4, 1, 1), (1, 50, 4)])
    def test_ambiguous_layout_is_channels_first(self, processor, oracle, shape):
        forget("image-layout-ambiguous")
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        with pytest.warns(UserWarning, match=r"the channels may be first or last\. Taken as first"):
            processor(image)
        assert_same(processor, oracle, image)
        assert_same(processor, oracle, image, input_data_format="channels_first")
        if shape[2] != 1:
            assert_same(processor, oracle, image, input_data_format="channels_last")

    @pytest.mark.parametrize(
        "options",
        [
            {"size": 100},
            {"size": (64, 40), "crop_size": (70, 33)},
            {"size": [64, 40], "crop_size": 40},
            {"size": {"height": 31, "width": 200}},
            {"size": {"shortest_edge": 60, "longest_edge": 70}, "do_center_crop": False},
            {"size": {"shortest_edge": 41, "longest_edge": 500}, "do_center_crop": False},
            {"size": {"max_height": 100, "max_width": 64}, "do_center_crop": False},
            {"size": 50, "default_to_square": True},
            {"crop_size": {"height": 225, "width": 1}},
            {"do_resize": False, "crop_size": {"height": 300, "width": 20}},
            {"resample": 0},
            {"resample": Image.Resampling.LANCZOS},
            {"resample": 5, "crop_size": 100},
            {"rescale_factor": 1 / 127.5},
            {"rescale_factor": 2.0},
            {"image_mean": 0.5, "image_std": 0.25},
            {"image_mean": (0.1, 0.2, 0.3), "image_std": [0.5, 1.0, 2.0]},
            {"do_pad": True, "pad_size": {"height": 250, "width": 300}},
        ],
        ids=str,
    )
    def test_options(self, processor, oracle, options):
        assert_same(processor, oracle, Image.fromarray(noise(61, 83)), **options)

    def test_pad_to_the_largest(self, processor, oracle):
        images = [Image.fromarray(noise(30, 41)), Image.fromarray(noise(50, 20)), noise(8, 9)]
        assert_same(processor, oracle, images, do_resize=False, do_center_crop=False, do_pad=True)

    def test_crop_taken_apart_is_pillows(self):
        """Every filter and order of passes; strips are forced by a low limit."""
        rng = np.random.default_rng(1)
        assert resize._passes_are_known()
        for case in range(400):
            height, width = (int(n) for n in rng.integers(1, (120, 120)))
            image = Image.fromarray(noise(height, width, seed=case)).convert("RGB" if case % 3 else "L")
            size = tuple(int(n) for n in rng.integers(1, 90, 2))
            crop = tuple(int(n) for n in rng.integers(1, 50, 2))
            resample = list(resize._FILTERS)[case % len(resize._FILTERS)]
            window = resize.crop_window(*size, crop)
            want = image.resize(size[::-1], resample).crop(window)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(resize, "_STRIP_PIXELS", [2**24, 300][case % 2])
                got = resize.resize_and_crop(image, size, crop, resample)
            assert (got.mode, got.size) == (want.mode, want.size)
            assert got.tobytes() == want.tobytes(), (image.size, size, crop)

    def test_an_unknown_order_of_passes_is_noticed(self, monkeypatch):
        monkeypatch.setattr(resize, "_pillow_resizes_height_first", lambda image, size: True)
        assert not resize._passes_are_known.__wrapped__()


class TestReturn:
    def test_kinds(self, processor, photos):
        tensor = processor(photos, return_tensors="pt")["pixel_values"]
        assert tensor.dtype == torch.float32 and tensor.shape == (2, 3, 224, 224)
        assert np.array_equal(processor(photos, return_tensors="np").pixel_values, tensor.numpy())
        arrays = processor(photos)["pixel_values"]
        assert [type(array) for array in arrays] == [np.ndarray] * 2
        assert np.array_equal(np.stack(arrays), tensor.numpy())

    def test_types_of_transformers(self, processor, photos):
        from transformers.image_utils import ChannelDimension, SizeDict
        from transformers.utils import TensorType

        got = processor(photos[0], return_tensors=TensorType.PYTORCH, data_format=ChannelDimension.LAST)
        assert got.pixel_values.shape == (1, 224, 224, 3)
        sizes = SizeDict(shortest_edge=30), SizeDict(height=20, width=25)
        want = processor(photos[0], size=dict(sizes[0]), crop_size=dict(sizes[1])).pixel_values[0]
        assert np.array_equal(processor(photos[0], size=sizes[0], crop_size=sizes[1]).pixel_values[0], want)

    def test_channels_last(self, processor, photos):
        first = processor(photos, return_tensors="pt").pixel_values
        last = processor(photos, return_tensors="pt", data_format="channels_last").pixel_values
        assert last.is_contiguous() and torch.equal(last, first.permute(0, 2, 3, 1))
        assert np.array_equal(processor(photos, data_format="channels_last").pixel_values[1], last[1].numpy())

    def test_options_by_position(self, processor, photos):
        by_name = processor(photos[0], do_resize=True, size=100, resample=2, crop_size=90, do_center_crop=True)
        by_position = processor(photos[0], True, 100, 2, True, 90)
        assert np.array_equal(by_name.pixel_values[0], by_position.pixel_values[0])

    def test_the_images_are_left_alone(self, processor):
        array, tensor = noise(20, 30).astype(np.float64), torch.from_numpy(noise(20, 30)).float()
        before = array.copy(), tensor.clone()
        options = dict(do_resize=False, do_center_crop=False, do_rescale=False)
        for result in processor([array, tensor], **options).pixel_values:
            result.fill(7)
        assert np.array_equal(array, before[0]) and torch.equal(tensor, before[1])
        image = picture("P")
        processor(image)
        assert image.mode == "P" and image.tobytes() == picture("P").tobytes()

    def test_batch_feature(self, processor, photos):
        batch = processor(photos[0], return_tensors="pt")
        batch["ids"], batch["parts"] = torch.arange(3), [torch.ones(2)]
        assert batch.to(torch.float16, non_blocking=True) is batch
        assert batch.pixel_values.dtype == batch.parts[0].dtype == torch.float16 and batch.ids.dtype == torch.int64
        assert batch.to("cpu", dtype=torch.float64).pixel_values.dtype == torch.float64
        assert batch.to("meta").ids.device.type == "meta"
        assert isinstance(batch, dict) and list(dict(**batch)) == ["pixel_values", "ids", "parts"]
        with pytest.raises(AttributeError, match=r"BatchFeature has no 'labels'; it has pixel_values, ids, parts"):
            _ = batch.labels

    def test_batch_feature_copies(self, processor, photos):
        batch = processor(photos[0], return_tensors="pt")
        for other in (pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch)):
            assert type(other) is type(batch) and torch.equal(other.pixel_values, batch.pixel_values)

    def test_device_of_the_result(self, processor, photos):
        assert processor(photos[0], return_tensors="pt", device="meta").pixel_values.device.type == "meta"


BAD_OPTIONS = [
    ({"size": 0}, ValueError, r"size=0: an integer from 1 to 16384"),
    ({"size": -3}, ValueError, r"size=-3: an integer from 1"),
    ({"size": 10**9}, ValueError, r"size=1000000000: an integer from 1 to 16384"),
    ({"size": {"shortest_edge": 0}}, ValueError, r"size\['shortest_edge'\]=0: an integer from 1"),
    ({"size": {"longest_edge": 224}}, ValueError, r"size=\{'longest_edge': 224\}: an int, .*'shortest_edge'.* is need"),
    ({"size": {"height": 224}}, ValueError, r"size=\{'height': 224\}: .* is needed"),
    ({"size": [224]}, ValueError, r"size=\[224\]: .* is needed"),
    ({"size": []}, ValueError, r"size=\[\]: .* is needed"),
    ({"size": 224.0}, TypeError, r"size=224\.0: an integer is needed"),
    ({"size": True}, TypeError, r"size=True: an integer is needed"),
    ({"size": "224"}, TypeError, r"size='224': an integer is needed"),
    ({"crop_size": 0}, ValueError, r"crop_size=0: an integer from 1"),
    ({"crop_size": {"shortest_edge": 224}}, ValueError, r"crop_size=\{'shortest_edge': 224\}: .*'height' and 'width'"),
    ({"pad_size": (1, 2, 3)}, ValueError, r"pad_size=\(1, 2, 3\): .* is needed"),
    ({"resample": 99}, ValueError, r"resample=99: one of PIL\.Image\.Resampling is needed: 0 \(NEAREST\)"),
    ({"resample": "bicubic"}, ValueError, r"resample='bicubic'"),
    ({"resample": True}, ValueError, r"resample=True"),
    ({"do_resize": "yes"}, TypeError, r"do_resize='yes': True or False is needed"),
    ({"do_pad": 1}, TypeError, r"do_pad=1: True or False is needed"),
    ({"rescale_factor": float("nan")}, ValueError, r"rescale_factor=nan: a finite float32 number"),
    ({"rescale_factor": float("inf")}, ValueError, r"rescale_factor=inf: a finite"),
    ({"rescale_factor": 10**400}, ValueError, r"rescale_factor=10+: a finite"),
    ({"rescale_factor": 0}, ValueError, r"rescale_factor=0: a finite number other than 0"),
    ({"rescale_factor": "1/255"}, TypeError, r"rescale_factor='1/255': a number is needed"),
    ({"image_mean": [0.5, 0.5]}, ValueError, r"image_mean=\[0\.5, 0\.5\]: an RGB image has 3 channels"),
    ({"image_std": [0.5] * 4}, ValueError, r"image_std=\[0\.5, .*\]: an RGB image has 3 channels"),
    ({"image_std": [0.5, 0.0, 0.5]}, ValueError, r"image_std=\[0\.5, 0\.0, 0\.5\]: .* above 0"),
    ({"image_std": 1e-300}, ValueError, r"image_std=1e-300: .* above 0"),
    ({"image_std": []}, ValueError, r"image_std=\[\]: one number, or one for each channel"),
    ({"image_mean": [0.5, None, 0.5]}, TypeError, r"image_mean\[1\]=None: a number is needed"),
    ({"image_mean": [0.5, float("nan"), 0.5]}, ValueError, r"image_mean\[1\]=nan: a finite"),
    ({"image_mean": "0.5"}, TypeError, r"image_mean='0\.5': a number is needed"),
    ({"return_tensors": "tf"}, ValueError, r"return_tensors='tf': one of None, 'pt', 'np' is needed"),
    ({"data_format": "hwc"}, ValueError, r"data_format='hwc': one of None, 'channels_first', 'channels_last'"),
    ({"input_data_format": 3}, ValueError, r"input_data_format=3: one of"),
    ({"device": "toaster"}, ValueError, r"device='toaster': a device of this machine is needed"),
    ({"do_rezise": False}, TypeError, r"has no option 'do_rezise'; it has do_resize, size"),
]


class TestBadInput:
    @pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS, ids=[str(row[0]) for row in BAD_OPTIONS])
    @pytest.mark.parametrize("kind", [CLIPImageProcessor, CLIPImageProcessorFast])
    def test_options(self, options, error, message, kind):
        with pytest.raises(error, match=message):
            kind(**options)
        unreadable = ["no such file"]  # the options are looked at first
        with pytest.raises(error, match=message):
            kind()(unreadable, **options)

    def test_a_bad_attribute(self, photos):
        processor = CLIPImageProcessor()
        processor.crop_size = {"height": 100, "width": 90}
        assert processor(photos[0]).pixel_values[0].shape == (3, 100, 90)
        processor.image_std = [1.0, 0.0, 1.0]
        with pytest.raises(ValueError, match=r"image_std=\[1\.0, 0\.0, 1\.0\]"):
            processor(photos[0])

    @pytest.mark.parametrize("kind", [CLIPImageProcessor, CLIPImageProcessorFast])
    @pytest.mark.parametrize(
        ("images", "error", "message"),
        [
            ([], ValueError, r"images=\[\]: at least one image"),
            ([[], []], ValueError, r"at least one image"),
            (np.zeros((0, 3, 4, 4)), ValueError, r"at least one image"),
            (None, TypeError, r"images is of type NoneType; a path, bytes"),
            ([Image.new("RGB", (4, 4)), 7], TypeError, r"images\[1\] is of type int"),
            ({"image": 1}, TypeError, r"images is of type dict"),
            ([["a.png", 2.0]], TypeError, r"images\[0\]\[1\] is of type float"),
            (np.zeros(5), ValueError, r"images has shape \(5,\); an image has 2 or 3 axes"),
            (np.zeros((1, 1, 3, 4, 4)), ValueError, r"images has shape \(1, 1, 3, 4, 4\)"),
            (np.zeros((0, 4, 3)), ValueError, r"images has shape \(0, 4, 3\); .* at least one entry"),
            ([np.zeros((7, 8, 9))], ValueError, r"images\[0\] has shape \(7, 8, 9\): neither .* input_data_format"),
            (np.zeros((4, 4, 3), complex), TypeError, r"dtype complex128; a boolean, integer or floating one"),
            (np.full((4, 4, 3), "a"), TypeError, r"dtype <U1"),
            (torch.zeros(3, 8, 8, dtype=torch.complex64), TypeError, r"images has dtype .*complex64"),
            (np.full((8, 8, 4), 2.0), ValueError, r"a floating RGBA image has values from 0 to 1, got 2"),
            (np.full((8, 8, 4), np.nan), ValueError, r"a floating RGBA image has values from 0 to 1, got nan"),
            (Image.new("RGB", (0, 5)), ValueError, r"images: 0 x 5 pixels; at least one is needed"),
            (["none.png"], FileNotFoundError, r"none\.png"),
            ("https://example.org/cat.jpg", ValueError, r"is a URL; URLs are not fetched: download it"),
            (b"", OSError, r"cannot read bytes of length 0 as an image"),
            (Image.new("RGB", (1, 65500)), ValueError, r"images: 65500 x 1 pixels .* cut the image to shape first"),
        ],
        ids=lambda value: "" if isinstance(value, type) else str(value)[:40],
    )
    def test_images(self, kind, images, error, message):
        with pytest.raises(error, match=message):
            kind()(images, return_tensors="pt")

    @pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 256.0, 1.5])
    def test_range(self, processor, value):
        image = np.linspace(0, 1, 90).reshape(5, 6, 3)
        image[1, 2, 0] = value
        with pytest.raises(ValueError, match=r"images: values from .* cannot become an 8-bit image; whole numbers"):
            processor(image)

    def test_channels(self, processor):
        with pytest.raises(ValueError, match=r"image_mean=\[.*\]: images\[1\] has 1 channels"):
            processor([Image.new("RGB", (4, 4)), Image.new("L", (4, 4))], do_convert_rgb=False)
        with pytest.raises(ValueError, match=r"images has 5 channels; at most 4 can be resized"):
            processor(np.zeros((5, 8, 8)), input_data_format="channels_first", do_normalize=False)
        with pytest.raises(ValueError, match=r"images has shape \(8, 8, 3\); input_data_format='none' is for"):
            processor(noise(8, 8), input_data_format="none")

    def test_no_batch(self, processor):
        images = [noise(20, 20), noise(30, 40)]
        with pytest.raises(ValueError, match=r"images\[1\] becomes \(3, 224, 298\), images\[0\] \(3, 224, 224\)"):
            processor(images, do_center_crop=False, return_tensors="np")
        assert [a.shape[1:] for a in processor(images, do_center_crop=False).pixel_values] == [(224, 224), (224, 298)]

    def test_pad_size_too_small(self, processor):
        with pytest.raises(ValueError, match=r"pad_size=.*: images has 224 x 224 pixels .* must not be smaller"):
            processor(noise(20, 20), do_pad=True, pad_size=223)

    def test_a_broken_pil_image(self, processor, photo_paths):
        import io

        lazy = Image.open(io.BytesIO(photo_paths[0].read_bytes()[:5000]))
        for options in ({}, {"do_convert_rgb": False}):
            with pytest.raises(OSError, match=r"cannot read images\[0\] as an image: .*truncated"):
                processor([lazy], **options)

    def test_tensor_without_values(self, processor):
        with pytest.raises(ValueError, match=r"images: this tensor cannot become an array"):
            processor(torch.zeros(3, 8, 8, device="meta"))


class TestConfig:
    def test_defaults(self, processor, oracle):
        want = oracle.to_dict()
        want["image_mean"], want["image_std"] = list(want["image_mean"]), list(want["image_std"])
        assert processor.to_dict() == want
        assert json.loads(processor.to_json_string()) == want
        assert repr(processor).startswith("CLIPImageProcessor {") and '"shortest_edge": 224' in repr(processor)

    @pytest.mark.parametrize("kind", [CLIPImageProcessor, CLIPImageProcessorFast])
    def test_transformers_loads_what_is_saved(self, tmp_path, kind, photos):
        from transformers import AutoImageProcessor
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        options = dict(size=100, crop_size=(80, 90), resample=2, image_mean=[0.1, 0.2, 0.3], do_rescale=False)
        saved = kind(**options)
        folder = tmp_path / "new" / "folder"
        assert saved.save_pretrained(folder) == [str(folder / "preprocessor_config.json")]
        assert kind.from_pretrained(folder).to_dict() == saved.to_dict()
        theirs = CLIPImageProcessorPil.from_pretrained(folder)
        assert_same(CLIPImageProcessor.from_pretrained(str(folder)), theirs, photos)
        assert type(AutoImageProcessor.from_pretrained(folder)).__name__.startswith("CLIPImageProcessor")

    def test_loads_what_transformers_saves(self, tmp_path, photos):
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        theirs = CLIPImageProcessorPil(size={"height": 90, "width": 80}, crop_size=70, do_normalize=False)
        theirs.save_pretrained(tmp_path)
        assert_same(CLIPImageProcessor.from_pretrained(tmp_path), theirs, photos)

    @pytest.mark.parametrize(
        "options",
        [
            {"size": 336, "crop_size": 336, "resample": 3, "feature_extractor_type": "CLIPFeatureExtractor"},
            {"size": 224, "do_center_crop": True, "crop_size": 224, "do_normalize": True, "do_resize": True},
            {"size": {"shortest_edge": 224, "longest_edge": None}, "image_processor_type": "CLIPImageProcessorFast"},
            {"do_convert_rgb": None, "processor_class": "AltCLIPProcessor", "_valid_processor_keys": ["images"]},
            {"image_mean": [0.5, 0.5, 0.5], "image_std": 0.5, "data_format": "channels_first", "device": None},
            {"use_square_size": True},
            {},
        ],
        ids=lambda options: ",".join(options) or "empty",
    )
    def test_old_files(self, tmp_path, options, photos):
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        (tmp_path / "preprocessor_config.json").write_text(json.dumps(options))
        ours, theirs = (kind.from_pretrained(tmp_path) for kind in (CLIPImageProcessor, CLIPImageProcessorPil))
        assert_same(ours, theirs, photos[0])
        assert ours.size == dict(theirs.size) and ours.crop_size == dict(theirs.crop_size)

    def test_nested_file_comes_first(self, tmp_path):
        nested = {"processor_class": "CLIPProcessor", "image_processor": {"size": 30, "crop_size": 28}}
        (tmp_path / "processor_config.json").write_text(json.dumps(nested))
        (tmp_path / "preprocessor_config.json").write_text('{"size": 50}')
        assert CLIPImageProcessor.from_pretrained(tmp_path).size == {"shortest_edge": 30}
        (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
        assert CLIPImageProcessor.from_pretrained(tmp_path).size == {"shortest_edge": 50}

    def test_unknown_keys_are_kept(self, tmp_path):
        (tmp_path / "preprocessor_config.json").write_text('{"size": 50, "auto_map": {"a": ["b"]}, "preprocess": 1}')
        processor = CLIPImageProcessor.from_pretrained(tmp_path / "preprocessor_config.json")
        processor.save_pretrained(tmp_path / "copy")
        written = json.loads((tmp_path / "copy" / "preprocessor_config.json").read_text())
        assert written["auto_map"] == {"a": ["b"]} and written["preprocess"] == 1
        assert processor(noise(60, 60)).pixel_values[0].shape == (3, 224, 224)
        assert CLIPImageProcessor.from_dict(written).to_dict() == written

    def test_overrides(self, tmp_path):
        CLIPImageProcessor(size=50).save_pretrained(tmp_path)
        processor = CLIPImageProcessor.from_pretrained(tmp_path, crop_size=20, do_normalize=False)
        assert processor.size == {"shortest_edge": 50} and processor.crop_size == {"height": 20, "width": 20}
        with pytest.raises(TypeError, match=r"has no option 'crop_sise'"):
            CLIPImageProcessor.from_pretrained(tmp_path, crop_sise=20)

    def test_old_square_size(self):
        processor = CLIPImageProcessor(size={"shortest_edge": 64}, use_square_size=True)
        assert processor.size == {"height": 64, "width": 64}

    @pytest.mark.parametrize(
        ("text", "error", "message"),
        [
            ("{", ValueError, r"preprocessor_config\.json is not a JSON file"),
            ("[1]", ValueError, r"preprocessor_config\.json holds a JSON list; an object is needed"),
            ("[" * 100_000, ValueError, r"preprocessor_config\.json is not a JSON file"),
            ("\udcff", ValueError, r"preprocessor_config\.json is not a JSON file"),
            ('{"size": 0}', ValueError, r"preprocessor_config\.json: size=0"),
            ('{"image_std": [1, 1, NaN]}', ValueError, r"preprocessor_config\.json: image_std\[2\]=nan"),
            ('{"crop_size": "224"}', TypeError, r"preprocessor_config\.json: crop_size='224'"),
        ],
        ids=range(7),
    )
    def test_broken_files(self, tmp_path, text, error, message):
        (tmp_path / "preprocessor_config.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(error, match=message):
            CLIPImageProcessor.from_pretrained(tmp_path)

    def test_no_file(self, tmp_path):
        with pytest.raises(OSError, match=r"has neither preprocessor_config\.json nor a processor_config\.json"):
            CLIPImageProcessor.from_pretrained(tmp_path)
        (tmp_path / "processor_config.json").write_text('{"image_processor": 3}')
        with pytest.raises(TypeError, match=r"processor_config\.json \(image_processor\): .* int; a dict is needed"):
            CLIPImageProcessor.from_pretrained(tmp_path)

    def test_saving_over_a_file(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(FileExistsError):
            CLIPImageProcessor().save_pretrained(tmp_path / "file")
