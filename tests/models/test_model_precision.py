"""Models in bfloat16 and float16, conversions, and autocast, against transformers doing the same."""

import copy

import pytest
import torch
from oracle import CASES, CLASSES, JOINT, TEXT, assert_close, assert_same, inputs_for, pair, pixels, texts

import altclip_fast as af

LENGTHS = tuple(3 + i * 5 % 13 for i in range(32))


def embeddings(model, inputs):
    """(text, image) in float32 without the batch's mean, which is most of what random models give."""
    output = model(**inputs)
    found = [x.float() for x in (output.text_embeds, output.image_embeds)]
    return [x - x.mean(0) for x in found]


def many(model):
    return {**texts(LENGTHS), "pixel_values": pixels(model, batch=len(LENGTHS))}


def rms(x):
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", JOINT)
def test_low_precision_is_no_worse_than_transformers(name, case):
    """Root mean square error against float32 of 32 texts and images: 1.5 times transformers' in bfloat16."""
    found = pair(name, case)
    inputs = many(found.ours)
    with torch.no_grad():
        truth = embeddings(found.theirs, inputs)
        theirs = embeddings(copy.deepcopy(found.theirs).bfloat16(), inputs)
        for dtype, allowed in ((torch.bfloat16, 1.5), (torch.float16, 0.5)):
            ours = embeddings(copy.deepcopy(found.ours).to(dtype), inputs)
            for kind, a, b, t in zip(("text", "image"), ours, theirs, truth, strict=True):
                assert rms(a - t) <= allowed * rms(b - t), f"{kind} in {dtype}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", JOINT)
def test_autocast_is_no_worse_than_transformers(name, dtype):
    found = pair(name)
    inputs = many(found.ours)
    with torch.no_grad():
        truth = embeddings(found.theirs, inputs)
        with torch.autocast("cpu", dtype):
            ours, theirs = embeddings(found.ours, inputs), embeddings(found.theirs, inputs)
    for kind, a, b, t in zip(("text", "image"), ours, theirs, truth, strict=True):
        assert 0 < rms(a - t) <= 1.5 * rms(b - t), kind


@pytest.mark.parametrize("options", [{}, {"output_hidden_states": True}], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_late_fields_are_those_of_autocast(name, options):
    """Read after the block, they have the values that they would have had inside it."""
    model, inputs = pair(name).ours, inputs_for(pair(name).ours)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            output = model(**inputs, **options)
            inside = model(**inputs, **options).to_tuple()
        outside = output.to_tuple()
        plain = model(**inputs, **options).to_tuple()
    a, b, c = (torch.utils._pytree.tree_leaves(x) for x in (outside, inside, plain))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(torch.equal(x.float(), y.float()) for x, y in zip(a, c, strict=True)), "autocast did nothing"


@pytest.mark.parametrize("name", JOINT)
def test_training_under_autocast(name):
    """Losses and gradients of float32 parameters, as near to float32 as transformers' are."""
    found = pair(name).copy()
    inputs, losses, flat = inputs_for(found.ours), [], []
    for model, cast in ((found.theirs, False), (found.theirs, True), (found.ours, True)):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            loss = model.train()(**inputs, return_loss=True).loss
        loss.backward()
        losses.append(loss.item())
        grads = [p.grad.norm() for p in model.parameters()]
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
        flat.append(torch.stack(grads).norm().item())
    assert abs(losses[2] - losses[0]) <= 3 * abs(losses[1] - losses[0]) + 0.05 * losses[0]
    assert abs(flat[2] - flat[0]) <= 0.1 * flat[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", CLASSES)
def test_every_field_has_the_dtype_of_the_model(name, dtype):
    """And the path that computes everything agrees with transformers up to that dtype's rounding."""
    found = pair(name).copy()
    ours, theirs = found.ours.to(dtype), found.theirs.to(dtype)
    inputs = inputs_for(ours)
    options = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        for output in (ours(**inputs), ours(**inputs, **options)):
            assert {x.dtype for x in torch.utils._pytree.tree_leaves(output)} == {dtype}
        if dtype is torch.float64:
            assert_same(ours(**inputs, **options), theirs(**inputs, **options), inputs.get("attention_mask"))
    assert ours.dtype == dtype and {p.dtype for p in ours.parameters()} == {dtype}


@pytest.mark.parametrize("name", CLASSES)
def test_conversions(name):
    model, inputs = copy.deepcopy(pair(name).ours), inputs_for(pair(name).ours)
    for convert, dtype in (
        (lambda m: m.half(), torch.float16),
        (lambda m: m.bfloat16(), torch.bfloat16),
        (lambda m: m.double(), torch.float64),
        (lambda m: m.to("cpu", torch.float32), torch.float32),
    ):
        assert convert(model) is model and model.dtype == dtype
        with torch.no_grad():
            assert model(**inputs, return_dict=False)[0].isfinite().all()


@pytest.mark.parametrize("name", JOINT)
def test_the_dtype_of_loading(name, tmp_path):
    found, inputs = pair(name), inputs_for(pair(name).ours)
    converted = copy.deepcopy(found.ours).bfloat16()
    for asked in ({"dtype": torch.bfloat16}, {"dtype": "bfloat16"}, {"torch_dtype": torch.bfloat16}):
        loaded = getattr(af, name).from_pretrained(found.folder, **asked)
        with torch.no_grad():
            assert torch.equal(loaded(**inputs).logits_per_text, converted(**inputs).logits_per_text)
    converted.save_pretrained(tmp_path)
    for asked in ({}, {"dtype": "auto"}, {"dtype": None}):
        assert getattr(af, name).from_pretrained(tmp_path, **asked).dtype == torch.bfloat16
    assert getattr(af, name).from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TEXT[:2])
def test_masks_of_another_dtype_than_the_model(name, dtype):
    """A float32 mask of four dimensions serves a model in lower precision, and a float mask any model."""
    model, words = copy.deepcopy(pair(name).ours).to(dtype), texts()
    seen = words["attention_mask"].bool()[:, None, None, :].expand(-1, 1, 11, -1)
    seen = seen if name == "AltCLIPTextModel" else seen.tril()
    with torch.no_grad():
        expected = model(words["input_ids"], seen).pooler_output
        added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        assert_close(model(words["input_ids"], added).pooler_output.float(), expected.float(), "additive")
        left = texts(side="left")  # a causal mask leaves nothing to look at there, and the least float32 overflows
        none = left["attention_mask"].bool()[:, None, None, :].expand(-1, 1, 11, -1).tril()
        added = torch.zeros(none.shape).masked_fill(~none, torch.finfo(torch.float32).min)
        for options in ({}, {"output_attentions": True}):
            assert model(left["input_ids"], added, **options).last_hidden_state.isfinite().all()
        assert torch.equal(
            model(words["input_ids"], words["attention_mask"].double()).pooler_output,
            model(**words).pooler_output,
        )


@pytest.mark.parametrize("name", JOINT)
def test_interpolated_positions_in_low_precision(name):
    found, images = pair(name).copy(), torch.randn(8, 3, 42, 24)
    with torch.no_grad():
        truth = found.theirs.get_image_features(images, interpolate_pos_encoding=True).pooler_output
        theirs = found.theirs.bfloat16().get_image_features(images, interpolate_pos_encoding=True).pooler_output
        ours = found.ours.bfloat16().get_image_features(images, interpolate_pos_encoding=True)
    assert rms(ours.float() - truth) <= 1.5 * rms(theirs.float() - truth)
