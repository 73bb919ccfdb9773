"""Processors: one call for images and texts, options to the right half, files that transformers reads and writes."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from toy_tokenizers import TEXTS

from altclip_fast.processing.batch import BatchFeature
from altclip_fast.processing.image import CLIPImageProcessor
from altclip_fast.processing.image_fast import CLIPImageProcessorFast
from altclip_fast.processing.processors import AltCLIPProcessor, CLIPProcessor
from altclip_fast.processing.tokenizers import CLIPTokenizer, XLMRobertaTokenizer

OURS = {"AltCLIPProcessor": AltCLIPProcessor, "CLIPProcessor": CLIPProcessor}
FOLDERS = {"AltCLIPProcessor": "xlm_roberta", "CLIPProcessor": "clip_json"}
PREPROCESSOR = {
    "crop_size": 32,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.25, 0.3],
    "resample": 3,
    "size": 32,
}


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 60), (50, 33))]


@pytest.fixture(scope="module")
def checkpoints(folders, tmp_path_factory):
    """Folders as on the hub: preprocessor_config.json in its older form beside a tokenizer."""
    root = tmp_path_factory.mktemp("processors")
    for name, folder in FOLDERS.items():
        shutil.copytree(folders[folder], root / name)
        model = {"model_type": "altclip" if name == "AltCLIPProcessor" else "clip"}
        (root / name / "config.json").write_text(json.dumps(model))
        (root / name / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return root


@pytest.fixture(params=OURS)
def ours(request, checkpoints):
    return OURS[request.param].from_pretrained(checkpoints / request.param)


def theirs_from(folder, name):
    """transformers' processor over the image processor that works without torchvision."""
    tokenizer = getattr(
        transformers, name.replace("AltCLIPProcessor", "XLMRobertaTokenizer").replace("CLIPProcessor", "CLIPTokenizer")
    )
    image_processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    return getattr(transformers, name)(image_processor, tokenizer.from_pretrained(folder))


@pytest.fixture
def theirs(ours, checkpoints):
    name = type(ours).__name__
    return theirs_from(checkpoints / name, name)


def same(got, wanted):
    assert list(got) == list(wanted)
    for name in wanted:
        if name == "pixel_values":
            torch.testing.assert_close(torch.as_tensor(got[name]), torch.as_tensor(wanted[name]), atol=1e-6, rtol=1e-6)
        else:
            assert torch.equal(torch.as_tensor(got[name]), torch.as_tensor(wanted[name]))


@pytest.mark.parametrize(
    "options",
    [
        {"padding": True, "return_tensors": "pt"},
        {"padding": "max_length", "truncation": True, "max_length": 9, "return_tensors": "np"},
        {"text_kwargs": {"padding": True}, "common_kwargs": {"return_tensors": "pt"}},
        {"images_kwargs": {"do_normalize": False}, "padding": True, "return_tensors": "pt"},
        {
            "size": {"shortest_edge": 40},
            "crop_size": {"height": 24, "width": 24},
            "padding": True,
            "return_tensors": "pt",
        },
        {"padding": True, "padding_side": "left", "do_rescale": False, "return_tensors": "pt"},
    ],
    ids=str,
)
def test_call_equals_transformers(ours, theirs, images, options):
    got, wanted = ours(images=images, text=TEXTS[:5], **options), theirs(images=images, text=TEXTS[:5], **options)
    assert isinstance(got, BatchFeature)
    same(got, wanted)
    for name, value in wanted.items():
        assert type(got[name]) is type(value)


def test_images_come_first(ours, images):
    both = ours(images, TEXTS[:2], padding=True, return_tensors="pt")
    assert list(both) == ["input_ids", "attention_mask", "pixel_values"]
    assert both.pixel_values.shape == (2, 3, 32, 32)
    assert both.to("cpu") is both
    assert set(ours(images=images[0], return_tensors="pt")) == {"pixel_values"}
    text = ours(text="a cat")
    assert text["input_ids"] == ours.tokenizer("a cat")["input_ids"]
    assert set(ours.model_input_names) == set(both)
    assert ours.model_input_names[0] == "pixel_values"


def test_decode(ours, theirs):
    rows = ours(text=TEXTS[:3])["input_ids"]
    assert ours.batch_decode(rows, skip_special_tokens=True) == theirs.batch_decode(rows, skip_special_tokens=True)
    assert ours.decode(rows[0]) == theirs.decode(rows[0])


