"""`quantization="int8"`: what it changes, what it leaves, and how near its embeddings are."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images

import altclip_fast as af
from altclip_fast.embedded import evaluate
from altclip_fast.models.layers import Linear
from altclip_fast.ops.int8 import Int8Weight
from altclip_fast.quantization import quantize

NAMES = ["embedded", "embedded-clip"]


@pytest.fixture(scope="module", params=NAMES)
def both(request):
    return tuple(af.load(request.param, device="cpu", dtype="float32", quantization=q) for q in (None, "int8"))


def centred(x):
    return x - x.mean(0)


def test_embeddings_are_near(both):
    photos = [image[y : y + 200, x : x + 200] for image in load_sample_images().images for y, x in ((0, 0), (150, 300))]
    plain, small = (encoder.encode_image(photos) for encoder in both)
    assert not torch.equal(plain, small)
    assert F.cosine_similarity(centred(plain), centred(small)).min() >= 0.99
    texts = [
        "a red circle",
        "two blue stars",
        "a green heart",
        "une étoile verte",
        "a yellow square on a black background",
    ]
    plain, small = (encoder.encode_text(texts) for encoder in both)
    assert F.cosine_similarity(centred(plain), centred(small)).min() >= 0.99


def test_zero_shot_labels_agree(both):
    ours = [evaluate.evaluate(encoder, ["en"])[0] for encoder in both]
    for field in ("seen_pairs", "held_out_pairs", "digits"):
        assert abs(getattr(ours[0], field) - getattr(ours[1], field)) <= 0.01, field


def test_parameters_stay(both):
    plain, small = (encoder.model for encoder in both)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), small.parameters(), strict=True))
    assert all(p.requires_grad for p in plain.parameters()) and not any(p.requires_grad for p in small.parameters())


def linears(model):
    return [module for module in model.modules() if type(module) is Linear]


def test_every_linear_of_the_layers_runs_in_int8(both):
    plain, small = (encoder.model for encoder in both)
    both[1].encode_text(["a"])
    assert not any(layer.int8 for layer in linears(plain)) and all(layer.int8 for layer in linears(small))
    assert all(isinstance(layer._kept.packed, Int8Weight) for layer in linears(small.text_model.layers))


def test_also_without_no_grad(both):
    """Frozen parameters record nothing: a caller who forgets no_grad gets the same numbers."""
    small = both[1].model
    pixels = torch.randn(2, 3, *[small.config.vision_config.image_size] * 2)
    with torch.no_grad():
        expected = small.get_image_features(pixels)
    assert torch.equal(small.get_image_features(pixels), expected)


def test_compiled_code_says_that_it_is_not_used(recwarn):
    layer = Linear(8, 8).eval().requires_grad_(False)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    layer.int8 = True
    torch.compile(layer, backend="eager")(torch.randn(2, 8))
    assert any("int8 weights are not used" in str(w.message) for w in recwarn)


def test_refused():
    with pytest.raises(ValueError, match="quantization is 'int3'; None or 'int8' is supported"):
        af.load("embedded", quantization="int3")
    odd = torch.nn.Sequential(Linear(6, 4))
    with pytest.raises(ValueError, match="0: rows of 6 numbers are no multiple of 4"):
        quantize(odd, "int8")
    assert not odd[0].int8
    with pytest.raises(ValueError, match="the weight is on meta"):
        quantize(torch.nn.Sequential(Linear(8, 4, device="meta")), "int8")
