"""Synthetic scenes: one or two coloured shapes on a named ground, drawn with Pillow and numpy.

    rng = np.random.default_rng(0)
    scene = sample_scene(rng)
    image = render(scene, rng)

A `Scene` is what can be said about a picture; all the rest (tint, style, texture, noise, size in pixels) is
chosen by `render`. The same seed gives the same bytes. A fifth of the pairs of a colour and a shape, `HELD_OUT`,
is not sampled unless it is asked for, so that a model can be tried on combinations that it has not seen.

Sizes and positions are relative to the central square of the picture: CLIP's preprocessing keeps no more than
that of a picture that is not square.
"""

from __future__ import annotations

import argparse
import colorsys
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter, ImageOps

COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "black", "white")
UNNAMED = ("cyan", "pink", "brown", "gray", "magenta", "teal")  # colours that no caption names
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "crescent", "arrow")
SIZES = ("small", "big")
POSITIONS = ("left", "right", "top", "bottom", "center")
BACKGROUNDS = ("white", "gray", "black", "blue", "green", "yellow", "pink", "brown")
RELATIONS = ("left of", "right of", "above", "below")  # the first thing is ... the second
STYLES = ("flat", "outlined", "hollow", "shaded")
SIDES = (40, 400)  # the shortest and the longest side of a picture

Pair = tuple[str, str]  # colour, shape
RGB = tuple[int, int, int]
Points = np.ndarray[Any, np.dtype[np.float64]]  # [N, 2]; x to the right, y down
T = TypeVar("T")

# Every colour and every shape once, and a second time for five of them.
HELD_OUT: tuple[Pair, ...] = tuple(
    (COLORS[i], SHAPES[(3 * i + offset) % 8]) for offset, count in ((1, 8), (6, 5)) for i in range(count)
)


def pairs(held_out: bool) -> tuple[Pair, ...]:
    """The 13 held-out pairs of a colour and a shape, or the 51 others."""
    return tuple((color, shape) for color in COLORS for shape in SHAPES if ((color, shape) in HELD_OUT) == held_out)


TRAINED = pairs(held_out=False)


