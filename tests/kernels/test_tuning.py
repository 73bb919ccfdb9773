"""Tables of measured configurations: how they are looked up, written and compiled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from altclip_fast.kernels import launch, linear, tuning
from benchmarks import kernels, shapes, tune

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
DEFAULT = {"BLOCK_M": 1}


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A folder of tables instead of the package's own; returns what writes one."""
    monkeypatch.setattr(tuning, "TUNED", tmp_path)
    tuning.table.cache_clear()
    tuning._measured.cache_clear()

    def write(gpu, **ops):
        (tmp_path / f"{gpu}.json").write_text(json.dumps({"capability": 90, "versions": {}, "ops": ops}))

    yield write
    tuning.table.cache_clear()
    tuning._measured.cache_clear()


def row(shape, config, dtype="bfloat16"):
    return {"dtype": dtype, "shape": shape, "config": config, "gain": 1.5}


def test_the_nearest_row_is_taken(tables):
    tables("gpu", linear=[row([64, 64], {"a": 1}), row([512, 64], {"a": 2}), row([64, 64], {"a": 3}, "float32")])
    assert tuning._measured("gpu", "linear", "bfloat16", (100, 64)) == {"a": 1}
    assert tuning._measured("gpu", "linear", "bfloat16", (300, 64)) == {"a": 2}
    assert tuning._measured("gpu", "linear", "float32", (300, 64)) == {"a": 3}
    assert tuning._measured("gpu", "linear", "float16", (64, 64)) is None
    assert tuning._measured("gpu", "linear", "bfloat16", (64, 64 * 9)) is None, "more than three octaves away"
    assert tuning._measured("gpu", "attention", "bfloat16", (64, 64)) is None
    assert tuning._measured("another", "linear", "bfloat16", (64, 64)) is None


def test_a_gpu_looks_into_its_table(tables, monkeypatch):
    monkeypatch.setattr(tuning, "gpu_name", lambda device: "gpu")
    tables("gpu", linear=[row([8, 8], {"BLOCK_M": 2})])
    cuda = torch.device("cuda")
    assert tuning.configuration("linear", cuda, torch.bfloat16, (8, 8), lambda: DEFAULT) == {"BLOCK_M": 2}
    assert tuning.configuration("linear", cuda, torch.float16, (8, 8), lambda: DEFAULT) == DEFAULT
    assert tuning.configuration("linear", CPU, torch.bfloat16, (8, 8), lambda: DEFAULT) == DEFAULT


def test_without_a_table_the_default_is_taken(tables):
    assert tuning.table("gpu") == {}
    assert not list(kernels._tuned(90))


def test_trying_says_what_was_asked():
    with tuning.trying("linear", None) as asked:
        tuning.configuration("linear", CPU, torch.float32, (1, 2), lambda: DEFAULT)
        tuning.configuration("attention", CPU, torch.float32, (3, 4), lambda: DEFAULT)
    assert asked == [((1, 2), DEFAULT)]


def test_every_row_of_a_table_is_compiled(tables):
    """As the ahead-of-time test does it, at the shape that it was measured for."""
    tiles = {"linear": linear.CANDIDATES[6], "attention": dict(BLOCK_M=64, BLOCK_N=32, num_warps=4, num_stages=3)}
    tables("one", linear=[row([4112, 1024, 1024], tiles["linear"])])
    tables("two", attention=[row([577, 577, 64], tiles["attention"], "float16")])
    found = list(kernels._tuned(90))
    assert [(dtype, case.op) for dtype, case in found] == [(torch.bfloat16, "linear"), (torch.float16, "attention")]
    for _, case in found:
        (recorded,) = kernels.launches(case, 90)
        assert {**recorded.arguments, **recorded.options}.items() >= tiles[case.op].items()
    assert not list(kernels._tuned(80))


def test_every_operator_that_looks_up_is_tuned():
    looked_up = {
        word
        for file in (ROOT / "kernels").glob("*.py")
        for line in file.read_text().splitlines()
        if "onfiguration(" in line or "tiles_of(" in line
        for word in line.split('"')[1::2]
    }
    assert {work.op for work in shapes.works(shapes.MODELS)} == looked_up
    assert {work.op for work in shapes.works(shapes.TINY)} == looked_up


def test_float32_has_one_row_whatever_the_batch():
    """Else a table would make the order of summation depend on the number of rows."""
    works = [work for work in shapes.works(shapes.MODELS) if work.op == "linear"]
    rows = {shapes.asked(work, torch.float32, 90).shape[0] for work in works}
    assert rows == {linear.ROWS_FLOAT32}


def test_medians_are_taken_in_turns():
    order, clock = [], iter([9, 9, 5, 1, 6, 2, 100, 3])

    def timer(name):
        def once():
            order.append(name)
            return next(clock)

        return once

    assert tune.measure([timer("a"), timer("b")], 3) == [6, 2]
    assert order == ["a", "b"] * 4


def test_wrong_and_failing_candidates_are_left_out(monkeypatch, capsys):
    work = next(shapes.works(shapes.TINY))
    wrong, failing, *_ = candidates = linear.CANDIDATES[6:9]
    product = linear.product

    def broken(*args, **named):
        out = product(*args, **named)
        trial = tuning._trial.get()
        if trial is not None and trial.config == failing:
            raise RuntimeError("out of resources")
        return out + 1 if trial is not None and trial.config == wrong else out

    monkeypatch.setattr(linear, "product", broken)
    monkeypatch.setattr(tune, "candidates", lambda op, dtype: candidates)
    monkeypatch.setattr(tune, "measure", lambda timers, rounds: [2.0, 1.0][: len(timers)])
    config, gain = tune.choose([work], torch.float16, CPU)
    assert (config, gain) == (candidates[2], 2.0)
    told = capsys.readouterr().err
    assert "out of resources" in told and "largest error" in told


def test_the_default_stays_unless_it_is_beaten(monkeypatch):
    work = next(shapes.works(shapes.TINY))
    monkeypatch.setattr(tune, "usable", lambda *args: True)
    monkeypatch.setattr(tune, "timer", lambda *args: None)
    monkeypatch.setattr(tune, "measure", lambda timers, rounds: [1.0] + [0.99] * (len(timers) - 1))
    assert tune.choose([work], torch.float16, CPU)[0] == shapes.asked(work, torch.float16, 90).config


def command(*arguments, interpreted="1"):
    environment = {**os.environ, "TRITON_INTERPRET": interpreted, "CUDA_VISIBLE_DEVICES": ""}
    run = [sys.executable, "-m", "benchmarks", "tune", *map(str, arguments)]
    return subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_tuning_in_the_interpreter(tmp_path, tables):
    done = command("--device", "cpu", "--dtypes", "float16", "--output", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["found.json"]
    table = tuning.table("found")
    assert set(table) == {work.op for work in shapes.works(shapes.TINY)}
    for op, rows in table.items():
        for measured in rows:
            works = [work for work in shapes.works(shapes.TINY) if work.op == op]
            wanted = shapes.asked(works[0], torch.float16, 90)
            assert measured.dtype == "float16" and measured.shape == wanted.shape
            assert measured.config in (wanted.config, *shapes.candidates(op, torch.float16))


@pytest.mark.skipif(not launch.INTERPRETED, reason="there is a GPU")
def test_refusals():
    for arguments, interpreted, message in (
        ([], "1", "no GPU here"),
        (["--device", "cpu", "--output", "x"], "0", "TRITON_INTERPRET=1"),
        (["--device", "cpu"], "1", "--output"),
    ):
        done = command(*arguments, interpreted=interpreted)
        assert done.returncode == 1 and message in done.stderr
