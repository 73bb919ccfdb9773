"""The configurations: fields and defaults as documented, checks, files as in transformers."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import altclip_fast.config as config_module
from altclip_fast import notices
from altclip_fast.config import (
    AltCLIPConfig,
    AltCLIPTextConfig,
    AltCLIPVisionConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    config_class_for,
)
from altclip_fast.config_rules import ACTIVATIONS

CLASSES = [AltCLIPConfig, AltCLIPTextConfig, AltCLIPVisionConfig, CLIPConfig, CLIPTextConfig, CLIPVisionConfig]
TOWERS = [cls for cls in CLASSES if not cls.parts]
PAIRS = [cls for cls in CLASSES if cls.parts]

# What the tower configurations of a file from transformers 4.2x hold beside the fields.
LEGACY = {
    "_name_or_path": "", "add_cross_attention": False, "bad_words_ids": None, "begin_suppress_tokens": None,
    "cross_attention_hidden_size": None, "decoder_start_token_id": None, "diversity_penalty": 0.0,
    "do_sample": False, "dropout": 0.0, "early_stopping": False, "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None, "finetuning_task": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_decoder": False,
    "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0,
    "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1,
    "num_return_sequences": 1, "output_attentions": False, "output_hidden_states": False, "output_scores": False,
    "prefix": None, "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False,
    "repetition_penalty": 1.0, "return_dict": True, "return_dict_in_generate": False, "sep_token_id": None,
    "suppress_tokens": None, "task_specific_params": None, "temperature": 1.0, "tf_legacy_loss": False,
    "tie_encoder_decoder": False, "tie_word_embeddings": True, "tokenizer_class": None, "top_k": 50,
    "top_p": 1.0, "torch_dtype": None, "torchscript": False, "transformers_version": "4.23.0.dev0",
    "typical_p": 1.0, "use_bfloat16": False, "chunk_size_feed_forward": 0, "architectures": None,
}  # fmt: skip
BAAI = {
    "_commit_hash": None,
    "architectures": ["AltCLIPModel"],
    "direct_kd": False,
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "altclip",
    "num_layers": 3,
    "projection_dim": 768,
    "text_config": LEGACY
    | {
        "model_type": "altclip_text_model",
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514,
        "num_hidden_layers": 24,
        "pooler_fn": "cls",
        "position_embedding_type": "absolute",
        "project_dim": 768,
        "type_vocab_size": 1,
        "use_cache": True,
        "vocab_size": 250002,
    },
    "text_config_dict": None,
    "torch_dtype": "float32",
    "transformers_version": None,
    "vision_config": LEGACY
    | {
        "model_type": "altclip_vision_model",
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "hidden_size": 1024,
        "image_size": 224,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "vision_config_dict": None,
}
M9 = {
    "architectures": ["ChineseCLIP"],
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": {"model_type": "xlm-roberta", "vocab_size": 250002, "max_position_embeddings": 514},
    "vision_config": {"model_type": "clip_vision_model", "patch_size": 14},
}


def write(folder, values):
    text = values if isinstance(values, str | bytes) else json.dumps(values)
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def fields(config):
    """A transformers configuration's fields and extras, without what belongs to its release."""
    values = config.to_dict()
    for part in (values, *(v for v in values.values() if isinstance(v, dict))):
        for name in ("transformers_version", "_name_or_path", "is_encoder_decoder"):
            part.pop(name, None)
    return values


# Defaults


@pytest.mark.parametrize("cls", CLASSES)
def test_defaults_are_those_of_transformers(cls):
    transformers = pytest.importorskip("transformers")
    theirs, ours = fields(getattr(transformers, cls.__name__)()), cls().to_dict()
    for values in (theirs, theirs.get("text_config", {})):
        if "attention_probs_dropout_prob" in values:  # documented as 0.1
            assert values["attention_probs_dropout_prob"] == 0
            values["attention_probs_dropout_prob"] = 0.1
    compare_known(theirs, ours)


