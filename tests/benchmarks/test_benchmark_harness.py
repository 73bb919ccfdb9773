"""The harness: order, refusals, costs, inputs, and the systems' embeddings."""

import importlib
import json
import os
import time
from dataclasses import replace

import pytest
import torch
from in_process import Local

from altclip_fast import cli
from altclip_fast.dispatch import OPS
from altclip_fast.models import fused
from altclip_fast.testing.embeddings import judge
from benchmarks import ceiling, harness, ladder, models, ops, rows, workloads
from benchmarks.__main__ import main
from benchmarks.clock import Clock
from benchmarks.harness import Entry, Limits, Outcome, in_rounds
from benchmarks.systems import SYSTEMS, Running, Unavailable
from benchmarks.worker import Worker


def test_rounds_rotate():
    order = []
    turns = {name: lambda name=name: order.append(name) or float(len(order)) for name in "abc"}
    found = in_rounds(turns, 4)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert found == {"a": [1, 6, 8, 10], "b": [2, 4, 9, 11], "c": [3, 5, 7, 12]}


def test_rounds_end_when_it_is_late():
    assert in_rounds({"a": lambda: 1.0}, 5, until=time.monotonic() - 1) == {"a": [1.0]}


def wrong(job):
    """A system that gives the embedding of a sharper picture."""
    right = SYSTEMS["reference"].start(job)
    return Running(lambda inputs: right.embed({k: x * 1.01 for k, x in inputs.items()}), "sharper")


def absent(job):
    raise Unavailable("nothing is installed")


def run(entries, job, **limits):
    return harness.run(entries, job, Limits(**{"rounds": 2, **limits}), lambda line: None, kind="model", subject="tiny")


def test_a_wrong_system_is_refused(local, job):
    entries = [Entry("wrong", wrong, "float32"), Entry("right", SYSTEMS["altclip_fast"].start, "float32")]
    outcome = run(entries, job())
    assert (
        list(outcome.refused) == ["wrong float32"]
        and "normalised embeddings differ" in outcome.refused["wrong float32"]
    )
    assert {row.system for row in outcome.rows if row.kind == "model"} == {"right"}
    assert outcome.code == 1 and "REFUSED: wrong float32" in str(outcome)


def test_an_absent_system_is_left_out(local, job):
    outcome = run([Entry("absent", absent, "float32"), Entry("right", SYSTEMS["reference"].start, "float32")], job())
    assert outcome.left_out == {"absent float32": "nothing is installed"} and outcome.code == 0
    assert "left out: absent float32: nothing is installed" in str(outcome)
    assert run([Entry("absent", absent, "float32")], job()).code == 1


def test_rows_of_a_run(local, job):
    names = ("altclip_fast", "transformers-sdpa")
    entries = [Entry(name, SYSTEMS[name].start, dtype) for dtype in ("float32", "bfloat16") for name in names]
    outcome = run(entries, job(batch=3))
    rows = [row for row in outcome.rows if row.kind == "model"]
    assert [(row.system, row.dtype) for row in rows] == [(e.name, e.dtype) for e in entries]
    assert len({row.run for row in outcome.rows}) == 1
    assert {row.subject for row in outcome.rows if row.kind == "ceiling"} == {"float32", "bfloat16", "copy"}
    for row in rows:
        assert row.median == 0.5 and row.throughput == 6 and row.batch == 3 and row.shape == "3 x 3 x 30 x 30"
        assert row.share > 0 and row.cosine > 0.99 and row.rounds == 2
    assert rows[0].error < rows[2].error


def test_systems_must_fit_into_memory(local, job, monkeypatch):
    monkeypatch.setattr(Local, "memory", 3 * harness.GIB)
    start = SYSTEMS["reference"].start
    outcome = run([Entry("one", start, "float32"), Entry("two", start, "float32")], job(), memory=5 * harness.GIB)
    assert [row.system for row in outcome.rows if row.kind == "model"] == ["one"]
    assert "6.0 GiB" in outcome.left_out["two float32"]


def test_no_system_starts_too_late(local, job):
    outcome = run([Entry("a", SYSTEMS["reference"].start, "float32")], job(), start_until=time.monotonic() - 1)
    assert "no time left" in outcome.left_out["a float32"]


