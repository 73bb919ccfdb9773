"""The oracle: small random transformers models, the same weights loaded by us, and the gate between them.

Every model is shared by all tests of a session: a test that changes one takes a copy of it (`Pair.copy`).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

import altclip_fast as af
from altclip_fast.checkpoint import to_plain
from altclip_fast.testing.embeddings import FLOAT32 as GATE  # times the scale of what is compared

PAD, EOS = 1, 98
LONGEST = 18  # tokens that the text towers take

# The documentation of AltCLIP and CLIP offers "selu", which transformers' table lacks.
transformers.activations.ACT2FN.setdefault("selu", torch.nn.SELU)

_FOLDER = tempfile.TemporaryDirectory(prefix="oracle-")

# Each case: the text tower, the vision tower, the joint head. Widths differ, and few are powers of two.
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "odd": {
        "text": {
            "hidden_size": 80,
            "num_attention_heads": 5,
            "num_hidden_layers": 3,
            "intermediate_size": 37,
            "hidden_act": "gelu",
        },
        "vision": {
            "hidden_size": 48,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "intermediate_size": 37,
            "patch_size": 6,
            "image_size": 30,
            "hidden_act": "quick_gelu",
        },
        "joint": {"projection_dim": 24},
    },
    "wide": {  # head_dim 64 and 80, one layer
        "text": {
            "hidden_size": 128,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "intermediate_size": 64,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-3,
        },
        "vision": {
            "hidden_size": 160,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "intermediate_size": 96,
            "patch_size": 8,
            "image_size": 20,
            "num_channels": 1,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-3,
        },
        "joint": {"projection_dim": 33, "logit_scale_init_value": 1.5},
    },
    "tanh": {  # head_dim 12 in the text tower
        "text": {
            "hidden_size": 36,
            "num_attention_heads": 3,
            "num_hidden_layers": 3,
            "intermediate_size": 50,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-12,
        },
        "vision": {
            "hidden_size": 40,
            "num_attention_heads": 5,
            "num_hidden_layers": 3,
            "intermediate_size": 41,
            "patch_size": 5,
            "image_size": 15,
            "hidden_act": "relu",
            "layer_norm_eps": 1e-12,
        },
        "joint": {"projection_dim": 16},
    },
    "silu": {
        "text": {
            "hidden_size": 24,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "intermediate_size": 31,
            "hidden_act": "silu",
        },
        "vision": {
            "hidden_size": 26,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "intermediate_size": 29,
            "patch_size": 4,
            "image_size": 12,
            "hidden_act": "selu",
        },
        "joint": {"projection_dim": 8},
    },
}
# Variants of "odd" that one test or another needs: fields to override.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "eos2": {"text": {"eos_token_id": 2}},
    "chunked": {"text": {"chunk_size_feed_forward": 1}},
    "types": {"text": {"type_vocab_size": 3}},
    "regression": {"joint": {"num_labels": 1}},
    "labels5": {"joint": {"num_labels": 5}},
    "labels0": {"joint": {"num_labels": 0}},
}

JOINT = ("AltCLIPModel", "CLIPModel")
TEXT = ("AltCLIPTextModel", "CLIPTextModel", "CLIPTextModelWithProjection")
VISION = (
    "AltCLIPVisionModel",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "CLIPForImageClassification",
)
CLASSES = (*JOINT, *TEXT, *VISION)


@dataclass(frozen=True)
class Pair:
    """One model twice, and the folder that both can be loaded from."""

    ours: Any
    theirs: Any
    folder: Path

    @property
    def name(self) -> str:
        return type(self.ours).__name__

    def copy(self) -> Pair:
        return Pair(copy.deepcopy(self.ours), copy.deepcopy(self.theirs), self.folder)


def values(case: str) -> dict[str, dict[str, Any]]:
    """The fields of a case, or of a variant."""
    changes = VARIANTS.get(case, {})
    base = CASES["odd" if changes else case]
    return {part: {**fields, **changes.get(part, {})} for part, fields in base.items()}


def make_config(name: str, case: str) -> Any:
    """The transformers configuration of class `name`."""
    fields = values(case)
    family = "AltCLIP" if name.startswith("AltCLIP") else "CLIP"
    text = {"vocab_size": 99, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": EOS, **fields["text"]}
    vision = {**fields["vision"], "projection_dim": fields["joint"]["projection_dim"]}
    if family == "AltCLIP":
        text = {
            **text,
            "max_position_embeddings": LONGEST + PAD + 1,
            "project_dim": 28,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
    else:
        text = {
            "projection_dim": fields["joint"]["projection_dim"],
            **text,
            "max_position_embeddings": LONGEST,
        }
        text.pop("chunk_size_feed_forward", None)
        text.pop("type_vocab_size", None)
    if name in TEXT:
        return getattr(transformers, f"{family}TextConfig")(**text)
    if name in VISION and name != "CLIPForImageClassification":
        return getattr(transformers, f"{family}VisionConfig")(**vision)
    return getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision, **fields["joint"])


def randomise(model: torch.nn.Module, seed: int = 1) -> None:
    """Weights of a trained model's size: no bias is zero, no norm is one, no activation is nearly linear."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            if "norm" in name.lower() or "ln" in name.lower():
                parameter.copy_(noise * 0.2 + (1.0 if name.endswith("weight") else 0.0))
            elif parameter.dim() == 0:
                parameter.add_(0.1 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif "embedding" in name:
                parameter.copy_(0.5 * noise if parameter.dim() < 4 else noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(noise * 1.5 * parameter.shape[-1] ** -0.5)


@cache
def pair(name: str, case: str = "odd") -> Pair:
    """The model of class `name`, ours loaded from the files that transformers wrote."""
    torch.manual_seed(0)
    theirs = getattr(transformers, name)._from_config(make_config(name, case), attn_implementation="eager").eval()
    randomise(theirs)
    folder = Path(_FOLDER.name) / f"{name}-{case}"
    theirs.save_pretrained(folder)
    return Pair(getattr(af, name).from_pretrained(folder), theirs, folder)


def pixels(model: Any, batch: int = 3, seed: int = 2) -> torch.Tensor:
    """Random images for a model of ours."""
    config = getattr(model.config, "vision_config", model.config)
    shape = batch, config.num_channels, config.image_size, config.image_size
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def texts(
    lengths: tuple[int, ...] = (7, 4, 11), longest: int | None = None, side: str = "right", seed: int = 3
) -> dict[str, torch.Tensor]:
    """Random texts `<0> .. <EOS>` of these lengths, padded on the right, the left, or on both sides."""
    longest = max(lengths) if longest is None else longest
    draw = torch.Generator().manual_seed(seed)
    ids, mask = (
        torch.full((len(lengths), longest), PAD),
        torch.zeros(len(lengths), longest, dtype=torch.int64),
    )
    for row, length in enumerate(lengths):
        start = {"right": 0, "left": longest - length, "both": (longest - length) // 2}[side]
        ids[row, start : start + length] = torch.randint(3, EOS, (length,), generator=draw)
        ids[row, start], ids[row, start + length - 1] = 0, EOS
        mask[row, start : start + length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def inputs_for(model: Any, **text: Any) -> dict[str, torch.Tensor]:
    """What a model of ours takes: texts, pixels or both."""
    found = {} if type(model).__name__ in VISION else texts(**text)
    return found if type(model).__name__ in TEXT else {**found, "pixel_values": pixels(model)}


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, name: str, scale: float | None = None) -> None:
    """The whole-model gate in float32.

    Args:
        scale: what the error is relative to; max(1, max |theirs|) when None, so 1 for normalised embeddings.
    """
    assert isinstance(ours, torch.Tensor), f"{name} is a {type(ours).__name__}"
    assert ours.shape == theirs.shape, f"{name} is {list(ours.shape)}, transformers' is {list(theirs.shape)}"
    assert ours.dtype == theirs.dtype, f"{name} is {ours.dtype}, transformers' is {theirs.dtype}"
    if theirs.numel() == 0:
        return
    assert theirs.isfinite().all() and ours.isfinite().all(), f"{name} is not finite"
    scale = max(1.0, theirs.detach().abs().max().item()) if scale is None else scale
    error = (ours.detach() - theirs.detach()).abs().max().item()
    assert error <= GATE * scale, f"{name}: max |difference| is {error:.2e}, allowed is {GATE * scale:.2e}"


def _leaves(ours: Any, theirs: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """(path, ours, theirs) of every tensor, in the order of computation: the first error is the cause."""
    if isinstance(theirs, transformers.utils.ModelOutput):
        assert list(ours) == list(theirs), f"{path or 'output'} has {list(ours)}, transformers' has {list(theirs)}"
        order = (
            "vision_model_output",
            "text_model_output",
            "hidden_states",
            "attentions",
            "last_hidden_state",
            "pooler_output",
            "text_embeds",
            "image_embeds",
            "logits_per_text",
            "logits_per_image",
            "logits",
            "loss",
        )
        for name in sorted(theirs, key=order.index):
            yield from _leaves(ours[name], theirs[name], f"{path}.{name}".lstrip("."))
    elif isinstance(theirs, tuple):
        assert isinstance(ours, tuple), f"{path} is a {type(ours).__name__}"
        assert len(ours) == len(theirs), f"{path} has {len(ours)} items, transformers' has {len(theirs)}"
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            yield from _leaves(a, b, f"{path}[{i}]")
    else:
        yield path, ours, theirs


def assert_same(ours: Any, theirs: Any, kept: torch.Tensor | None = None) -> None:
    """Outputs are equal in structure, and in every number that is not of a padded token.

    Args:
        kept: [B, S], the tokens of the texts that are not padding; None: all. In ours the others are zero.
    """
    for path, a, b in _leaves(ours, theirs, ""):
        if b is None:
            assert a is None, f"{path} is set, transformers' is None"
            continue
        of_tokens = any(part in path for part in ("hidden_state", "attentions")) and "vision" not in path
        if kept is not None and of_tokens:
            real = kept.bool()
            if "attentions" in path:
                a, b = a.transpose(1, 2), b.transpose(1, 2)
            else:
                assert not a[~real].any(), f"{path} is not zero at padding"
            assert_close(a[real], b[real], path)
        else:
            assert_close(a, b, path, _logit_scale(theirs) if "logits_per" in path else None)


def _logit_scale(output: Any) -> float:
    """What cosines are multiplied by: the scale of a logit's error, also where all cosines happen to be small."""
    cosines = output.text_embeds @ output.image_embeds.T
    return max(1.0, (output.logits_per_text.norm() / cosines.norm()).item())


def structure(value: Any) -> Any:
    """The nesting of a tuple, with shapes as its leaves."""
    if isinstance(value, tuple):
        return tuple(structure(item) for item in value)
    return None if value is None else tuple(value.shape)


def loss_of(model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """A scalar that every output takes part in; the loss itself where the class has one."""
    name = type(model).__name__
    if name in JOINT:
        return model(**inputs, return_loss=True).loss
    if name == "CLIPForImageClassification":
        return model(**inputs, labels=torch.tensor([0, 1, 1])).loss
    output = model(**inputs)
    mask = inputs.get("attention_mask", torch.ones(output.last_hidden_state.shape[:2]))
    weight = torch.linspace(-1, 2, output.last_hidden_state.shape[-1])
    total = (output.last_hidden_state * weight * mask[..., None]).sum()
    rest = [v for k, v in output.items() if k != "last_hidden_state"]
    return total + sum((v * torch.linspace(1, -3, v.shape[-1])).square().sum() for v in rest)


def gradients(model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    """The loss, and the gradient of every parameter by name."""
    model.zero_grad(set_to_none=True)
    loss = loss_of(model, inputs)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def assert_same_gradients(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """By the gate, relative to the largest gradient of the model. `theirs` may have transformers' names."""
    names, unexpected = to_plain(theirs, ours)
    assert not unexpected and set(names.values()) == set(ours)
    largest = max(g.abs().max().item() for g in theirs.values() if g is not None)
    assert largest > 0
    for stored, name in names.items():
        if theirs[stored] is None:
            assert ours[name] is None or not ours[name].any(), f"{name} has a gradient, transformers' has none"
        else:
            assert ours[name] is not None, f"{name} has no gradient"
            assert_close(ours[name], theirs[stored], f"gradient of {name}", scale=largest)
