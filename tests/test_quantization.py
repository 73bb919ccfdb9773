"""`quantization="int8"`: what it changes, what it leaves, and how near its embeddings are."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images

import altclip_fast as af
from altclip_fast import native, notices
from altclip_fast.embedded import captions, digits, scenes
from altclip_fast.embedded.evaluate import PAIRS
from altclip_fast.models.layers import Linear
from altclip_fast.ops.int8 import Int8Weight
from altclip_fast.quantization import STORED, quantize
from altclip_fast.testing.embeddings import INT8, INT8_LABELS

NAMES = ["embedded", "embedded-clip"]
TEMPLATES = captions.templates("en")


@pytest.fixture(scope="module", params=NAMES)
def both(request):
    return tuple(af.load(request.param, device="cpu", dtype="float32", quantization=q) for q in (None, "int8"))


def centred(x):
    return x - x.mean(0)


def test_embeddings_are_near(both):
    photos = [image[y : y + 200, x : x + 200] for image in load_sample_images().images for y, x in ((0, 0), (150, 300))]
    plain, small = (encoder.encode_image(photos) for encoder in both)
    assert not torch.equal(plain, small)
    assert F.cosine_similarity(centred(plain), centred(small)).min() >= INT8
    texts = [
        "a red circle",
        "two blue stars",
        "a green heart",
        "une étoile verte",
        "a yellow square on a black background",
    ]
    plain, small = (encoder.encode_text(texts) for encoder in both)
    assert F.cosine_similarity(centred(plain), centred(small)).min() >= INT8


def drawings():
    rng = np.random.default_rng(1)
    pictures = [scenes.render(scenes.sample_scene(rng, pairs=[pair], two_objects=0.0), rng) for pair in PAIRS * 4]
    return pictures, [captions.label(*pair, "en") for pair in PAIRS]


def handwriting():
    return [digits.render_digit(image) for image in digits.load(held_out=True)[0]], [
        captions.digit_label(number, "en") for number in range(10)
    ]


@pytest.mark.parametrize("task", [drawings, handwriting])
def test_zero_shot_labels_agree(both, task):
    pictures, names = task()
    best = [[ranked[0]["label"] for ranked in e.classifier(names, TEMPLATES)(pictures, batch_size=200)] for e in both]
    assert len(set(best[0])) > len(names) / 2
    assert np.mean([a == b for a, b in zip(*best, strict=True)]) >= INT8_LABELS


def linears(model):
    """Those of the layers, and the others."""
    towers = (model.text_model.layers, model.vision_model.layers)
    inner = [module for tower in towers for module in tower.modules() if type(module) is Linear]
    return inner, [m for m in model.modules() if type(m) is Linear and not any(m is layer for layer in inner)]


def test_what_is_quantised(both):
    model = both[1].model
    both[1].encode_text(["a"])
    inner, outer = linears(model)
    assert inner and all(layer.weight.dtype is torch.int8 for layer in inner)
    assert outer and all(layer.weight.dtype is torch.float32 for layer in outer)
    assert isinstance(model.text_model.layers[0].mlp.fc1._kept.packed, Int8Weight)
    assert not any(p.requires_grad for p in model.parameters())


def pixels(model):
    return torch.randn(2, 3, *[model.config.vision_config.image_size] * 2, generator=torch.Generator().manual_seed(0))


def test_also_without_no_grad(both):
    """Frozen parameters record nothing: a caller who forgets no_grad gets the same numbers."""
    small = both[1].model
    with torch.no_grad():
        expected = small.get_image_features(pixels(small))
    assert torch.equal(small.get_image_features(pixels(small)), expected)


def test_gradients_for_the_pixels(both):
    """Through the 8-bit weights as floats."""
    small = both[1].model
    x = pixels(small).requires_grad_()
    small.get_image_features(x).square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()


def in_floats(layer, x):
    return F.linear(x, layer.weight * layer.weight_scale[:, None], layer.bias)


@pytest.fixture
def layer():
    layer = Linear(16, 8).eval()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    layer.use_int8()
    layer.bias.requires_grad_(False)
    return layer


def test_where_the_kernel_cannot_run(layer):
    x = torch.randn(3, 16)
    assert not torch.equal(layer(x), in_floats(layer, x))
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), in_floats(layer, x))
    with af.use_backend("reference"):
        torch.testing.assert_close(layer(x), in_floats(layer, x))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x), in_floats(layer, x))


def test_packed_once_whatever_the_factor(layer):
    x = torch.randn(3, 16)
    assert layer.packed(x) is layer.packed(x, 1.7) is layer.packed(x, 1.7)


def test_other_dtypes_keep_the_scale(layer):
    scale = layer.weight_scale.clone()
    layer.to(torch.bfloat16)
    assert layer.bias.dtype is torch.bfloat16 and layer.weight.dtype is torch.int8
    assert torch.equal(layer.weight_scale, scale)
    assert layer(torch.randn(3, 16, dtype=torch.bfloat16)).dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded(both, tmp_path, dtype):
    small = both[1].model
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path, dtype=dtype)
    assert not any(p.requires_grad for p in again.parameters())
    ours, theirs = (model.state_dict() for model in (small, again))
    assert ours.keys() == theirs.keys()
    exact = [name for name in ours if name.endswith("weight_scale") or ours[name].dtype is torch.int8]
    assert exact and all(torch.equal(ours[name], theirs[name]) for name in exact)
    if dtype is torch.float32:
        assert torch.equal(again.get_image_features(pixels(small)), small.get_image_features(pixels(small)))
    kind = af.AltCLIPVisionModel if isinstance(small, af.AltCLIPModel) else af.CLIPVisionModel
    tower = kind.from_pretrained(tmp_path)
    assert torch.equal(tower.state_dict()["layers.0.mlp.fc1.weight"], small.vision_model.layers[0].mlp.fc1.weight)


@pytest.mark.parametrize("found", [None, "portable", "avx2", "avx512", "avx512_bf16", "as it is"])
@pytest.mark.parametrize(
    "options", [{"quantization": "int8"}, {"dtype": "bfloat16"}, {}], ids=["int8", "cpu bf16", "cpu"]
)
def test_a_processor_that_is_slow_at_it_is_told_once(monkeypatch, found, options):
    if found == "as it is":
        found = native.instruction_set()
    monkeypatch.setattr(native, "instruction_set", lambda: found)
    notices.forget()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            af.load("embedded", device="cpu", **options)
    ours = [str(warning.message) for warning in told if "AVX-512" in str(warning.message)]
    assert len(ours) == (bool(options) and found not in (None, "avx512_bf16"))
    assert all(f"{options.get('quantization') or options['dtype']} runs with {found}" in text for text in ours)


def test_the_stored_weights_are_quantised_whatever_the_dtype(both):
    small = af.load(NAMES[isinstance(both[1].model, af.CLIPModel)], device="cpu", dtype="bfloat16", quantization="int8")
    assert small.dtype is torch.bfloat16
    ours, theirs = (linears(model)[0] for model in (small.model, both[1].model))
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(ours, theirs, strict=True))


def test_a_plain_model_of_the_same_configuration_is_saved_as_such(both, tmp_path):
    both[1].model.save_pretrained(tmp_path / "small")
    config = type(both[1].model.config).from_pretrained(tmp_path / "small")
    assert config.quantization_config == STORED
    type(both[1].model)(config).save_pretrained(tmp_path / "plain")
    again = type(both[1].model).from_pretrained(tmp_path / "plain")
    assert all(p.is_floating_point() for p in again.parameters())


@pytest.mark.gpu
def test_refused_on_a_gpu():
    with pytest.raises(ValueError, match=r"runs on the CPU, and .* is on cuda"):
        af.load("embedded", device="cuda", quantization="int8")


def test_refused(tmp_path):
    with pytest.raises(ValueError, match="quantization is 'int3'; None or 'int8' is supported"):
        af.load("embedded", quantization="int3")
    config = af.CLIPVisionConfig(
        hidden_size=6, intermediate_size=10, num_hidden_layers=1, num_attention_heads=1, patch_size=2, image_size=4
    )
    model = af.CLIPVisionModel(config)
    with pytest.raises(ValueError, match="query: rows of 6 numbers are no multiple of 4"):
        quantize(model)
    assert all(p.is_floating_point() for p in model.parameters())
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace("{", '{"quantization_config": {"quant_method": "awq"},', 1))
    with pytest.raises(ValueError, match=r"quantization_config in config\.json is .*awq"):
        af.CLIPVisionModel.from_pretrained(tmp_path)
