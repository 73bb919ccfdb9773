"""Checkpoints: every layout is read, what does not fit is named, and transformers loads what is saved."""

import json
import os
import re
import stat
import struct
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from altclip_fast import checkpoint
from altclip_fast.checkpoint import (
    CheckpointError,
    hub_state_dict,
    load_into,
    open_weights,
    read_state_dict,
    rename_hook,
    save,
    to_hub,
    to_plain,
)
from altclip_fast.config import AltCLIPConfig, CLIPConfig

TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "projection_dim": 12,
}
ALTCLIP = AltCLIPConfig(text_config=TEXT | {"project_dim": 12}, vision_config=VISION, projection_dim=12)
CLIP = CLIPConfig(text_config=TEXT | {"projection_dim": 12}, vision_config=VISION, projection_dim=12, num_labels=3)
CONFIGS = {
    "AltCLIPModel": ALTCLIP,
    "AltCLIPTextModel": ALTCLIP.text_config,
    "AltCLIPVisionModel": ALTCLIP.vision_config,
    "CLIPModel": CLIP,
    "CLIPTextModel": CLIP.text_config,
    "CLIPVisionModel": CLIP.vision_config,
    "CLIPTextModelWithProjection": CLIP.text_config,
    "CLIPVisionModelWithProjection": CLIP.vision_config,
    "CLIPForImageClassification": CLIP,
}


# The plain names and shapes of each model, written out here by hand so that the tables have something to be checked by.


def layers():
    wide, square = {"weight": (24, 16), "bias": (24,)}, {"weight": (16, 16), "bias": (16,)}
    narrow, norm = {"weight": (16, 24), "bias": (16,)}, {"weight": (16,), "bias": (16,)}
    modules = {"norm1": norm, "norm2": norm, "mlp.fc1": wide, "mlp.fc2": narrow}
    modules |= {f"attention.{name}": square for name in ("query", "key", "value", "output")}
    return {
        f"layers.{i}.{module}.{name}": shape
        for i in range(2)
        for module, shapes in modules.items()
        for name, shape in shapes.items()
    }


def norm(name):
    return {f"{name}.weight": (16,), f"{name}.bias": (16,)}


def within(part, shapes):
    return {f"{part}.{name}": shape for name, shape in shapes.items()}


VISION_TOWER = {
    "class_embedding": (16,),
    "patch_embedding.weight": (16, 3, 4, 4),
    "position_embedding.weight": (5, 16),
    **norm("pre_norm"),
    **layers(),
    **norm("post_norm"),
}
CLIP_TEXT_TOWER = {
    "token_embedding.weight": (50, 16),
    "position_embedding.weight": (20, 16),
    **layers(),
    **norm("final_norm"),
}
XLMR_TOWER = {
    "word_embedding.weight": (50, 16),
    "position_embedding.weight": (20, 16),
    "token_type_embedding.weight": (1, 16),
    **norm("embedding_norm"),
    **layers(),
    **norm("final_norm"),
    "projection.weight": (12, 16),
    "projection.bias": (12,),
}
HEADS = {"text_projection.weight": (12, 16), "visual_projection.weight": (12, 16), "logit_scale": ()}
SHAPES = {
    "AltCLIPModel": within("text_model", XLMR_TOWER)
    | within("vision_model", VISION_TOWER)
    | HEADS
    | {"text_projection.weight": (12, 12)},
    "AltCLIPTextModel": XLMR_TOWER,
    "AltCLIPVisionModel": VISION_TOWER,
    "CLIPModel": within("text_model", CLIP_TEXT_TOWER) | within("vision_model", VISION_TOWER) | HEADS,
    "CLIPTextModel": CLIP_TEXT_TOWER,
    "CLIPVisionModel": VISION_TOWER,
    "CLIPTextModelWithProjection": within("text_model", CLIP_TEXT_TOWER) | {"text_projection.weight": (12, 16)},
    "CLIPVisionModelWithProjection": within("vision_model", VISION_TOWER) | {"visual_projection.weight": (12, 16)},
    "CLIPForImageClassification": within("vision_model", VISION_TOWER)
    | {"classifier.weight": (3, 16), "classifier.bias": (3,)},
}
NAMES = list(SHAPES)


