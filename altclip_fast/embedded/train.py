"""Train the embedded models: `python -m altclip_fast.embedded.train --output FOLDER`.

The recipe of AltCLIP (Chen et al., arXiv 2211.06679) on pictures and captions that this package makes:

1. a small English CLIP, by contrastive learning;
2. the multilingual text tower learns from the English one: the mean squared error between its embedding of a caption,
   in any language, and the teacher's of the English caption;
3. contrastive learning of the multilingual text tower with the image tower frozen.

Each stage is written to FOLDER/work when it ends, and is not repeated when the command is run again.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from .. import ops
from ..config import (
    AltCLIPConfig,
    AltCLIPTextConfig,
    AltCLIPVisionConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
)
from ..encoder import load
from ..models.altclip import AltCLIPModel
from ..models.clip import CLIPModel
from ..models.joint import DualEncoder
from ..processing.processors import AltCLIPProcessor, CLIPProcessor
from ..processing.tokenizers import CLIPTokenizer, XLMRobertaTokenizer
from . import captions, data, scenes
from .card import card
from .evaluate import evaluate

_CLIP = "A small English CLIP: a vision transformer on 64 pixels in patches of 8, and a causal text transformer."
_ALTCLIP = "A small multilingual AltCLIP: the image tower of its English CLIP, and an XLM-R text tower."
WIDTH = 128  # of the joint embedding
VISION = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": data.SIDE,
    "patch_size": 8,
    "hidden_act": "gelu",
}
ENGLISH = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}
MULTILINGUAL = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "project_dim": WIDTH,
}
SHAPES_FIRST = 0.08  # of the steps of stage 1
PIECES = 3000
MERGES = 700


def train(output: Path, *, seed: int, steps: tuple[int, int, int], pool_size: int) -> None:
    """Run the recipe.

    Args:
        output: gets `altclip/` and `clip/`, checkpoints in the hub's layout, and `work/`.
        seed: of everything that is drawn.
        steps: of the three stages.
        pool_size: pictures to render.
    """
    work = output / "work"
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    english, multilingual = english_tokenizer(seed, work), multilingual_tokenizer(seed, work)
    pool = data.make_pool(pool_size, seed, torch.get_num_threads(), work / "pool.pt")

    clip = CLIPModel(clip_config(english))
    _once(work / "clip.pt", clip, lambda: contrastive(clip, english, pool, steps[0], seed))
    altclip = AltCLIPModel(altclip_config(multilingual))
    for ours, teacher in (
        (altclip.vision_model, clip.vision_model),
        (altclip.visual_projection, clip.visual_projection),
    ):
        ours.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        altclip.logit_scale.copy_(clip.logit_scale)
    _once(
        work / "teacher.pt", altclip, lambda: teacher_learning(altclip, multilingual, clip, english, steps[1], seed + 1)
    )
    _once(work / "altclip.pt", altclip, lambda: frozen_contrastive(altclip, multilingual, pool, steps[2], seed + 2))

    options = f" --seed {seed} --steps {steps[0]} {steps[1]} {steps[2]} --pool {pool_size}"
    save(clip, CLIPProcessor(data.image_processor(), english), output / "clip", "CLIP", _CLIP, ("en",), options)
    processor = AltCLIPProcessor(data.image_processor(), multilingual)
    save(altclip, processor, output / "altclip", "AltCLIP", _ALTCLIP, data.LANGUAGES, options)


def contrastive(model: CLIPModel, tokenizer: Any, pool: data.Pool, steps: int, seed: int) -> None:
    """Stage 1: both towers, English. The names of shapes come first: with colours in the first captions, which are
    easy, the image tower learns shapes many times more slowly."""
    rng = np.random.default_rng(seed)
    step = iter(range(steps))
    spread_positions(model)

    def loss() -> Tensor:
        if next(step) < steps * SHAPES_FIRST:
            return shapes_loss(model, tokenizer, pool, rng, groups=20, big=True)
        shapes = shapes_loss(model, tokenizer, pool, rng, groups=4, big=False)
        return pairs_loss(model, tokenizer, pool, rng) + 0.3 * shapes

    for _ in _training(model, 1.0, steps, loss):
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))


def spread_positions(model: CLIPModel) -> None:
    """Start from sines of row and column (Beyer et al., arXiv 2205.01580): neighbours are alike from the first step."""
    table = model.vision_model.position_embedding.weight
    side = math.isqrt(len(table) - 1)
    frequencies = 100 ** -torch.linspace(0, 1, table.shape[1] // 4)
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    grid = torch.cat([waves.repeat(side, 1), waves.repeat_interleave(side, 0)], dim=1)
    with torch.no_grad():
        table[1:] = 0.3 * grid


def shapes_loss(
    model: CLIPModel, tokenizer: Any, pool: data.Pool, rng: np.random.Generator, *, groups: int, big: bool
) -> Tensor:
    """The mean loss of small batches that hold each shape once, with its name alone."""
    chosen = [i for _ in range(groups) for i in pool.one_of_each_shape(rng, big)]
    images = _embed_images(model, data.augment(pool.pixels[chosen], rng))
    names = _embed(model, tokenizer, list(scenes.SHAPES))
    losses = [ops.contrastive_loss(group, names, model.logit_scale) for group in images.split(len(scenes.SHAPES))]
    return torch.stack(losses).mean()


def pairs_loss(model: CLIPModel, tokenizer: Any, pool: data.Pool, rng: np.random.Generator) -> Tensor:
    """The loss of a batch of pictures with English captions."""
    chosen = pool.batch(rng)
    texts = [data.describe(pool.contents[i], ("en",), rng)["en"] for i in chosen]
    images = _embed_images(model, data.augment(pool.pixels[chosen], rng))
    return ops.contrastive_loss(images, _embed(model, tokenizer, texts), model.logit_scale)


def teacher_learning(
    model: AltCLIPModel, tokenizer: Any, teacher: CLIPModel, english: Any, steps: int, seed: int
) -> None:
    """Stage 2: the multilingual text tower, to the teacher's embedding of the parallel English caption."""
    rng = np.random.default_rng(seed)
    teacher.eval()

    def loss() -> Tensor:
        contents = [_invent(rng) for _ in range(64)]
        texts, targets = [], []
        for content in contents:
            others = [str(code) for code in rng.choice([c for c in data.LANGUAGES if c != "en"], 3, replace=False)]
            parallel = data.describe(content, ["en", *others], rng)
            texts += [parallel[code] for code in ("en", *others)]
            targets.append(parallel["en"])
        with torch.no_grad():
            wanted = ops.l2_normalize(_embed(teacher, english, targets)).repeat_interleave(4, 0)
        found = ops.l2_normalize(_embed(model, tokenizer, texts))
        return (found - wanted).square().sum(-1).mean()

    for _ in _training(nn.ModuleList([model.text_model, model.text_projection]), 1.0, steps, loss):
        pass