def compare_known(theirs, ours):
    for name, value in theirs.items():
        if isinstance(value, dict) and name.endswith("_config"):
            compare_known(value, ours[name])
        elif name in ours:
            assert ours[name] == value, name
    assert set(theirs) - set(ours) == set()


def test_documented_dropout_default():
    assert AltCLIPTextConfig().attention_probs_dropout_prob == 0.1
    assert AltCLIPConfig().text_config.attention_probs_dropout_prob == 0.1


@pytest.mark.parametrize(
    ("version", "dropout"),
    [("5.0.0", 0.0), ("5.23.0", 0.0), ("10.1", 0.0), ("4.57.1", 0.1), (None, 0.1), ("x", 0.1)],
)
def test_absent_dropout_means_the_default_of_the_release_that_wrote_the_file(tmp_path, version, dropout):
    part = {"model_type": "altclip_text_model"}
    write(tmp_path, {"model_type": "altclip", "transformers_version": version, "text_config": part})
    assert AltCLIPConfig.from_pretrained(tmp_path).text_config.attention_probs_dropout_prob == dropout
    assert AltCLIPTextConfig.from_pretrained(tmp_path).attention_probs_dropout_prob == dropout
    write(tmp_path, part | {"transformers_version": version})
    assert AltCLIPTextConfig.from_pretrained(tmp_path).attention_probs_dropout_prob == dropout
    write(tmp_path, part | {"transformers_version": version, "attention_probs_dropout_prob": 0.3})
    assert AltCLIPTextConfig.from_pretrained(tmp_path).attention_probs_dropout_prob == 0.3


# Constructor forms


@pytest.mark.parametrize("cls", PAIRS)
def test_parts_as_dicts_objects_and_defaults(cls):
    text, vision = cls.parts["text_config"](hidden_size=64), cls.parts["vision_config"](hidden_size=96)
    by_object = cls(text_config=text, vision_config=vision, projection_dim=10)
    assert by_object.text_config is text and by_object.vision_config is vision
    assert by_object == cls(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=10)
    assert by_object == cls.from_text_vision_configs(text, vision, projection_dim=10)
    assert by_object != cls()
    assert all(getattr(cls(), name) == part() for name, part in cls.parts.items())


def test_vision_parts_of_the_two_families_are_alike_and_text_parts_are_not():
    config = AltCLIPConfig(vision_config=CLIPVisionConfig(hidden_size=96))
    assert type(config.vision_config) is AltCLIPVisionConfig and config.vision_config.hidden_size == 96
    with pytest.raises(TypeError, match="text_config"):
        AltCLIPConfig(text_config=CLIPTextConfig())
    with pytest.raises(TypeError, match="vision_config"):
        AltCLIPConfig(vision_config=3)


@pytest.mark.parametrize("cls", PAIRS)
def test_legacy_part_dicts_override_with_their_defaults(cls):
    transformers = pytest.importorskip("transformers")
    values = {
        "text_config": {"hidden_size": 64, "num_hidden_layers": 3, "note": "kept"},
        "text_config_dict": {"hidden_size": 128},
        "vision_config_dict": {"patch_size": 16, "id2label": {"0": "a"}},
    }
    ours, theirs = cls(**values), getattr(transformers, cls.__name__)(**values)
    assert ours.text_config.hidden_size == 128 and ours.text_config.note == "kept"
    for name in ("num_hidden_layers", "hidden_size", "note"):
        assert getattr(ours.text_config, name) == getattr(theirs.text_config, name)
    assert ours.vision_config.patch_size == theirs.vision_config.patch_size == 16
    assert ours.vision_config.id2label == theirs.vision_config.id2label == {0: "a"}
    assert not hasattr(ours, "text_config_dict")


