"""load_image against transformers' load_image, and what comes of files that are broken, hostile or not images."""

import base64
import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from altclip_fast.processing.image import CLIPImageProcessor, load_image


def picture(mode="RGB"):
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8), "RGBA")
    if mode == "LAB":
        return Image.frombytes("LAB", (60, 40), np.asarray(rgba)[..., :3].tobytes())
    if mode == "I;16":
        return Image.fromarray(np.asarray(rgba)[..., :2].copy().view(np.uint16)[..., 0])
    return rgba if mode == "RGBA" else rgba.convert("RGB").convert(mode)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def same(got, want):
    return (got.mode, got.size, got.tobytes()) == (want.mode, want.size, want.tobytes())


def check(tmp_path, data):
    """As a path, as bytes and as a data URI, alone and through the processor."""
    from transformers.image_utils import load_image as theirs
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    path = tmp_path / "image"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = theirs(str(path))
        pixels = CLIPImageProcessorPil()(str(path), return_tensors="np")["pixel_values"]
    assert want.mode == "RGB"
    uri = "data:image/x;base64," + base64.b64encode(data).decode()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (path, str(path), data, bytearray(data), memoryview(data), uri):
            assert same(load_image(source), want), type(source)
        assert np.array_equal(CLIPImageProcessor()(path, return_tensors="np").pixel_values, pixels)


