"""Weights in and out: transformers' files and ours, state dicts, towers out of a whole, new heads."""

import copy

import pytest
import torch
import transformers
from oracle import (
    CASES,
    CLASSES,
    JOINT,
    assert_close,
    assert_same,
    inputs_for,
    make_config,
    pair,
    pixels,
    randomise,
    texts,
)
from safetensors.torch import save_file

import altclip_fast as af
from altclip_fast import notices
from altclip_fast.checkpoint import hub_state_dict, to_plain


def same_values(a, b):
    assert list(a) == list(b)
    return all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.parametrize("name", CLASSES)
def test_state_dict_round_trip(name):
    model = pair(name).ours
    other = type(model)(copy.deepcopy(model.config))
    assert not same_values(other.state_dict(), model.state_dict())
    result = other.load_state_dict(model.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    assert same_values(other.state_dict(), model.state_dict())
    inputs = inputs_for(model)
    with torch.no_grad():
        assert torch.equal(other.eval()(**inputs)[0], model(**inputs)[0])


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_a_state_dict_of_transformers_loads(name, assign):
    found = pair(name)
    for state in (found.theirs.state_dict(), hub_state_dict(found.ours)):
        model = type(found.ours)(found.ours.config)
        result = model.load_state_dict({key: value.clone() for key, value in state.items()}, assign=assign)
        assert not result.missing_keys and not result.unexpected_keys
        assert same_values(model.state_dict(), found.ours.state_dict())


@pytest.mark.parametrize("name", CLASSES)
def test_a_state_dict_that_does_not_fit_is_refused(name):
    found = pair(name)
    state = dict(found.theirs.state_dict())
    lost = next(iter(state))
    value = state.pop(lost)
    with pytest.raises(RuntimeError, match=r"Missing key"):
        type(found.ours)(found.ours.config).load_state_dict(state)
    state[lost], state["no.such.weight"] = value, value
    with pytest.raises(RuntimeError, match=r"Unexpected key.*no\.such\.weight"):
        type(found.ours)(found.ours.config).load_state_dict(state)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}, {"safe_serialization": False}], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_what_we_save_loads_in_both(name, options, tmp_path):
    found = pair(name)
    changed = copy.deepcopy(found.ours)
    randomise(changed, seed=11)
    changed.save_pretrained(tmp_path, **options)
    if "max_shard_size" in options:
        assert (tmp_path / "model.safetensors.index.json").exists()
    inputs = inputs_for(changed)
    theirs = getattr(transformers, name).from_pretrained(tmp_path, attn_implementation="eager")
    ours = type(changed).from_pretrained(tmp_path)
    assert same_values(ours.state_dict(), changed.state_dict())
    with torch.no_grad():
        assert_same(ours(**inputs), theirs(**inputs), inputs.get("attention_mask"))
    assert ours.config.architectures == [name] and ours.config.dtype == torch.float32
    ours.config.architectures, ours.config.dtype = changed.config.architectures, changed.config.dtype
    assert ours.config == changed.config


@pytest.mark.parametrize("name", CLASSES)
def test_configurations_survive_both_ways(name, tmp_path):
    """Every field that transformers has is ours too, and the other way round."""
    found = pair(name)
    found.ours.save_pretrained(tmp_path)
    again = type(found.theirs.config).from_pretrained(tmp_path)

    def fields(config):
        leave = ("transformers_version", "architectures", "dtype", "_name_or_path")
        flat = {key: value for key, value in config.to_dict().items() if key not in leave}
        return {key: fields(getattr(config, key)) if key.endswith("_config") else value for key, value in flat.items()}

    assert fields(again) == fields(found.theirs.config)