@pytest.mark.parametrize("dtype, noise, fine", [
    ("float32", 1e-4, True),
    ("float32", 1e-2, False),
    ("bfloat16", 1.4e-3, True),
    ("bfloat16", 1.8e-3, False),
    ("int8", 0.05, True),
    ("int8", 0.3, False),
])  # fmt: skip
def test_gates(dtype, noise, fine):
    truth = 30 + torch.randn(64, 32, dtype=torch.float64)  # centring takes the 30 off
    error = torch.randn(64, 32, dtype=torch.float64)
    verdict = judge(truth + noise * error, truth, dtype, truth + 1e-3 * error)
    assert (verdict.refusal is None) == fine, verdict
    assert verdict.cosine == pytest.approx((1 + noise**2) ** -0.5, abs=5e-3)


def test_gates_of_what_is_no_embedding():
    truth = torch.randn(4, 8)
    assert "not finite" in judge(truth * torch.nan, truth, "float32").refusal
    for bad, dtype in ((truth[:1], "float32"), (truth[:, :3], "float32"), (truth, "float64"), (truth, "bfloat16")):
        with pytest.raises(ValueError):
            judge(bad, truth, dtype)


@pytest.mark.parametrize("model, gflops", [("vit-l-14", 162.03), ("vit-b-16", 35.13), ("vit-b-32", 8.82)])
def test_work_of_an_image(tmp_path, model, gflops):
    """As open_clip's model profile counts it."""
    values = {**workloads.SIZES[model].vision, "architectures": ["CLIPVisionModelWithProjection"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    cost = workloads.Job(str(tmp_path), "image", 2, "bfloat16", 1).cost()
    assert cost.flops / 2e9 == pytest.approx(gflops, abs=0.01)
    layers = values["num_hidden_layers"] * 12 * values["hidden_size"] ** 2
    assert cost.bytes == 2 * layers and cost.shape == "2 x 3 x 224 x 224"


def test_texts(job):
    ragged, padded = job("text", 8), job("text77", 8)
    (batch,) = ragged.batches()
    assert batch["input_ids"].shape == (8, 32) and batch["attention_mask"].sum() == 112
    assert padded.batches()[0]["input_ids"].shape == (8, 77) and padded.batches()[0]["attention_mask"].sum() == 96
    assert ragged.cost().shape == "8 x 32, 112 tokens"
    assert ragged.cost().flops > padded.cost().flops, "padding is no work"


@pytest.mark.parametrize("work", workloads.WORKS)
def test_inputs_are_the_same_in_every_process_and_batch(work, job):
    name = "pixel_values" if work == "image" else "input_ids"
    one, four = job(work, 1).batches(), job(work, 4).batches()
    assert len(one) == 4 and len(four) == 1
    for single, row in zip(one, four[0][name], strict=True):
        width = single[name].shape[-1]
        assert torch.equal(single[name][0], row[..., :width])
    assert not any(torch.equal(sample[name], single[name]) for sample in job(work).samples() for single in one)


@pytest.mark.parametrize("work", ["image", "text"])
@pytest.mark.parametrize("name, dtype", [
    pytest.param(name, dtype, marks=pytest.mark.slow if name in ("torch-compile", "torchao") else ())
    for name, system in SYSTEMS.items() for dtype in system.dtypes
])  # fmt: skip
def test_every_system_is_right(local, job, name, dtype, work):
    """Or says why it cannot do the job."""
    task = job(work, 4, dtype)
    try:
        system = Local(SYSTEMS[name].start, task, 60)
    except Unavailable as error:
        pytest.skip(str(error))
    assert harness.check(system, task, 60).refusal is None


def dies(job):
    os._exit(3)


def fails(job):
    raise RuntimeError(f"no {job.work} today")


def test_a_system_in_a_process_of_its_own(job):
    task = job()
    worker = Worker(SYSTEMS["altclip_fast"].start, task, 120)
    try:
        expected = Local(SYSTEMS["altclip_fast"].start, task, 0).embeddings(0)
        assert torch.equal(worker.embeddings(60), expected) and worker.turn() > 0
        assert worker.memory is None or (worker.memory > 0 and worker.peak_memory > 0)
    finally:
        worker.close()


@pytest.mark.parametrize("start, told", [(dies, "ended with 3"), (fails, "RuntimeError: no image today")])
def test_a_process_that_ends_is_told_of(job, start, told):
    with pytest.raises(Unavailable, match=told):
        Worker(start, job(), 120)


def test_fast_calls_are_repeated_and_slow_ones_are_not(monkeypatch):
    calls = []
    Clock(lambda: calls.append(1)).turn()
    assert len(calls) == 1 + 50
    monkeypatch.setattr("benchmarks.clock.TURN", 0.0)
    calls.clear()
    Clock(lambda: calls.append(1)).turn()
    assert len(calls) == 1


def test_the_best_path_is_the_ceiling():
    probes = [ceiling.Probe("float32", name, amount, lambda: 0.0) for name, amount in (("a", 10), ("b", 30))]
    probes.append(ceiling.Probe("copy", "c", 8, lambda: 0.0))
    top = ceiling.ceiling("float32", dict(zip(probes, ([1, 9, 1], [2, 2, 2], [4]), strict=True)))
    assert top == ceiling.Ceiling(15, 2)
    assert top.share(30, 0, 4) == 0.5 and top.share(30, 6, 4) == 0.75


@pytest.mark.parametrize("model, work", [*(("tiny", work) for work in workloads.WORKS), ("tiny-clip", "text77")])
def test_every_rung_of_the_ladder_is_right(local, job, model, work):
    steps = ladder.steps(work)
    assert [entry.step for entry in steps] == list(range(len(steps)))
    outcome = run(steps, job(work, 4, model=model))
    assert not outcome.refused
    assert set(outcome.left_out) <= {"+ int8 int8"}
    assert [row.system for row in outcome.rows if row.kind == "model"][:2] == [
        "transformers, eager",
        "transformers, sdpa",
    ]


def test_rungs_differ_in_what_they_compute(local, job, monkeypatch):
    """Without its technique a rung attends to padding, and from every row."""
    seen, attention, dense = [], OPS["attention"], OPS["masked_attention"]

    def watch(op):
        run = op._backends["reference"].run
        own = replace(
            op._backends["reference"], run=lambda q, *rest: seen.append(len(q.flatten(0, -3))) or run(q, *rest)
        )
        monkeypatch.setattr(op, "_backends", {**op._backends, "reference": own})
        monkeypatch.setattr(op, "_order", (own,))

    watch(attention)
    watch(dense)
    task = job("text77", 4)
    queries = {}
    for entry in ladder.steps("text77")[2:5]:
        seen.clear()
        running = entry.start(task)
        with running.around():
            running.embed(task.batches()[0])
        queries[entry.name] = tuple(seen)
    assert list(queries.values()) == [(4 * 77, 4 * 77), (46, 46), (46, 4)]


@pytest.mark.parametrize("allowed", [frozenset(), frozenset({"linear"}), frozenset(OPS)])
def test_kernels_for_some_operators(allowed):
    before = {name: op._order for name, op in OPS.items()}
    x, weight = torch.randn(3, 8), ops.Make(torch.float32).weight(8, 8)
    mlp = (x, weight, None, weight, None, "relu")
    with torch.inference_mode(), ladder.kernels_for(allowed):
        chosen = OPS["linear"].choose(x, weight), OPS["mlp"].choose(*mlp)
    free = OPS["linear"].choose(x, weight)
    assert chosen[0] == (free if "linear" in allowed else "reference")
    assert chosen[1] == (free if "mlp" in allowed else "reference")
    assert {name: op._order for name, op in OPS.items()} == before


def test_layers_are_called_one_by_one_below_their_rung():
    own = fused._native
    with ladder.kernels_for(frozenset(OPS)):
        assert fused._native is not own
    with ladder.kernels_for(frozenset(OPS), one_call=True):
        assert fused._native is own


@pytest.mark.parametrize("dtype", ops.DTYPES)
@pytest.mark.parametrize("name", ops.CASES)
def test_every_operator_is_measured(local, monkeypatch, name, dtype):
    for constant, value in {"HIDDEN": 64, "WIDE": 96, "HEADS": 4, "WIDTH": 12, "VOCABULARY": 50}.items():
        monkeypatch.setattr(ops, constant, value)
    monkeypatch.setattr(ops, "IMAGES", 300)
    for case in ops.CASES[name](ops.Make(ops.DTYPES[dtype]), 2):
        outcome = ops.measure(case, dtype, 2, 2, 1)
        assert not outcome.refused
        rows = [row for row in outcome.rows if row.kind == "op"]
        backend = OPS[case.op].choose(*case.args)
        assert {row.backend for row in rows} == {backend, "reference"}
        assert all(row.share > 0 and row.median > 0 for row in rows)


def test_a_wrong_operator_is_refused(local, monkeypatch):
    (case,) = ops.CASES["layer_norm"](ops.Make(torch.float32), 1)
    op = OPS["layer_norm"]
    broken = replace(op._backends["reference"], name="cpu", run=lambda *args: 1.01 * op.reference(*args))
    monkeypatch.setattr(op, "_backends", {**op._backends, "cpu": broken})
    monkeypatch.setattr(op, "_order", (broken, *op._order))
    outcome = ops.measure(case, "float32", 1, 1, 1)
    assert outcome.rows == [] and "largest error" in outcome.refused["layer_norm float32 cpu"] and outcome.code == 1


def test_every_operator_that_models_use_has_a_case():
    spelled_out = {"masked_attention", "attention_weights"}  # of dense batches: torch's own, on purpose
    assert set(ops.CASES) == set(OPS) - spelled_out


def commands():
    """Every way to use the command line wrongly that a user may think of first."""
    for command in ("models", "ladder"):
        for flag, value in (
            ("--model", "vit-x-99"),
            ("--batches", "0"),
            ("--rounds", "-1"),
            ("--works", "video"),
            ("--threads", "two"),
            ("--frobnicate", "1"),
        ):
            yield [command, flag, value]
    yield from (["models", "--systems", "tensorrt"], ["models", "--dtypes", "float8"], ["ops", "--ops", "conv"])
    yield from ([], ["nonsense"], ["report", "--rounds", "2"], ["ladder", "--model", str(workloads.__file__)])


@pytest.mark.parametrize("arguments", list(commands()), ids=" ".join)
def test_wrong_usage(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    told = capsys.readouterr()
    assert stop.value.code == 2 and "usage" in told.err and told.out == ""


@pytest.mark.parametrize("command", ["models", "ops", "ladder", "report", "kernels"])
def test_help(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    told = capsys.readouterr().out
    assert stop.value.code == 0 and command in told and "--help" in told


def test_models_writes_rows_and_prints_them(local, job, capsys, tmp_path, weights):
    job()
    output = tmp_path / "rows.jsonl"
    arguments = ["--model", "tiny", "--weights", weights, "--works", "image", "text", "--batches", "2", "--rounds", "2"]
    with pytest.raises(SystemExit) as stop:
        chosen = ["--systems", "altclip_fast", "reference", "--dtypes", "float32", "bfloat16", "--output", output]
        main(["models", *map(str, [*arguments, *chosen])])
    found = [row for row in rows.read(output) if row.kind == "model"]
    assert stop.value.code == 0
    assert [(r.work, r.dtype, r.system) for r in found] == [
        (work, dtype, system)
        for work in ("image", "text")
        for dtype in ("float32", "bfloat16")
        for system in ("altclip_fast", "reference")
    ]
    assert len({row.run for row in found}) == 4
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(found) and printed[0].split()[:2] == ["subject", "work"]


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--quick", "--model", "x"]])
def test_wrong_usage_of_the_installed_command(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *arguments])
    assert stop.value.code == 2 and "usage" in capsys.readouterr().err


@pytest.mark.parametrize("local", ["altclip_fast.benchmarks"], indirect=True)
@pytest.mark.parametrize("as_json", [False, True])
def test_the_installed_command(local, monkeypatch, capsys, as_json):
    """`altclip_fast.benchmarks` is the same folder under the name that it is installed by."""
    quick = importlib.import_module("altclip_fast.benchmarks.quick")
    monkeypatch.setattr(quick, "SMALL", "tiny")
    monkeypatch.setattr(quick, "PEERS", ["reference"])
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "--quick", *["--json"] * as_json])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    if as_json:
        assert {json.loads(line)["subject"] for line in out.splitlines()} >= {"tiny", "copy"}
    else:
        assert "float32: 1.00 x reference" in out and "tiny" in out


def test_outcomes_add_up():
    total = Outcome(left_out={"a": "x"})
    total.add(Outcome(refused={"b": "y"}))
    assert total.left_out == {"a": "x"} and total.refused == {"b": "y"} and models.DTYPES