def test_accepts_a_transformers_configuration_as_part():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AltCLIPConfig(text_config={"hidden_size": 64}, projection_dim=5)
    ours = AltCLIPConfig(text_config=theirs.text_config, vision_config=theirs.vision_config)
    assert ours.text_config.hidden_size == 64 and ours.text_config.attention_probs_dropout_prob == 0
    assert AltCLIPConfig.from_dict(theirs.to_dict()).projection_dim == 5


# Common fields


def test_labels():
    config = CLIPVisionConfig()
    assert config.num_labels == 2 and config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert CLIPVisionConfig(num_labels=3).label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert CLIPVisionConfig(num_labels=0).id2label == {}
    named = CLIPVisionConfig(id2label={"0": "cat", "1": "dog", "2": "cow"})
    assert named.num_labels == 3 and named.id2label[2] == "cow"
    assert named.label2id == {"cat": 0, "dog": 1, "cow": 2}
    named.num_labels = 3
    assert named.id2label[2] == "cow"
    named.num_labels = 1
    assert named.id2label == {0: "LABEL_0"} and named.label2id == {"LABEL_0": 0}
    with pytest.raises(TypeError, match="num_labels"):
        CLIPVisionConfig(num_labels="3")
    with pytest.raises(ValueError, match="num_labels"):
        CLIPVisionConfig(num_labels=10**9)


def test_contradicting_num_labels_is_said_and_ignored():
    notices.forget()
    with pytest.warns(UserWarning, match="num_labels=5"):
        assert CLIPConfig(num_labels=5, id2label={0: "a"}).num_labels == 1


def test_one_label_has_no_single_label_classification():
    with pytest.raises(ValueError, match="problem_type"):
        CLIPConfig(num_labels=1, problem_type="single_label_classification")
    assert CLIPConfig(num_labels=1, problem_type="regression").problem_type == "regression"


@pytest.mark.parametrize("value", ["float16", "torch.float16", torch.float16])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtype_and_its_older_name(name, value):
    config = CLIPTextConfig(**{name: value})
    assert config.dtype is torch.float16 and config.torch_dtype is torch.float16
    assert config.to_dict()["dtype"] == "float16" and "torch_dtype" not in config.to_dict()


def test_dtype_wins_over_its_older_name_and_auto_is_none():
    assert CLIPConfig(dtype="float16", torch_dtype="bfloat16").dtype is torch.float16
    assert CLIPConfig(dtype="auto").dtype is None


def test_use_return_dict():
    assert CLIPConfig().use_return_dict is True
    assert CLIPConfig(return_dict=False).use_return_dict is False


# Refusals


REFUSED = [
    ("hidden_size", [True, 8.0, "8", None, [8]], [0, -8, 65_537, 10**30]),
    ("num_hidden_layers", [2.0, None], [0, 1001, 10**9]),
    ("num_attention_heads", [1.5], [0, 7]),  # 7 divides no default width
    ("intermediate_size", [1e3], [0, 10**9]),
    ("layer_norm_eps", [None, "1e-5", True], [0, 0.0, -1e-5, float("nan"), float("inf"), 10**400]),
    ("initializer_range", ["x"], [-1, float("inf")]),
    ("initializer_factor", [None], [float("nan")]),
    ("hidden_act", [], ["tanh", None, 3, ["gelu"], "GELU"]),
    ("position_embedding_type", [], ["relative_key", None]),
    ("output_attentions", [1, "no", None], []),
    ("output_hidden_states", ["all", 1.5, [None]], []),
    ("return_dict", [0, None], []),
    ("chunk_size_feed_forward", [1.0], [-1]),
    ("problem_type", [], ["ranking", 1]),
    ("dtype", [3], ["float99", "load", "int64", torch.int8]),
    ("architectures", ["CLIPModel", [1]], []),
    ("id2label", [["a"], {"0": 1}], [{"zero": "a"}]),
    ("label2id", [["a"], {"a": "0"}], []),
]
TEXT_REFUSED = [
    ("vocab_size", [1e3, None], [0, 10**8]),
    ("max_position_embeddings", ["77"], [0, 10**8]),
    ("eos_token_id", ["2", 1.0, [1, None], {}], [-5, [10**9]]),
    ("bos_token_id", [False], [10**9]),
    ("pad_token_id", [0.5], [10**9]),
]
XLMR_REFUSED = [
    ("pad_token_id", [], [None, -1, 514]),
    ("type_vocab_size", [None], [0]),
    ("project_dim", [True], [0]),
    ("hidden_dropout_prob", [None, "0"], [-0.1, 1.1, float("nan")]),
    ("attention_probs_dropout_prob", [[]], [2]),
    ("use_cache", [1], []),
]
VISION_REFUSED = [
    ("image_size", [[224, 224], (224, 224), None, 224.0], [0, 16_385]),
    ("patch_size", [[14, 14], None], [0, 225]),
    ("num_channels", [3.0], [0]),
    ("projection_dim", [None], [0]),
    ("attention_dropout", [None], [1.5]),
]


