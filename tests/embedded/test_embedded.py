"""The models that the package carries: their accuracies, their form, and the demonstration."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

import altclip_fast as af
from altclip_fast import cli
from altclip_fast.embedded import captions, demo, evaluate, scenes
from altclip_fast.testing.embeddings import FLOAT32

FOLDER = Path(af.__file__).parent / "embedded"
NAMES = {"embedded": "altclip", "embedded-clip": "clip"}


@pytest.fixture(scope="module")
def encoders():
    return {name: af.load(name, device="cpu") for name in NAMES}


@pytest.fixture(scope="module")
def accuracies(encoders):
    rows = [*evaluate.evaluate(encoders["embedded"]), *evaluate.evaluate(encoders["embedded-clip"], ["en"])]
    return {(name, row.language): row for name, row in zip(["embedded"] * 11 + ["embedded-clip"], rows, strict=True)}


@pytest.mark.parametrize("code", captions.LANGUAGES)
def test_accuracies_in_every_language(accuracies, code):
    row = accuracies["embedded", code]
    assert row.seen_pairs >= 0.97
    assert row.held_out_pairs >= 0.90
    assert row.digits >= 0.95
    assert row.search >= (0.80 if code == "en" else 0.75)


def test_accuracies_of_the_english_clip(accuracies):
    row = accuracies["embedded-clip", "en"]
    assert row.seen_pairs >= 0.97 and row.held_out_pairs >= 0.90 and row.digits >= 0.95 and row.search >= 0.80


def test_classes_and_size(encoders):
    assert type(encoders["embedded"].model) is af.AltCLIPModel
    assert type(encoders["embedded-clip"].model) is af.CLIPModel
    files = [file for name in NAMES.values() for file in (FOLDER / name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 15e6
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md", ".model"}
    assert all(encoder.dtype is torch.float16 for encoder in encoders.values())


@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_them(encoders, name):
    folder, encoder = FOLDER / NAMES[name], encoders[name]
    model = hf.AutoModel.from_pretrained(folder, dtype=torch.float32)
    processor = hf.AutoProcessor.from_pretrained(folder)
    picture = scenes.render(scenes.sample_scene(np.random.default_rng(3)), np.random.default_rng(3), side=90)
    texts = ["a red circle", "a small blue star on the left", "the digit three"]
    inputs = processor(text=texts, images=picture, return_tensors="pt", padding=True)
    ours = af.load(name, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        theirs = model(**inputs)
    assert torch.equal(inputs["input_ids"], ours.processor(text=texts, return_tensors="pt", padding=True)["input_ids"])
    assert (ours.encode_text(texts) - theirs.text_embeds).abs().max() <= FLOAT32
    assert (ours.encode_image(picture) - theirs.image_embeds).abs().max() <= FLOAT32
    assert (encoder.encode_text(texts) @ ours.encode_text(texts).T).diag().min() > 0.999


@pytest.mark.filterwarnings("ignore:1 of 1 texts are longer")
@pytest.mark.parametrize("text", ["Zürich, naïve!", "猫が好き", "🙂", "", "x" * 5000])
def test_unseen_words(encoders, text):
    for encoder in encoders.values():
        assert encoder.encode_text(text).isfinite().all()


def test_demo(tmp_path, capsys):
    target = tmp_path / "demo.png"
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--seed", "5", "--output", str(target), "--query", "ein großer roter Kreis"])
    out = capsys.readouterr().out
    assert not stop.value.code and "seed 5" in out and "ein großer roter Kreis" in out
    assert out.count("right") >= 0.9 * (demo.SCENES + demo.DIGITS) * len(demo.LANGUAGES)
    with Image.open(target) as picture:
        assert picture.size[0] > 1000 and np.asarray(picture).std() > 20
    first = out
    with pytest.raises(SystemExit):
        cli.main(["demo", "--seed", "5", "--output", str(target), "--query", "ein großer roter Kreis"])
    assert capsys.readouterr().out == first


def test_demo_leaves_nothing_behind_when_it_cannot_write(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--seed", "1", "--output", str(tmp_path / "absent" / "demo.png")])
    assert stop.value.code == 1 and "absent" in capsys.readouterr().err


def test_classify_defaults_to_it(tmp_path, capsys):
    picture = tmp_path / "star.png"
    scene = scenes.Scene((scenes.Thing("red", "star", "big", "center"),), "white")
    scenes.render(scene, np.random.default_rng(0), side=128, style="flat").save(picture)
    labels = ["一个红色的星形", "a blue circle", "un cercle vert"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["classify", str(picture), "--labels", captions.label("red", "star", "zh"), *labels[1:], "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert not stop.value.code and row["labels"][0]["label"] == captions.label("red", "star", "zh")


@pytest.mark.slow
def test_the_wheel_holds_the_models(tmp_path):
    root, installed = Path(__file__).parents[2], tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    shutil.copytree(root, source, ignore=shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info"))
    subprocess.run([*pip, "wheel", *options, "-w", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", *options, "--target", installed, wheel], check=True, capture_output=True)
    command = [sys.executable, "-m", "altclip_fast", "demo", "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "seed 1" in done.stdout, done.stderr
    assert (tmp_path / "altclip-fast-demo.png").exists()
    where = "import altclip_fast; print(altclip_fast.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.startswith(str(installed))
