"""How well an embedded model does on what it has never seen, language by language.

- scenes: zero-shot accuracy among all 64 pairs of colour and shape, for pairs that training showed and for the others;
- digits: zero-shot accuracy among the ten, on the third that was held out;
- search: how often the caption that says everything finds its picture first among 200 different scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import ops
from ..encoder import Encoder
from ..report import Table
from . import captions, digits, scenes

PAIRS = [(color, shape) for color in scenes.COLORS for shape in scenes.SHAPES]


class Row(NamedTuple):
    """The accuracies of one language, 0 to 1."""

    language: str
    seen_pairs: float
    held_out_pairs: float
    digits: float
    search: float


def evaluate(
    encoder: Encoder,
    languages: Sequence[str] = captions.LANGUAGES,
    *,
    seed: int = 1,
    per_pair: int = 8,
    searched: int = 200,
) -> Table:
    """Measure an encoder.

    Args:
        encoder: the embedded AltCLIP, or the embedded CLIP with languages=("en",).
        languages: codes of `captions.LANGUAGES`.
        seed: of the scenes that are drawn.
        per_pair: scenes of one thing for each pair of colour and shape.
        searched: different scenes among which a caption looks for its own.

    Returns:
        One `Row` a language.
    """
    rng = np.random.default_rng((seed, 0xE7A1))
    seen = _pictures(encoder, scenes.pairs(held_out=False) * per_pair, rng)
    unseen = _pictures(encoder, scenes.pairs(held_out=True) * per_pair, rng)
    handwritten, numbers = digits.load(held_out=True)
    written = encoder.encode_image([digits.render_digit(image) for image in handwritten], batch_size=200)
    gallery = different_scenes(searched, rng)
    shown = encoder.encode_image([scenes.render(scene, rng) for scene in gallery], batch_size=200)

    rows = []
    for code in languages:
        templates = captions.templates(code)
        labels = encoder.classifier([captions.label(*pair, code) for pair in PAIRS], templates).embeddings
        names = encoder.classifier([captions.digit_label(n, code) for n in range(10)], templates).embeddings
        queries = encoder.encode_text([captions.full(scene, code) for scene in gallery])
        rows.append(
            Row(
                language=code,
                seen_pairs=accuracy(seen[0], labels, seen[1]),
                held_out_pairs=accuracy(unseen[0], labels, unseen[1]),
                digits=accuracy(written, names, torch.from_numpy(numbers.astype(np.int64))),
                search=accuracy(queries, shown, torch.arange(searched)),
            )
        )
    return Table(Row._fields, rows)


def accuracy(queries: Tensor, candidates: Tensor, answers: Tensor) -> float:
    """How often the most similar candidate is the answer."""
    return float((ops.similarity_argmax(queries, candidates, normalize=False) == answers).float().mean())


def different_scenes(count: int, rng: np.random.Generator) -> list[scenes.Scene]:
    """Scenes of trained pairs, no two of which a full caption describes alike."""
    found: dict[str, scenes.Scene] = {}
    while len(found) < count:
        scene = scenes.sample_scene(rng)
        found.setdefault(captions.full(scene, "en"), scene)
    return list(found.values())


def _pictures(encoder: Encoder, pairs: Sequence[tuple[str, str]], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    images: list[Image.Image] = []
    for pair in pairs:
        images.append(scenes.render(scenes.sample_scene(rng, pairs=[pair], two_objects=0.0), rng))
    return encoder.encode_image(images, batch_size=200), torch.tensor([PAIRS.index(pair) for pair in pairs])