def build(name, *, device="meta", hook=False):
    """A module of that class name with the parameters of `SHAPES[name]`."""
    root = type(name, (nn.Module,), {})()
    for path, shape in SHAPES[name].items():
        module = root
        *parents, leaf = path.split(".")
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        value = torch.empty(shape, device=device)
        module.register_parameter(leaf, nn.Parameter(value if device == "meta" else torch.randn(shape)))
    if hook:
        root.register_load_state_dict_pre_hook(rename_hook)
    return root


def state(name):
    return {key: value.detach().clone() for key, value in build(name, device="cpu").state_dict().items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]), name


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """name -> a folder that transformers has written, and the model's tensors by transformers' in-memory names."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    made = {}
    for name, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        values = config.to_dict()
        model = getattr(transformers, name)(getattr(transformers, type(config).__name__)(**values))
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        model.save_pretrained(folder)
        made[name] = SimpleNamespace(folder=folder, state=model.state_dict())
    return made


def store(folder, tensors, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    if name.endswith(".bin"):
        torch.save(tensors, folder / name)
    else:
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
    return folder


# Names


@pytest.mark.parametrize("name", NAMES)
def test_names_go_to_the_hub_and_back(name):
    hub = to_hub(SHAPES[name].keys())
    assert len(set(hub.values())) == len(SHAPES[name])
    for spelling in (str, lambda n: n.replace(".layers.", ".layer."), lambda n: n.replace(".layer.", ".layers.")):
        for prefix in ("", "module.", "_orig_mod.", "module._orig_mod."):
            stored = {prefix + spelling(theirs): ours for ours, theirs in hub.items()}
            assert to_plain(stored, SHAPES[name].keys()) == (stored, [])
    assert to_plain(SHAPES[name], SHAPES[name].keys()) == ({n: n for n in SHAPES[name]}, [])


def test_the_spelling_on_disk_of_the_whole_model_is_the_hubs():
    hub = set(to_hub(SHAPES["AltCLIPModel"]).values())
    assert {
        "text_model.roberta.encoder.layer.1.attention.self.query.weight",
        "text_model.roberta.encoder.layer.0.attention.output.LayerNorm.bias",
        "text_model.roberta.encoder.layer.0.output.dense.weight",
        "text_model.roberta.embeddings.LayerNorm.weight",
        "text_model.pre_LN.weight",
        "text_model.transformation.bias",
        "vision_model.encoder.layers.1.self_attn.q_proj.weight",
        "vision_model.pre_layrnorm.bias",
        "vision_model.embeddings.class_embedding",
        "visual_projection.weight",
        "logit_scale",
    } < hub


def test_no_two_spellings_collide():
    """Each of the hub's names means one of ours, whichever tower it is in."""
    rows = [row for rows in checkpoint._SPELLINGS.values() for row in rows]
    assert len({hub for _, hub in rows}) == len(set(rows))


def test_other_parts_and_leftovers_are_dropped():
    whole = to_hub(SHAPES["AltCLIPModel"])
    leftovers = [
        "text_model.roberta.embeddings.position_ids",
        "text_model.roberta.embeddings.token_type_ids",
        "vision_model.embeddings.position_ids",
        "text_model.roberta.pooler.dense.weight",
    ]
    for name in ("AltCLIPTextModel", "AltCLIPVisionModel"):
        placed, unexpected = to_plain([*whole.values(), *leftovers], SHAPES[name].keys())
        assert set(placed.values()) == SHAPES[name].keys() and unexpected == []
    assert to_plain([*whole.values(), *leftovers], SHAPES["AltCLIPModel"].keys())[1] == []


@pytest.mark.parametrize(
    ("name", "stranger"),
    [
        ("CLIPVisionModel", "foo.weight"),
        ("CLIPVisionModel", "vision_model.foo.weight"),
        ("CLIPVisionModel", "vision_model.encoder.layers.2.layer_norm1.weight"),
        ("CLIPVisionModel", "encoder.layers.00.layer_norm1.weight"),
        ("CLIPVisionModel", "position_ids"),
        ("CLIPVisionModel", "embeddings.position_ids.x"),
        ("CLIPModel", "text_projection.bias"),
        ("CLIPModel", "text_model.roberta.embeddings.LayerNorm.weight"),
        ("CLIPModel", "embeddings.class_embedding"),
        ("AltCLIPTextModel", "roberta.embeddings.LayerNorm.gamma"),
    ],
)
def test_strangers_are_unexpected(name, stranger):
    placed, unexpected = to_plain([*to_hub(SHAPES[name]).values(), stranger], SHAPES[name].keys())
    assert unexpected == [stranger] and set(placed.values()) == SHAPES[name].keys()