WHOLE = [
    ("AltCLIPModel", "AltCLIPTextModel", "text_model"),
    ("AltCLIPModel", "AltCLIPVisionModel", "vision_model"),
    ("CLIPModel", "CLIPTextModel", "text_model"),
    ("CLIPModel", "CLIPVisionModel", "vision_model"),
    ("CLIPModel", "CLIPTextModelWithProjection", "text_model"),
    ("CLIPModel", "CLIPVisionModelWithProjection", "vision_model"),
]


@pytest.mark.parametrize("saved_by", ["transformers", "us"])
@pytest.mark.parametrize("whole, part, tower", WHOLE)
def test_one_tower_out_of_a_whole_checkpoint(whole, part, tower, saved_by, tmp_path):
    """`AltCLIPTextModel.from_pretrained("BAAI/AltCLIP")` is documented; transformers loads nothing there."""
    found, folder = pair(whole), pair(whole).folder
    if saved_by == "us":
        found.ours.save_pretrained(tmp_path)
        folder = tmp_path
    model = getattr(af, part).from_pretrained(folder)
    expected = getattr(found.theirs, tower)
    inputs = inputs_for(model)
    with torch.no_grad():
        ours, theirs = model(**inputs), expected(**inputs)
        kept = inputs.get("attention_mask")
        if part.endswith("WithProjection"):
            project = found.theirs.text_projection if tower == "text_model" else found.theirs.visual_projection
            assert_close(ours[0], project(theirs.pooler_output), "embeds")
        else:
            assert_same(ours, theirs, kept)


def test_the_head_of_a_classifier_may_be_new():
    """Out of a CLIPModel's checkpoint the classifier starts random, and the tower is the stored one."""
    found = pair("CLIPModel")
    notices.forget()
    with pytest.warns(UserWarning, match=r"classifier\.bias, classifier\.weight"):
        model = af.CLIPForImageClassification.from_pretrained(found.folder, num_labels=7)
    assert model.config.num_labels == 7 and not model.training
    assert model.classifier.weight.std() > 0 and not model.classifier.bias.any()
    with torch.no_grad():
        output = model(pixels(model))
        assert output.logits.shape == (3, 7)
        expected = found.theirs.vision_model(pixels(model)).last_hidden_state[:, 1:].mean(1)
        assert_close(output.logits, expected @ model.classifier.weight.T + model.classifier.bias, "logits")
    again = af.CLIPForImageClassification.from_pretrained(found.folder, num_labels=0)
    assert torch.equal(again(pixels(model)).logits, again.vision_model(pixels(model)).last_hidden_state[:, 1:].mean(1))


def test_a_classifier_without_its_head_is_refused(tmp_path):
    """Of its own class nothing may be missing."""
    model = copy.deepcopy(pair("CLIPForImageClassification").ours)
    model.save_pretrained(tmp_path)
    state = {k: v for k, v in hub_state_dict(model).items() if not k.startswith("classifier")}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"classifier\.weight"):
        af.CLIPForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", CLASSES)
def test_loading_gives_a_model_for_inference(name):
    model = type(pair(name).ours).from_pretrained(pair(name).folder)
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert model.num_parameters() == sum(p.numel() for p in pair(name).theirs.parameters())
    model.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == 0


