"""Zero-shot pipelines side by side, on the tiny model."""

import importlib.util

import pytest
import torch
from in_process import Local

from altclip_fast.encoder import Encoder
from benchmarks import harness, rows, whole
from benchmarks.__main__ import main
from benchmarks.harness import Entry, Limits
from benchmarks.systems import Running
from benchmarks.worker import Worker
from benchmarks.zero_shot import SYSTEMS, ZeroShot


@pytest.fixture
def task(weights):
    """Makes a task of the tiny model."""

    def make(labels=5, photos=4, kept=False):
        folder = whole.checkpoint("tiny", weights, cut=True)
        return ZeroShot(str(folder), "zero-shot", photos, "float32", torch.get_num_threads(), labels, kept)

    return make


def needs(name):
    if name not in ("altclip_fast", "reference") and importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")


@pytest.mark.parametrize("labels, kept", [(3, False), (70, False), (70, True)])
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow if name == "torch-compile" else ()) for name in SYSTEMS
])  # fmt: skip
def test_every_system_is_right(local, task, name, labels, kept):
    needs(name)
    job = task(labels, kept=kept)
    system = Local(SYSTEMS[name].start, job, 60)
    assert system.embeddings(60).shape == (4, labels)
    assert harness.check(system, job, 60, SYSTEMS).refusal is None


def neighbours(job):
    """A system that gives every label the score of the one before it."""
    right = SYSTEMS["reference"].start(job)
    return Running(lambda inputs: right.embed(inputs).roll(1, 1), "rolled")


def test_scores_of_other_labels_are_refused(local, task):
    entries = [Entry("rolled", neighbours, "float32"), Entry("right", SYSTEMS["altclip_fast"].start, "float32")]
    limits = Limits(2)
    outcome = harness.run(entries, task(), limits, str, kind="model", subject="tiny", systems=SYSTEMS)
    assert list(outcome.refused) == ["rolled float32"]
    assert [row.system for row in outcome.rows if row.kind == "model"] == ["right"]


def test_only_kept_labels_are_embedded_once(local, task, monkeypatch):
    embedded, encode = [], Encoder.encode_text
    monkeypatch.setattr(Encoder, "encode_text", lambda *args, **options: embedded.append(1) or encode(*args, **options))
    for kept, calls in ((False, 3), (True, 1)):
        system, (batch,) = SYSTEMS["altclip_fast"].start(task(kept=kept)), task().batches()
        embedded.clear()
        for _ in range(3):
            system.embed(batch)
        assert len(embedded) == calls


def test_transformers_embeds_the_labels_once_a_call(task, monkeypatch):
    transformers = pytest.importorskip("transformers")
    seen, forward = [], transformers.AltCLIPModel.forward
    monkeypatch.setattr(
        transformers.AltCLIPModel,
        "forward",
        lambda *args, **inputs: (
            seen.append((len(inputs["pixel_values"]), len(inputs["input_ids"]))) or forward(*args, **inputs)
        ),
    )
    Local(SYSTEMS["transformers-sdpa"].start, task(), 60).turn()
    assert seen == [(4, 5)]


def test_cost(task):
    three, many, kept = (task(*of).cost() for of in ((3,), (100,), (100, 4, True)))
    assert kept.flops < three.flops < many.flops and kept.bytes < three.bytes == many.bytes
    assert three.shape.startswith("4 x 3 x 30 x 30, 3 labels, ") and "cut to" in three.shape and "kept" in kept.shape


def test_labels_are_enough_and_of_many_lengths(task):
    names = task(1000).names
    assert len(set(names)) == 1000 and {len(name.split()) for name in names} >= {1, 2, 3, 5, 6, 7}
    assert task(3).names == names[:3]


def test_in_a_process_of_its_own(task):
    job = task()
    worker = Worker(SYSTEMS["altclip_fast"].start, job, 120)
    try:
        expected = Local(SYSTEMS["altclip_fast"].start, job, 0).embeddings(0)
        assert torch.equal(worker.embeddings(60), expected) and worker.turn() > 0
    finally:
        worker.close()


@pytest.mark.parametrize("kept", [False, True])
def test_the_command(local, capsys, tmp_path, weights, kept):
    output = tmp_path / "rows.jsonl"
    arguments = ["--model", "tiny", "--weights", weights, "--labels", "2", "7", "--photos", "3", "--rounds", "2"]
    chosen = ["--systems", "altclip_fast", "reference", "--output", output, *["--kept"] * kept]
    with pytest.raises(SystemExit) as stop:
        main(["zero-shot", *map(str, [*arguments, *chosen])])
    assert stop.value.code == 0 and "zero-shot-7" in capsys.readouterr().out
    found = [row for row in rows.read(output) if row.kind == "model"]
    works = [f"zero-shot-{labels}{'-kept' * kept}" for labels in (2, 7) for _ in range(2)]
    assert [row.work for row in found] == works and {row.batch for row in found} == {3}
    assert [row.system for row in found] == ["altclip_fast", "reference"] * 2 and all(row.share > 0 for row in found)


@pytest.mark.parametrize("flag, value", [("--labels", "0"), ("--labels", "5000"), ("--model", "vit-b-32")])
def test_wrong_usage(capsys, flag, value):
    with pytest.raises(SystemExit) as stop:
        main(["zero-shot", flag, value])
    assert stop.value.code == 2 and "usage" in capsys.readouterr().err