def test_other_towers_keys_are_not_taken_for_ours():
    """Both towers have `layers` and `position_embedding`: the part decides."""
    text = [f"text_model.{n}" for n in SHAPES["CLIPTextModel"]]
    assert to_plain(text, SHAPES["CLIPVisionModel"].keys()) == ({}, [])


def test_one_parameter_twice():
    names = ["encoder.layer.0.layer_norm1.bias", "encoder.layers.0.layer_norm1.bias"]
    with pytest.raises(CheckpointError, match=re.escape(names[1])):
        to_plain(names, SHAPES["CLIPVisionModel"].keys())


# Loading what transformers writes


@pytest.mark.parametrize("name", NAMES)
def test_loads_what_transformers_writes(name, theirs):
    model = build(name)
    assert load_into(model, theirs[name].folder) == []
    placed, unexpected = to_plain(theirs[name].state, SHAPES[name].keys())
    assert unexpected == []
    assert_same(model.state_dict(), {ours: theirs[name].state[stored] for stored, ours in placed.items()})
    assert all(p.requires_grad for p in model.parameters())


PARTS_OF = [
    ("AltCLIPTextModel", "AltCLIPModel", "text_model."),
    ("AltCLIPVisionModel", "AltCLIPModel", "vision_model."),
    ("CLIPVisionModel", "AltCLIPModel", "vision_model."),
    ("CLIPTextModel", "CLIPModel", "text_model."),
    ("CLIPVisionModel", "CLIPModel", "vision_model."),
    ("CLIPTextModelWithProjection", "CLIPModel", ""),
    ("CLIPVisionModelWithProjection", "CLIPModel", ""),
    ("CLIPVisionModel", "CLIPForImageClassification", "vision_model."),
    ("CLIPTextModel", "CLIPTextModelWithProjection", "text_model."),
]


@pytest.mark.parametrize(("part", "whole", "prefix"), PARTS_OF)
def test_takes_a_part_out_of_a_whole(part, whole, prefix, theirs):
    small, large = build(part), build(whole)
    load_into(small, theirs[whole].folder)
    load_into(large, theirs[whole].folder)
    expected = large.state_dict()
    assert_same(small.state_dict(), {name: expected[prefix + name] for name in small.state_dict()})


def test_a_flat_tower_goes_into_a_nested_class(theirs):
    model = build("CLIPForImageClassification")
    new = {"classifier.weight", "classifier.bias"}
    assert load_into(model, theirs["CLIPVisionModel"].folder, new_names=new) == sorted(new)
    assert model.classifier.weight.is_meta and not model.vision_model.class_embedding.is_meta
    with pytest.raises(CheckpointError) as caught:
        load_into(build("CLIPVisionModelWithProjection"), theirs["CLIPVisionModel"].folder)
    assert caught.value.missing == ["visual_projection.weight"]


@pytest.mark.parametrize("whole", ["AltCLIPModel", "CLIPModel"])
def test_a_tower_of_the_other_family_does_not_fit(whole, theirs):
    name = "CLIPTextModel" if whole == "AltCLIPModel" else "AltCLIPTextModel"
    with pytest.raises(CheckpointError) as caught:
        load_into(build(name), theirs[whole].folder)
    assert caught.value.missing and caught.value.unexpected


@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin", "old pytorch_model.bin"])
def test_formats(filename, tmp_path):
    tensors = state("AltCLIPTextModel")
    tensors["roberta.embeddings.position_ids"] = torch.arange(20).expand(1, -1)
    if filename.startswith("old"):
        torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        store(tmp_path, tensors, filename)
    model = build("AltCLIPTextModel")
    load_into(model, tmp_path)
    del tensors["roberta.embeddings.position_ids"]
    assert_same(model.state_dict(), tensors)
    assert read_state_dict(tmp_path)["roberta.embeddings.position_ids"].dtype is torch.int64


