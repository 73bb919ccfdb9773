"""What models are given to do: checkpoints of real size with random weights, their inputs, and the cost of a call."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from altclip_fast.config import AltCLIPConfig, AltCLIPTextConfig, CLIPTextConfig, CLIPVisionConfig
from altclip_fast.models.altclip import AltCLIPModel, AltCLIPTextModel
from altclip_fast.models.clip import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

WORKS = {
    "image": "images",
    "text": "captions of 6 to 32 tokens, padded to the longest",
    "text77": "captions of 8 to 17 tokens, padded to 77",
}
CHECKED = 4  # inputs that embeddings are compared on, at least
CALIBRATING = 32  # inputs that a peer may look at to choose its scales
LENGTHS = {"text": (12, 6, 19, 8, 32, 10, 14, 11), "text77": (12, 8, 17, 9, 12, 10, 15, 13)}


class Size(NamedTuple):
    """The configurations of a model's towers."""

    vision: dict[str, Any]
    text: dict[str, Any]
    text_model: type

    def model(self, tower: str) -> Any:
        """A tower with random weights."""
        if tower == "image":
            return CLIPVisionModelWithProjection(CLIPVisionConfig(**self.vision))
        return self.text_model(self.text_model.config_class(**self.text))


def _vision(hidden: int, layers: int, patch: int, projection: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "patch_size": patch,
        "image_size": 224,
        "projection_dim": projection,
    }


_XLM_R = {
    "vocab_size": 250002,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "project_dim": 768,
}
_CLIP_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "projection_dim": 512}
_TINY_TEXT = {
    "initializer_range": 0.15,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}

SIZES = {
    "vit-l-14": Size(_vision(1024, 24, 14, 768), _XLM_R, AltCLIPTextModel),
    "vit-b-32": Size(_vision(768, 12, 32, 512), _CLIP_TEXT, CLIPTextModelWithProjection),
    "vit-b-16": Size(_vision(768, 12, 16, 512), _CLIP_TEXT, CLIPTextModelWithProjection),
    "tiny": Size(
        {**_vision(64, 2, 6, 24), "image_size": 30},
        {**_TINY_TEXT, "vocab_size": 99, "project_dim": 24},
        AltCLIPTextModel,
    ),
}


def checkpoint(model: str, work: str, parent: Path) -> Path:
    """The folder of the tower that does `work`; a named size is written under `parent` unless it is there.

    Args:
        model: a key of `SIZES`, or a checkpoint folder.

    Raises:
        ValueError: the model is neither.
    """
    if model not in SIZES:
        folder = Path(model)
        if not (folder / "config.json").is_file():
            raise ValueError(f"model is {model!r}; a checkpoint folder or one of {', '.join(SIZES)} is needed")
        return folder
    tower = tower_of(work)
    folder = parent / f"{model}-{tower}"
    if not (folder / "config.json").exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            SIZES[model].model(tower).save_pretrained(folder)
    return folder


def whole(model: str, parent: Path) -> Path:
    """The folder of an AltCLIP model of these towers with random weights, written under `parent` unless it is there."""
    size, folder = SIZES[model], parent / f"{model}-whole"
    if not folder.exists():
        config = AltCLIPConfig(size.text, size.vision, projection_dim=size.vision["projection_dim"])
        unfinished = parent / f"{model}-unfinished-{os.getpid()}"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AltCLIPModel(config).save_pretrained(unfinished)
        unfinished.rename(folder)
    return folder


def tower_of(work: str) -> str:
    """ "image" or "text"."""
    return "image" if work == "image" else "text"


