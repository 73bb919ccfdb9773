"""The model card of an embedded checkpoint: what it was trained on, how, how well it does, and what it cannot do."""

from __future__ import annotations

from ..report import Table

_CARD = """\
# altclip_fast embedded: {title}

{what}

It is made for trying the library, for tests and for benchmarks that need a model that works. It is not made for photos.

## Data

Nothing was downloaded. Pictures: drawings of one or two coloured shapes (8 colours, 8 shapes, 2 sizes, 5 positions,
8 grounds; flat, outlined, hollow or shaded; 40 to 400 pixels), and the handwritten digits that scikit-learn ships.
Captions: templates in {languages}.
13 of the 64 pairs of colour and shape, and a third of the digits, were never shown. Shapes in colours that no caption
names (cyan, pink, brown, gray, magenta, teal) were, with the name of the shape alone.

## Recipe

    python -m altclip_fast.embedded.train --output FOLDER{options}

The stages of AltCLIP (arXiv 2211.06679): an English CLIP by contrastive learning; the multilingual text tower by mean
squared error to its embeddings of parallel captions; then contrastive learning with the image tower frozen. Weights are
float16.

## Accuracies

Zero-shot, on pictures that training did not show. Pairs: among all 64. Search: the picture of a caption that says
everything comes first among 200 scenes.

{table}

## What it cannot do

It knows its shapes, colours, digits and words, and nothing else: any other picture or label gets an arbitrary answer,
with a confident score. Words that it has not seen become pieces or `<unk>`. It does not count, and it reads no text.
A shape whose edges all fall on the borders of its patches (a centred cross with arms a quarter of the picture wide) was
seen taken for a square.
"""


def card(title: str, what: str, languages: str, options: str, accuracies: Table) -> str:
    """The text of `README.md` beside a checkpoint."""
    header = [" | ".join(accuracies.columns), " | ".join("---" for _ in accuracies.columns)]
    rows = [" | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row) for row in accuracies]
    table = "\n".join(f"| {line} |" for line in [*header, *rows])
    return _CARD.format(title=title, what=what, languages=languages, options=options, table=table)
