"""An accelerated model gives what the untouched one gives, whatever it is asked; and knows what it leaves to it."""

import pytest
import torch

from tests.models import oracle

SIDES = ["right", "left", "both"]


def ids_of(name, **text):
    return {k: v for k, v in oracle.texts(**text).items() if k == "input_ids"}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize("name", oracle.CLASSES)
@torch.no_grad()
def test_every_class(make, encoder_left, name, case, attention):
    twins = make(name, case, attention)
    twins.assert_same(**oracle.inputs_for(oracle.pair(name, case).ours))
    assert not encoder_left()


@pytest.mark.parametrize("asked", [{}, {"output_hidden_states": True}], ids=["pooled", "states"])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", [*oracle.TEXT, *oracle.JOINT])
@torch.no_grad()
def test_padding_and_its_rows(make, name, side, asked):
    for attention in ("sdpa", "eager"):
        twins = make(name, attention=attention)
        twins.assert_same(**oracle.inputs_for(twins.plain, side=side), **asked)


@pytest.mark.parametrize("name", [*oracle.TEXT, *oracle.JOINT])
@torch.no_grad()
def test_masks(make, encoder_left, name):
    twins, inputs = make(name), oracle.inputs_for(make(name).plain)
    mask = inputs.pop("attention_mask")
    length = mask.shape[1]
    twins.assert_same(**inputs)
    for kind in (torch.ones_like(mask), mask.bool(), mask.int(), mask.float()):
        twins.assert_same(**inputs, attention_mask=kind)
    assert not encoder_left()
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    square = (mask[:, None, None, :].bool() & earlier) | torch.eye(length, dtype=torch.bool)
    twins.assert_same(**inputs, attention_mask=square)
    twins.assert_same(**inputs, attention_mask=torch.where(square, 0.0, torch.finfo(torch.float32).min))
    assert not encoder_left()


@pytest.mark.parametrize("name", [*oracle.TEXT, *oracle.JOINT])
@torch.no_grad()
def test_rows_with_nothing_to_attend_to(make, encoder_left, name):
    """A text that is all masked out, and the leading padding of a causal text, are left to transformers' code."""
    for attention in ("sdpa", "eager"):
        twins = make(name, attention=attention)
        inputs = oracle.inputs_for(twins.plain)
        inputs["attention_mask"][1] = 0
        twins.assert_same(**inputs, output_hidden_states=True)
        assert encoder_left()
    left = oracle.inputs_for(twins.plain, side="left")
    twins.assert_same(**left, output_hidden_states=True)
    assert encoder_left() == name.startswith("CLIP")


@torch.no_grad()
def test_a_masked_out_end_of_text(make):
    twins = make("CLIPModel")
    inputs = oracle.inputs_for(twins.plain)
    inputs["attention_mask"][0, 5:] = 0
    twins.assert_same(**inputs)


@pytest.mark.parametrize("name", ["CLIPModel", "CLIPTextModel"])
@torch.no_grad()
def test_the_older_end_of_text(make, name):
    twins = make(name, "eos2")
    twins.assert_same(**oracle.inputs_for(twins.plain))


@pytest.mark.parametrize("name", [*oracle.TEXT, *oracle.JOINT])
@torch.no_grad()
def test_position_ids_and_other_dtypes(make, encoder_left, name):
    twins, inputs = make(name), oracle.inputs_for(make(name).plain)
    places = torch.arange(inputs["input_ids"].shape[1])[None] // 2 + 2
    twins.assert_same(**inputs, position_ids=places)
    twins.assert_same(**{**inputs, "input_ids": inputs["input_ids"].int()})
    if name.startswith("AltCLIP"):
        twins.assert_same(**inputs, token_type_ids=torch.zeros_like(inputs["input_ids"]))
    assert not encoder_left()


@torch.no_grad()
def test_inputs_embeds(make, encoder_left):
    twins, inputs = make("AltCLIPTextModel"), oracle.texts()
    embeds = twins.plain.get_input_embeddings()(inputs.pop("input_ids")) + 0.1
    twins.assert_same(inputs_embeds=embeds, **inputs)
    joint = make("AltCLIPModel")
    oracle.assert_same(
        joint.fast.text_model(inputs_embeds=embeds, **inputs), joint.plain.text_model(inputs_embeds=embeds, **inputs)
    )
    assert not encoder_left()
    for model in (twins.fast, joint.fast.text_model):
        with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
            model(**oracle.texts(), inputs_embeds=embeds)


@pytest.mark.parametrize("name", ["CLIPTextModel", "AltCLIPModel", "CLIPModel"])
@torch.no_grad()
def test_other_keywords_are_left_to_transformers(make, encoder_left, name):
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain, lengths=(6, 6))
    inputs.pop("attention_mask")
    ends = torch.tensor([0, 6, 12], dtype=torch.int32)
    twins.assert_same(**inputs, cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=6, max_length_k=6)
    assert encoder_left()


@pytest.mark.parametrize("wanted", [True, False, 1, 2, -1, [0, 2], [-2], [9]], ids=str)
@pytest.mark.parametrize("name", oracle.CLASSES)
@torch.no_grad()
def test_hidden_states(make, encoder_left, name, wanted):
    twins = make(name)
    twins.assert_same(**oracle.inputs_for(twins.plain), output_hidden_states=wanted)
    assert not encoder_left()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", oracle.CLASSES)
