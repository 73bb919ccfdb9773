"""Captions of synthetic scenes and of handwritten digits, in several languages.

    rng = np.random.default_rng(0)
    caption(scene, "fr", rng)  # 'Sur un fond blanc, il y a une petite étoile rouge à gauche.'
    parallel(scene, LANGUAGES, rng)["ko"]  # the same sentence in Korean
    template("en").format(label("red", "circle", "en"))  # 'A picture: red circle.'

A language is one file, `languages/<code>.toml`: its words, and phrases made of them. This module knows no
grammar; it knows three rules.

- `{name}` is a word or a phrase. The first part of the name says what it depends on: `{color}` and
  `{color_gen}` are the words for the thing's colour in the tables `[color]` and `[color_gen]`. A name in
  `[phrase]` is filled in turn. `{name1}` and `{name2}` mean the first and the second thing; no digit means the
  thing whose phrase this is, else the first.
- A list holds one form for each of `classes`, and the thing's shape chooses (`[class]`). A class is whatever
  words agree with: genders, Chinese measure words, in Korean whether the word ends in a vowel.
- `[...]` vanishes when something in it is not mentioned.

The k-th sentence of a list says in every language what the k-th says in English, so that `parallel` translates.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from .scenes import Scene

__all__ = [
    "LANGUAGES", "NAMES", "Name",
    "label", "digit_label", "label_romanized", "digit_label_romanized",
    "template", "templates",
    "caption", "parallel", "digit_caption", "parallel_digit",
]  # fmt: skip

_FOLDER = Path(__file__).with_name("languages")
_SLOT = re.compile(r"\{(\w+?)([12]?)\}")
_GROUP = re.compile(r"\[([^\[\]]*)\]")

# How often a caption mentions what it may leave out.
_SIZE, _POSITION, _BACKGROUND, _RELATION = 0.4, 0.4, 0.3, 0.7
# A caption of nothing but colour, shape and size, and one of a digit: this part is the bare label, the next one
# a template with the label, the rest a sentence.
_LABEL, _TEMPLATE = 0.3, 0.35
_SEEN_FROM_THE_OTHER = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


class Rng(Protocol):
    """A `random.Random` or a `numpy.random.Generator`."""

    def random(self) -> float:
        """A number from [0, 1)."""


class Name(NamedTuple):
    """What a language is called, in itself and in English, and which way it is written: "ltr" or "rtl"."""

    own: str
    english: str
    direction: str


class _Plan(NamedTuple):
    """What a caption says and how, whatever the language: the same plan gives translations of one another."""

    values: Mapping[str, str]  # "color1" -> "red": everything that is mentioned
    patterns: str  # the list of sentences; "label" has a single one
    choice: float  # which of them, from [0, 1)


class _Language:
    """The words and phrases of one file."""

    def __init__(self, tables: dict[str, Any]):
        self.tables = tables
        self.phrases: dict[str, Any] = tables["phrase"]
        self.contractions = [(re.compile(before), after) for before, after in tables.get("contractions", [])]

    def say(self, plan: _Plan) -> str:
        """The caption."""
        pattern = "{label}"
        if plan.patterns != "label":
            patterns: list[str] = self.tables[plan.patterns]
            pattern = patterns[int(plan.choice * len(patterns))].replace("{}", "{label}")
        if "digit1" in plan.values:
            pattern = pattern.replace("{label}", "{digit_label}")
        text = self.write(pattern, plan.values)
        return text[0].upper() + text[1:] if text.endswith((".", "。")) else text

    def write(self, pattern: str, values: Mapping[str, str]) -> str:
        """`pattern` filled with words, after the language's contractions."""
        text = self._fill(pattern, values, "1")
        for before, after in self.contractions:
            text = before.sub(after, text)
        return text

    def _fill(self, pattern: str, values: Mapping[str, str], thing: str) -> str:
        def group(found: re.Match[str]) -> str:
            slots = _SLOT.findall(found[1])
            return found[1] if all(self._mentioned(name, which or thing, values) for name, which in slots) else ""

        def slot(found: re.Match[str]) -> str:
            return self._word(found[1], found[2] or thing, values)

        return _SLOT.sub(slot, _GROUP.sub(group, pattern))

    def _mentioned(self, name: str, thing: str, values: Mapping[str, str]) -> bool:
        return name in self.phrases or name.partition("_")[0] + thing in values

    def _word(self, name: str, thing: str, values: Mapping[str, str]) -> str:
        if name in self.phrases:
            entry = self.phrases[name]
        else:
            attribute = name.partition("_")[0]
            value = values[attribute + thing]
            words = self.tables.get(name, {value: value})  # a numeral is not in a table: it stands for itself
            if value not in words:
                raise ValueError(f"{attribute} is {value!r}; it must be one of {', '.join(words)}")
            entry = words[value]
        if isinstance(entry, list):
            entry = entry[self.tables["classes"].index(self.tables["class"][values["shape" + thing]])]
        return self._fill(entry, values, thing)


