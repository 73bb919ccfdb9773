"""`af.pipeline`: the call and the output of transformers' zero-shot image classification pipeline."""

import importlib

import pytest
import torch
import transformers as hf

import altclip_fast as af
from altclip_fast.testing.embeddings import FLOAT32

LABELS = ["cat", "two dogs", "une photo", "猫"]
TASK = "zero-shot-image-classification"


def assert_same(ours, theirs):
    assert [pair["label"] for pair in ours] == [pair["label"] for pair in theirs]
    assert all(list(pair) == ["score", "label"] for pair in ours)
    scores = torch.tensor([[p["score"] for p in pairs] for pairs in (ours, theirs)])
    assert (scores[0] - scores[1]).abs().max() <= FLOAT32


def test_equals_transformers(folder, photo_paths, photos):
    theirs, ours = hf.pipeline(TASK, model=str(folder)), af.pipeline(TASK, model=str(folder))
    path = str(photo_paths[0])
    assert_same(ours(path, candidate_labels=LABELS), theirs(path, candidate_labels=LABELS))
    assert_same(ours(photos[1], LABELS), theirs(photos[1], candidate_labels=LABELS))
    template = {"candidate_labels": LABELS, "hypothesis_template": "{} !"}
    assert_same(ours(photos[1], **template), theirs(photos[1], **template))
    for mine, his in zip(ours(photos, LABELS), theirs(photos, candidate_labels=LABELS), strict=True):
        assert_same(mine, his)


def test_one_image_or_a_list(altclip_folder, photos):
    pipe = af.pipeline(TASK, model=altclip_folder)
    assert isinstance(pipe(photos[0], LABELS)[0], dict)
    assert isinstance(pipe([photos[0]], LABELS)[0], list)
    assert pipe(images=photos[0], candidate_labels=LABELS) == pipe(photos[0], LABELS)
    assert pipe([], LABELS) == []
    assert pipe((photo for photo in photos[:1]), LABELS) == pipe([photos[0]], LABELS)


def test_model_forms(altclip_folder, photos):
    expected = af.pipeline(TASK, model=altclip_folder)(photos[0], LABELS)
    model = af.AltCLIPModel.from_pretrained(altclip_folder)
    processor = af.AltCLIPProcessor.from_pretrained(altclip_folder)
    parts = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer}
    assert af.pipeline(TASK, model, **parts)(photos[0], LABELS) == expected
    assert af.pipeline(TASK, model, processor=processor)(photos[0], LABELS) == expected
    assert af.pipeline(TASK, af.load(altclip_folder))(photos[0], LABELS) == expected
    assert af.pipeline(TASK, model=altclip_folder, device=-1, dtype=torch.float32)(photos[0], LABELS) == expected
    for older in ({"torch_dtype": "bfloat16"}, {"dtype": "bfloat16", "torch_dtype": "float32"}):
        assert af.pipeline(TASK, model=altclip_folder, device_map="cpu", **older).model.dtype is torch.bfloat16
    assert af.pipeline(TASK, model, processor=processor, device="meta").device.type == "meta"


def test_one_place_to_run(altclip_folder):
    with pytest.raises(ValueError, match="device is 'cpu' and device_map is 'cpu'"):
        af.pipeline(TASK, model=altclip_folder, device="cpu", device_map="cpu")


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda f: af.pipeline("text-generation", model=f), ValueError, "task is 'text-generation'"),
        (lambda f: af.pipeline(TASK), TypeError, "model is None"),
        (lambda f: af.pipeline(TASK, model=f)(None, ["a"]), ValueError, "no image"),
        (lambda f: af.pipeline(TASK, model=f)("a.jpg"), ValueError, "no candidate_labels"),
        (lambda f: af.pipeline(TASK, model=f)("a.jpg", []), ValueError, "labels is empty"),
        (lambda f: af.pipeline(TASK, model=f)("absent.jpg", ["a"]), OSError, "absent.jpg"),
        (lambda f: af.pipeline(TASK, model=f)("a.jpg", ["a"], hypothesis_template="x"), ValueError, "template is 'x'"),
        (lambda f: af.pipeline(TASK, model=f)("a.jpg", ["a"], hypothesis_template=None), TypeError, "template is None"),
    ],
)
def test_bad_calls(altclip_folder, call, error, match):
    with pytest.raises(error, match=match):
        call(altclip_folder)


def test_the_function_is_not_hidden_by_its_module():
    importlib.import_module("altclip_fast.pipelines")
    assert af.pipeline is af.pipelines.pipeline
