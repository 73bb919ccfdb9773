"""Photos end to end, and processes that have just started, on the tiny model."""

import importlib.util

import pytest
import torch
from in_process import Local
from PIL import Image

from benchmarks import fresh, harness, photos, rows, whole
from benchmarks.__main__ import main
from benchmarks.fresh import Whole
from benchmarks.photos import Photos

THREADS = torch.get_num_threads()


@pytest.fixture
def job(weights):
    """Makes a task of the tiny model, by the name of its work."""
    pytest.importorskip("sklearn")

    def make(work, batch=3, dtype="float32"):
        folder, files = str(whole.checkpoint("tiny", weights)), weights / "photos"
        photos.make(files, batch + photos.CHECKED)
        if work == "memory":
            return Whole(folder, work, batch, dtype, THREADS)
        return Photos(folder, work, batch, dtype, THREADS, str(files))

    return make


def systems():
    tables = {"photos": photos.SYSTEMS} | {work: fresh.WORKS[work].systems for work in fresh.WORKS}
    # Each call of "first" starts an interpreter: that takes seconds.
    slow = {"first"}
    return [
        pytest.param(work, name, dtype, marks=pytest.mark.slow if work in slow else ())
        for work, table in tables.items()
        for name, system in table.items()
        for dtype in system.dtypes
        if dtype == "float32" or name == "altclip_fast"
    ]


@pytest.mark.parametrize("work, name, dtype", systems())
def test_every_system_is_right(local, job, work, name, dtype):
    if name.startswith("transformers") and importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    table = photos.SYSTEMS if work == "photos" else fresh.WORKS[work].systems
    task = job(work, dtype=dtype)
    assert harness.check(Local(table[name].start, task, 60), task, 60, table).refusal is None


def test_photos_are_large_and_differ(job):
    files = job("photos").files({"photos": torch.arange(6)})
    found = [Image.open(file) for file in files]
    assert all(1.9e6 < image.width * image.height < 2.1e6 and image.format == "JPEG" for image in found)
    assert len({image.size for image in found}) > 2 and len({file.read_bytes() for file in files}) == 6


def test_another_photo_is_refused(local, job):
    def start(task):
        right = photos.SYSTEMS["reference"].start(task)
        return right._replace(embed=lambda inputs: right.embed({"photos": inputs["photos"].flip(0)}))

    found = harness.check(Local(start, job("photos"), 60), job("photos"), 60, photos.SYSTEMS)
    assert "normalised embeddings differ" in found.refusal


def test_a_text_that_is_off_is_refused(local, job):
    systems = fresh.WORKS["memory"].systems

    def start(task):
        right = systems["reference"].start(task)
        return right._replace(embed=lambda inputs: right.embed({**inputs, "input_ids": inputs["input_ids"].flip(0)}))

    assert harness.check(Local(start, job("memory"), 60), job("memory"), 60, systems).refusal is not None


def test_weights_are_counted_in_the_precision(job):
    (weights,) = {job("memory", dtype=dtype).cost().bytes / size for dtype, size in (("float32", 4), ("bfloat16", 2))}
    model = fresh.own_model(job("memory"))
    assert weights == pytest.approx(model.num_parameters(), rel=0.1)  # a small file has a header of its own size


def test_a_process_that_fails_says_why(job):
    task = job("first")
    broken = fresh._process(task, "raise OSError('no such photo')", "", "")
    with pytest.raises(fresh.Unavailable, match="no such photo"):
        broken.embed(task.batches()[0])


@pytest.mark.parametrize("arguments, works", [
    (["photos", "--photos", "2", "3", "--systems", "altclip_fast", "the tower alone", "reference"], [2, 2, 2, 3, 3, 3]),
    (["fresh", "--works", "memory"], [8, 8]),
])  # fmt: skip
def test_the_commands(local, job, capsys, tmp_path, weights, arguments, works):
    pytest.importorskip("transformers")
    job("photos")
    output = tmp_path / "rows.jsonl"
    given = ["--model", "tiny", "--weights", weights, "--rounds", "2", "--dtypes", "float32", "--output", output]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *map(str, given)])
    assert stop.value.code == 0 and "tiny" in capsys.readouterr().out
    found = [row for row in rows.read(output) if row.kind == "model"]
    assert [row.batch for row in found] == works