def _read(code: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / f"{code}.toml").read_text(encoding="utf-8"))


LANGUAGES: tuple[str, ...] = tuple(sorted(file.stem for file in _FOLDER.glob("*.toml")))
_TABLES = {code: _read(code) for code in LANGUAGES}
NAMES: dict[str, Name] = {
    code: Name(tables["name"], tables["english"], tables["direction"]) for code, tables in _TABLES.items()
}


@cache
def _language(code: str) -> _Language:
    if code not in _TABLES:
        raise ValueError(f"language is {code!r}; it must be one of {', '.join(LANGUAGES)}")
    return _Language(_TABLES[code])


@cache
def _latin(code: str) -> _Language:
    """The words of `[romanized]` in place of the language's own, where it has that table."""
    tables = _language(code).tables
    return _Language({**tables, **tables.get("romanized", {})})


def label(color: str, shape: str, language: str) -> str:
    """The bare noun phrase for a zero-shot label: "red circle", "cercle rouge", "красный круг"."""
    return _language(language).write("{label}", {"color1": color, "shape1": shape})


def digit_label(n: int, language: str) -> str:
    """A digit's name in words: "the digit three", "le chiffre trois", "数字三"."""
    return _language(language).write("{digit_label}", {"digit1": str(n)})


def label_romanized(color: str, shape: str, language: str) -> str:
    """`label` in Latin script: pinyin, Hepburn, Revised Romanization; itself where the language has that script."""
    return _latin(language).write("{label}", {"color1": color, "shape1": shape})


def digit_label_romanized(n: int, language: str) -> str:
    """`digit_label` in Latin script."""
    return _latin(language).write("{digit_label}", {"digit1": str(n)})


def templates(language: str) -> tuple[str, ...]:
    """Sentences with one `{}` in which every label of the language is grammatical as it stands."""
    return tuple(_language(language).tables["templates"])


def template(language: str) -> str:
    """The first of `templates(language)`: "A picture: {}." """
    return templates(language)[0]


def caption(scene: Scene, language: str, rng: Rng) -> str:
    """A caption that gives colour and shape of everything, and some of size, position, ground and relation."""
    return _language(language).say(_plan(scene, rng))


def parallel(scene: Scene, languages: Sequence[str], rng: Rng) -> dict[str, str]:
    """The same caption in each language; for one language, what `caption` gives from the same seed."""
    plan = _plan(scene, rng)
    return {code: _language(code).say(plan) for code in languages}


def full(scene: Scene, language: str) -> str:
    """The caption that gives everything: colours, shapes, sizes, and the position or relation, and the ground."""
    return _language(language).say(_plan(scene, _Everything()))


class _Everything:
    def random(self) -> float:
        return 0.0


def digit_caption(n: int, language: str, rng: Rng) -> str:
    """A caption of a handwritten digit, which it gives as a word or as a numeral."""
    return _language(language).say(_plan_digit(n, rng))


def parallel_digit(n: int, languages: Sequence[str], rng: Rng) -> dict[str, str]:
    """The same caption of a handwritten digit in each language."""
    plan = _plan_digit(n, rng)
    return {code: _language(code).say(plan) for code in languages}


def _plan(scene: Scene, rng: Rng) -> _Plan:
    # All draws are made whatever the scene is, so that a caption does not shift those of the scenes after it.
    sized, placed, grounded, related, turned, style, choice = (float(rng.random()) for _ in range(7))
    things = scene.things
    values: dict[str, str] = {}
    if grounded < _BACKGROUND:
        values |= {"background1": scene.background}
    if len(things) == 1:
        patterns = "one"
        if placed < _POSITION:
            values |= {"position1": things[0].position}
        if not values:
            patterns = _short(style) or patterns
    else:
        patterns, relation = "two", scene.relation
        if turned < 0.5:
            things = things[::-1]
            relation = _SEEN_FROM_THE_OTHER[relation] if relation else None
        if relation and related < _RELATION:
            patterns = "related"
            values |= {"relation1": relation}
    for which, thing in enumerate(things, start=1):
        values |= {f"color{which}": thing.color, f"shape{which}": thing.shape}
        if sized < _SIZE:
            values |= {f"size{which}": thing.size}
    return _Plan(values, patterns, choice)


def _plan_digit(n: int, rng: Rng) -> _Plan:
    style, choice = float(rng.random()), float(rng.random())
    return _Plan({"digit1": str(n), "numeral1": str(n)}, _short(style) or "digits", choice)


def _short(style: float) -> str:
    """The list of patterns that hold a label only, or "" for a sentence."""
    return "label" if style < _LABEL else "templates" if style < _LABEL + _TEMPLATE else ""