def frozen_contrastive(model: AltCLIPModel, tokenizer: Any, pool: data.Pool, steps: int, seed: int) -> None:
    """Stage 3: the multilingual text tower against frozen pictures, one random language a caption."""
    rng = np.random.default_rng(seed)

    def loss() -> Tensor:
        chosen = pool.batch(rng)
        with torch.no_grad():
            image = _embed_images(model, data.augment(pool.pixels[chosen], rng))
        codes = rng.choice(data.LANGUAGES, len(chosen))
        texts = [
            data.describe(pool.contents[i], (str(code),), rng)[str(code)] for i, code in zip(chosen, codes, strict=True)
        ]
        return ops.contrastive_loss(image, _embed(model, tokenizer, texts), model.logit_scale)

    for _ in _training(nn.ModuleList([model.text_model, model.text_projection]), 0.3, steps, loss):
        pass


def _invent(rng: np.random.Generator) -> data.Content:
    """Something to speak of: all pairs may be spoken of, and only the trained ones are ever shown."""
    if rng.random() < 0.12:
        return int(rng.integers(10))
    return scenes.sample_scene(rng, pairs=tuple((c, s) for c in scenes.COLORS for s in scenes.SHAPES))


def _embed(model: DualEncoder, tokenizer: Any, texts: list[str]) -> Tensor:
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with _half():
        return model.text_features(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).float()


def _embed_images(model: DualEncoder, pixels: Tensor) -> Tensor:
    with _half():
        return model.image_features(pixels).float()