@pytest.mark.parametrize("name", CLASSES)
def test_training_a_loaded_model_leaves_its_files_alone(name):
    model = type(pair(name).ours).from_pretrained(pair(name).folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    again = type(model).from_pretrained(pair(name).folder)
    assert same_values(again.state_dict(), pair(name).ours.state_dict())


@pytest.mark.parametrize("options", [
    {"device": "cpu"}, {"device": torch.device("cpu")}, {"device_map": "cpu"}, {"device_map": {"": "cpu"}},
    {"device_map": torch.device("cpu")}, {"attn_implementation": "sdpa"}, {"attn_implementation": "eager"},
    {"attn_implementation": "altclip_fast"}, {"local_files_only": True}, {"revision": "main"},
    {"dtype": "auto"},
], ids=str)  # fmt: skip
def test_arguments_of_the_documented_snippets(options):
    model = af.CLIPVisionModel.from_pretrained(pair("CLIPVisionModel").folder, **options)
    assert same_values(model.state_dict(), pair("CLIPVisionModel").ours.state_dict())
    with torch.no_grad():
        asked = model(pixels(model), output_attentions=True)
    assert len(asked.attentions) == 2


def test_fields_of_the_configuration_can_be_set_while_loading():
    folder = pair("CLIPVisionModel").folder
    model = af.CLIPVisionModel.from_pretrained(folder, output_hidden_states=True, return_dict=False)
    with torch.no_grad():
        assert len(model(pixels(model))[2]) == 3
    config = af.CLIPVisionConfig.from_pretrained(folder)
    config.output_attentions = True
    assert "attentions" in af.CLIPVisionModel.from_pretrained(folder, config=config)(pixels(model))


def test_weights_without_their_configuration(tmp_path):
    found = pair("CLIPVisionModel")
    found.ours.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(OSError, match=r"no config\.json"):
        af.CLIPVisionModel.from_pretrained(tmp_path)
    model = af.CLIPVisionModel.from_pretrained(tmp_path, config=found.ours.config)
    assert same_values(model.state_dict(), found.ours.state_dict())


@pytest.mark.parametrize("name", CLASSES)
def test_config_and_kinds_of_construction(name):
    config = pair(name).ours.config
    cls = type(pair(name).ours)
    for model in (cls(config), cls.from_config(config), cls._from_config(config)):
        assert model.config is config
        assert list(model.state_dict()) == list(pair(name).ours.state_dict())
    assert cls.from_config(config, dtype=torch.bfloat16).dtype == torch.bfloat16


# A width at which the standard deviation of a weight is known to a few per cent.
LARGE = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 160, "num_hidden_layers": 2}


@pytest.mark.parametrize("name", CLASSES)
def test_initial_weights_are_distributed_as_in_transformers(name):
    config = make_config(name, "odd")
    for part in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
        if part is not None and hasattr(part, "hidden_size"):
            part.update(
                {
                    **LARGE,
                    **({"vocab_size": 500, "max_position_embeddings": 60} if hasattr(part, "vocab_size") else {}),
                    **({"project_dim": 64} if hasattr(part, "project_dim") else {}),
                }
            )
    if hasattr(config, "text_config"):
        config.projection_dim = 64
    theirs = getattr(transformers, name)(config).state_dict()
    ours = getattr(af, name)(getattr(af, type(config).__name__)(**config.to_dict())).state_dict()
    names, unexpected = to_plain(theirs, ours)
    assert not unexpected and set(names.values()) == set(ours)
    for stored, plain in names.items():
        a, b = ours[plain], theirs[stored]
        if b.numel() < 90 or b.std() == 0:  # constants: norms, biases, the logit scale
            assert plain == "class_embedding" or "class_embedding" in plain or torch.equal(a, b), plain
        else:
            assert abs(a.std() / b.std() - 1) < 6 / b.numel() ** 0.5 + 0.02, (plain, a.std(), b.std())
            assert abs(a.mean() - b.mean()) < 8 * b.std() / b.numel() ** 0.5, plain
            assert torch.equal((a == 0).all(-1), (b == 0).all(-1)) or a.dim() != 2, f"{plain}: rows of zeros"


@pytest.mark.parametrize("case", CASES)
def test_modules_are_reused_in_the_joint_model(case):
    """The towers of a joint model are the public tower classes."""
    for name in JOINT:
        model = pair(name, case).ours
        family = name.removesuffix("Model")
        assert type(model.text_model) is getattr(af, f"{family}TextModel")
        assert type(model.vision_model) is getattr(af, f"{family}VisionModel")
        with torch.no_grad():
            alone = model.text_model(**texts()).pooler_output
            assert_close(model.text_projection(alone), model.get_text_features(**texts()), "text")