class TestParity:
    @pytest.mark.parametrize(
        ("kind", "mode"),
        [
            *(("JPEG", mode) for mode in ("1", "L", "RGB", "CMYK")),
            *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
            *(("TIFF", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LAB")),
            ("TIFF", "YCbCr"),
            *(("BMP", mode) for mode in ("1", "L", "P", "RGB")),
            *(("GIF", mode) for mode in ("L", "P", "RGBA")),
            *(("WEBP", mode) for mode in ("RGB", "RGBA")),
        ],
    )
    def test_formats_and_modes(self, tmp_path, kind, mode):
        check(tmp_path, encoded(picture(mode), kind))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    def test_orientation(self, tmp_path, kind, orientation):
        exif = Image.Exif()
        exif[0x112] = orientation
        data = encoded(picture(), kind, exif=exif)
        check(tmp_path, data)
        upright = load_image(data)
        assert same(load_image(upright), upright)

    def test_orientation_of_a_pil_image(self):
        from transformers.image_utils import load_image as theirs

        exif = Image.Exif()
        exif[0x112] = 6
        data = encoded(picture(), "JPEG", exif=exif)
        source = Image.open(io.BytesIO(data))
        assert same(load_image(source), theirs(Image.open(io.BytesIO(data))))
        assert source.size == (60, 40)

    @pytest.mark.parametrize("mode", ["P", "L", "RGB"])
    def test_transparent_colour(self, tmp_path, mode):
        image = picture(mode)
        check(tmp_path, encoded(image, "PNG", transparency=image.getpixel((3, 3))))

    def test_transparent_palette(self, tmp_path):
        check(tmp_path, encoded(picture("P"), "PNG", transparency=bytes(range(256))))

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
    def test_first_frame(self, tmp_path, kind):
        frames = [picture("P" if kind == "GIF" else "RGB"), Image.new("RGB", (60, 40))]
        check(tmp_path, encoded(frames[0], kind, save_all=True, append_images=frames[1:]))

    def test_a_pil_image_is_copied(self):
        image = picture()
        loaded = load_image(image)
        assert same(loaded, image)
        loaded.putpixel((0, 0), (1, 2, 3))
        assert same(image, picture())

    def test_arrays(self):
        image = picture()
        pixels = np.asarray(image)
        for array in (pixels, pixels / 255, torch.from_numpy(pixels.transpose(2, 0, 1).copy()), pixels.astype(int)):
            got = np.asarray(load_image(array)).astype(int)
            assert np.abs(got - pixels).max() <= (1 if array.dtype == np.float64 else 0)  # fractions are truncated
        assert same(load_image(np.asarray(picture("L"))), picture("L").convert("RGB"))

    def test_percent_encoded_data_uri(self):
        data = encoded(picture(), "PNG")
        assert same(load_image("data:," + "".join(f"%{byte:02x}" for byte in data)), picture())


class TestBadFiles:
    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    @pytest.mark.parametrize("body", [b"", b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"])
    def test_bad_exif_is_ignored(self, body):
        assert load_image(encoded(picture(), "JPEG", exif=b"Exif\0\0" + body)).size == (60, 40)

    def test_exif_that_makes_pillow_raise(self, monkeypatch):
        def broken(self):
            raise struct.error("unpack requires a buffer of 2 bytes")

        monkeypatch.setattr(Image.Image, "getexif", broken)
        assert same(load_image(encoded(picture(), "PNG")), picture())

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
    @pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
    def test_truncated(self, tmp_path, kind, part):
        data = encoded(picture(), kind)
        data = data[: int(len(data) * part)]
        with pytest.raises(OSError, match=rf"cannot read bytes of length {len(data)} as an image"):
            load_image(data)
        path = tmp_path / "cut.bin"
        path.write_bytes(data)
        with pytest.raises(OSError, match=r"cannot read '.*cut\.bin' as an image"):
            load_image(path)

    @pytest.mark.parametrize("data", [b"", b"\0", b"hello", b"<svg/>", b"%PDF-1.4", b"\xff\xd8\xff\xe0"])
    def test_not_an_image(self, tmp_path, data):
        with pytest.raises(OSError, match=rf"cannot read bytes of length {len(data)} as an image"):
            load_image(data)

    @pytest.mark.parametrize("kind", ["PPM", "EPS", "PCX", "TGA", "ICO", "PDF"])
    def test_other_formats(self, kind):
        with pytest.raises(OSError, match=r"not an image, or none of JPEG, PNG, WEBP, GIF, BMP, TIFF"):
            load_image(encoded(picture(), kind))

    def test_paths(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"'none\.png'"):
            load_image("none.png")
        with pytest.raises(FileNotFoundError, match="''"):
            load_image("")
        with pytest.raises(IsADirectoryError, match=tmp_path.name):
            load_image(tmp_path)
        with pytest.raises(ValueError, match=r"'a\\x00b': a path has no null character"):
            load_image("a\0b")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match=r"pipe' is not a regular file"):
            load_image(tmp_path / "pipe")

    @pytest.mark.parametrize("url", ["http://a.org/b.png", "HTTPS://a.org/b.png", "s3://bucket/key", "file:///a.png"])
    def test_urls(self, url):
        with pytest.raises(ValueError, match=rf"'{url}' is a URL; URLs are not fetched: download it"):
            load_image(url)

    @pytest.mark.parametrize(
        ("uri", "error", "message"),
        [
            ("data:image/png;base64", ValueError, "has a comma before its data"),
            ("data:image/png;base64,@@@@", ValueError, "its data is not base64"),
            ("data:image/png;base64,aGVsbG8=", OSError, "cannot read data:image/png;base64,aGVsbG8= as an image"),
            ("data:image/png;base64," + "A" * 4000, OSError, r"cannot read data:image/png;base64,A+\.\. \(4022 char"),
            ("data:,", OSError, "cannot read data:, as an image"),
        ],
        ids=range(5),
    )
    def test_data_uris(self, uri, error, message):
        with pytest.raises(error, match=message):
            load_image(uri)

    @pytest.mark.parametrize("source", [None, 3, ["a.png"], object()])
    def test_types(self, source):
        with pytest.raises(TypeError, match=rf"an image of type {type(source).__name__}; a path, bytes, a data: URI"):
            load_image(source)

    def test_max_pixels(self):
        data = encoded(picture(), "PNG")
        assert load_image(data, max_pixels=2400).size == (60, 40)
        with pytest.raises(ValueError, match=rf"bytes of length {len(data)}: 60 x 40 pixels; at most 2399 are decoded"):
            load_image(data, max_pixels=2399)
        for bad in (0, -1, 2.5, True, None):
            with pytest.raises(ValueError, match=r"max_pixels=.*: an integer of at least 1"):
                load_image(data, max_pixels=bad)

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    @pytest.mark.parametrize("side", [13_300, 13_400, 60_000])
    def test_bombs_are_not_decoded(self, side, monkeypatch):
        """A PNG that only says it is large; 13,300 squared is below both limits, and fails for want of pixels."""
        data = png_header(side)
        if side == 13_300:
            with pytest.raises(OSError, match=r"bytes of length \d+ .*truncated"):
                load_image(data)
            return
        with pytest.raises(ValueError, match=r"bytes of length \d+: .*MAX_IMAGE_PIXELS"):
            load_image(data)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        with pytest.raises(ValueError, match=rf"bytes of length \d+: {side} x {side} pixels; at most 178956970"):
            load_image(data)

    def test_bomb_warning_as_an_error(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match=r"MAX_IMAGE_PIXELS"):
                load_image(png_header(13_000))


def png_header(side):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


SEEDS = [encoded(picture(mode), kind) for kind, mode in (("JPEG", "RGB"), ("PNG", "P"), ("WEBP", "RGB"), ("GIF", "P"))]
SEEDS += [encoded(picture(), "TIFF", compression="tiff_lzw"), encoded(picture(), "JPEG", exif=Image.Exif().tobytes())]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_broken_bytes_give_an_image_or_a_plain_error(data):
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, min(len(content) - 1, 700)))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        image = load_image(content, max_pixels=100_000)
    except (OSError, ValueError) as error:
        assert f"bytes of length {len(content)}" in str(error)
    else:
        assert image.mode == "RGB" and image.width * image.height <= 100_000