def test_order_of_the_formats(tmp_path):
    tensors = {"classifier.bias": torch.zeros(3)}
    for value, filename in enumerate(["pytorch_model.bin", "model.safetensors"]):
        store(tmp_path, {"classifier.bias": torch.full((3,), float(value))}, filename)
        assert read_state_dict(tmp_path)["classifier.bias"][0] == value
    save_file(tensors, tmp_path / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"classifier.bias": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_state_dict(tmp_path)["classifier.bias"][0] == 1  # model.safetensors
    (tmp_path / "model.safetensors").unlink()
    assert read_state_dict(tmp_path)["classifier.bias"][0] == 0  # its shards, before pytorch_model.bin


def test_transposed_and_misaligned_tensors_are_made_plain(tmp_path):
    tensors = state("CLIPVisionModel")
    fc1 = tensors["layers.0.mlp.fc1.weight"]
    tensors["layers.0.mlp.fc1.weight"] = fc1.t().contiguous().t()
    store(tmp_path / "bin", tensors, "pytorch_model.bin")
    model = build("CLIPVisionModel")
    load_into(model, tmp_path / "bin")
    parameter = dict(model.named_parameters())["layers.0.mlp.fc1.weight"]
    assert parameter.is_contiguous() and torch.equal(parameter, fc1)

    header = json.dumps({"w": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]}}).encode()
    header += b" " * ((1 - len(header)) % 8)  # data start at an odd address
    (tmp_path / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + torch.arange(10.0).numpy().tobytes()
    )
    module = nn.Module()
    module.w = nn.Parameter(torch.empty(10, device="meta"))
    load_into(module, tmp_path)
    assert module.w.data_ptr() % 4 == 0 and torch.equal(module.w, torch.arange(10.0))


# Dtypes and devices


@pytest.mark.parametrize("dtype", [None, "auto", torch.float16, "bfloat16"])
@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
def test_dtype(dtype, filename, tmp_path):
    tensors = {name: tensor.half() for name, tensor in state("CLIPTextModel").items()}
    tensors["final_norm.weight"] = tensors["final_norm.weight"].float()
    store(tmp_path, tensors, filename)
    model = build("CLIPTextModel")
    load_into(model, tmp_path, dtype=dtype, device="cpu")
    target = {None: None, "auto": None, torch.float16: torch.float16, "bfloat16": torch.bfloat16}[dtype]
    assert_same(model.state_dict(), {n: t if target is None else t.to(target) for n, t in tensors.items()})


def test_integers_are_never_cast(tmp_path):
    module = nn.Module()
    module.w = nn.Parameter(torch.empty(2, device="meta"))
    module.register_buffer("steps", torch.empty(2, dtype=torch.int64, device="meta"))
    store(tmp_path, {"w": torch.ones(2), "steps": torch.tensor([1, 2**60])})
    load_into(module, tmp_path, dtype=torch.float16)
    assert module.w.dtype is torch.float16 and module.steps.tolist() == [1, 2**60]


@pytest.mark.parametrize("dtype", ["float99", "int8", torch.int8, 3])
def test_bad_dtype(dtype, tmp_path):
    with pytest.raises((ValueError, TypeError), match="dtype"):
        load_into(build("CLIPTextModel"), store(tmp_path, state("CLIPTextModel")), dtype=dtype)


def test_requires_grad_is_kept(tmp_path):
    model = build("CLIPTextModel").requires_grad_(False)
    model.final_norm.weight.requires_grad_(True)
    load_into(model, store(tmp_path, state("CLIPTextModel")))
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["final_norm.weight"]


# What does not fit