@torch.no_grad()
def test_attentions_then_the_fused_path_again(make, encoder_left, name, attention):
    """The hooks by which transformers records outputs stay on its modules; they are no reason to leave them."""
    twins = make(name, attention=attention)
    inputs = oracle.inputs_for(twins.plain)
    twins.assert_same(**inputs, output_attentions=True, output_hidden_states=True)
    assert encoder_left()
    twins.assert_same(**inputs, output_hidden_states=True)
    twins.assert_same(**inputs)
    assert not encoder_left()


@pytest.mark.parametrize("flag", ["output_hidden_states", "output_attentions"])
@pytest.mark.parametrize("name", oracle.CLASSES)
@torch.no_grad()
def test_the_configuration_asks(make, name, flag):
    twins = make(name, attention="eager")
    for model in twins:
        for module in model.modules():
            if hasattr(module, "config"):
                setattr(module.config, flag, True)
    twins.assert_same(**oracle.inputs_for(twins.plain))


@pytest.mark.parametrize("name", ["AltCLIPModel", "CLIPTextModel", "CLIPVisionModel", "AltCLIPVisionModel"])
@torch.no_grad()
def test_the_configuration_wants_tuples(make, name):
    twins = make(name)
    for model in twins:
        model.config.return_dict = False
    twins.assert_same(**oracle.inputs_for(twins.plain))


@pytest.mark.parametrize("name", oracle.CLASSES)
@torch.no_grad()
def test_tuples(make, name):
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain)
    found, wanted = (model(**inputs, return_dict=False) for model in twins)
    assert oracle.structure(found) == oracle.structure(wanted)
    oracle.assert_same(found, wanted)
    oracle.assert_same(twins.fast(**inputs).to_tuple(), wanted)


@pytest.mark.parametrize("name", oracle.JOINT)
@pytest.mark.parametrize("asked", [{}, {"return_dict": False}, {"output_hidden_states": True}], ids=str)
@torch.no_grad()
def test_features(make, encoder_left, name, asked):
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain)
    pixels = inputs.pop("pixel_values")
    oracle.assert_same(
        twins.fast.get_text_features(**inputs, **asked), twins.plain.get_text_features(**inputs, **asked)
    )
    oracle.assert_same(*(model.get_image_features(pixels, **asked) for model in twins))
    assert not encoder_left()


@pytest.mark.parametrize("name", [*oracle.VISION, *oracle.JOINT])
@torch.no_grad()
def test_interpolated_positions(make, encoder_left, name):
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain)
    inputs["pixel_values"] = torch.randn(3, 3, 42, 37)
    twins.assert_same(**inputs, interpolate_pos_encoding=True)
    assert not encoder_left()
    with pytest.raises(ValueError, match="doesn't match model"):
        twins.fast(**inputs)


@pytest.mark.parametrize("case", ["odd", "regression", "labels5", "labels0"])
@torch.no_grad()
def test_labels(make, case):
    twins = make("CLIPForImageClassification", case)
    labels = {"odd": [0, 1, 1], "regression": [0.5, 2.0, -1.0], "labels5": [4, 0, 2]}.get(case)
    given = {} if labels is None else {"labels": torch.tensor(labels)}
    twins.assert_same(oracle.pixels(twins.plain), **given)


@pytest.mark.parametrize("name", oracle.JOINT)
@torch.no_grad()
def test_loss(make, name):
    twins = make(name)
    twins.assert_same(**oracle.inputs_for(twins.plain), return_loss=True)


@pytest.mark.parametrize("name", oracle.JOINT)
@torch.no_grad()
def test_joint_models_pool_first(make, tower_left, name):
    """Padding and what follows the pooled token are computed when they are read, and not before."""
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain)
    output = twins.fast(**inputs)
    read = (output.logits_per_image, output.text_model_output.pooler_output, output.text_model_output[1])
    inputs.pop("pixel_values")
    read += (twins.fast.get_text_features(**inputs).pooler_output,)
    assert all(isinstance(tensor, torch.Tensor) for tensor in read) and not tower_left()
    assert output.text_model_output.last_hidden_state is not None and tower_left()


def embeddings(model, inputs):
    """(text, image) in float64 without the batch's mean, which is most of what random models give."""
    output = model(**inputs)
    found = [x.double() for x in (output.text_embeds, output.image_embeds)]
    return [x - x.mean(0) for x in found]


@pytest.mark.parametrize("name", oracle.JOINT)
@torch.no_grad()
def test_other_precisions(make, encoder_left, name):
    """No further from the truth than transformers in that dtype: 1.5 times its error in bfloat16."""
    inputs = oracle.inputs_for(make(name).plain, lengths=tuple(3 + i * 5 % 13 for i in range(32)))
    inputs["pixel_values"] = oracle.pixels(make(name).plain, batch=32)
    truth = embeddings(make(name, dtype=torch.float64).plain, inputs)
    for dtype in (torch.bfloat16, torch.float16):
        twins = make(name, dtype=dtype)
        for ours, theirs, true in zip(*(embeddings(model, inputs) for model in twins), truth, strict=True):
            assert (ours - true).norm() <= 1.5 * (theirs - true).norm()
    make(name, dtype=torch.float64).assert_same(**inputs)
    assert not encoder_left()