@dataclass(frozen=True)
class Thing:
    """A shape in a picture."""

    color: str
    shape: str
    size: str
    position: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one thing, or two of which the first is `relation` the second."""

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None


@dataclass(frozen=True)
class Drawing:
    """A picture, and for each thing how far it covers the pixels of a box, and where that box begins."""

    image: Image.Image
    coverage: tuple[tuple[Image.Image, tuple[int, int]], ...]

    def mask(self, index: int) -> np.ndarray:
        """Bool [H, W]: the pixels that thing `index` covers by more than half."""
        full = Image.new("L", self.image.size)
        full.paste(*self.coverage[index])
        return np.asarray(full) > 127


# Grounds on which a colour is hard to make out, besides the ground of its own name.
_CLASHES = {"red": ("brown",), "orange": ("brown", "yellow"), "purple": ("brown",)}
_GROUND_WEIGHTS = dict(zip(BACKGROUNDS, (0.35, 0.13, 0.12, 0.08, 0.08, 0.08, 0.08, 0.08), strict=True))
_OPPOSITE = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}


def sample_scene(rng: np.random.Generator, *, pairs: Sequence[Pair] = TRAINED, two_objects: float = 0.3) -> Scene:
    """A scene of one thing, or with probability `two_objects` of two different ones, out of `pairs`."""
    pairs = tuple(pairs)
    first = _pick(rng, pairs)
    others = [pair for pair in pairs if pair != first]
    relation = None
    chosen: tuple[Pair, ...] = (first,)
    positions: tuple[str, ...] = (_pick(rng, POSITIONS, (0.16, 0.16, 0.16, 0.16, 0.36)),)
    if others and rng.random() < two_objects:
        relation = _pick(rng, RELATIONS)
        chosen = (first, _pick(rng, others))
        positions = _OPPOSITE[relation]
    things = tuple(
        Thing(color, shape, _pick(rng, SIZES), position)
        for (color, shape), position in zip(chosen, positions, strict=True)
    )
    return Scene(things, _pick_background(rng, {thing.color for thing in things}), relation)


def _pick_background(rng: np.random.Generator, colors: set[str]) -> str:
    avoid = colors.union(*(_CLASHES.get(color, ()) for color in colors))
    names = [name for name in BACKGROUNDS if name not in avoid]
    return _pick(rng, names, [_GROUND_WEIGHTS[name] for name in names])


def render(scene: Scene, rng: np.random.Generator, *, side: int | None = None, style: str | None = None) -> Image.Image:
    """The scene as an RGB picture: `side` pixels square, or of a random size and aspect ratio.

    `style`, one of STYLES, is drawn at random for each thing unless it is given.
    """
    return draw(scene, rng, side=side, style=style).image


def draw(scene: Scene, rng: np.random.Generator, *, side: int | None = None, style: str | None = None) -> Drawing:
    """As `render`, with the places of the things."""
    width, height = (side, side) if side is not None else _frame_size(rng)
    if min(width, height) < SIDES[0] // 2:
        raise ValueError(f"a side of {side} pixels is too small to tell the shapes apart; {SIDES[0]} and more do")
    fills = [_tint(rng, _TINTS[thing.color]) for thing in scene.things]
    ground, fills = _contrasting(rng, scene, fills)
    image = _ground(rng, scene.background, ground, width, height)
    aliased = min(width, height) > 60 and rng.random() < 0.1  # as drawn by programs without antialiasing
    coverage = []
    for thing, fill in zip(scene.things, fills, strict=True):
        spot = _place(rng, thing, width, height, alone=len(scene.things) == 1)
        coverage.append(_stamp(rng, image, thing, spot, fill, ground, style, aliased))
    # How much of its box it fills tells a thin thing from a solid one.
    detail = min(_sum(alpha) / alpha.width for alpha, _ in coverage)
    return Drawing(_degrade(rng, image, detail), tuple(coverage))


def _pick(rng: np.random.Generator, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
    """One of the options; many times faster than `rng.choice`."""
    if weights is None:
        return options[int(rng.integers(len(options)))]
    rest = rng.random() * sum(weights)
    for option, weight in zip(options, weights, strict=True):
        rest -= weight
        if rest < 0:
            return option
    return options[-1]


def _frame_size(rng: np.random.Generator) -> tuple[int, int]:
    """Small pictures more often than large ones; one in three is not square."""
    low, high = SIDES
    long = low * (high / low) ** (rng.random() ** 1.6)
    short = max(low, long / rng.uniform(1.05, 1.6)) if rng.random() < 0.33 else long
    width, height = round(long), round(short)
    return (height, width) if rng.random() < 0.5 else (width, height)


# Colours. Each has tints that other programs use for it by name (the first is the pure one), and a region
# (hue in degrees, saturation, value) whose colours go by that name.
@dataclass(frozen=True)
class _Tints:
    known: tuple[str, ...]
    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]


_TINTS = {
    "red": _Tints(("#ff0000", "#d62728", "#e53935", "#dd2e44", "#dc143c"), (-9, 8), (0.75, 1), (0.68, 1)),
    "green": _Tints(("#00ff00", "#008000", "#2ca02c", "#43a047", "#78b159"), (95, 144), (0.55, 1), (0.45, 0.95)),
    "blue": _Tints(("#0000ff", "#1f77b4", "#1e88e5", "#4169e1", "#55acee"), (205, 242), (0.65, 1), (0.6, 1)),
    "yellow": _Tints(("#ffff00", "#ffd700", "#fdd835", "#ffeb3b", "#ffd54f"), (48, 61), (0.7, 1), (0.9, 1)),
    "orange": _Tints(("#ffa500", "#ff7f0e", "#fb8c00", "#f4900c", "#ff8c00"), (20, 37), (0.82, 1), (0.9, 1)),
    "purple": _Tints(("#800080", "#9467bd", "#8e24aa", "#663399", "#9400d3"), (265, 302), (0.5, 1), (0.42, 0.78)),
    "black": _Tints(("#000000", "#000000", "#111111"), (0, 360), (0, 0.3), (0, 0.14)),
    "white": _Tints(("#ffffff", "#ffffff", "#fafafa"), (0, 360), (0, 0.03), (0.95, 1)),
    "cyan": _Tints(("#00ffff", "#17becf", "#40e0d0"), (170, 190), (0.55, 1), (0.75, 1)),
    "pink": _Tints(("#ffc0cb", "#ff69b4", "#f48fb1"), (328, 350), (0.25, 0.6), (0.9, 1)),
    "brown": _Tints(("#8b4513", "#8c564b", "#795548"), (14, 30), (0.4, 0.75), (0.28, 0.55)),
    "gray": _Tints(("#808080", "#7f7f7f", "#a9a9a9"), (0, 360), (0, 0.05), (0.35, 0.7)),
    "magenta": _Tints(("#ff00ff", "#e377c2", "#c71585"), (306, 325), (0.6, 1), (0.75, 1)),
    "teal": _Tints(("#008080", "#00695c", "#2f4f4f"), (172, 188), (0.6, 1), (0.3, 0.55)),
}
_GROUND_TINTS = {
    "white": _Tints(("#ffffff",), (0, 360), (0, 0.03), (0.95, 1)),
    "gray": _Tints(("#808080", "#7f7f7f", "#9e9e9e", "#a9a9a9", "#c0c0c0"), (0, 360), (0, 0.05), (0.38, 0.76)),
    "black": _Tints(("#000000", "#111111"), (0, 360), (0, 0.3), (0, 0.13)),
    "blue": _Tints(("#0000ff", "#add8e6", "#87ceeb", "#1e88e5", "#4682b4"), (200, 240), (0.35, 1), (0.5, 1)),
    "green": _Tints(("#008000", "#90ee90", "#66bb6a", "#2e8b57", "#a5d6a7"), (95, 150), (0.35, 0.9), (0.4, 0.95)),
    "yellow": _Tints(("#ffff00", "#fff59d", "#ffd54f", "#fffacd", "#ffeb3b"), (48, 60), (0.35, 1), (0.9, 1)),
    "pink": _Tints(("#ffc0cb", "#ffb6c1", "#f8bbd0", "#ff69b4", "#f48fb1"), (328, 350), (0.2, 0.55), (0.9, 1)),
    "brown": _Tints(("#8b4513", "#a0522d", "#795548", "#6d4c41", "#5d4037"), (14, 30), (0.4, 0.75), (0.28, 0.6)),
}


def _tint(rng: np.random.Generator, tints: _Tints) -> RGB:
    known = rng.random()
    if known < 0.55:
        name = tints.known[0] if known < 0.3 else _pick(rng, tints.known)
        red, green, blue = ImageColor.getrgb(name)[:3]
        return red, green, blue
    hue, saturation, value = (rng.uniform(*bounds) for bounds in (tints.hue, tints.saturation, tints.value))
    return _rgb(np.multiply(colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value), 255))


def _rgb(values: np.ndarray) -> RGB:
    red, green, blue = (int(value + 0.5) for value in np.clip(values, 0, 255))
    return red, green, blue


def _lighter(color: RGB, amount: float) -> RGB:
    """Mixed with white, or with black where `amount` is negative."""
    toward = 255 if amount > 0 else 0
    return _rgb(np.add(color, abs(amount) * (toward - np.array(color, float))))


def _difference(a: RGB, b: RGB) -> float:
    """How different two colours look, 0 to about 765: the weighted distance known as redmean."""
    mean = (a[0] + b[0]) / 2
    red, green, blue = (x - y for x, y in zip(a, b, strict=True))
    return float(((2 + mean / 256) * red**2 + 4 * green**2 + (3 - mean / 256) * blue**2) ** 0.5)


_ENOUGH = 210.0


def _contrasting(rng: np.random.Generator, scene: Scene, fills: list[RGB]) -> tuple[RGB, list[RGB]]:
    """A colour for the ground, and the fills, changed where no ground of that name would set them off."""
    best, best_ground, best_fills = -1.0, (0, 0, 0), fills
    for attempt in range(8):
        if attempt >= 4:
            fills = [_tint(rng, _TINTS[thing.color]) for thing in scene.things]
        ground = _tint(rng, _GROUND_TINTS[scene.background])
        contrast = min(_difference(ground, fill) for fill in fills)
        if contrast > best:
            best, best_ground, best_fills = contrast, ground, fills
        if best > _ENOUGH:
            break
    return best_ground, best_fills


# Outlines of the shapes: corners of a polygon, in any unit, and whether they are corners that show.
def _circle(rng: np.random.Generator) -> Points:
    return _arc(0, 2 * np.pi, 72)[:-1]


def _arc(start: float, stop: float, count: int, radius: float = 1.0) -> Points:
    angle = np.linspace(start, stop, count)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _square(rng: np.random.Generator) -> Points:
    if rng.random() < 0.8:
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    radius = rng.uniform(0.08, 0.3)
    corners = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    return np.concatenate(
        [
            _arc(i * np.pi / 2, (i + 1) * np.pi / 2, 8, radius) + (1 - radius) * np.array(corner)
            for i, corner in enumerate(corners)
        ]
    )


def _triangle(rng: np.random.Generator) -> Points:
    kind = rng.random()
    if kind < 0.15:  # right-angled
        return np.array([(-1, 1), (1, 1), (_pick(rng, (-1, 1)), rng.uniform(-1, 0))], float)
    height = 3**0.5 if kind < 0.6 else rng.uniform(1.3, 2.3)
    return np.array([(-1, height / 2), (1, height / 2), (0, -height / 2)])


def _star(rng: np.random.Generator) -> Points:
    tips = 6 if rng.random() < 0.08 else 5
    inner = 0.382 if rng.random() < 0.4 else rng.uniform(0.34, 0.52)
    points = _arc(-np.pi / 2, 1.5 * np.pi, 2 * tips + 1)[:-1]
    points[1::2] *= inner if tips == 5 else 0.58
    return points


def _heart(rng: np.random.Generator) -> Points:
    if rng.random() < 0.5:
        t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([16 * np.sin(t) ** 3, -y], axis=1)
    # Two arcs that meet in the notch, and the tip below.
    radius, tip = rng.uniform(0.52, 0.6), rng.uniform(1.1, 1.5)
    notch = float(np.arccos(-0.5 / radius)) if radius > 0.5 else np.pi
    left = _arc(0.78 * np.pi, 2 * np.pi - (np.pi - notch), 24, radius) - (0.5, 0)
    return np.concatenate([left, (left * (-1, 1))[::-1], [(0, tip)]])


def _cross(rng: np.random.Generator) -> Points:
    arm = rng.uniform(0.18, 0.42)
    top, bar = 1.0, 0.0
    if rng.random() < 0.12:  # a Latin cross
        arm, top, bar = arm * 0.7, 0.75, -0.35
    right = [(arm, -1), (arm, bar - arm), (top, bar - arm), (top, bar + arm), (arm, bar + arm), (arm, 1)]
    points = np.array(right + [(-x, y) for x, y in reversed(right)])
    return _turned(points, np.pi / 4) if top == 1 and rng.random() < 0.3 else points


def _crescent(rng: np.random.Generator) -> Points:
    """A disc less another one: `thick` in the middle, with horns that reach beyond half a circle."""
    thick = rng.uniform(0.42, 0.8)
    radius = rng.uniform(max(0.72, 1.06 - thick / 2), 0.98)
    shift = thick - 1 + radius
    x = (1 - radius**2 + shift**2) / (2 * shift)
    y = (1 - x**2) ** 0.5
    outer, inner = float(np.arctan2(y, x)), float(np.arctan2(y, x - shift))
    back = _arc(2 * np.pi - inner, inner, 40, radius)[1:-1]
    back[:, 0] += shift
    return np.concatenate([_arc(outer, 2 * np.pi - outer, 56), back])


def _arrow(rng: np.random.Generator) -> Points:
    """Points to the right."""
    if rng.random() < 0.2:  # lines with a head of two strokes
        w, reach = rng.uniform(0.09, 0.14), rng.uniform(0.55, 0.8)
        end = (1 - reach - 1.414 * w, -reach + 1.414 * w)
        upper = [(-1, -w), (1 - 3.83 * w, -w), end, (1 - reach, -reach)]
    else:
        head, base = rng.uniform(0.5, 0.85), rng.uniform(-0.15, 0.4)
        shaft = rng.uniform(0.1, min(0.34, head * 0.55))
        swept = rng.uniform(0.05, 0.25) if rng.random() < 0.15 else 0.0
        upper = [(-1, -shaft), (base, -shaft), (base - swept, -head)]
    return np.array([*upper, (1, 0), *((x, -y) for x, y in reversed(upper))], float)


def _turned(points: Points, angle: float) -> Points:
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([(cos, sin), (-sin, cos)])


def _tilt(rng: np.random.Generator, most: float) -> float:
    """In radians; often none."""
    return np.deg2rad(rng.uniform(-most, most)) if rng.random() < 0.6 else 0.0


def _any_of_eight(rng: np.random.Generator) -> float:
    return np.pi / 4 * int(rng.integers(8)) + (_tilt(rng, 6) if rng.random() < 0.75 else _tilt(rng, 180))


def _any_turn(rng: np.random.Generator) -> float:
    return _tilt(rng, 12) if rng.random() < 0.65 else rng.uniform(-np.pi, np.pi)


# For each shape its outline, and how it may be turned: by no more than what keeps its name.
_Outline = Callable[[np.random.Generator], Points]
_Turn = Callable[[np.random.Generator], float]
_SHAPES: dict[str, tuple[_Outline, _Turn]] = {
    "circle": (_circle, lambda rng: 0.0),
    "square": (_square, lambda rng: _tilt(rng, 14)),
    "triangle": (_triangle, _any_turn),
    "star": (_star, _any_turn),
    "heart": (_heart, lambda rng: _tilt(rng, 25)),
    "cross": (_cross, lambda rng: _tilt(rng, 12)),
    "crescent": (_crescent, _any_of_eight),
    "arrow": (_arrow, _any_of_eight),
}


def _outline(rng: np.random.Generator, shape: str) -> Points:
    """The outline, turned and a little stretched; the longer side of its box is 1 and the centre of it 0."""
    outline, turn = _SHAPES[shape]
    points = _turned(outline(rng), turn(rng))
    if rng.random() < 0.4:
        stretch = 0.03 if shape in ("circle", "square") else 0.08
        points = points * (rng.uniform(1 - stretch, 1 + stretch), 1)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - (low + high) / 2) / (high - low).max()


# The longer side of a thing's box, in sides of the central square; nothing lies between small and big.
_EXTENT = {"small": (0.18, 0.3), "big": (0.42, 0.55)}
_EXTENT_CENTERED = {"small": (0.18, 0.3), "big": (0.42, 0.95)}
_EXTENT_OF_TWO = {"small": (0.18, 0.27), "big": (0.36, 0.45)}


def _place(
    rng: np.random.Generator, thing: Thing, width: int, height: int, *, alone: bool
) -> tuple[float, float, float]:
    """Centre and extent of a thing, in pixels."""
    square = min(width, height)
    table = _EXTENT_OF_TWO if not alone else _EXTENT_CENTERED if thing.position == "center" else _EXTENT
    extent = rng.uniform(*table[thing.size])
    extent = max(extent, min(12 / square, 0.3))
    exact = rng.random() < 0.3
    half = extent / 2 + max(0.02, 1.5 / square)
    along = 0.5
    if thing.position != "center":
        inner = 0.49 - extent / 2 if not alone else 0.34
        along = rng.uniform(half, max(half, inner)) if not exact else max(half, min(0.25, inner))
    spread = max(0.0, min(0.5 - half, 0.12 if not alone else 0.05 if thing.position == "center" else 0.08))
    across = 0.5 if exact else 0.5 + rng.uniform(-spread, spread)
    if thing.position == "center" and not exact:
        along = 0.5 + rng.uniform(-spread, spread)
    if thing.position in ("right", "bottom"):
        along = 1 - along
    x, y = (across, along) if thing.position in ("top", "bottom") else (along, across)
    return (width - square) / 2 + x * square, (height - square) / 2 + y * square, extent * square


def _stamp(
    rng: np.random.Generator,
    image: Image.Image,
    thing: Thing,
    spot: tuple[float, float, float],
    fill: RGB,
    ground: RGB,
    style: str | None,
    aliased: bool,
) -> tuple[Image.Image, tuple[int, int]]:
    """Draw a thing into the picture; its coverage, and where that begins."""
    x, y, extent = spot
    if style is None:
        faint = _difference(fill, ground) < _ENOUGH / 2
        style = "outlined" if faint else _pick(rng, STYLES, (0.45, 0.25, 0.1 if extent > 24 else 0, 0.2))
    stroke = _stroke(rng, thing.shape, style, extent)
    left, top = int(x - extent / 2) - 1, int(y - extent / 2) - 1
    size = int(extent) + 4
    points = _outline(rng, thing.shape) * (extent - stroke) + (x - left, y - top)
    area, line = _coverage(points, size, stroke, aliased)
    corner = (left, top)
    if style == "hollow" and line:
        image.paste(fill, corner, line)
        return line, corner
    if line and _sum(ImageChops.subtract(area, line)) < 0.65 * _sum(ImageChops.lighter(area, line)):
        line = None  # it would leave too little of the colour
    whole = ImageChops.lighter(area, line) if line else area
    if rng.random() < 0.12:
        _shadow(rng, image, whole, corner, extent)
    if line:
        image.paste(_line_color(rng, thing.color, fill, ground), corner, whole)
        area = ImageChops.subtract(area, line)
    image.paste(_shading(rng, fill, size) if style == "shaded" else fill, corner, area)
    if style == "shaded" and rng.random() < 0.5:
        _highlight(rng, image, area, corner)
    return whole, corner


def _stroke(rng: np.random.Generator, shape: str, style: str, extent: float) -> float:
    """The width of the line around a thing, in pixels."""
    slender = 0.6 if shape in ("crescent", "arrow", "cross", "star") else 1.0
    if style == "outlined":
        return max(1.0, extent * rng.uniform(0.015, 0.07) * slender)
    if style == "hollow":
        return max(2.0, extent * rng.uniform(0.06, 0.14) * slender)
    return 0.0


def _coverage(points: Points, size: int, stroke: float, aliased: bool) -> tuple[Image.Image, Image.Image | None]:
    """How far the area within the points covers each pixel of a box, and how far the line along them does."""
    scale = 1 if aliased else 4 if size < 160 else 2
    corners = points * scale - 0.5
    path = [tuple(point) for point in corners.tolist()]
    area = Image.new("L", (size * scale, size * scale))
    ImageDraw.Draw(area).polygon(path, fill=255)
    if not stroke:
        return area.reduce(scale), None
    line = Image.new("L", area.size)
    pen = ImageDraw.Draw(line)
    width = max(1, round(stroke * scale))
    pen.line([*path, path[0]], fill=255, width=width)
    if width > 2 and len(path) <= 16:  # joints; between the many points of a curve there is nothing to fill
        radius = (width - 1) / 2
        for x, y in path:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return area.reduce(scale), line.reduce(scale)


def _sum(coverage: Image.Image) -> float:
    """In pixels."""
    return float(np.asarray(coverage).sum()) / 255


def _line_color(rng: np.random.Generator, color: str, fill: RGB, ground: RGB) -> RGB:
    """Black, mostly; a darker tint of the fill; white where that shows."""
    options: list[RGB] = [(0, 0, 0), (0, 0, 0), (40, 40, 40), _lighter(fill, -0.5), (255, 255, 255)]
    if color == "black":
        options = [(255, 255, 255), (128, 128, 128), (200, 200, 200)]
    seen = [option for option in options if _difference(option, fill) > _ENOUGH / 2]
    if _difference(fill, ground) < _ENOUGH:  # then the line has to set it off
        seen = [max(seen, key=lambda option: _difference(option, ground))]
    return _pick(rng, seen)


def _shadow(
    rng: np.random.Generator, image: Image.Image, alpha: Image.Image, corner: tuple[int, int], extent: float
) -> None:
    blur = extent * rng.uniform(0.02, 0.07)
    pad = int(3 * blur) + 1
    strength = rng.uniform(0.2, 0.5)
    soft = Image.new("L", (alpha.width + 2 * pad, alpha.height + 2 * pad))
    soft.paste(alpha.point([int(strength * value) for value in range(256)]), (pad, pad))
    soft = soft.filter(ImageFilter.GaussianBlur(blur))
    dx, dy = (extent * rng.uniform(0, 0.08) for _ in range(2))
    image.paste((0, 0, 0), (corner[0] - pad + round(dx), corner[1] - pad + round(dy)), soft)


def _ramp(colors: Sequence[RGB], width: int, height: int) -> Image.Image:
    """A gradient between four colours, one in each corner."""
    small = Image.new("RGB", (2, 2))
    small.putdata(colors)
    return small.resize((width, height), Image.Resampling.BILINEAR, box=(0.5, 0.5, 1.5, 1.5))


def _shading(rng: np.random.Generator, fill: RGB, size: int) -> Image.Image:
    """From lighter to darker, in any direction, by no more than what keeps the name of the colour."""
    warm = fill[0] > 200 and fill[1] > 100  # darker, orange would be brown
    light, dark = _lighter(fill, rng.uniform(0, 0.2)), _lighter(fill, -rng.uniform(0.03, 0.12 if warm else 0.28))
    middle = _rgb(np.add(light, dark) / 2)
    corners = [
        (light, light, dark, dark),
        (light, middle, middle, dark),
        (middle, light, dark, middle),
        (light, dark, light, dark),
    ]
    return _ramp(_pick(rng, corners), size, size)


@cache
def _blob() -> Image.Image:
    """A soft round spot, brightest in the middle."""
    return ImageChops.invert(Image.radial_gradient("L"))


def _highlight(rng: np.random.Generator, image: Image.Image, area: Image.Image, corner: tuple[int, int]) -> None:
    size = area.width
    spot = max(2, int(size * rng.uniform(0.3, 0.55)))
    strength = rng.uniform(0.3, 0.8)
    light = Image.new("L", area.size)
    blob = _blob().resize((spot, spot)).point([int(max(0, value - 75) * strength * 1.4) for value in range(256)])
    x, y = (int(size * rng.uniform(0.12, 0.25)) for _ in range(2))
    light.paste(blob, (x, y))
    image.paste((255, 255, 255), corner, ImageChops.multiply(light, area))


def _ground(rng: np.random.Generator, name: str, color: RGB, width: int, height: int) -> Image.Image:
    """What the things lie on: plain, a gradient, or a texture that keeps near to the colour."""
    kind = rng.random()
    if kind < 0.5:
        return Image.new("RGB", (width, height), color)
    most = 0.08 if name in ("white", "black") else 0.15
    near = [_lighter(color, rng.uniform(-most, most)) for _ in range(4)]
    if kind < 0.68:
        return _ramp(near, width, height)
    if kind < 0.78:
        return _mottled(rng, color, most, width, height)
    image = Image.new("RGB", (width, height), color)
    _pick(rng, (_stripes, _dots, _threads, _frame))(rng, image, near[:2])
    return image


def _mottled(rng: np.random.Generator, color: RGB, most: float, width: int, height: int) -> Image.Image:
    cells = int(rng.integers(3, 24))
    light = rng.uniform(-most, most, (cells, cells, 1)) * 255
    tile = np.clip(np.array(color, float) + light, 0, 255).astype(np.uint8)
    return Image.fromarray(tile).resize((width, height), Image.Resampling.BICUBIC)


def _stripes(rng: np.random.Generator, image: Image.Image, near: list[RGB]) -> None:
    pen, length = ImageDraw.Draw(image), max(image.size)
    step = max(4.0, length * rng.uniform(0.04, 0.15))
    slope = _pick(rng, (0.0, 0.0, 1.0, -1.0))
    flat = rng.random() < 0.5
    for start in np.arange(-length, 2 * length, step):
        ends = [(start, -1), (start + slope * length, length)]
        pen.line([(y, x) if flat else (x, y) for x, y in ends], fill=near[0], width=max(1, int(step / 2)))


def _dots(rng: np.random.Generator, image: Image.Image, near: list[RGB]) -> None:
    pen = ImageDraw.Draw(image)
    largest = max(1.0, min(image.size) * 0.02)
    for x, y, size, which in rng.random((int(rng.integers(10, 60)), 4)):
        x, y, radius = x * image.width, y * image.height, 0.5 + size * largest
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=near[int(which * 2)])


def _threads(rng: np.random.Generator, image: Image.Image, near: list[RGB]) -> None:
    pen = ImageDraw.Draw(image)
    for x0, y0, x1, y1, which in rng.random((int(rng.integers(3, 14)), 5)) * (*image.size, *image.size, 2):
        pen.line([(x0, y0), (x1, y1)], fill=near[int(which)], width=max(1, min(image.size) // 100))


def _frame(rng: np.random.Generator, image: Image.Image, near: list[RGB]) -> None:
    """A thin border, as of a plot or a card."""
    inset = rng.uniform(0, 0.02) * min(image.size)
    box = (inset, inset, image.width - 1 - inset, image.height - 1 - inset)
    ImageDraw.Draw(image).rectangle(box, outline=_pick(rng, [*near, (60, 60, 60)]), width=max(1, image.width // 100))


def _degrade(rng: np.random.Generator, image: Image.Image, detail: float) -> Image.Image:
    """Blur, noise and JPEG artefacts, each in some of the pictures; half of them stay clean.

    `detail` is about the width, in pixels, of what must remain visible.
    """
    if rng.random() < 0.5:
        return image
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.3 + detail * 0.035)))
    if rng.random() < 0.5:
        channels = 1 if rng.random() < 0.5 else 3
        noise = rng.standard_normal((image.height, image.width, channels), dtype=np.float32)
        noise *= np.float32(rng.uniform(2, 14))
        noise = noise + np.asarray(image)
        image = Image.fromarray(np.clip(noise, 0, 255, out=noise).astype(np.uint8))
    if rng.random() < 0.4:
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=int(rng.integers(50 if detail < 14 else 25, 90)))
        image = Image.open(packed).convert("RGB")
    return image


def contact_sheet(seed: int, *, columns: int = 8, cell: int = 128) -> Image.Image:
    """columns x columns scenes, each with the words for what it shows; held-out pairs too."""
    rng = np.random.default_rng(seed)
    row = cell + 24
    sheet = Image.new("RGB", (columns * cell, columns * row), "#d8d8d8")
    pen = ImageDraw.Draw(sheet)
    for i in range(columns * columns):
        scene = sample_scene(rng, pairs=TRAINED + HELD_OUT)
        image = render(scene, rng)
        image = ImageOps.contain(image, (cell - 6, cell - 6))
        left, top = i % columns * cell, i // columns * row
        sheet.paste(image, (left + (cell - image.width) // 2, top + (cell - image.height) // 2))
        for line, thing in enumerate(scene.things):
            words = f"{thing.size} {thing.color} {thing.shape} {thing.position}"
            pen.text((left + 4, top + cell - 3 + 11 * line), words, fill="black", font_size=9)
    return sheet


def main() -> None:
    """Write a contact sheet."""
    parser = argparse.ArgumentParser(prog="python -m altclip_fast.embedded.scenes", description=main.__doc__)
    parser.add_argument("--output", default="scenes.png", metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    contact_sheet(arguments.seed).save(arguments.output)


if __name__ == "__main__":
    main()
