"""Digits: the stored scans, the split, and the pictures made of them."""

import numpy as np
import pytest

from altclip_fast.embedded import digits


def test_the_file_holds_the_scans_of_scikit_learn(tmp_path):
    digits._make(tmp_path / "digits.npz")
    with np.load(tmp_path / "digits.npz") as made, np.load(digits.FILE) as stored:
        for name, shape in (("images", (1797, 8, 8)), ("labels", (1797,))):
            assert stored[name].dtype == np.uint8 and stored[name].shape == shape
            np.testing.assert_array_equal(stored[name], made[name])
        assert stored["images"].max() == digits.LEVELS
    assert digits.FILE.stat().st_size < 120_000


def test_a_third_of_every_digit_is_held_out():
    train, held_out = digits.split()
    assert len(held_out) == 599
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), np.arange(1797))
    trained, tested = (np.bincount(digits.load(which)[1], minlength=10) for which in (False, True))
    np.testing.assert_allclose(tested / (trained + tested), 1 / 3, atol=0.005)


def test_the_split_is_fixed():
    train, held_out = digits.split()
    assert (int(train.sum()), int(held_out.sum())) == (1_078_430, 535_276)
    np.testing.assert_array_equal(held_out[:6], [5, 13, 14, 15, 20, 22])


@pytest.mark.parametrize("held_out", [False, True])
def test_load(held_out):
    images, labels = digits.load(held_out)
    with np.load(digits.FILE) as stored:
        indices = digits.split()[held_out]
        np.testing.assert_array_equal(images, stored["images"][indices])
        np.testing.assert_array_equal(labels, stored["labels"][indices])
    images[:] = 0  # a copy: what is loaded next is whole
    assert digits.load(held_out)[0].any()


def test_a_plain_digit_is_black_on_white():
    image = digits.load(True)[0][0]
    picture = digits.render_digit(image)
    assert picture.size == (64, 64) and picture.mode == "RGB"
    pixels = np.asarray(picture)
    assert (pixels == pixels[:, :, :1]).all()
    assert (pixels[0] == 255).all() and pixels.min() < 20
    # Each scanned pixel lies where it should: the picture, shrunk again, is the scan in its margin.
    ink = 255 - np.asarray(picture.convert("L").resize((10, 10)), float)
    assert np.corrcoef(ink[1:-1, 1:-1].ravel(), image.ravel())[0, 1] > 0.97
    assert digits.render_digit(image, side=40).size == (40, 40)
    assert picture.tobytes() == digits.render_digit(image).tobytes()


def test_augmented_digits_differ_and_repeat_with_the_seed():
    images = digits.load(False)[0][:60]

    def pictures():
        rng = np.random.default_rng(0)
        return [digits.render_digit(image, rng) for image in images]

    first = pictures()
    assert [picture.tobytes() for picture in first] == [picture.tobytes() for picture in pictures()]
    sides = [picture.width for picture in first]
    assert all(picture.width == picture.height for picture in first)
    assert min(sides) >= 40 and max(sides) <= 200 and len(set(sides)) > 20
    corners = np.array([np.asarray(picture)[:3, :3].mean() for picture in first])
    assert 0.1 < (corners < 128).mean() < 0.6  # light on dark, and dark on light
    rng = np.random.default_rng(0)
    again = {digits.render_digit(images[0], rng, side=48).tobytes() for _ in range(20)}
    assert len(again) == 20


def test_augmented_digits_keep_their_ink():
    rng = np.random.default_rng(0)
    for image in digits.load(False)[0][:200]:
        pixels = np.asarray(digits.render_digit(image, rng, side=64), float)
        border = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
        inked = np.abs(pixels - border).max(axis=2) > 60
        assert 0.02 < inked.mean() < 0.6