def test_all_that_is_wrong_is_in_one_error_and_nothing_is_assigned(tmp_path):
    tensors = state("CLIPVisionModel")
    del tensors["class_embedding"], tensors["layers.1.mlp.fc1.bias"]
    tensors["position_embedding.weight"] = torch.zeros(6, 16)
    tensors["post_norm.weight"] = torch.zeros(16, dtype=torch.int8)
    tensors["surplus"] = torch.zeros(1)
    model = build("CLIPVisionModel", device="cpu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_into(model, store(tmp_path, tensors))
    error = caught.value
    assert error.missing == ["class_embedding", "layers.1.mlp.fc1.bias"] and error.unexpected == ["surplus"]
    assert [line.split()[0] for line in sorted(error.misshapen)] == ["position_embedding.weight", "post_norm.weight"]
    for text in (str(tmp_path), "class_embedding", "surplus", "[6, 16]", "[5, 16]", "CLIPVisionModel", "integers"):
        assert text in str(error)
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(value, tmp_path):
    tensors = state("CLIPTextModel")
    tensors["final_norm.bias"][-1] = value
    tensors["layers.1.mlp.fc1.weight"][3, 4] = value
    store(tmp_path, tensors)
    model = build("CLIPTextModel")
    with pytest.raises(CheckpointError) as caught:
        load_into(model, tmp_path)
    assert sorted(caught.value.not_finite) == ["final_norm.bias", "layers.1.mlp.fc1.weight"]
    assert all(p.is_meta for p in model.parameters())
    load_into(model, tmp_path, check_finite=False)
    assert not torch.isfinite(model.final_norm.bias[-1])


def test_a_sum_that_overflows_is_finite_and_a_conversion_that_does_is_not(tmp_path):
    tensors = state("CLIPTextModel")
    tensors["final_norm.bias"][:] = 3e38
    store(tmp_path, tensors)
    load_into(build("CLIPTextModel"), tmp_path)
    with pytest.raises(CheckpointError, match="float16") as caught:
        load_into(build("CLIPTextModel"), tmp_path, dtype=torch.float16)
    assert caught.value.not_finite == ["final_norm.bias"]


# Memory


MEASURE = """
import gc, re, sys, torch
from torch import nn
from altclip_fast.checkpoint import load_into
def anonymous():
    gc.collect()
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
def model(size):
    module = nn.Module()
    for i in range(8):
        module.register_parameter(f"w{i}", nn.Parameter(torch.empty(size, device="meta")))
    return module
for dtype in (None, torch.bfloat16):
    load_into(model(1024), sys.argv[2], dtype=dtype)
    module = model(4 * 2**20)
    before = anonymous()
    load_into(module, sys.argv[1], dtype=dtype)
    print(anonymous() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads RssAnon from /proc")
@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
def test_kept_weights_are_mapped_and_converted_ones_are_held_once(filename, tmp_path):
    large = store(tmp_path / "large", {f"w{i}": torch.ones(4 * 2**20) for i in range(8)}, filename)  # 128 MiB
    small = store(tmp_path / "small", {f"w{i}": torch.ones(1024) for i in range(8)}, filename)

    command = [sys.executable, "-c", MEASURE, str(large), str(small)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kept, converted = map(float, printed.split())
    assert kept < 4
    assert 60 < converted < 64 * 1.15


@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
def test_writing_to_mapped_weights_leaves_the_file(filename, tmp_path):
    store(tmp_path, state("CLIPTextModel"), filename)
    content = (tmp_path / filename).read_bytes()
    model = build("CLIPTextModel")
    load_into(model, tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    assert (tmp_path / filename).read_bytes() == content


# Shards


def shard(folder, tensors, suffix=".safetensors"):
    folder.mkdir(exist_ok=True)
    names = sorted(tensors)
    pattern = ("model" if suffix == ".safetensors" else "pytorch_model") + "-0000{}-of-00002" + suffix
    weight_map = {name: pattern.format(1 + i % 2) for i, name in enumerate(names)}
    for filename in sorted(set(weight_map.values())):
        store(folder, {n: tensors[n] for n in names if weight_map[n] == filename}, filename)
    index = folder / (pattern.split("-")[0] + suffix + ".index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards(suffix, tmp_path):
    tensors = state("CLIPModel")
    shard(tmp_path, tensors, suffix)
    model = build("CLIPModel")
    load_into(model, tmp_path)
    assert_same(model.state_dict(), tensors)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_missing_shard(suffix, tmp_path):
    index = shard(tmp_path, state("CLIPTextModel"), suffix)
    name = index.name.split(".")[0] + "-00002-of-00002" + suffix
    (tmp_path / name).unlink()
    with pytest.raises(OSError, match=name):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".", "", "model.txt",
        "..\\outside.safetensors", "a\0.safetensors", ".hidden.safetensors", "C:x.safetensors", 3, None,
    ],
)  # fmt: skip
def test_index_cannot_name_a_file_elsewhere(name, tmp_path):
    folder = tmp_path / "model"
    index = shard(folder, state("CLIPTextModel"))
    store(tmp_path, {"a": torch.ones(1)}, "outside.safetensors")
    values = json.loads(index.read_text())
    values["weight_map"]["final_norm.bias"] = name
    index.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"index\.json"):
        open_weights(folder)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "model"
    shard(folder, state("CLIPTextModel"))
    one = folder / "model-00001-of-00002.safetensors"
    one.rename(tmp_path / "elsewhere.safetensors")
    one.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises((OSError, ValueError), match="model-00001-of-00002"):
        open_weights(folder)


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    tensors = state("CLIPTextModel")
    shard(snapshot, tensors)
    for i, file in enumerate(sorted(snapshot.iterdir())):
        blob = tmp_path / "models--a--b" / "blobs" / f"{i}"
        file.rename(blob)
        file.symlink_to(os.path.join("..", "..", "blobs", blob.name))
    model = build("CLIPTextModel")
    load_into(model, snapshot)
    assert_same(model.state_dict(), tensors)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": 1, "a": NaN}']
)
def test_bad_index(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        open_weights(tmp_path)


def test_index_that_promises_what_no_shard_has(tmp_path):
    index = shard(tmp_path, state("CLIPTextModel"))
    values = json.loads(index.read_text())
    values["weight_map"]["promised"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="promised"):
        open_weights(tmp_path)


def test_a_tensor_in_two_shards(tmp_path):
    shard(tmp_path, state("CLIPTextModel"))
    extra = load_file(tmp_path / "model-00001-of-00002.safetensors")
    other = load_file(tmp_path / "model-00002-of-00002.safetensors")
    name = next(iter(other))
    save_file(extra | {name: other[name]}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=name):
        open_weights(tmp_path)


# Damaged and hostile files


def test_no_weights(tmp_path):
    with pytest.raises(OSError, match=r"model\.safetensors"):
        open_weights(tmp_path)


def test_truncated_files_are_named(tmp_path):
    for filename in ("model.safetensors", "pytorch_model.bin"):
        folder = store(tmp_path / filename.split(".")[1], state("CLIPTextModel"), filename)
        content = (folder / filename).read_bytes()
        for size in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
            (folder / filename).write_bytes(content[:size])
            with pytest.raises((ValueError, OSError), match=re.escape(filename)):
                read_state_dict(folder)


class Boom:
    ran = False

    def __reduce__(self):
        return (setattr, (Boom, "ran", True))


@pytest.mark.parametrize("zip_format", [True, False])
def test_code_in_a_pickle_does_not_run(zip_format, tmp_path):
    content = {"a": Boom()}
    torch.save(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zip_format)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_weights(tmp_path)
    assert Boom.ran is False


@pytest.mark.parametrize("content", [[1], {"a": 1}, {1: torch.ones(1)}, {"a": {"b": torch.ones(1)}}, torch.ones(2)])
def test_a_pickle_of_something_else(content, tmp_path):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_weights(tmp_path)


def safetensors_bytes(header, data=b"\0" * 40, size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(**changes):
    return {"w": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]} | changes}


@pytest.mark.parametrize(
    "content",
    [
        safetensors_bytes(entry(), size=2**63), safetensors_bytes(entry(), size=2**27), safetensors_bytes(b"[]"),
        safetensors_bytes(b"{"), safetensors_bytes(b"\xff" * 20), safetensors_bytes(entry(data_offsets=[0, 80])),
        safetensors_bytes(entry(data_offsets=[40, 0])), safetensors_bytes(entry(data_offsets=[8, 48])),
        safetensors_bytes(entry(shape=[2**40, 2**40])), safetensors_bytes(entry(shape=[11])),
        safetensors_bytes(entry(shape=[-10])), safetensors_bytes(entry(dtype="F31")),
        safetensors_bytes(entry(), data=b"\0" * 39), safetensors_bytes(entry(), data=b"\0" * 41),
        safetensors_bytes(entry() | {"v": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]}}),
    ],
)  # fmt: skip
def test_hostile_safetensors_headers(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises((ValueError, OSError), match=r"model\.safetensors"):
        read_state_dict(tmp_path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = store(tmp_path_factory.mktemp("sound"), state("CLIPTextModel"))
    return (folder / "model.safetensors").read_bytes()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_headers_are_read_or_refused(tmp_path_factory, sound, data):
    content = bytearray(sound)
    length = struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 7 + length))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    folder = tmp_path_factory.getbasetemp()
    (folder / "model.safetensors").write_bytes(bytes(content))
    model = build("CLIPTextModel")
    try:
        load_into(model, folder)
    except (ValueError, TypeError, OSError):
        assert all(p.is_meta for p in model.parameters())
        return
    assert not any(p.is_meta for p in model.parameters())


# Saving


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


@pytest.mark.parametrize("options", [{}, {"max_shard_size": 4000}])
@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_what_is_saved(name, options, tmp_path, transformers):
    model = build(name, device="cpu")
    save(model, CONFIGS[name].to_dict(), tmp_path, **options)
    assert (tmp_path / "model.safetensors").exists() is not bool(options)
    loaded, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    placed, _ = to_plain(loaded.state_dict(), SHAPES[name].keys())
    theirs = loaded.state_dict()
    assert_same(model.state_dict(), {ours: theirs[stored] for stored, ours in placed.items()})
    assert loaded.config.architectures == [name] and loaded.dtype is torch.float32
    again = build(name)
    load_into(again, tmp_path)
    assert_same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_through_transformers(name, theirs, tmp_path):
    """transformers -> ours -> disk: the same tensors under names that transformers wrote or reads."""
    model = build(name)
    load_into(model, theirs[name].folder)
    save(model, CONFIGS[name].to_dict(), tmp_path)
    ours, source = load_file(tmp_path / "model.safetensors"), load_file(theirs[name].folder / "model.safetensors")
    placed = {n: t for stored, n in to_plain(source, SHAPES[name].keys())[0].items() for t in [source[stored]]}
    assert_same({n: ours[h] for n, h in to_hub(placed).items()}, placed)


def test_config_is_written_with_class_and_dtype(tmp_path):
    model = build("CLIPVisionModel", device="cpu").to(torch.bfloat16)
    save(model, CLIP.vision_config.to_dict(), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["architectures"] == ["CLIPVisionModel"] and values["dtype"] == "bfloat16"
    assert values["hidden_size"] == 16 and "return_dict" not in values
    with checkpoint.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "4KB"}])
def test_bin_format(options, tmp_path):
    model = build("AltCLIPModel", device="cpu")
    save(model, ALTCLIP.to_dict(), tmp_path, safe_serialization=False, **options)
    assert all(p.suffix in (".bin", ".json") for p in tmp_path.iterdir())
    again = build("AltCLIPModel")
    load_into(again, tmp_path)
    assert_same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("safe", [True, False])
def test_saving_over_the_file_that_the_model_is_mapped_from(safe, tmp_path):
    tensors = state("CLIPModel")
    filename = "model.safetensors" if safe else "pytorch_model.bin"
    store(tmp_path, tensors, filename)
    model = build("CLIPModel")
    load_into(model, tmp_path)
    for _ in range(2):
        save(model, CLIP.to_dict(), tmp_path, safe_serialization=safe)
        assert_same(model.state_dict(), tensors)
        again = build("CLIPModel")
        load_into(again, tmp_path)
        assert_same(again.state_dict(), tensors)


def test_mapped_weights_are_sharded_by_size(tmp_path):
    """Tensors mapped from one file must not end up in one shard because they share it."""
    store(tmp_path / "a", state("CLIPModel"), "pytorch_model.bin")
    model = build("CLIPModel")
    load_into(model, tmp_path / "a")
    save(model, CLIP.to_dict(), tmp_path / "b", max_shard_size=8000)
    files = list((tmp_path / "b").glob("*.safetensors"))
    assert len(files) > 3 and all(file.stat().st_size < 12_000 for file in files)
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in model.parameters())
    assert index["weight_map"].keys() == hub_state_dict(model).keys()


def test_a_later_save_is_what_is_loaded(tmp_path):
    """Each kind of save leaves nothing behind that would be found before it."""
    for options in (
        {"max_shard_size": 3000},
        {"max_shard_size": 9000},
        {},
        {"max_shard_size": 9000},
        {"safe_serialization": False},
        {"safe_serialization": False, "max_shard_size": 9000},
        {"safe_serialization": False},
        {"max_shard_size": 9000},
    ):
        model = build("CLIPTextModel", device="cpu")
        save(model, CLIP.text_config.to_dict(), tmp_path, **options)
        again = build("CLIPTextModel")
        load_into(again, tmp_path)
        assert_same(again.state_dict(), model.state_dict())
    assert len({file.name.split("-of-")[1] for file in tmp_path.glob("model-*-of-*")}) == 1


def test_other_files_stay(tmp_path):
    for name in ("tokenizer.json", "model.onnx", "my-model.safetensors", "model_best.safetensors"):
        (tmp_path / name).write_text("mine")
    save(build("CLIPTextModel", device="cpu"), CLIP.text_config.to_dict(), tmp_path)
    assert (tmp_path / "my-model.safetensors").exists() and (tmp_path / "model_best.safetensors").exists()
    assert (tmp_path / "tokenizer.json").exists() and (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("failing", ["save_file", "write_text"])
def test_a_failed_save_leaves_the_folder_as_it_was(failing, tmp_path, monkeypatch):
    model = build("CLIPTextModel", device="cpu")
    save(model, CLIP.text_config.to_dict(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    real, calls = getattr(checkpoint, failing), []

    def full_disk(*args, **options):
        calls.append(args)
        if len(calls) > 1 or failing == "write_text":
            with open(args[1] if failing == "save_file" else args[0], "wb") as file:
                file.write(b"half")
            raise checkpoint.SafetensorError("disk full") if failing == "save_file" else OSError("disk full")
        real(*args, **options)

    monkeypatch.setattr(checkpoint, failing, full_disk)
    with pytest.raises(OSError, match="disk full"):
        save(build("CLIPTextModel", device="cpu"), CLIP.text_config.to_dict(), tmp_path, max_shard_size=4000)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_bad_arguments_to_save(tmp_path):
    with pytest.raises(ValueError, match="meta"):
        save(build("CLIPTextModel"), {}, tmp_path)
    with pytest.raises(ValueError):
        save(build("CLIPTextModel", device="cpu"), {}, tmp_path, max_shard_size="many")
    with pytest.raises(ValueError):
        save(build("CLIPTextModel", device="cpu"), {"note": float("nan")}, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "f").write_text("x")
    with pytest.raises(OSError):
        save(build("CLIPTextModel", device="cpu"), {}, tmp_path / "f")


def test_shared_sliced_and_transposed_parameters(tmp_path):
    model = build("CLIPTextModel", device="cpu")
    model.final_norm.bias = model.final_norm.weight
    model.layers._modules["0"].mlp.fc1.weight = nn.Parameter(torch.randn(16, 24).t())
    model.layers._modules["1"].mlp.fc1.weight = nn.Parameter(torch.randn(100, 16)[:24])
    for safe in (True, False):
        save(model, {}, tmp_path, safe_serialization=safe)
        again = build("CLIPTextModel")
        load_into(again, tmp_path)
        assert_same(again.state_dict(), model.state_dict())
    assert (tmp_path / "pytorch_model.bin").stat().st_size < 60_000


def test_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    save(build("CLIPTextModel", device="cpu"), {}, tmp_path)
    usual = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {usual}


def test_readers_never_see_half_a_file(tmp_path):
    models = [build("CLIPTextModel", device="cpu") for _ in range(2)]
    save(models[0], {}, tmp_path)
    states = [m.final_norm.weight.tolist() for m in models]
    done, seen = threading.Event(), []

    def read():
        while not done.is_set():
            again = build("CLIPTextModel")
            load_into(again, tmp_path)
            seen.append(again.final_norm.weight.tolist() in states)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for i in range(20):
            save(models[i % 2], {}, tmp_path)
    finally:
        done.set()
        reader.join()
    assert seen and all(seen)


# load_state_dict


@pytest.mark.parametrize("name", NAMES)
def test_load_state_dict_takes_all_spellings(name, theirs):
    source = build(name, device="cpu")
    for tensors in (source.state_dict(), hub_state_dict(source), theirs[name].state):
        before = list(tensors)
        model = build(name, device="cpu", hook=True)
        model.load_state_dict(tensors)
        placed, _ = to_plain(tensors, SHAPES[name].keys())
        assert_same(model.state_dict(), {ours: tensors[stored] for stored, ours in placed.items()})
        assert list(tensors) == before


def test_load_state_dict_drops_leftovers_and_stays_strict():
    model = build("AltCLIPModel", device="cpu", hook=True)
    tensors = hub_state_dict(build("AltCLIPModel", device="cpu"))
    tensors["text_model.roberta.embeddings.position_ids"] = torch.arange(20)
    model.load_state_dict(tensors)
    with pytest.raises(RuntimeError, match=r"vision_model\.surplus"):
        model.load_state_dict(tensors | {"vision_model.surplus": torch.ones(1)})
    missing = {name: tensor for name, tensor in tensors.items() if name != "logit_scale"}
    with pytest.raises(RuntimeError, match="logit_scale"):
        model.load_state_dict(missing)


def test_hook_of_a_tower_inside_another_module():
    tower = build("AltCLIPTextModel", device="cpu", hook=True)
    outer = nn.ModuleDict({"head": nn.Linear(2, 2), "encoder": tower})
    source = hub_state_dict(build("AltCLIPTextModel", device="cpu"))
    tensors = {f"encoder.{name}": tensor for name, tensor in source.items()}
    outer.load_state_dict(tensors | {f"head.{n}": t for n, t in outer["head"].state_dict().items()})
    assert_same(hub_state_dict(tower), source)
