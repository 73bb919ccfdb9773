"""`accelerate(model, quantization="int8")`: packed copies of 8-bit numbers; the parameters stay what they are."""

import copy

import pytest
import torch
import transformers
from sklearn.datasets import load_sample_images

import altclip_fast as af
from altclip_fast.accelerate import stack
from altclip_fast.encoder import EMBEDDED
from altclip_fast.testing.embeddings import judge
from tests.models import oracle


@pytest.fixture(scope="module")
def plain():
    return transformers.AltCLIPModel.from_pretrained(EMBEDDED["embedded"], dtype=torch.float32).eval()


@pytest.fixture
def fast(plain):
    return af.accelerate(copy.deepcopy(plain), quantization="int8")


@pytest.fixture(scope="module")
def pixels():
    photos = [photo[y : y + 200, x : x + 200] for photo in load_sample_images().images for y, x in ((0, 0), (150, 300))]
    return af.AutoImageProcessor.from_pretrained(EMBEDDED["embedded"])(photos, return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module")
def texts():
    words = ["a red circle", "two blue stars", "une étoile verte", "a yellow square on a black background"]
    return af.AutoTokenizer.from_pretrained(EMBEDDED["embedded"])(words, padding=True, return_tensors="pt")


def embeddings(model, pixels, texts):
    texts = {name: texts[name] for name in ("input_ids", "attention_mask")}
    return model.get_image_features(pixels).pooler_output, model.get_text_features(**texts).pooler_output


@torch.no_grad()
def test_embeddings_are_near(plain, fast, pixels, texts):
    assert all(row.fused for row in af.explain(fast))
    for found, truth in zip(embeddings(fast, pixels, texts), embeddings(plain, pixels, texts), strict=True):
        assert not torch.equal(found, truth)
        assert judge(found, truth, "int8").refusal is None


@torch.no_grad()
def test_parameters_stay_what_they_are(plain, fast, pixels, texts):
    embeddings(fast, pixels, texts)
    before, after = plain.state_dict(), fast.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    oracle.assert_same(af.revert(fast)(pixel_values=pixels, **texts), plain(pixel_values=pixels, **texts))


@torch.no_grad()
def test_the_copies_follow_the_parameters(fast, pixels, texts):
    before = fast.get_image_features(pixels).pooler_output
    for parameter in fast.vision_model.encoder.parameters():
        parameter.mul_(1.1)
    again = af.accelerate(copy.deepcopy(fast), quantization="int8")
    found = fast.get_image_features(pixels).pooler_output
    assert not torch.equal(found, before)
    assert torch.equal(found, again.get_image_features(pixels).pooler_output)


def test_calls_that_record_gradients_take_the_parameters(plain, fast, pixels, texts):
    oracle.assert_same(fast(pixel_values=pixels, **texts), plain(pixel_values=pixels, **texts))


@torch.no_grad()
def test_accelerating_again_replaces_the_option(plain, fast, pixels, texts):
    fast.get_image_features(pixels)
    oracle.assert_same(af.accelerate(fast)(pixel_values=pixels, **texts), plain(pixel_values=pixels, **texts))


def test_where_it_cannot_run(plain, monkeypatch):
    monkeypatch.setattr(stack, "why_not", lambda columns: "there is no library")
    model = copy.deepcopy(plain)
    with pytest.raises(ValueError, match="quantization='int8' cannot be used: there is no library"):
        af.accelerate(model, quantization="int8")
    assert not any(row.fused for row in af.explain(model))
