"""A whole AltCLIP with random weights and its processor, as users load it."""

from __future__ import annotations

from pathlib import Path

import torch

from altclip_fast.auto import AutoProcessor
from altclip_fast.config import AltCLIPConfig
from altclip_fast.encoder import EMBEDDED
from altclip_fast.models.altclip import AltCLIPModel, AltCLIPTextModel
from altclip_fast.processing.image import CLIPImageProcessor
from altclip_fast.processing.processors import AltCLIPProcessor

from . import workloads

CHOICES = [name for name, size in workloads.SIZES.items() if size.text_model is AltCLIPTextModel]


def checkpoint(model: str, parent: Path, *, cut: bool = False) -> Path:
    """The folder of a whole model with a processor, written under `parent` unless it is there.

    Its tokenizer is that of the embedded AltCLIP. All else has its size; `cut` leaves out the embeddings of the tokens
    that this tokenizer does not know, which are 0.9 of 3.5 GB.
    """
    folder = parent / f"{model}-{'cut' if cut else 'whole'}"
    if not (folder / "preprocessor_config.json").exists():
        size = workloads.SIZES[model]
        tokenizer = AutoProcessor.from_pretrained(EMBEDDED["embedded"]).tokenizer
        side = size.vision["image_size"]
        images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        known = max(len(tokenizer), 0 if cut else size.text["vocab_size"])
        config = AltCLIPConfig(
            text_config={**size.text, "vocab_size": known},
            vision_config=size.vision,
            projection_dim=size.vision["projection_dim"],
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AltCLIPModel(config).save_pretrained(folder)
        AltCLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder
