"""Scenes: what is sampled, where and in what colour it is drawn, and that a seed decides all of it."""

import colorsys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from altclip_fast.embedded import scenes
from altclip_fast.embedded.scenes import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIDES,
    SIZES,
    STYLES,
    Scene,
    Thing,
    draw,
    render,
    sample_scene,
)

ALL_PAIRS = [(color, shape) for color in COLORS for shape in SHAPES]


def samples(count, **options):
    rng = np.random.default_rng(7)
    return [sample_scene(rng, **options) for _ in range(count)]


def lone(color, shape, *, size="big", position="center", background=None):
    ground = background or ("gray" if color in ("white", "black") else "white")
    return Scene((Thing(color, shape, size, position),), ground)


def named(rgb):
    """What people call a colour, or None."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(x) / 255 for x in rgb))
    hue *= 360
    if value < 0.27:
        return "black"
    if saturation < 0.15:
        return "white" if value > 0.85 else None
    for name, start, stop in (
        ("red", -15, 15),
        ("orange", 15, 42),
        ("yellow", 42, 65),
        ("green", 85, 155),
        ("blue", 200, 250),
        ("purple", 255, 308),
    ):
        if start <= hue < stop or start <= hue - 360 < stop:
            return name
    return None


def middle_of(drawing, index=0):
    """Relative to the central square, 0 to 1."""
    y, x = np.nonzero(drawing.mask(index))
    height, width = drawing.mask(index).shape
    square = min(width, height)
    middle = (x.min() + x.max() + 1) / 2, (y.min() + y.max() + 1) / 2
    extent = max(np.ptp(x), np.ptp(y)) + 1
    return (middle[0] - (width - square) / 2) / square, (middle[1] - (height - square) / 2) / square, extent / square


def test_held_out_pairs_are_a_balanced_fifth():
    assert len(set(HELD_OUT)) == 13
    for axis, names in ((0, COLORS), (1, SHAPES)):
        counts = Counter(pair[axis] for pair in HELD_OUT)
        assert set(counts) == set(names) and set(counts.values()) == {1, 2}
    assert set(scenes.pairs(held_out=True)) == set(HELD_OUT)
    assert sorted(scenes.pairs(True) + scenes.pairs(False)) == sorted(ALL_PAIRS)


def test_training_samples_every_other_pair_and_no_held_out_one():
    seen = {(thing.color, thing.shape) for scene in samples(3000) for thing in scene.things}
    assert seen == set(scenes.pairs(held_out=False))


def test_held_out_pairs_can_be_asked_for():
    seen = {(thing.color, thing.shape) for scene in samples(500, pairs=HELD_OUT) for thing in scene.things}
    assert seen == set(HELD_OUT)


def test_samples_cover_all_that_can_be_said():
    drawn = samples(3000)
    things = [thing for scene in drawn for thing in scene.things]
    assert {thing.size for thing in things} == set(SIZES)
    assert {thing.position for thing in things} == set(POSITIONS)
    assert {scene.background for scene in drawn} == set(BACKGROUNDS)
    assert {scene.relation for scene in drawn} == {None, *RELATIONS}
    assert np.mean([scene.background == "white" for scene in drawn]) == pytest.approx(0.35, abs=0.05)
    assert np.mean([len(scene.things) == 2 for scene in drawn]) == pytest.approx(0.3, abs=0.03)


def test_samples_make_sense():
    opposite = {
        "left of": ("left", "right"),
        "right of": ("right", "left"),
        "above": ("top", "bottom"),
        "below": ("bottom", "top"),
    }
    for scene in samples(2000, two_objects=0.5):
        assert scene.background not in {thing.color for thing in scene.things}
        assert (scene.relation is None) == (len(scene.things) == 1)
        if scene.relation:
            first, second = scene.things
            assert (first.color, first.shape) != (second.color, second.shape)
            assert (first.position, second.position) == opposite[scene.relation]


def test_number_of_things():
    assert {len(scene.things) for scene in samples(200, two_objects=0)} == {1}
    assert {len(scene.things) for scene in samples(200, two_objects=1)} == {2}
    assert {len(scene.things) for scene in samples(20, two_objects=1, pairs=[("red", "circle")])} == {1}


def test_a_seed_decides_everything():
    def pictures(seed):
        rng = np.random.default_rng(seed)
        return [(picture.size, picture.tobytes()) for picture in (render(sample_scene(rng), rng) for _ in range(40))]

    first = pictures(3)
    assert pictures(3) == first
    assert len(set(first)) == 40
    assert pictures(4) != first


def test_sizes_of_pictures():
    rng = np.random.default_rng(0)
    pictures = [render(sample_scene(rng), rng) for _ in range(200)]
    sides = np.array([picture.size for picture in pictures])
    assert {picture.mode for picture in pictures} == {"RGB"}
    assert sides.min() >= SIDES[0] and sides.max() <= SIDES[1]
    assert sides.min() < 50 and sides.max() > 300
    assert 0.2 < np.mean(sides[:, 0] != sides[:, 1]) < 0.5
    assert render(sample_scene(rng), rng, side=64).size == (64, 64)
    with pytest.raises(ValueError, match="too small"):
        render(sample_scene(rng), rng, side=8)


@pytest.mark.parametrize(("color", "shape"), ALL_PAIRS)
def test_a_thing_has_its_colour(color, shape):
    rng = np.random.default_rng(ALL_PAIRS.index((color, shape)))
    for style in ("flat", "outlined", "shaded"):
        for _ in range(3):
            drawing = draw(lone(color, shape), rng, side=96, style=style)
            pixels = np.asarray(drawing.image)[drawing.mask(0)]
            assert named(np.median(pixels, axis=0)) == color, style


def test_a_hollow_thing_has_a_line_of_its_colour():
    rng = np.random.default_rng(0)
    for color in COLORS:
        drawing = draw(lone(color, "circle"), rng, side=200, style="hollow")
        pixels = np.asarray(drawing.image)
        mask = drawing.mask(0)
        y, x = (int(index.mean()) for index in np.nonzero(mask))
        assert named(np.median(pixels[mask], axis=0)) == color
        assert not mask[y, x] and named(pixels[y - 3 : y + 4, x - 3 : x + 4].mean(axis=(0, 1))) != color


def test_things_stand_out_from_the_ground():
    rng = np.random.default_rng(0)
    for color in COLORS:
        for background in sorted({sample_scene(rng, pairs=[(color, "square")]).background for _ in range(60)}):
            drawing = draw(lone(color, "square", background=background), rng, side=100, style="flat")
            pixels, mask = np.asarray(drawing.image, float), drawing.mask(0)
            difference = np.median(pixels[mask], axis=0) - np.median(pixels[~mask], axis=0)
            assert np.linalg.norm(difference) > 70, (color, background)


@pytest.mark.parametrize("style", STYLES)
def test_nothing_leaves_the_frame(style):
    rng = np.random.default_rng(0)
    for scene in samples(150, two_objects=0.5):
        drawing = draw(scene, rng, side=int(rng.integers(40, 120)), style=style)
        for index in range(len(scene.things)):
            mask = drawing.mask(index)
            assert mask.any()
            assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()), scene


def test_places_and_sizes_are_what_the_scene_says():
    rng = np.random.default_rng(0)
    for scene in samples(300, two_objects=0.5):
        drawing = draw(scene, rng)
        for index, thing in enumerate(scene.things):
            x, y, extent = middle_of(drawing, index)
            along, across = (y, x) if thing.position in ("top", "bottom") else (x, y)
            assert abs(across - 0.5) < 0.15, thing
            if thing.position == "center":
                assert abs(along - 0.5) < 0.1, thing
            else:
                assert along < 0.4 if thing.position in ("left", "top") else along > 0.6, thing
            pixel = 1 / min(drawing.image.size)  # thin tips fade within about one
            assert extent < 0.3 + 2 * pixel if thing.size == "small" else extent > 0.34 - 3 * pixel, thing


def test_two_things_do_not_touch():
    rng = np.random.default_rng(0)
    for scene in samples(200, two_objects=1):
        drawing = draw(scene, rng, side=80)
        assert not (drawing.mask(0) & drawing.mask(1)).any(), scene


def test_circles_are_round_and_crosses_are_not():
    rng = np.random.default_rng(0)
    for shape, low, high in (("circle", 0.74, 0.83), ("square", 0.6, 1), ("star", 0.2, 0.56), ("cross", 0.15, 0.72)):
        for _ in range(20):
            mask = draw(lone("red", shape), rng, side=200, style="flat").mask(0)
            y, x = np.nonzero(mask)
            filled = mask.sum() / ((np.ptp(x) + 1) * (np.ptp(y) + 1))
            assert low < filled <= high, shape


def test_contact_sheet(tmp_path, monkeypatch):
    file = tmp_path / "sheet.png"
    monkeypatch.setattr("sys.argv", ["scenes", "--output", str(file), "--seed", "1"])
    scenes.main()
    with Image.open(file) as sheet:
        assert sheet.size == (1024, 1216)
        assert len(sheet.getcolors(1 << 24)) > 1000