def refused_cases():
    for classes, table in (
        (TOWERS, REFUSED),
        ([AltCLIPTextConfig, CLIPTextConfig], TEXT_REFUSED),
        ([AltCLIPTextConfig], XLMR_REFUSED),
        ([AltCLIPVisionConfig, CLIPVisionConfig], VISION_REFUSED),
        (PAIRS, [("projection_dim", [5.0, None], [0]), ("logit_scale_init_value", ["x"], [float("inf")])]),
    ):
        for cls in classes:
            for name, wrong_types, wrong_values in table:
                yield from ((cls, name, value, TypeError) for value in wrong_types)
                yield from ((cls, name, value, ValueError) for value in wrong_values)


@pytest.mark.parametrize(
    ("cls", "name", "value", "error"),
    [pytest.param(*case, id=f"{case[0].__name__}-{case[1]}") for case in refused_cases()],
)
def test_refused_values_name_the_field_and_what_is_allowed(cls, name, value, error):
    with pytest.raises(error) as caught:
        cls(**{name: value})
    message = str(caught.value)
    assert name in message and cls.__name__ in message and "must be" in message
    assert len(message) < 400


def test_hidden_act_message_lists_the_activations():
    with pytest.raises(ValueError, match="tanh") as caught:
        CLIPTextConfig(hidden_act="tanh")
    assert all(name in str(caught.value) for name in ACTIVATIONS)


def test_patches_are_bounded():
    with pytest.raises(ValueError, match="patch_size"):
        CLIPVisionConfig(image_size=16_384, patch_size=1)
    assert CLIPVisionConfig(image_size=30, patch_size=2, num_attention_heads=4, intermediate_size=37)


def test_assignment_is_checked_too():
    config = CLIPTextConfig()
    with pytest.raises(TypeError, match="hidden_size"):
        config.hidden_size = 3.0
    assert config.hidden_size == 512
    config.eos_token_id = (1, 2)
    assert config.eos_token_id == [1, 2]


@pytest.mark.parametrize(
    "name", ["to_dict", "from_dict", "__class__", "__dict__", "model_type", "_fields", "use_return_dict"]
)
def test_a_name_of_the_class_cannot_be_overwritten(name):
    with pytest.raises(ValueError, match=name):
        setattr(CLIPConfig(), name, 1)
    if name != "model_type":  # the constructor and files carry that one
        with pytest.raises(ValueError, match=name):
            CLIPConfig.from_dict({name: 1})


def test_update_is_all_or_nothing_and_keeps_the_parts():
    config = CLIPConfig()
    text = config.text_config
    config.update({"projection_dim": 7, "text_config": {"hidden_size": 64}, "note": 1})
    assert (config.projection_dim, config.text_config.hidden_size, config.note) == (7, 64, 1)
    assert config.text_config is text and text.num_attention_heads == 8
    before = config.to_dict()
    for bad in ({"dtype": "float99"}, {"text_config": {"hidden_size": 63}}):
        with pytest.raises(ValueError):
            config.update({"projection_dim": 9} | bad)
        assert config.to_dict() == before


