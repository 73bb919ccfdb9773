"""Bad inputs: each is a ValueError or a TypeError of ours, which names the input and says what is allowed."""

import copy

import numpy as np
import pytest
import torch
from oracle import CLASSES, EOS, JOINT, LONGEST, PAD, TEXT, VISION, inputs_for, pair, pixels, texts

import altclip_fast as af

WORDS = texts()
IDS, MASK = WORDS["input_ids"], WORDS["attention_mask"]
ALL_TEXT = (*TEXT, *JOINT)
ALL_VISION = (*VISION, *JOINT)
ALT = ("AltCLIPTextModel", "AltCLIPModel")


TEXT_INPUTS = {"input_ids", "attention_mask", "position_ids", "token_type_ids"}


def refuse(name, kind, message, **wrong):
    """The call fails with exactly this kind of error; so do the features and the pooled path of the class."""
    model = pair(name).ours
    given = {key: value for key, value in {**inputs_for(model), **wrong}.items() if value is not OMIT}
    words = {key: given[key] for key in given.keys() & TEXT_INPUTS}
    images = {"pixel_values": given.get("pixel_values")}
    calls = [lambda: model(**given)]
    if wrong.keys() <= TEXT_INPUTS:
        calls += [lambda: model.get_text_features(**words)] if name in JOINT else []
        calls += [lambda: model.pooled(**words)] if hasattr(model, "pooled") else []
    elif wrong.keys() == {"pixel_values"}:
        calls += [lambda: model.get_image_features(**images)] if name in JOINT else []
        calls += [lambda: model.pooled(**images)] if hasattr(model, "pooled") else []
    for call in calls:
        with torch.no_grad(), pytest.raises((ValueError, TypeError), match=message) as caught:
            call()
        assert caught.type is kind, f"{caught.type.__name__}: {caught.value}"


OMIT = object()


@pytest.mark.parametrize("name", ALL_TEXT)
def test_no_ids(name):
    refuse(name, ValueError, "input_ids", input_ids=OMIT, attention_mask=OMIT)
    refuse(name, ValueError, "input_ids", input_ids=None)


@pytest.mark.parametrize("name", ALL_VISION)
def test_no_pixels(name):
    refuse(name, ValueError, "pixel_values", pixel_values=None)


def test_ids_and_embeddings():
    message = "exactly one of input_ids or inputs_embeds"
    refuse("AltCLIPTextModel", ValueError, message, inputs_embeds=torch.zeros(3, 11, 80))


NOT_TENSORS = {
    "list": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "tuple": lambda x: tuple(x),
    "text": lambda x: "a cat",
}


@pytest.mark.parametrize("kind", NOT_TENSORS)
@pytest.mark.parametrize("name", CLASSES)
def test_what_is_no_tensor(name, kind):
    for key, value in inputs_for(pair(name).ours).items():
        wrong = NOT_TENSORS[kind](value)
        refuse(name, TypeError, rf"{key} must be a Tensor, not {type(wrong).__name__}", **{key: wrong})


@pytest.mark.parametrize("key", ["position_ids", "token_type_ids", "inputs_embeds"])
def test_other_inputs_that_are_no_tensors(key):
    given = {"input_ids": None} if key == "inputs_embeds" else {}
    refuse(
        "AltCLIPTextModel",
        TypeError,
        f"{key} must be a Tensor, not ndarray",
        **given,
        **{key: np.zeros((3, 11))},
    )


@pytest.mark.parametrize("name", CLASSES)
def test_another_device(name):
    for key, value in inputs_for(pair(name).ours).items():
        refuse(name, ValueError, f"{key} is on meta, the model on cpu", **{key: value.to("meta")})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8, torch.int16, torch.complex64], ids=str)
@pytest.mark.parametrize("name", ALL_TEXT)
def test_dtypes_of_ids(name, dtype):
    refuse(name, TypeError, rf"input_ids has dtype {str(dtype)[6:]}; int64 or int32", input_ids=IDS.to(dtype))
    refuse(
        name,
        TypeError,
        rf"position_ids has dtype {str(dtype)[6:]}",
        position_ids=torch.ones_like(IDS).to(dtype),
    )


