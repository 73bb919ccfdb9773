"""The whole recipe, a few steps of it: what it writes is loaded, measured, shown, and not trained twice."""

import json

import pytest
import torch
import transformers as hf
from PIL import Image

import altclip_fast as af
from altclip_fast import cli
from altclip_fast.embedded import captions, data, evaluate, train
from altclip_fast.testing.embeddings import FLOAT32

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train.train(folder, seed=0, steps=(8, 3, 3), pool_size=2000)
    return folder


def test_what_is_written(trained):
    for name, kind in (("altclip", af.AltCLIPModel), ("clip", af.CLIPModel)):
        encoder = af.load(trained / name, device="cpu")
        assert type(encoder.model) is kind and encoder.dtype is torch.float16
        assert "seen_pairs" in (trained / name / "README.md").read_text(encoding="utf-8")
    size = sum(file.stat().st_size for name in ("altclip", "clip") for file in (trained / name).iterdir())
    assert size < 15e6


def test_both_share_the_image_tower(trained):
    one, two = (af.load(trained / name, device="cpu").model.vision_model.state_dict() for name in ("altclip", "clip"))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", ["altclip", "clip"])
def test_transformers_loads_them(trained, name):
    ours = af.load(trained / name, dtype=torch.float32, device="cpu")
    model = hf.AutoModel.from_pretrained(trained / name, dtype=torch.float32)
    processor = hf.AutoProcessor.from_pretrained(trained / name)
    texts = ["a red circle", "the digit three", "Zürich 🙂"]
    picture = Image.new("RGB", (90, 60), "white")
    inputs = processor(text=texts, images=picture, return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model(**inputs)
    assert (ours.encode_text(texts) - theirs.text_embeds).abs().max() <= FLOAT32
    assert (ours.encode_image(picture) - theirs.image_embeds).abs().max() <= FLOAT32


def test_a_finished_stage_is_not_repeated(trained, monkeypatch):
    def fail(*_):
        raise AssertionError("trained again")

    before = (trained / "altclip" / "model.safetensors").read_bytes()
    for stage in ("contrastive", "teacher_learning", "frozen_contrastive"):
        monkeypatch.setattr(train, stage, fail)
    train.train(trained, seed=0, steps=(8, 3, 3), pool_size=2000)
    assert (trained / "altclip" / "model.safetensors").read_bytes() == before


def test_evaluation_is_a_fraction_of_right_answers(trained):
    table = evaluate.evaluate(af.load(trained / "altclip", device="cpu"), ["en", "ar"], per_pair=1, searched=20)
    assert [row.language for row in table] == ["en", "ar"]
    assert all(0 <= value <= 1 for row in table for value in row[1:])
    best = torch.eye(3)
    assert evaluate.accuracy(best, best, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)


def test_demo(trained, tmp_path, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(["demo", "--model", str(trained / "altclip"), *arguments])
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    target = tmp_path / "demo.png"
    arguments = ("--seed", "5", "--output", str(target), "--query", "ein großer roter Kreis")
    code, out, _ = run(*arguments)
    assert code == 0 and "seed 5" in out and "ein großer roter Kreis" in out and "Arabic" in out
    with Image.open(target) as picture:
        assert picture.size[0] > 1000
    assert run(*arguments)[1] == out
    code, _, err = run("--output", str(tmp_path / "absent" / "demo.png"))
    assert code == 1 and "absent" in err


def test_a_batch_holds_every_trained_pair(trained):
    import numpy as np

    pool = data.make_pool(2000, 0, 1, trained / "work" / "pool.pt")
    chosen = pool.batch(np.random.default_rng(0))
    assert len(chosen) == len(set(chosen)) == data.BATCH
    texts = [data.describe(pool.contents[i], captions.LANGUAGES, np.random.default_rng(i)) for i in chosen[:5]]
    assert all(len(set(text)) == len(captions.LANGUAGES) for text in texts)
    assert json.loads((trained / "clip" / "config.json").read_text())["model_type"] == "clip"