# Text and files


@pytest.mark.parametrize("cls", CLASSES)
def test_round_trips(cls, tmp_path):
    config = cls(note={"a": [1, None]}, num_labels=3, dtype="bfloat16", output_hidden_states=True, _private=1)
    config.save_pretrained(tmp_path / "new" / "folder")
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["config.json"]
    for again in (
        cls.from_dict(config.to_dict()),
        cls(**config.to_dict()),
        cls.from_pretrained(tmp_path / "new" / "folder"),
        cls.from_pretrained(str(tmp_path / "new" / "folder" / "config.json")),
        cls.from_json_file(tmp_path / "new" / "folder" / "config.json"),
        cls.from_dict(json.loads(config.to_json_string())),
        cls.from_dict(json.loads(config.to_json_string(use_diff=False))),
        copy.copy(config),
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
    ):
        assert again == config and type(again) is cls
        assert again.note == {"a": [1, None]} and again.id2label[2] == "LABEL_2"
    assert config != cls()
    assert config._private == 1 and "_private" not in config.to_dict()
    copied = copy.deepcopy(config)
    copied.note["a"].append(2)
    assert config.note == {"a": [1, None]} and "note" in repr(config) and cls.__name__ in repr(config)
    config.to_dict()["note"]["a"].append(3)
    assert config.note == {"a": [1, None]}


def test_equality_needs_the_class():
    values = CLIPVisionConfig().to_dict()
    assert CLIPVisionConfig() != AltCLIPVisionConfig.from_dict(values) and CLIPVisionConfig() != 3


def test_name_or_path(tmp_path):
    CLIPConfig().save_pretrained(tmp_path)
    assert CLIPConfig().name_or_path == ""
    assert CLIPConfig.from_pretrained(tmp_path).name_or_path == str(tmp_path)
    assert str(tmp_path) not in CLIPConfig.from_pretrained(tmp_path).to_json_string(use_diff=False)


@pytest.mark.parametrize("cls", CLASSES)
def test_transformers_reads_what_is_saved(cls, tmp_path):
    theirs = getattr(pytest.importorskip("transformers"), cls.__name__)
    config = cls(num_labels=4, initializer_factor=0.5, pooler_fn="cls", return_dict=False, dtype="float16")
    if cls.parts:
        config.text_config.hidden_size, config.vision_config.patch_size = 64, 16
    config.save_pretrained(tmp_path)
    loaded = theirs.from_pretrained(tmp_path)
    compare_known(fields(loaded), config.to_dict())
    assert loaded.pooler_fn == "cls" and loaded.num_labels == 4 and loaded.dtype is torch.float16
    defaults = theirs.from_pretrained(cls_saved(cls, tmp_path / "default"))
    compare_known(fields(defaults), cls().to_dict())


def cls_saved(cls, folder):
    cls().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("cls", CLASSES)
def test_reads_what_transformers_saves(cls, tmp_path):
    theirs = getattr(pytest.importorskip("transformers"), cls.__name__)
    values = {"num_labels": 3, "initializer_factor": 0.5, "extra": [1], "output_hidden_states": True}
    if cls.parts:
        values |= {"text_config": {"num_hidden_layers": 3}, "vision_config": {"num_hidden_layers": 5}}
    theirs(**values).save_pretrained(tmp_path)
    compare_known(fields(theirs.from_pretrained(tmp_path)), cls.from_pretrained(tmp_path).to_dict())


@pytest.mark.parametrize("cls", [AltCLIPConfig, AltCLIPTextConfig])
def test_dropout_of_a_file_from_transformers_5(cls, tmp_path):
    theirs = getattr(pytest.importorskip("transformers"), cls.__name__)
    theirs().save_pretrained(tmp_path)
    assert AltCLIPTextConfig.from_pretrained(tmp_path).attention_probs_dropout_prob == 0