def test_settings_of_the_tokenizer_are_defaults(ours, theirs, tmp_path):
    """Some checkpoints hold `max_length` in tokenizer_config.json: it counts in a processor's calls."""
    folder = tmp_path / "stored"
    ours.tokenizer.init_kwargs["max_length"] = 7
    ours.save_pretrained(folder)
    again = type(ours).from_pretrained(folder)
    other = theirs_from(folder, type(ours).__name__)
    for options in ({}, {"truncation": True}, {"max_length": 9}, {"text_kwargs": {"max_length": 5}}):
        assert again(text=TEXTS[:8], **options)["input_ids"] == other(text=TEXTS[:8], **options)["input_ids"]
    assert len(again(text=TEXTS[4])["input_ids"]) == 7


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p, i: p(), ValueError, "needs images, text or both"),
        (lambda p, i: p(text="a", paddding=True), TypeError, "unknown options: paddding"),
        (lambda p, i: p(text="a", common_kwargs={"colour": 1}), TypeError, "colour"),
        (lambda p, i: p(text="a", text_kwargs={"colour": 1}), TypeError, "colour"),
        (lambda p, i: p(images=i, images_kwargs={"colour": 1}), TypeError, "colour"),
        (lambda p, i: p(text="a", padding=True, text_kwargs={"padding": False}), ValueError, "padding was given twice"),
        (lambda p, i: p(images=i, size=3, images_kwargs={"size": 4}), ValueError, "size was given twice"),
        (lambda p, i: p(text=["a", 3]), TypeError, r"text\[1\]"),
        (lambda p, i: p.save_pretrained("x", push_to_hub=True), ValueError, "folder only"),
        (lambda p, i: type(p)(), TypeError, "image_processor must be a CLIPImageProcessor"),
        (
            lambda p, i: type(p)(p.image_processor),
            TypeError,
            "tokenizer must be a XLMRobertaTokenizer or CLIPTokenizer",
        ),
        (lambda p, i: type(p)(p.tokenizer, p.image_processor), TypeError, "not .*Tokenizer"),
    ],
)
def test_bad_arguments_are_named(ours, images, call, error, message):
    with pytest.raises(error, match=message):
        call(ours, images)


def test_clip_processor_ignores_further_arguments(ours):
    if isinstance(ours, CLIPProcessor):
        assert CLIPProcessor(ours.image_processor, ours.tokenizer, feature_extractor=None).tokenizer is ours.tokenizer
    else:
        with pytest.raises(TypeError, match="feature_extractor"):
            AltCLIPProcessor(ours.image_processor, ours.tokenizer, feature_extractor=None)


def test_transformers_loads_what_is_saved(ours, images, tmp_path):
    name = type(ours).__name__
    paths = ours.save_pretrained(tmp_path)
    assert sorted(path.rpartition("/")[2] for path in paths) == ["preprocessor_config.json", "processor_config.json"]
    for file in ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / file).read_text())["processor_class"] == name
    options = {"padding": True, "return_tensors": "pt"}
    wanted = ours(images=images, text=TEXTS[:5], **options)
    same(theirs_from(tmp_path, name)(images=images, text=TEXTS[:5], **options), wanted)
    same(type(ours).from_pretrained(tmp_path)(images=images, text=TEXTS[:5], **options), wanted)


def test_transformers_automatic_class_finds_what_is_saved(ours, images, checkpoints, tmp_path):
    ours.save_pretrained(tmp_path)
    name = type(ours).__name__
    shutil.copy(checkpoints / name / "config.json", tmp_path)
    automatic = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(automatic).__name__ == name
    same(
        automatic(text=TEXTS[:5], padding=True, return_tensors="pt"),
        ours(text=TEXTS[:5], padding=True, return_tensors="pt"),
    )
    assert list(automatic.image_processor.image_mean) == ours.image_processor.image_mean


def test_loads_what_transformers_saves(ours, theirs, images, tmp_path):
    theirs.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path)
    options = {"padding": True, "return_tensors": "pt"}
    same(again(images=images, text=TEXTS[:5], **options), theirs(images=images, text=TEXTS[:5], **options))


def test_loading_options(checkpoints, tmp_path):
    folder = checkpoints / "AltCLIPProcessor"
    processor = AltCLIPProcessor.from_pretrained(
        folder, size={"shortest_edge": 20}, padding_side="left", use_fast=True, local_files_only=True
    )
    assert isinstance(processor.image_processor, CLIPImageProcessorFast)
    assert processor.image_processor.size == {"shortest_edge": 20}
    assert processor.tokenizer.padding_side == "left"
    assert type(AltCLIPProcessor.from_pretrained(folder, use_fast=False).image_processor) is CLIPImageProcessor
    with pytest.raises(TypeError, match="paddding_side"):
        AltCLIPProcessor.from_pretrained(folder, paddding_side="left")
    with pytest.raises(OSError, match=r"preprocessor_config\.json"):
        AltCLIPProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(OSError, match=r"sentencepiece\.bpe\.model"):
        AltCLIPProcessor.from_pretrained(tmp_path)


def test_the_folder_names_its_tokenizer_class(folders, checkpoints, tmp_path):
    """AltCLIP-m9 calls itself a CLIP model, has a multilingual tokenizer, and no tokenizer.json."""
    shutil.copy(folders["sentencepiece"] / "sentencepiece.bpe.model", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    assert isinstance(AltCLIPProcessor.from_pretrained(tmp_path).tokenizer, XLMRobertaTokenizer)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizerFast"}))
    assert isinstance(CLIPProcessor.from_pretrained(tmp_path).tokenizer, XLMRobertaTokenizer)
    assert isinstance(CLIPProcessor.from_pretrained(checkpoints / "CLIPProcessor").tokenizer, CLIPTokenizer)


def test_processors_are_copied(ours, images):
    again = pickle.loads(pickle.dumps(ours))
    options = {"padding": True, "return_tensors": "pt"}
    same(again(images=images, text=TEXTS[:5], **options), ours(images=images, text=TEXTS[:5], **options))
    assert type(ours).__name__ in repr(again)