@pytest.mark.parametrize("name", ALL_TEXT)
def test_ids_out_of_range(name):
    for wrong in (-1, 99, -(2**40), 2**40):
        ids = IDS.clone()
        ids[1, 2] = wrong
        refuse(name, ValueError, rf"input_ids contains {wrong}; the vocabulary allows 0 to 98", input_ids=ids)
    ids = IDS.int()
    ids[2, 0] = 2**31 - 1
    refuse(name, ValueError, "input_ids contains 2147483647", input_ids=ids)


@pytest.mark.parametrize("name", ALL_TEXT)
def test_ids_out_of_range_that_are_masked(name):
    """Not looked at, and still an error: on a GPU such an id kills the process."""
    ids = IDS.clone()
    ids[1, 10] = 99
    refuse(name, ValueError, "input_ids contains 99", input_ids=ids)


@pytest.mark.parametrize("name", ALL_TEXT)
def test_positions_out_of_range(name):
    for wrong in (-1, LONGEST + 2):
        limit = LONGEST + 1 if name in ALT else LONGEST - 1
        positions = torch.full_like(IDS, 3)
        positions[0, 0] = wrong
        message = rf"position_ids contains {wrong}; max_position_embeddings allows 0 to {limit}"
        refuse(name, ValueError, message, position_ids=positions)


@pytest.mark.parametrize("name", ALT)
def test_token_types_out_of_range(name):
    for wrong in (-1, 1):
        types = torch.zeros_like(IDS)
        types[2, 1] = wrong
        refuse(
            name,
            ValueError,
            rf"token_type_ids contains {wrong}; type_vocab_size allows 0 to 0",
            token_type_ids=types,
        )


@pytest.mark.parametrize("name", ALL_TEXT)
def test_shapes_of_positions_and_types(name):
    for key in ("position_ids", "token_type_ids") if name in ALT else ("position_ids",):
        for shape in ((3, 10), (2, 11), (11,), (3, 11, 1), (3, 12)):
            refuse(
                name,
                ValueError,
                rf"{key} has shape .*; \[3, 11\] is needed",
                **{key: torch.zeros(shape, dtype=torch.int64)},
            )


@pytest.mark.parametrize("name", ALL_TEXT)
def test_ranks_of_ids(name):
    refuse(
        name,
        ValueError,
        r"input_ids has shape \[\]; \[batch, length\]",
        input_ids=torch.tensor(3),
        attention_mask=OMIT,
    )
    if name in ALT:
        for ids in (IDS[0], IDS[None]):
            refuse(
                name,
                ValueError,
                r"input_ids has shape .*; \[batch, length\]",
                input_ids=ids,
                attention_mask=OMIT,
            )


@pytest.mark.parametrize("name", ALL_TEXT)
def test_texts_without_tokens(name):
    empty = torch.zeros(3, 0, dtype=torch.int64)
    refuse(name, ValueError, "at least one token", input_ids=empty, attention_mask=empty)
    refuse(name, ValueError, "at least one token", input_ids=empty, attention_mask=OMIT)


@pytest.mark.parametrize("name", ALT)
def test_a_text_of_padding_alone(name):
    ids = IDS.clone()
    ids[1] = PAD
    refuse(name, ValueError, r"input_ids of text 1 are all padding \(id 1\)", input_ids=ids)
    refuse(name, ValueError, r"input_ids of text 1 are all padding \(id 1\)", input_ids=ids, attention_mask=OMIT)


@pytest.mark.parametrize("name", ALL_TEXT)
def test_a_mask_of_zeros(name):
    mask = MASK.clone()
    mask[2] = 0
    for dtype in (torch.int64, torch.bool, torch.float32):
        refuse(name, ValueError, "attention_mask of text 2 is all zeros", attention_mask=mask.to(dtype))


@pytest.mark.parametrize("shape", [(3, 10), (2, 11), (11,), (3, 11, 11), (1, 11), (3, 12)], ids=str)
@pytest.mark.parametrize("name", ALL_TEXT)
def test_shapes_of_masks(name, shape):
    refuse(name, ValueError, r"attention_mask has shape .*\[3, 11\]", attention_mask=torch.ones(shape))