def test_baai_altclip(tmp_path):
    config = AltCLIPConfig.from_pretrained(write(tmp_path, BAAI))
    assert config.direct_kd is False and config.num_layers == 3 and config.dtype is torch.float32
    assert config.text_config.pooler_fn == "cls" and config.text_config.top_k == 50
    assert config.vision_config.patch_size == 14 and config.vision_config.eos_token_id is None
    written = json.loads(config.to_json_string())
    assert written["num_layers"] == 3 and written["text_config"]["num_beams"] == 1
    assert "_commit_hash" not in written
    config.save_pretrained(tmp_path)
    assert AltCLIPConfig.from_pretrained(tmp_path) == config


def test_m9_says_clip_and_is_altclip(tmp_path):
    write(tmp_path, M9)
    assert config_class_for(M9) is AltCLIPConfig
    config = AltCLIPConfig.from_pretrained(tmp_path)
    assert config.text_config.hidden_size == 1024 and config.to_dict()["model_type"] == "altclip"
    assert AltCLIPTextConfig.from_pretrained(tmp_path) == config.text_config
    with pytest.raises(ValueError, match="AltCLIPConfig"):
        CLIPConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "cls"),
    [
        ({"model_type": "xlm-roberta"}, AltCLIPConfig),
        ({"vocab_size": 250002, "max_position_embeddings": 514}, AltCLIPConfig),
        ({"vocab_size": 250002, "type_vocab_size": 1}, AltCLIPConfig),
        ({"vocab_size": 250002, "project_dim": 768}, AltCLIPConfig),
        ({"vocab_size": 250002}, CLIPConfig),
        ({"vocab_size": 49408, "max_position_embeddings": 77}, CLIPConfig),
        (None, CLIPConfig),
        (5, CLIPConfig),
    ],
)
def test_which_clip_is_altclip(text, cls):
    assert config_class_for({"model_type": "clip", "text_config": text}) is cls


@pytest.mark.parametrize("cls", CLASSES)
def test_config_class_for(cls):
    assert config_class_for(cls().to_dict()) is cls


@pytest.mark.parametrize("kind", ["chinese_clip", "siglip", "", None, 3, ["clip"]])
def test_config_class_for_lists_what_is_allowed(kind):
    with pytest.raises(ValueError) as caught:
        config_class_for({"model_type": kind})
    assert all(cls.model_type in str(caught.value) for cls in CLASSES)


def test_a_tower_takes_its_part_of_a_whole_model(tmp_path):
    write(tmp_path, BAAI)
    assert AltCLIPTextConfig.from_pretrained(tmp_path).pooler_fn == "cls"
    assert AltCLIPVisionConfig.from_pretrained(tmp_path).patch_size == 14
    assert CLIPVisionConfig.from_pretrained(tmp_path).patch_size == 14  # the same architecture
    with pytest.raises(ValueError, match="altclip"):
        CLIPTextConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="CLIPConfig reads 'clip'"):
        CLIPConfig.from_pretrained(tmp_path)
    write(tmp_path, {k: v for k, v in BAAI.items() if k != "model_type"})
    assert AltCLIPVisionConfig.from_pretrained(tmp_path).patch_size == 14
    write(tmp_path, {"model_type": "clip", "text_config_dict": {"hidden_size": 64}})
    assert CLIPTextConfig.from_pretrained(tmp_path).hidden_size == 64
    write(tmp_path, {"model_type": "clip"})
    assert CLIPTextConfig.from_pretrained(tmp_path) == CLIPTextConfig()


def test_whole_from_tower_is_refused(tmp_path):
    CLIPTextConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="clip_text_model"):
        CLIPConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="clip_text_model"):
        AltCLIPTextConfig.from_pretrained(tmp_path)