@contextmanager
def _half() -> Iterator[None]:
    """bfloat16 products, and attention spelled out: on a CPU its fused backward takes half of the step."""
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def _training(model: nn.Module, rate: float, steps: int, loss: Callable[[], Tensor]) -> Iterator[int]:
    """Muon for the matrices and AdamW for the rest, with warm-up and cosine decay; yields after each step.

    Muon (Jordan et al., kellerjordan.github.io/posts/muon) needs a third of AdamW's steps here.
    """
    model.train()
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embedding" not in n]
    rest = [p for n, p in model.named_parameters() if p.dim() != 2 or "embedding" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=0.02 * rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=1e-3 * rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]
    warmup = max(1, min(100, steps // 10))

    def factor(step: int) -> float:
        return min((step + 1) / warmup, 0.02 + 0.49 * (1 + math.cos(math.pi * min(1, step / steps))))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    mean, bar = 0.0, tqdm(range(steps), unit="step", smoothing=0.02)
    for step in bar:
        value = loss()
        model.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        mean += (value.item() - mean) * max(0.02, 1 / (step + 1))
        bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
        yield step


def _once(file: Path, model: nn.Module, run: Callable[[], None]) -> None:
    """Run a stage and keep its weights, or take those that an earlier run kept."""
    if file.exists():
        model.load_state_dict(torch.load(file))
        return
    run()
    torch.save(model.state_dict(), file.with_suffix(".tmp"))
    file.with_suffix(".tmp").rename(file)


def corpus(seed: int, count: int, languages: tuple[str, ...]) -> list[str]:
    """Captions, and every label."""
    rng = np.random.default_rng(seed)
    lines = [text for _ in range(count) for text in data.describe(_invent(rng), languages, rng).values()]
    for code in languages:
        lines += [captions.label(c, s, code) for c in scenes.COLORS for s in scenes.SHAPES]
        lines += [captions.digit_label(n, code) for n in range(10)]
    return lines


def english_tokenizer(seed: int, work: Path) -> CLIPTokenizer:
    """A byte-level BPE: every byte is a token, so nothing is unknown."""
    folder = work / "english"
    folder.mkdir(exist_ok=True)
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=MERGES, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator(corpus(seed, 4000, ("en",)), trainer)
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        *alphabet,
        *(f"{letter}</w>" for letter in alphabet),
        *("".join(merge) for merge in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def multilingual_tokenizer(seed: int, work: Path) -> XLMRobertaTokenizer:
    """A sentencepiece unigram model over all languages."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus(seed, 4000, data.LANGUAGES)),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
    )
    file = work / "sentencepiece.bpe.model"
    file.write_bytes(model.getvalue())
    return XLMRobertaTokenizer(vocab_file=str(file), model_max_length=128)


def clip_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    text = CLIPTextConfig(
        **ENGLISH,
        vocab_size=len(tokenizer),
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPConfig(
        logit_scale_init_value=3.0,
        text_config=text,
        vision_config=CLIPVisionConfig(**VISION, projection_dim=WIDTH),
        projection_dim=WIDTH,
    )


def altclip_config(tokenizer: XLMRobertaTokenizer) -> AltCLIPConfig:
    return AltCLIPConfig(
        text_config=AltCLIPTextConfig(**MULTILINGUAL, vocab_size=len(tokenizer)),
        vision_config=AltCLIPVisionConfig(**VISION, projection_dim=WIDTH),
        projection_dim=WIDTH,
    )


def save(
    model: DualEncoder, processor: Any, folder: Path, title: str, what: str, languages: tuple[str, ...], options: str
) -> None:
    """Write a checkpoint in float16 with its processor, measure it as it was written, and write its card."""
    model.eval().half().save_pretrained(folder)
    processor.save_pretrained(folder)
    accuracies = evaluate(load(folder), languages)
    names = ", ".join(captions.NAMES[code].english for code in languages)
    (folder / "README.md").write_text(card(title, what, names, options, accuracies), encoding="utf-8")
    print(accuracies)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m altclip_fast.embedded.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps", type=int, nargs=3, default=(9000, 3000, 2000), metavar=("CLIP", "TEACHER", "ALTCLIP")
    )
    parser.add_argument("--pool", type=int, default=120_000, help="pictures to render")
    options = parser.parse_args()
    train(options.output, seed=options.seed, steps=tuple(options.steps), pool_size=options.pool)


if __name__ == "__main__":
    main()