@pytest.mark.parametrize(
    "shape", [(2, 1, 11, 11), (3, 1, 11, 10), (3, 1, 10, 11), (3, 4, 11, 11), (3, 1, 11, 1)], ids=str
)
@pytest.mark.parametrize("name", ALL_TEXT)
def test_shapes_of_masks_of_four_dimensions(name, shape):
    refuse(name, ValueError, r"attention_mask has shape .*\[3, 1, 11, 11\]", attention_mask=torch.ones(shape))


@pytest.mark.parametrize("name", ALL_TEXT)
def test_texts_that_are_too_long(name):
    words = texts((LONGEST + 1, 4))
    refuse(name, ValueError, rf"{LONGEST + 1}.*{LONGEST}", **words)


@pytest.mark.parametrize("name", ALT)
def test_only_real_tokens_count_for_xlm_roberta(name):
    """Padding has one position, however much of it there is."""
    words = texts((LONGEST, 4), longest=3 * LONGEST)
    found = pair(name)
    more = {"pixel_values": pixels(found.ours, 2)} if name in JOINT else {}
    with torch.no_grad():
        assert found.ours(**words, **more)[0].isfinite().all()


def test_embeddings_that_are_too_long_or_misshapen():
    refuse(
        "AltCLIPTextModel",
        ValueError,
        f"{LONGEST + 1}.*{LONGEST}",
        input_ids=OMIT,
        attention_mask=OMIT,
        inputs_embeds=torch.zeros(2, LONGEST + 1, 80),
    )
    for shape in ((2, 5, 79), (5, 80), (2, 0, 80), (2, 1, 5, 80)):
        refuse(
            "AltCLIPTextModel",
            ValueError,
            r"inputs_embeds has shape .*\[batch, length, 80\]",
            input_ids=OMIT,
            attention_mask=OMIT,
            inputs_embeds=torch.zeros(shape),
        )
    for dtype in (torch.int64, torch.bool, torch.complex64):
        refuse(
            "AltCLIPTextModel",
            TypeError,
            "inputs_embeds has dtype",
            input_ids=OMIT,
            attention_mask=OMIT,
            inputs_embeds=torch.zeros(2, 5, 80, dtype=dtype),
        )


@pytest.mark.parametrize("name", ALL_VISION)
def test_image_sizes(name):
    for height, width in ((30, 29), (36, 36), (15, 60)):
        message = rf"Input image size \({height}\*{width}\) doesn't match model \(30\*30\)"
        refuse(name, ValueError, message, pixel_values=torch.zeros(3, 3, height, width))
    for height, width in ((5, 30), (30, 0)):
        refuse(name, ValueError, r"Input image size .*", pixel_values=torch.zeros(3, 3, height, width))
    model = pair(name).ours
    inputs = {**inputs_for(model), "pixel_values": torch.zeros(3, 3, 5, 30), "interpolate_pos_encoding": True}
    with pytest.raises(ValueError, match=r"Input image size \(5\*30\) is smaller than a patch of 6"):
        model(**inputs)


@pytest.mark.parametrize(
    "shape", [(3, 1, 30, 30), (3, 4, 30, 30), (3, 30, 30), (3, 30, 30, 3), (1, 3, 3, 30, 30), ()], ids=str
)
@pytest.mark.parametrize("name", ALL_VISION)
def test_channels_and_ranks_of_images(name, shape):
    refuse(name, ValueError, r"pixel_values has shape .*\[batch, 3, 30, 30\]", pixel_values=torch.zeros(shape))


@pytest.mark.parametrize("name", JOINT)
def test_a_loss_needs_pairs(name):
    message = "return_loss needs as many texts as images.*3 texts and 2 images"
    refuse(name, ValueError, message, return_loss=True, pixel_values=pixels(pair(name).ours, 2))
    model = pair(name).ours
    with pytest.raises(ValueError, match="at least one pair"):
        model(input_ids=IDS[:0], pixel_values=pixels(model, 1)[:0], return_loss=True)