def test_overrides(tmp_path):
    CLIPConfig(id2label={0: "a", 1: "b"}).save_pretrained(tmp_path)
    config = CLIPConfig.from_pretrained(
        tmp_path, num_labels=5, dtype="auto", output_attentions=True, text_config={"hidden_size": 64}
    )
    assert config.num_labels == 5 and config.dtype is None and config.output_attentions
    assert config.text_config.hidden_size == 64 and config.text_config.vocab_size == 49408
    with pytest.raises(TypeError, match="num_label"):
        CLIPConfig.from_pretrained(tmp_path, num_label=5)
    with pytest.raises(ValueError, match=r"config\.json"):
        CLIPConfig.from_pretrained(tmp_path, projection_dim=0)


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "3", '"clip"', b"\xff\xfe{}", '{"projection_dim": NaN}', '{"note": Infinity}',
        '{"note": 1e999}', '{"a": ' * 2000 + "1" + "}" * 2000, '{"a": ' + "[" * 40 + "]" * 40 + "}",
        '{"projection_dim": ' + "9" * 5000 + "}", '{"projection_dim": -1}', '{"text_config": 3}',
        '{"text_config": {"hidden_size": 1e3}}', '{"vision_config": {"image_size": [224, 224]}}',
        '{"text_config": {"num_hidden_layers": 1000000000}}', '{"__init__": 1}', '{"text_config": {"parts": 1}}',
    ],
)  # fmt: skip
def test_hostile_files_raise_and_are_named(content, tmp_path):
    write(tmp_path, content)
    with pytest.raises((ValueError, TypeError), match=r"config\.json"):
        CLIPConfig.from_pretrained(tmp_path)
    with pytest.raises((ValueError, TypeError), match=r"config\.json"):
        CLIPConfig.from_json_file(tmp_path / "config.json")


def test_absent_file(tmp_path):
    with pytest.raises(OSError, match=r"config\.json"):
        CLIPConfig.from_pretrained(tmp_path)
    with pytest.raises(OSError):
        CLIPConfig.from_pretrained(tmp_path / "nowhere" / "at" / "all")


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    CLIPConfig().save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()

    def full_disk(path, text):
        with open(path, "w") as file:
            file.write(text[:10])
        raise OSError("no space left")

    monkeypatch.setattr(config_module, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        CLIPConfig(projection_dim=3).save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_bytes() == before


def test_what_json_cannot_hold_is_refused_before_writing(tmp_path):
    for value in (float("nan"), object(), {1, 2}):
        with pytest.raises(ValueError):
            CLIPConfig(note=value).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(OSError):
        CLIPConfig().save_pretrained(tmp_path / "f")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = {name for cls in CLASSES for name in cls._fields}
NAMES = st.sampled_from(sorted(FIELDS | {*LEGACY, "text_config", "vision_config_dict", "num_labels"})) | st.text(
    max_size=12
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CLASSES), st.dictionaries(NAMES, JSON, max_size=4))
def test_any_values_are_taken_or_refused(cls, values):
    try:
        config = cls.from_dict(values)
    except (ValueError, TypeError):
        return
    try:
        text = config.to_json_string()
    except ValueError:  # NaN in an extra
        return
    assert cls.from_dict(json.loads(text)) == config


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_text_is_taken_or_refused(tmp_path_factory, data):
    text = bytearray(json.dumps(M9).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    folder = write(tmp_path_factory.getbasetemp(), bytes(text[: data.draw(st.integers(0, len(text)))]))
    try:
        config = AltCLIPConfig.from_pretrained(folder)
    except (ValueError, TypeError, OSError):
        return
    assert config.to_dict()["model_type"] == "altclip"
    assert config.text_config.hidden_size % config.text_config.num_attention_heads == 0


def test_import_needs_no_transformers():
    code = "import altclip_fast.config, sys; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
