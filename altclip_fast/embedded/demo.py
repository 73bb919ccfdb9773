"""The demonstration: fresh scenes and held-out digits, classified in several languages, and a search by sentence.

It prints what it finds, and draws it. The picture has plain Latin letters only: fonts for other scripts may lack.
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .. import ops
from ..encoder import Encoder
from ..files import staged
from . import captions, digits, scenes
from .evaluate import PAIRS, different_scenes

LANGUAGES = ("en", "zh", "fr", "ar", "ru", "ja")
SCENES = 6
DIGITS = 3
GALLERY = 200
FOUND = 6


@dataclass(frozen=True)
class Guess:
    """The best label of one language for one picture."""

    language: str
    label: str
    romanized: str
    score: float
    right: bool


@dataclass(frozen=True)
class Example:
    """A picture, what it shows, and what the model says."""

    picture: Image.Image
    truth: str
    guesses: tuple[Guess, ...]


@dataclass(frozen=True)
class Hit:
    """A scene that a query found."""

    picture: Image.Image
    caption: str
    score: float


def examples(encoder: Encoder, seed: int) -> list[Example]:
    """Draw scenes, half of them of pairs that training never showed, take held-out digits, and classify them."""
    rng = np.random.default_rng((seed, 1))
    things: list[tuple[Image.Image, int | tuple[str, str]]] = []
    for k in range(SCENES):
        pairs = scenes.pairs(held_out=k % 2 == 1)
        scene = scenes.sample_scene(rng, pairs=pairs, two_objects=0.0)
        things.append((scenes.render(scene, rng, side=128), (scene.things[0].color, scene.things[0].shape)))
    images, numbers = digits.load(held_out=True)
    for k in rng.choice(len(images), DIGITS, replace=False):
        things.append((digits.render_digit(images[k], side=128), int(numbers[k])))
    embeddings = encoder.encode_image([picture for picture, _ in things])
    found = []
    for embedding, (picture, truth) in zip(embeddings, things, strict=True):
        guesses = tuple(_guess(encoder, embedding, truth, code) for code in LANGUAGES)
        name = captions.label(*truth, "en") if isinstance(truth, tuple) else captions.digit_label(truth, "en")
        found.append(Example(picture, name, guesses))
    return found


def _guess(encoder: Encoder, embedding: object, truth: int | tuple[str, str], code: str) -> Guess:
    if isinstance(truth, tuple):
        labels = [captions.label(*pair, code) for pair in PAIRS]
        latin = [captions.label_romanized(*pair, code) for pair in PAIRS]
        answer = PAIRS.index(truth)
    else:
        labels = [captions.digit_label(n, code) for n in range(10)]
        latin = [captions.digit_label_romanized(n, code) for n in range(10)]
        answer = truth
    classifier = encoder.classifier(labels, captions.templates(code))
    scores = classifier.probabilities(embedding[None])[0]  # type: ignore[index]
    best = int(scores.argmax())
    return Guess(code, labels[best], latin[best], float(scores[best]), best == answer)


def search(encoder: Encoder, query: str, seed: int) -> list[Hit]:
    """The scenes, among `GALLERY` different ones, that are nearest to a sentence in any of the languages."""
    rng = np.random.default_rng((seed, 2))
    gallery = different_scenes(GALLERY, rng)
    pictures = [scenes.render(scene, rng, side=128) for scene in gallery]
    scores, places = ops.similarity_topk(
        encoder.encode_text(query), encoder.encode_image(pictures, batch_size=100), FOUND, normalize=False
    )
    return [
        Hit(pictures[i], captions.full(gallery[i], "en"), s)
        for s, i in zip(scores[0].tolist(), places[0].tolist(), strict=True)
    ]


def as_text(found: list[Example], query: str, hits: list[Hit]) -> str:
    """What the command prints."""
    lines = []
    for number, example in enumerate(found, start=1):
        lines.append(f"{number}. {example.truth}")
        for guess in example.guesses:
            latin = "" if guess.romanized == guess.label else f"  ({guess.romanized})"
            mark = "right" if guess.right else "wrong"
            lines.append(
                f"     {captions.NAMES[guess.language].english:<10} {guess.score:6.1%}  {mark}  {guess.label}{latin}"
            )
    right = sum(guess.right for example in found for guess in example.guesses)
    lines += ["", f"{right} of {len(found) * len(LANGUAGES)} right", "", f"Search among {GALLERY} scenes: {query}"]
    lines += [f"     {hit.score:.3f}  {hit.caption}" for hit in hits]
    return "\n".join(lines)


_MARGIN, _SIDE, _CARD = 20, 128, (430, 148)
_INK, _PALE, _GOOD, _BAD, _GROUND = "#1f2937", "#6b7280", "#15803d", "#b91c1c", "#ffffff"


def as_picture(found: list[Example], query: str, hits: list[Hit]) -> Image.Image:
    """The examples as cards in three columns, and a row of what the query found."""
    columns = 3
    rows = (len(found) + columns - 1) // columns
    width = _MARGIN * 2 + columns * _CARD[0]
    cards = _MARGIN + 40 + rows * _CARD[1]
    sheet = Image.new("RGB", (width, cards + 50 + _SIDE + 40 + _MARGIN), _GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), "Zero-shot classification, 64 scene labels and 10 digits", _INK, _font(20))
    for k, example in enumerate(found):
        corner = (_MARGIN + k % columns * _CARD[0], _MARGIN + 40 + k // columns * _CARD[1])
        _card(sheet, draw, corner, example)
    draw.text((_MARGIN, cards + 8), f"Search among {GALLERY} scenes: {_latin(query)}", _INK, _font(20))
    step = (width - 2 * _MARGIN) // len(hits)
    for k, hit in enumerate(hits):
        x, y = _MARGIN + k * step, cards + 46
        sheet.paste(hit.picture.resize((_SIDE, _SIDE)), (x, y))
        draw.rectangle((x, y, x + _SIDE, y + _SIDE), outline="#d1d5db")
        draw.text((x, y + _SIDE + 6), f"{hit.score:.3f}", _PALE, _font(14))
    return sheet


def _card(sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], example: Example) -> None:
    x, y = corner
    sheet.paste(example.picture.resize((_SIDE, _SIDE)), corner)
    draw.rectangle((x, y, x + _SIDE, y + _SIDE), outline="#d1d5db")
    for k, guess in enumerate(example.guesses):
        top = y + k * 21
        color = _GOOD if guess.right else _BAD
        draw.rectangle((x + _SIDE + 12, top + 16, x + _SIDE + 12 + round(270 * guess.score), top + 18), fill=color)
        draw.text((x + _SIDE + 12, top - 2), f"{guess.language}  {_latin(guess.romanized)}", _INK, _font(14))
        draw.text((x + _SIDE + 282, top - 2), f"{guess.score:.0%}", color, _font(14), anchor="ra")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


_SPELLED_OUT = str.maketrans({"ʾ": "'", "ʿ": "'", "ß": "ss", "œ": "oe", "æ": "ae", "ø": "o"})


def _latin(text: str) -> str:
    """The text without accents: Pillow's own font, the only one that is sure to be there, has no more letters."""
    plain = unicodedata.normalize("NFKD", text.translate(_SPELLED_OUT))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return plain if plain.isascii() else "(a sentence in another script)"


def save(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a PNG; the file appears whole or not at all. Raises OSError."""
    target = Path(path)
    with staged(target.parent) as temporary:
        picture.save(temporary(target.name), "PNG")
