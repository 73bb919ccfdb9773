"""`python -m benchmarks gpu`: the rehearsal, and what hangs, dies or is wrong in it."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from altclip_fast.dispatch import OPS
from altclip_fast.kernels import norm
from benchmarks import gpu, ladder, ops, report, rows, sections, truth
from benchmarks.__main__ import main
from benchmarks.gpu import Course, Result
from benchmarks.harness import Outcome
from benchmarks.sections import Item, Section, Skipped, Told

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setting(tmp_path):
    made = sections.Setting("cpu", tmp_path, tmp_path, 1, 1)
    made.found.mkdir()
    return made


def checks(setting):
    return [json.loads(line) for line in (setting.found / "checks.jsonl").read_text().splitlines()]


def test_the_rehearsal(tmp_path):
    """Everything, as on a GPU, but on tiny sizes; a section that is there twice runs once."""
    once = [name for name in sections.SECTIONS if name != "again"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    options = ["--device", "cpu", "--rounds", "1", "--threads", "1", "--output", tmp_path, "--only", ",".join(once)]
    command = [sys.executable, "-m", "benchmarks", "gpu", *map(str, options)]
    verified = gpu.VERIFIED.read_bytes()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in (tmp_path / "gpu" / "checks.jsonl").read_text().splitlines()]
    assert {line["section"] for line in found} == set(once)
    assert {line["outcome"] for line in found} == {"passed", "skipped"}
    assert {line["told"] for line in found if line["outcome"] == "skipped"} <= {
        "a rehearsal takes what is built",
        "there is no GPU",
    }
    for op in OPS:
        assert "triton" not in OPS[op].backends or any(line["name"].startswith(f"{op} on triton") for line in found)
    assert {row.kind for row in report.load(tmp_path)} == {"ladder", "op", "model", "ceiling"}
    assert [line.split()[0] for line in done.stdout.splitlines() if line][-1 - len(once) : -1] == once
    assert gpu.VERIFIED.read_bytes() == verified, "only a GPU can verify"


def some(setting):
    """One item of every kind that goes wrong, and good ones between them."""
    yield Item("good", lambda: None)
    yield Item("wrong", wrong)
    yield Item("cannot", cannot)
    yield Item("hangs", lambda: time.sleep(900))
    yield Item("fails", lambda: Told("said", (), "it is off"))
    yield Item("dies", lambda: os._exit(3))
    yield Item("errs", lambda: [][1])
    yield Item("measures", lambda: Told("", [a_row()]))


def wrong():
    raise AssertionError("two and two are five")


def cannot():
    raise Skipped("no reason")


def a_row():
    fields = {"kind": "op", "subject": "sum", "work": "", "system": "altclip_fast", "backend": "", "dtype": "float32"}
    return rows.make(rows.this_run(1), [0.5], 1, 1, **fields, batch=1, shape="")


def test_an_item_that_hangs_or_dies_costs_no_other(setting):
    course = gpu.follow("some", Section(some, 900, 2), setting, 900, rows.this_run(1))
    outcomes = {result.name: (result.outcome, result.told) for result in course.results}
    assert outcomes.pop("hangs")[0] == "hung"
    assert outcomes == {
        "good": ("passed", ""),
        "wrong": ("failed", "two and two are five"),
        "cannot": ("skipped", "no reason"),
        "fails": ("failed", "it is off\nsaid"),
        "dies": ("crashed", "its process ended with 3"),
        "errs": ("failed", "failed: IndexError: list index out of range"),
        "measures": ("passed", ""),
    }
    assert course.over and [line["name"] for line in checks(setting)] == [item.name for item in some(setting)]
    assert [row.subject for row in course.rows] == ["sum"]
    assert rows.read(setting.output / f"{course.rows[0].machine}.jsonl") == course.rows
    assert "two and two are five" in (setting.found / "notes.txt").read_text()
    table = gpu.told({"some": course}).splitlines()[-1]
    assert table.split()[:4] == ["some", "2", "5", "1"] and "wrong: failed: two and two" in table


def slow(setting):
    yield Item("quick", lambda: None)
    yield Item("slow", lambda: time.sleep(600))
    yield Item("never", lambda: None)


def test_a_section_is_bounded_and_what_it_found_is_kept(setting):
    course = gpu.follow("slow", Section(slow, 9, 600, gate=True), setting, 9, rows.this_run(1))
    assert [(r.name, r.outcome) for r in course.results] == [("quick", "passed"), ("slow", "late")]
    assert [line["name"] for line in checks(setting)] == ["quick", "slow"]
    assert not course.over and course.seconds < 60


def broken(setting):
    raise OSError("no items")
    yield


def test_a_section_that_cannot_begin_is_told_of(setting):
    course = gpu.follow("broken", Section(broken, 60, 9), setting, 60, rows.this_run(1))
    assert [(r.name, r.outcome) for r in course.results] == [("the process after 0 items", "crashed")]
    assert not course.over


@pytest.mark.parametrize("outcome, over, gate, code", [
    ("passed", True, True, 0),
    ("skipped", True, True, 0),
    ("failed", True, False, 1),
    ("hung", True, True, 1),
    ("crashed", True, True, 1),
    ("passed", False, True, 1),
    ("passed", False, False, 0),
])  # fmt: skip
def test_the_exit_code(setting, monkeypatch, outcome, over, gate, code):
    course = Course([Result("truth", "one", outcome, 1.0)], over=over)
    monkeypatch.setattr(gpu, "SECTIONS", {"truth": Section(some, 1, 1, gate=gate)})
    monkeypatch.setattr(gpu, "follow", lambda *args: course)
    assert gpu.run(["truth"], setting) == code


def test_a_wrong_kernel_is_found(setting, monkeypatch):
    """By the items of the section itself, run here."""
    truths = [item for item in sections.checks(setting) if item.name.startswith("layer_norm on triton")]
    assert {gpu._ask(item)[0] for item in truths} == {"passed"}
    right = norm.layer_norm
    monkeypatch.setattr(norm, "layer_norm", lambda *args: right(*args) * 1.001)
    found = {item.name: gpu._ask(item) for item in truths}
    outcome, why, *_ = found["layer_norm on triton, float32: samples"]
    assert outcome == "failed" and "largest error" in why


def test_bits_that_differ_are_found(monkeypatch):
    op, count = OPS["l2_normalize"], iter(range(99))
    backend = dataclasses.replace(op._backends["triton"], run=lambda x: x + (next(count) == 2))
    monkeypatch.setattr(op, "_backends", {**op._backends, "triton": backend})
    with pytest.raises(AssertionError, match="call 3 gives other bits in output 0"):
        truth._same_bits("l2_normalize", "triton", "float32", "cpu", truth.SMALL._replace(repeats=5))


def test_bits():
    nan = torch.tensor([float("nan"), 0.0])
    assert truth.same(nan, nan.clone()) and not truth.same(nan, torch.tensor([float("nan"), -0.0]))


def test_what_passed_is_verified(tmp_path):
    file = tmp_path / "verified.json"
    file.write_text(json.dumps({"similarity": ["sm_80"], "l2_normalize": ["sm_90"], "contrastive_loss": ["sm_90"]}))

    def results(**ops):
        return [Result("truth", op, outcome, 1.0, proves=op) for op, many in ops.items() for outcome in many]

    proven = results(similarity=["passed"] * 2, l2_normalize=["passed", "hung"], similarity_topk=["passed", "skipped"])
    gpu.record(file, "sm_90", Course([*proven, Result("truth", "a model", "passed", 1.0)], over=True), proof=True)
    assert json.loads(file.read_text()) == {"contrastive_loss": ["sm_90"], "similarity": ["sm_80", "sm_90"]}
    gpu.record(file, "sm_90", Course(results(similarity_argmax=["passed"]), over=False), proof=True)
    gpu.record(file, "sm_90", Course(results(similarity_argmax=["passed"], similarity=["failed"])), proof=False)
    assert json.loads(file.read_text()) == {"contrastive_loss": ["sm_90"], "similarity": ["sm_80"]}
    assert [path.name for path in tmp_path.iterdir()] == ["verified.json"]


def test_what_is_ours_may_not_fail():
    left_out = {"transformers, sdpa bfloat16": "failed: OSError: none", "+ int8 int8": "there is no kernel"}
    assert sections._measured(Outcome(left_out=left_out)).failure is None
    found = sections._measured(Outcome(left_out={**left_out, "+ CUDA graphs bfloat16": "failed: RuntimeError: no"}))
    assert found.failure == "+ CUDA graphs bfloat16: failed: RuntimeError: no"
    assert sections._measured(Outcome(refused={"transformers": "off"})).failure == "transformers: off"


def test_the_widest_gap():
    def row(subject, median, share, **rest):
        return dataclasses.replace(a_row(), subject=subject, median=median, share=share, **rest)

    found = [row("slow", 0.9, 0.95), row("far", 0.2, 0.1), row("far", 0.1, 0.8), row("torch", 9.0, 0.1, system="torch")]
    assert sections.widest_gap(found).subject == "slow", "of two rows the newer one counts"
    assert sections.widest_gap([]) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("arguments, code, told", [
    ([], 1, "there is no GPU here"),
    (["--only", "truth,lader"], 2, "'lader' is none of build, truth"),
    (["--seconds", "0"], 2, "no positive number"),
])  # fmt: skip
def test_wrong_usage(capsys, arguments, code, told):
    with pytest.raises(SystemExit) as stop:
        main(["gpu", *arguments])
    assert told in f"{stop.value.code} {capsys.readouterr().err}" and (code == 1 or stop.value.code == code)


@pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter")
def test_one_call_for_a_watching_tool(capsys):
    from benchmarks import once

    once.main(["--device", "cpu", "--backend", "triton", "--dtype", "float32"])
    assert set(capsys.readouterr().err.split()) == {name for name, op in OPS.items() if "triton" in op.backends}


def test_peers_of_attention_compute_the_same(monkeypatch):
    """Called on a GPU only; here with whatever kernel torch has."""
    monkeypatch.setattr(ops, "sdpa_kernel", lambda kernel: nullcontext())
    cases = {case.name: case for case in ops.CASES["attention"](ops.Make(torch.float32), 2)}
    for name in ("images", "images, one query each"):
        found = ops.PEERS["attention"](cases[name])
        assert list(found) == ["sdpa, cuDNN", "sdpa, flash"]
        wanted = OPS["attention"].reference(*cases[name].args)
        for call in found.values():
            torch.testing.assert_close(call(*cases[name].args).transpose(1, 2).flatten(0, 1), wanted)
    assert ops.PEERS["attention"](cases["texts"]) == {}, "texts differ in length"


def test_a_ladder_on_a_gpu():
    """In bfloat16 from the first rung on, the last one by graphs."""
    steps = ladder.steps("text77", "cuda")
    assert {entry.dtype for entry in steps} == {"bfloat16"} and steps[-1].name == "+ CUDA graphs"
    assert [entry.step for entry in steps] == list(range(len(steps)))