@dataclass(frozen=True)
class Job:
    """What one system is to do; it travels to the system's process."""

    folder: str
    work: str
    batch: int
    dtype: str
    threads: int
    device: str = field(default="cpu", kw_only=True)

    @property
    def tower(self) -> str:
        return tower_of(self.work)

    @property
    def class_name(self) -> str:
        """The model class of the checkpoint, by its name in transformers and here."""
        return self.config["architectures"][0]

    @property
    def config(self) -> dict[str, Any]:
        return json.loads(Path(self.folder, "config.json").read_text(encoding="utf-8"))

    def batches(self) -> list[dict[str, Tensor]]:
        """Enough inputs to judge embeddings by, the same in every process; the first batch is what is timed."""
        count = -(-max(self.batch, CHECKED) // self.batch)
        return [self._inputs(range(i * self.batch, (i + 1) * self.batch)) for i in range(count)]

    def samples(self) -> list[dict[str, Tensor]]:
        """Other inputs, one at a time, for a peer to calibrate with."""
        return [self._inputs(range(i, i + 1)) for i in range(1000, 1000 + CALIBRATING)]

    def _inputs(self, numbers: range) -> dict[str, Tensor]:
        found = self._images(numbers) if self.work == "image" else self._texts(numbers)
        return {name: x.to(self.device) for name, x in found.items()}

    def cost(self) -> Cost:
        """Of one call on the first batch."""
        if self.work == "image":
            config = self._tower_config(CLIPVisionConfig, "vision_config")
            tokens = (config.image_size // config.patch_size) ** 2
            patch = 2 * tokens * config.num_channels * config.patch_size**2 * config.hidden_size
            flops, weights = layers(config, [tokens + 1] * self.batch)
            shape = f"{self.batch} x {config.num_channels} x {config.image_size} x {config.image_size}"
            return Cost(flops + self.batch * patch, weights * self.itemsize, shape)
        lengths = self._lengths(range(self.batch))
        flops, weights = layers(self.text_config(), lengths)
        width = self.batches()[0]["input_ids"].shape[1]
        return Cost(flops, weights * self.itemsize, f"{self.batch} x {width}, {sum(lengths)} tokens")

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        return {"float32": 4, "bfloat16": 2, "int8": 1}[self.dtype]

    def _tower_config(self, kind: Any, part: str) -> Any:
        config = self.config
        return kind(**config.get(part, config))

    def text_config(self) -> Any:
        """Of the text tower."""
        kind = AltCLIPTextConfig if "AltCLIP" in self.class_name else CLIPTextConfig
        return self._tower_config(kind, "text_config")

    def _lengths(self, numbers: range) -> list[int]:
        given = LENGTHS[self.work]
        return [given[i % len(given)] for i in numbers]

    def _images(self, numbers: range) -> dict[str, Tensor]:
        """Soft patterns of random colour and contrast.

        In ViT-L/14 with random weights eight of them have embeddings with a mean pairwise cosine of 0.87, as eight
        pieces of two photos have (0.88); eight of plain noise have 0.998, which low precision cannot tell apart.
        """
        config = self._tower_config(CLIPVisionConfig, "vision_config")
        channels, size, found = config.num_channels, config.image_size, []
        for number in numbers:
            draw = partial(torch.randn, generator=torch.Generator().manual_seed(number))
            pattern = F.interpolate(draw(1, channels, 5, 5), (size, size), mode="bicubic")
            color, contrast = 0.7 * draw(1, channels, 1, 1), (0.4 * draw(1)).exp()
            found.append(color + contrast * pattern + 0.1 * draw(1, channels, size, size))
        return {"pixel_values": torch.cat(found)}

    def _texts(self, numbers: range) -> dict[str, Tensor]:
        config, lengths = self.text_config(), self._lengths(numbers)
        start, end, pad = 0, config.vocab_size - 1, 1
        if "AltCLIP" in self.class_name:
            start, end, pad = config.bos_token_id, config.eos_token_id, config.pad_token_id
        elif config.eos_token_id != 2:  # 2 stands for the largest id, see CLIP's configuration
            end = config.eos_token_id
        ids = torch.full((len(lengths), 77 if self.work == "text77" else max(lengths)), pad)
        for number, row, length in zip(numbers, ids, lengths, strict=True):
            draw = torch.Generator().manual_seed(number)
            row[:length] = torch.randint(3, config.vocab_size - 2, (length,), generator=draw)
            row[0], row[length - 1] = start, end
        return {
            "input_ids": ids,
            "attention_mask": (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long(),
        }


class Cost(NamedTuple):
    """The products of a plain forward pass over the real tokens, and the weights that it reads."""

    flops: float
    bytes: float
    shape: str


def layers(config: Any, lengths: list[int]) -> tuple[float, float]:
    """Operations of the layers over sequences of these lengths, and the number of their weights."""
    hidden = config.hidden_size
    weights = 4 * hidden**2 + 2 * hidden * config.intermediate_size
    flops = sum(2 * length * weights + 4 * length**2 * hidden for length in lengths)
    return config.num_hidden_layers * flops, config.num_hidden_layers * weights
