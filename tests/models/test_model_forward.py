"""Every class against transformers: every hidden state in order, the outputs, what callers may ask for."""

import copy
import inspect

import pytest
import torch
from oracle import (
    CASES,
    CLASSES,
    JOINT,
    TEXT,
    VISION,
    assert_close,
    assert_same,
    inputs_for,
    pair,
    pixels,
    structure,
    texts,
)

import altclip_fast as af

HIDDEN_STATES = [False, True, 0, 1, -1, [0, -1], [-2, 1], [99], (0, 1), []]


def both(found, /, **options):
    """Our output, transformers', and the texts' mask, of one batch."""
    inputs = {**inputs_for(found.ours), **options}
    with torch.no_grad():
        return found.ours(**inputs), found.theirs(**inputs), inputs.get("attention_mask")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", CLASSES)
def test_every_output_of_every_class(name, case):
    assert_same(*both(pair(name, case), output_hidden_states=True, output_attentions=True))


@pytest.mark.parametrize("name", CLASSES)
def test_packed_rows_give_the_same(name):
    """Without attentions nothing keeps the texts padded, and sequences are computed when they are read."""
    assert_same(*both(pair(name)))
    assert_same(*both(pair(name), output_hidden_states=True))


@pytest.mark.parametrize("asked", HIDDEN_STATES, ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_output_hidden_states_takes_indices(name, asked):
    assert_same(*both(pair(name), output_hidden_states=asked))


@pytest.mark.parametrize("name", CLASSES)
def test_return_dict_false_gives_transformers_tuples(name):
    options = {"return_dict": False, "output_hidden_states": True, "output_attentions": True}
    ours, theirs, _ = both(pair(name), **options)
    assert type(ours) is tuple
    assert structure(ours) == structure(theirs)
    ours, theirs, _ = both(pair(name), return_dict=False)
    assert structure(ours) == structure(theirs)


@pytest.mark.parametrize("name", CLASSES)
def test_the_configuration_chooses_what_the_call_leaves_open(name):
    """Ours alone: most classes of transformers fail when their configuration says return_dict=False."""
    model, theirs, inputs = copy.deepcopy(pair(name).ours), pair(name).theirs, inputs_for(pair(name).ours)
    model.config.output_hidden_states, model.config.return_dict = True, False
    for part in ("text_config", "vision_config"):
        if hasattr(model.config, part):
            getattr(model.config, part).output_hidden_states = True
    kept = inputs.get("attention_mask")
    with torch.no_grad():
        every = theirs(**inputs, output_hidden_states=True)
        assert structure(model(**inputs)) == structure(every.to_tuple())
        assert_same(model(**inputs, return_dict=True), every, kept)
        assert_same(model(**inputs, return_dict=True, output_hidden_states=False), theirs(**inputs), kept)


@pytest.mark.parametrize("name", JOINT)
def test_loss_and_logits_of_pairs(name):
    ours, theirs, kept = both(pair(name), return_loss=True)
    assert ours.loss.shape == ()
    assert_same(ours, theirs, kept)


@pytest.mark.parametrize("name", JOINT)
def test_unequal_numbers_of_texts_and_images(name):
    ours, theirs, kept = both(pair(name), pixel_values=pixels(pair(name).ours, batch=2))
    assert ours.logits_per_image.shape == (2, 3)
    assert_same(ours, theirs, kept)


@pytest.mark.parametrize("name", CLASSES)
def test_batch_of_one(name):
    inputs = {key: value[:1] for key, value in inputs_for(pair(name).ours).items()}
    assert_same(*both(pair(name), **inputs, output_hidden_states=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", JOINT)
def test_features_are_the_projected_pooled_outputs(name, case):
    found = pair(name, case)
    words, images = texts(), pixels(found.ours)
    with torch.no_grad():
        assert_close(
            found.ours.get_text_features(**words),
            found.theirs.get_text_features(**words).pooler_output,
            "text",
        )
        assert_close(
            found.ours.get_image_features(images),
            found.theirs.get_image_features(images).pooler_output,
            "image",
        )


@pytest.mark.parametrize("name", JOINT)
def test_features_take_the_older_arguments_and_stay_tensors(name):
    model = pair(name).ours
    older = {"output_attentions": True, "output_hidden_states": True, "return_dict": False}
    with torch.no_grad():
        assert torch.equal(model.get_text_features(**texts(), **older), model.get_text_features(**texts()))
        images = pixels(model)
        assert torch.equal(model.get_image_features(images, **older), model.get_image_features(images))


@pytest.mark.parametrize("name", JOINT)
def test_features_of_positions_and_types(name):
    found = pair(name)
    words = texts()
    words["position_ids"] = torch.randint(2, 11, words["input_ids"].shape)
    if name == "AltCLIPModel":
        words["token_type_ids"] = torch.zeros_like(words["input_ids"])
    with torch.no_grad():
        assert_close(
            found.ours.get_text_features(**words),
            found.theirs.get_text_features(**words).pooler_output,
            "text",
        )


@pytest.mark.parametrize("name", TEXT)
def test_the_pooled_path_equals_the_whole_one(name):
    """`pooled` computes one row of the last layer; the two may differ by rounding only."""
    model = pair(name).ours
    tower = getattr(model, "text_model", model)
    for side in ("right", "left", "both"):
        words = texts(side=side)
        with torch.no_grad():
            assert_close(tower.pooled(**words), tower(**words, output_hidden_states=True).pooler_output, side)


SIZES = [(30, 30), (36, 36), (42, 24), (24, 42), (150, 6), (30, 31), (33, 35), (6, 6)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", (*VISION, "AltCLIPModel"))
def test_images_of_other_sizes(name, size):
    images = torch.randn(2, 3, *size)
    assert_same(*both(pair(name), pixel_values=images, interpolate_pos_encoding=True, output_hidden_states=True))


@pytest.mark.parametrize("name", JOINT)
def test_features_of_images_of_other_sizes(name):
    found, images = pair(name), torch.randn(2, 3, 42, 24)
    with torch.no_grad():
        theirs = found.theirs.get_image_features(images, interpolate_pos_encoding=True).pooler_output
        assert_close(found.ours.get_image_features(images, interpolate_pos_encoding=True), theirs, "image")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8, torch.int64])
@pytest.mark.parametrize("name", ["AltCLIPVisionModel", "CLIPModel"])
def test_pixels_are_cast_to_the_dtype_of_the_weights(name, dtype):
    images = (pixels(pair(name).ours).abs() * 40).to(dtype)
    assert_same(*both(pair(name), pixel_values=images))


@pytest.mark.parametrize("name", CLASSES)
def test_inputs_may_be_views(name):
    """Not contiguous, and expanded along the batch."""
    strided = {
        key: value.transpose(0, 1).contiguous().transpose(0, 1) for key, value in inputs_for(pair(name).ours).items()
    }
    assert not any(value.is_contiguous() for value in strided.values())
    assert_same(*both(pair(name), **strided))
    expanded = {key: value[:1].expand(3, *value.shape[1:]) for key, value in inputs_for(pair(name).ours).items()}
    assert_same(*both(pair(name), **expanded))


DOCUMENTED = {
    "AltCLIPModel": [
        "input_ids",
        "pixel_values",
        "attention_mask",
        "position_ids",
        "token_type_ids",
        "return_loss",
        "output_attentions",
        "output_hidden_states",
        "interpolate_pos_encoding",
        "return_dict",
    ],
    "AltCLIPTextModel": [
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "position_ids",
        "inputs_embeds",
        "output_attentions",
        "return_dict",
        "output_hidden_states",
    ],
    "AltCLIPVisionModel": [
        "pixel_values",
        "output_attentions",
        "output_hidden_states",
        "interpolate_pos_encoding",
        "return_dict",
    ],
    "CLIPModel": [
        "input_ids",
        "pixel_values",
        "attention_mask",
        "position_ids",
        "return_loss",
        "interpolate_pos_encoding",
    ],
    "CLIPTextModel": ["input_ids", "attention_mask", "position_ids"],
    "CLIPTextModelWithProjection": ["input_ids", "attention_mask", "position_ids"],
    "CLIPVisionModel": ["pixel_values", "interpolate_pos_encoding"],
    "CLIPVisionModelWithProjection": ["pixel_values", "interpolate_pos_encoding"],
    "CLIPForImageClassification": ["pixel_values", "labels"],
}


@pytest.mark.parametrize("name", CLASSES)
def test_arguments_are_in_the_documented_order(name):
    """The lists are those of the documentation of AltCLIP and CLIP; what we add comes after them."""
    parameters = list(inspect.signature(getattr(af, name).forward).parameters)[1:]
    assert parameters[: len(DOCUMENTED[name])] == DOCUMENTED[name]
    assert {"output_attentions", "output_hidden_states", "return_dict"} <= set(parameters)


@pytest.mark.parametrize("name", (*TEXT, *VISION[:3]))
def test_input_embeddings_are_those_of_transformers(name):
    found = pair(name)
    theirs = found.theirs.get_input_embeddings().weight
    assert_close(found.ours.get_input_embeddings().weight, theirs, "embedding")


@pytest.mark.parametrize("name", TEXT)
def test_other_input_embeddings_are_used(name):
    found = pair(name).copy()
    for model in (found.ours, found.theirs):
        old = model.get_input_embeddings()
        new = torch.nn.Embedding(120, old.embedding_dim, old.padding_idx)
        torch.nn.init.normal_(new.weight, generator=torch.Generator().manual_seed(6))
        model.set_input_embeddings(new)
        assert model.get_input_embeddings() is new
    ids = texts()["input_ids"]
    ids[0, 1] = 119
    assert_same(*both(found, input_ids=ids))
    ids[0, 1] = 120
    with pytest.raises(ValueError, match="input_ids contains 120; the vocabulary allows 0 to 119"):
        found.ours(ids)