@pytest.mark.parametrize("name", CLASSES)
def test_unknown_arguments(name):
    for wrong in ("use_cache", "head_mask", "labels" if name != "CLIPForImageClassification" else "label"):
        with pytest.raises(TypeError, match=wrong):
            pair(name).ours(**inputs_for(pair(name).ours), **{wrong: True})


@pytest.mark.parametrize("asked", ["all", [0.5], ["0"], 1.0, [None]], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_what_output_hidden_states_is_not(name, asked):
    refuse(
        name,
        TypeError,
        "output_hidden_states is .*bool, an int or a list of ints",
        output_hidden_states=asked,
    )


WRONG_LABELS = {
    "list": ("odd", TypeError, [0, 1, 1], "labels must be a Tensor, not list"),
    "too few": ("odd", ValueError, torch.tensor([0, 1]), r"labels has shape \[2\]; 3 classes"),
    "a class too many": ("odd", ValueError, torch.tensor([0, 1, 2]), "labels contains 2; classes are 0 to 1"),
    "negative": ("labels5", ValueError, torch.tensor([0, -1, 2]), "labels contains -1; classes are 0 to 4"),
    "numbers for several": ("labels5", ValueError, torch.rand(3), r"labels has shape \[3\]; \[3, 5\]"),
    "several for one number": (
        "regression",
        ValueError,
        torch.rand(3, 2),
        r"labels has shape \[3, 2\]; \[3, 1\]",
    ),
}


@pytest.mark.parametrize("kind", WRONG_LABELS)
def test_wrong_labels(kind):
    case, error, labels, message = WRONG_LABELS[kind]
    model = copy.deepcopy(pair("CLIPForImageClassification", case).ours)
    with pytest.raises(error, match=message):
        model(pixels(model), labels=labels)


def test_labels_that_are_no_classes():
    model = copy.deepcopy(pair("CLIPForImageClassification", "labels5").ours)
    model.config.problem_type = "single_label_classification"
    with pytest.raises(TypeError, match="labels has dtype float32; classes are integers"):
        model(pixels(model), labels=torch.tensor([0.0, 1.0, 2.0]))


@pytest.mark.parametrize("name", CLASSES)
def test_an_empty_batch_gives_empty_results(name):
    model = pair(name).ours
    inputs = {key: value[:0] for key, value in inputs_for(model).items()}
    with torch.no_grad():
        for options in ({}, {"output_hidden_states": True, "output_attentions": True}):
            output = model(**inputs, **options)
            assert all(0 in leaf.shape for leaf in torch.utils._pytree.tree_leaves(output))
        width = model.config.projection_dim if name in JOINT else 0
        if name in JOINT:
            words = {key: value for key, value in inputs.items() if key != "pixel_values"}
            assert model.get_text_features(**words).shape == (0, width)
            assert model.get_image_features(inputs["pixel_values"]).shape == (0, width)
            assert output.logits_per_image.shape == (0, 0)
            some = model(**texts(), pixel_values=inputs["pixel_values"])
            assert some.logits_per_text.shape == (3, 0)


@pytest.mark.parametrize("name", CLASSES)
def test_another_configuration(name):
    cls, other = type(pair(name).ours), "CLIPModel" if name.startswith("AltCLIP") else "AltCLIPModel"
    for wrong in (pair(other).ours.config, pair(name).theirs.config, {}, None):
        message = f"{name} takes a {cls.config_class.__name__}, not a {type(wrong).__name__}"
        with pytest.raises(TypeError, match=message):
            cls(wrong)
    with pytest.raises(TypeError):
        cls.from_pretrained(pair(name).folder, config={})


REFUSED = {
    "quantization": (ValueError, {"quantization": "fp8"}, "quantization is 'fp8'; None or 'int8' is supported"),
    "quantization_config": (ValueError, {"quantization_config": object()}, "quantization_config .*not supported"),
    "attention": (
        ValueError,
        {"attn_implementation": "flash_attention_2"},
        "attn_implementation is 'flash_attention_2'",
    ),
    "dtype": (ValueError, {"dtype": "float12"}, "dtype is 'float12'"),
    "dtype of ints": (ValueError, {"dtype": torch.int8}, "dtype is torch.int8"),
    "kind of dtype": (TypeError, {"dtype": 16}, "dtype is 16"),
    "torch_dtype": (ValueError, {"torch_dtype": "int8"}, "dtype is"),
    "device": (ValueError, {"device": "tpu9"}, "device is 'tpu9'"),
    "kind of device": (ValueError, {"device": 1.5}, "device is 1.5"),
    "device_map": (
        ValueError,
        {"device_map": {"text_model": "cpu", "vision_model": "cpu"}},
        "device_map is .*one device",
    ),
    "name of a device_map": (ValueError, {"device_map": "balanced"}, "device.* is 'balanced'"),
    "both": (ValueError, {"device": "cpu", "device_map": "cpu"}, "device is 'cpu' and device_map is 'cpu'"),
    "unknown": (TypeError, {"no_such_option": 1}, "no_such_option"),
    "config and fields": (TypeError, {"config": None, "num_labels": 3}, "config and also num_labels"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", ["AltCLIPModel", "CLIPVisionModel"])
def test_arguments_of_from_pretrained(name, kind):
    error, options, message = REFUSED[kind]
    options = {**options, "config": pair(name).ours.config} if "config" in options else options
    with pytest.raises(error, match=message):
        type(pair(name).ours).from_pretrained(pair(name).folder, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_absent():
    for device in ("cuda", "cuda:3", torch.device("cuda")):
        with pytest.raises(ValueError, match="torch sees no CUDA device"):
            af.CLIPModel.from_pretrained(pair("CLIPModel").folder, device=device)
    with pytest.raises(ValueError, match="device is 0"):
        af.CLIPModel.from_pretrained(pair("CLIPModel").folder, device=0)


def test_places_without_a_model(tmp_path):
    with pytest.raises(OSError, match=r"config\.json"):
        af.AltCLIPModel.from_pretrained(tmp_path)
    with pytest.raises(OSError):
        af.AltCLIPModel.from_pretrained(tmp_path / "nowhere")
    pair("CLIPModel").ours.config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="no weights"):
        af.CLIPModel.from_pretrained(tmp_path)


def test_a_checkpoint_of_another_class():
    with pytest.raises(ValueError, match="model_type"):
        af.AltCLIPModel.from_pretrained(pair("CLIPModel").folder)
    with pytest.raises(ValueError):
        af.CLIPModel.from_pretrained(pair("CLIPTextModel").folder)
    with pytest.raises(ValueError):
        af.CLIPVisionModel.from_pretrained(pair("CLIPTextModel").folder)


def test_a_configuration_that_does_not_fit_the_weights():
    config = copy.deepcopy(pair("CLIPVisionModel").ours.config)
    config.intermediate_size = 38
    with pytest.raises(ValueError, match=r"misshapen: .*mlp\.fc1\.weight \(stored \[37, 48\], model \[38, 48\]\)"):
        af.CLIPVisionModel.from_pretrained(pair("CLIPVisionModel").folder, config=config)
    config.intermediate_size, config.num_hidden_layers = 37, 3
    with pytest.raises(ValueError, match=r"missing: .*layers\.2"):
        af.CLIPVisionModel.from_pretrained(pair("CLIPVisionModel").folder, config=config)
    config.num_hidden_layers = 1
    with pytest.raises(ValueError, match=r"unexpected: .*layers\.1"):
        af.CLIPVisionModel.from_pretrained(pair("CLIPVisionModel").folder, config=config)


def test_a_model_on_meta_says_so():
    with torch.device("meta"):
        model = af.CLIPTextModel(pair("CLIPTextModel").ours.config)
    with pytest.raises(ValueError, match="input_ids is on cpu, the model on meta"):
        model(torch.tensor([[0, EOS]]))


@pytest.mark.parametrize("name", CLASSES)
def test_an_error_leaves_the_model_as_it_was(name):
    model, inputs = pair(name).ours, inputs_for(pair(name).ours)
    with torch.no_grad():
        before = model(**inputs)[0]
        for key in inputs:
            with pytest.raises((ValueError, TypeError)):
                model(**{**inputs, key: None if key != "attention_mask" else MASK * 0})
        assert torch.equal(model(**inputs)[0], before)
