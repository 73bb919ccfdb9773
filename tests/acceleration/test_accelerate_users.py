"""Models that contain a CLIP tower, as their users hold them."""

import copy

import pytest
import torch
import transformers
from transformers import CLIPVisionConfig

import altclip_fast as af
from tests.models import oracle

VISION = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 37,
    "patch_size": 6,
    "image_size": 30,
}


def test_llava(encoder_left):
    """It reads a hidden state before the last."""
    text = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**text, vocab_size=120),
        image_token_index=99,
        image_seq_length=25,
    )
    torch.manual_seed(0)
    plain = transformers.LlavaForConditionalGeneration(config).eval()
    fast = af.accelerate(copy.deepcopy(plain))
    ids = torch.cat([torch.full((1, 25), 99), torch.arange(5)[None]], 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 30, 30)}
    with torch.no_grad():
        oracle.assert_close(fast(**inputs).logits, plain(**inputs).logits, "logits")
    assert not encoder_left()


@torch.no_grad()
def test_a_dual_encoder_of_other_towers(encoder_left):
    text = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, vocab_size=99
    )
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(CLIPVisionConfig(**VISION), text)
    torch.manual_seed(0)
    plain = transformers.VisionTextDualEncoderModel(config).eval()
    fast = af.accelerate(copy.deepcopy(plain))
    inputs = {**oracle.texts(), "pixel_values": torch.randn(3, 3, 30, 30)}
    oracle.assert_close(fast(**inputs).logits_per_image, plain(**inputs).logits_per_image, "logits")
    assert not encoder_left()


@torch.no_grad()
def test_the_zero_shot_pipeline(tower_left, folder, photos):
    pipe = transformers.pipeline("zero-shot-image-classification", model=str(folder))
    labels = ["cat", "two dogs", "une photo", "猫"]
    wanted = pipe(photos, candidate_labels=labels)
    af.accelerate(pipe.model)
    found = pipe(photos, candidate_labels=labels)
    assert not tower_left() and all(row.fused for row in af.explain(pipe.model))
    for ours, theirs in zip(found, wanted, strict=True):
        assert [pair["label"] for pair in ours] == [pair["label"] for pair in theirs]
        scores = [torch.tensor([pair["score"] for pair in pairs]) for pairs in (ours, theirs)]
        oracle.assert_close(*scores, "scores", scale=pipe.model.logit_scale.exp().item())  # as logits are


def test_sentence_transformers(encoder_left, clip_folder, photos):
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    model = sentence_transformers.SentenceTransformer(str(clip_folder), device="cpu").float()
    texts = ["a red star", "three blue circles on the left of a square", "7"]
    wanted = [model.encode(given, convert_to_tensor=True) for given in (texts, photos)]
    assert sum(row.fused for row in af.explain(af.accelerate(model))) == 2
    for given, embedding in zip((texts, photos), wanted, strict=True):
        oracle.assert_close(model.encode(given, convert_to_tensor=True), embedding, "embeddings")
    assert not encoder_left()


@torch.no_grad()
def test_a_diffusion_text_encoder(encoder_left, clip_folder):
    """It reads all rows of a text, padding too."""
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip_folder)
    plain = transformers.CLIPTextModel.from_pretrained(clip_folder).float().eval()
    tokenizer.model_max_length = plain.config.max_position_embeddings
    found = []
    for encoder in (af.accelerate(copy.deepcopy(plain)), plain):
        pipe = diffusers.StableDiffusionPipeline(
            vae=None,
            text_encoder=encoder,
            tokenizer=tokenizer,
            unet=None,
            scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        found.append(pipe.encode_prompt(["a cat", "a much longer prompt"], "cpu", 1, True))
    for ours, theirs in zip(*found, strict=True):
        oracle.assert_close(ours, theirs, "prompt")
    assert not encoder_left()
