"""The Auto classes find the class by `config.json`."""

import json
import shutil

import pytest
import torch

import altclip_fast as af


def test_models(altclip_folder, clip_folder):
    assert type(af.AutoModel.from_pretrained(altclip_folder)) is af.AltCLIPModel
    assert type(af.AutoModel.from_pretrained(clip_folder, dtype=torch.float16)) is af.CLIPModel
    config = af.CLIPVisionConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
    assert type(af.AutoModel.from_config(config)) is af.CLIPVisionModel
    with pytest.raises(TypeError, match="config is a dict"):
        af.AutoModel.from_config({})


def test_processors(altclip_folder, clip_folder):
    assert type(af.AutoProcessor.from_pretrained(altclip_folder)) is af.AltCLIPProcessor
    assert type(af.AutoProcessor.from_pretrained(clip_folder)) is af.CLIPProcessor
    assert type(af.AutoTokenizer.from_pretrained(altclip_folder)) is af.XLMRobertaTokenizer
    assert type(af.AutoTokenizer.from_pretrained(clip_folder, use_fast=True)) is af.CLIPTokenizer
    assert type(af.AutoImageProcessor.from_pretrained(clip_folder)) is af.CLIPImageProcessor
    assert type(af.AutoImageProcessor.from_pretrained(clip_folder, use_fast=True)) is af.CLIPImageProcessorFast


def test_the_pages_example_runs(folder, photos):
    """The example at the top of the AltCLIP page, with the import changed."""
    model = af.AutoModel.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    processor = af.AutoProcessor.from_pretrained(folder)
    labels = ["a photo of a cat", "a photo of a dog"]
    inputs = processor(text=labels, images=photos[0], return_tensors="pt", padding=True)
    probabilities = model(**inputs).logits_per_image.softmax(dim=1)
    assert probabilities.shape == (1, 2) and probabilities.sum().item() == pytest.approx(1, abs=0.02)


def test_m9_form(altclip_folder, tmp_path):
    """BAAI/AltCLIP-m9 says "clip", has no tokenizer.json, and flat sizes in its processor's file."""
    for name in ("model.safetensors", "sentencepiece.bpe.model"):
        shutil.copy(altclip_folder / name, tmp_path)
    config = json.loads((altclip_folder / "config.json").read_text())
    config |= {"model_type": "clip", "architectures": ["ChineseCLIP"]}
    config["text_config"] |= {"model_type": "xlm-roberta"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    old = {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "size": 30,
        "crop_size": 30,
        "resample": 3,
        "do_resize": True,
        "do_center_crop": True,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    old_form, new_form = af.load(tmp_path), af.load(altclip_folder)
    texts = ["a photo of a cat", "一张猫的照片"]
    assert torch.equal(old_form.encode_text(texts), new_form.encode_text(texts))
    image = torch.randint(0, 256, (3, 50, 40), dtype=torch.uint8)
    assert torch.equal(old_form.encode_image(image), new_form.encode_image(image))


def test_not_instantiated():
    for name in ("AutoModel", "AutoProcessor", "AutoTokenizer", "AutoImageProcessor"):
        with pytest.raises(TypeError, match=f"{name}.from_pretrained"):
            getattr(af, name)()
