"""The model of the time: what calls cost, what a tower calls, tiles and waves, the sum, and the rows beside it."""

import dataclasses
import json

import pytest
import torch

from altclip_fast.kernels import linear, tuning
from benchmarks import ceiling, costs, kernels, roofline, rows, workloads
from benchmarks.__main__ import main
from benchmarks.ops import CASES
from benchmarks.roofline import Call, Device

GPU = Device("gpu", {"float32": 1e3, "bfloat16": 2e3}, 100.0, launch=0.5, gap=0.25, processors=132, capability=90)


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def test_costs_by_hand():
    x, weight, bias = meta(6, 8), meta(4, 8), meta(4)
    assert costs.cost("linear", (x, weight)) == (2 * 6 * 8 * 4, 2 * (48 + 32 + 24))
    assert costs.cost("linear", (x, weight, bias, "gelu", meta(6, 4))) == (384, 2 * (48 + 32 + 24 + 4 + 24))
    assert costs.cost("qkv", (x, weight, bias, meta(3, 8), None, weight, None)) == (
        2 * 6 * 8 * 11,
        2 * (48 + 32 + 24 + 4 + 24 + 18 + 32 + 24),
    )
    mlp = (x, meta(16, 8), None, meta(8, 16), None, "gelu", x)
    assert costs.cost("mlp", mlp) == (2 * 6 * 2 * 128, 2 * (3 * 48 + 2 * 128))
    assert costs.cost("add_layer_norm", (x, x, bias, bias, 1e-5)) == (0, 4 * 2 * 48)
    assert costs.cost("text_embed", (meta(7), meta(7), None, meta(99, 8), meta(9, 8))) == (0, 3 * 7 * 8 * 2)
    assert costs.cost("patch_embed", (meta(2, 3, 4, 4), meta(8, 3, 2, 2), meta(8), meta(5, 8))) == (
        2 * 2 * 4 * 96,
        2 * (2 * 48 + 96 + 40 + 2 * 40),
    )
    assert costs.cost("similarity_softmax", (meta(3, 8), meta(5, 8))) == (2 * 15 * 8, 2 * (24 + 40 + 15))
    assert costs.cost("similarity_topk", (meta(3, 8), meta(5, 8), 2)) == (2 * 15 * 8, 2 * (24 + 40))


def test_attention_costs_the_pairs_of_its_sequences():
    q, k = meta(3, 2, 4), meta(7, 2, 4)
    real = torch.tensor([0, 1, 3]), torch.tensor([0, 5, 7])
    flops, moved = costs.cost("attention", (q, k, k, *real, 2, 5))
    assert flops == 4 * (1 * 5 + 2 * 2) * 2 * 4 and moved == 2 * (24 + 56 + 56 + 24)
    unknown = meta(3), meta(3)
    assert costs.cost("attention", (q, k, k, *unknown, 2, 5)).flops == 4 * 2 * 10 * 2 * 4
    assert costs.cost("attention", (q, k, k, *unknown, 2, 5, True)).flops == 4 * 10 * 2 * 4


def test_every_operator_that_is_measured_has_a_cost():
    assert set(costs.COSTS) == set(CASES)


@pytest.mark.parametrize(
    "model, work, batch", [("vit-l-14", "image", 2), ("vit-b-32", "image", 1), ("tiny", "text", 5)]
)
def test_a_tower_calls_what_it_has_to_compute(model, work, batch, tmp_path):
    """The products of the plain model, without those that the last layer leaves out, and with the projections."""
    made = roofline.calls(model, work, batch, torch.bfloat16)
    folder = tmp_path
    size = workloads.SIZES[model]
    values = size.vision if work == "image" else size.text
    name = "CLIPVisionModelWithProjection" if work == "image" else "AltCLIPTextModel"
    (folder / "config.json").write_text(json.dumps({**values, "architectures": [name]}))
    job = workloads.Job(str(folder), work, batch, "bfloat16", 1)
    plain = job.cost().flops
    hidden, wide, layers = values["hidden_size"], values["intermediate_size"], values["num_hidden_layers"]
    lengths = [257 if model == "vit-l-14" else 50] * batch if work == "image" else job._lengths(range(batch))
    others = sum(lengths) - batch  # rows that the last layer does not compute
    left_out = 2 * others * (2 * hidden**2 + 2 * hidden * wide) + sum(4 * hidden * (n - 1) * n for n in lengths)
    width = values["projection_dim"] if work == "image" else values["project_dim"]
    assert sum(costs.cost(*one).flops for one in made) == plain - left_out + 2 * batch * hidden * width
    assert sum(one.op == "attention" for one in made) == sum(one.op == "mlp" for one in made) == layers
    assert all(a.is_meta for one in made for a in one.args if isinstance(a, torch.Tensor) and a.is_floating_point())


def test_texts_are_packed():
    for model in ("tiny", "vit-b-32"):
        first = roofline.calls(model, "text77", 3, torch.float32)[0]
        assert first.op == "text_embed" and len(first.args[0]) == sum(workloads.LENGTHS["text77"][:3])


@pytest.mark.parametrize("rows, tiles, waves", [(128, 4, 1), (128 * 132, 4 * 132, 4), (128 * 132 + 1, 4 * 133, 5)])
def test_tiles_and_waves(rows, tiles, waves):
    call = Call("linear", (meta(rows, 512), meta(1024, 512), None, "gelu", None))
    config = {
        "BLOCK_M": 128,
        "BLOCK_N": 256,
        "BLOCK_K": 64,
        "GROUP_M": 8,
        "SPLIT_K": 1,
        "num_warps": 8,
        "num_stages": 3,
    }
    with tuning.trying("linear", config):
        found = roofline.work_of(call, GPU)
    assert found == (1, tiles, waves, waves * 132 * 2 * 128 * 256 * 512)


def test_a_split_product_has_a_second_pass():
    call = Call("linear", (meta(16, 512), meta(64, 512), None, "gelu", None))
    with tuning.trying("linear", linear.CANDIDATES[13]):  # 16 x 64, in four parts
        found = roofline.work_of(call, GPU)
    assert found.kernels == 2 and found.products == 132 * 2 * 16 * 64 * 128


def test_other_kernels_wait_for_the_last_wave():
    q, cu = meta(264 * 64, 1, 64), torch.arange(0, 264 * 64 + 1, 64, dtype=torch.int32)
    call = Call("attention", (q, q, q, cu, cu, 64, 64, False, None))
    found = roofline.work_of(call, GPU)
    flops = costs.cost(*call).flops
    assert found.tiles % 264 == 0 and found.products == flops
    one_more = torch.arange(0, 265 * 64 + 1, 64, dtype=torch.int32)
    q = meta(265 * 64, 1, 64)
    last = roofline.work_of(Call("attention", (q, q, q, one_more, one_more, 64, 64, False, None)), GPU)
    assert last.waves == found.waves + 1 and last.products > flops * 265 / 264


def test_the_sum(monkeypatch):
    """Two calls of 6 s by their bytes, one of 4 by its products: 16 s, and a gap or a launch for each kernel."""
    made = [Call("layer_norm", (meta(10, 15),))] * 2 + [Call("linear", (meta(20, 10), meta(20, 10)))]
    monkeypatch.setattr(roofline, "calls", lambda *task: made)
    plain = dataclasses.replace(GPU, processors=0, flops={"bfloat16": 2e3}, bandwidth=1e9)
    norm, product = roofline.lines("tiny", "image", 1, "bfloat16", dataclasses.replace(plain, bandwidth=100.0))
    assert (norm.calls, norm.us, norm.total_us) == (2, 6e6, 12e6)
    assert product.gflop == 8e-6 and product.us == 16e6, "20 x 10, 20 x 10 and 20 x 20 numbers, at 100 bytes a second"
    (norm, product) = found = roofline.lines("tiny", "image", 1, "bfloat16", plain)
    assert product.us == 4e6
    whole = roofline.total(found, plain)
    assert whole.floor == pytest.approx(4, rel=1e-6) and whole.with_graphs == pytest.approx(4.75, rel=1e-6)
    assert whole.without_graphs == whole.with_graphs, "the host is ahead"
    slow = dataclasses.replace(plain, launch=2.0)
    assert roofline.total(found, slow).without_graphs == 6.0


def test_the_kernel_report_has_the_same_floor():
    case = next(case for case in kernels.cases(torch.bfloat16, 90) if case.op == "mlp")
    seconds = roofline.DEVICES["h200"].floor("bfloat16", costs.Cost(case.flops, case.bytes))
    assert seconds == pytest.approx(16 * 4112 * 1024**2 / 790e12)


def a_row(**values):
    fields = {"kind": "op", "subject": "", "work": "", "system": "altclip_fast", "backend": "", "dtype": "bfloat16"}
    run = dataclasses.replace(rows.this_run(1), **{k: values.pop(k) for k in ("date", "device") if k in values})
    return rows.make(run, [values.pop("seconds")], 6e9, 3e9, **{**fields, "batch": 1, "shape": "", **values})


def test_measured_rows_stand_beside_it(tmp_path, capsys):
    h200 = {"device": "NVIDIA H200"}
    found = [
        a_row(subject="layer_norm", shape="26 x 64", seconds=0.25, date="2026-01-01 00:00", **h200),
        a_row(subject="layer_norm", shape="26 x 64", seconds=0.125, date="2026-01-02 00:00", **h200),
        a_row(subject="layer_norm", shape="26 x 64", seconds=9.0, date="2026-01-03 00:00", system="torch", **h200),
        a_row(subject="layer_norm", shape="26 x 64", seconds=9.0, date="2026-01-03 00:00", device="another"),
        a_row(kind="model", subject="tiny", work="image", seconds=0.5, date="2026-01-01 00:00", **h200),
    ]
    rows.append(tmp_path / "machine.jsonl", found)
    with pytest.raises(SystemExit) as stop:
        main(["roofline", "--model", "tiny", "--results", str(tmp_path)])
    told = capsys.readouterr().out
    (line,) = [line for line in told.splitlines() if line.split()[:4] == ["layer_norm", "26", "x", "64"]]
    assert line.split()[-1] == "1.25e+05" and "measured 500 ms, 2 a second" in told
    assert "with graphs" in told and stop.value.code == 0


def test_a_processor_by_its_measured_ceilings(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ceiling, "probes", lambda dtype: pytest.fail("there are rows"))
    here = dataclasses.asdict(rows.this_run(3))["machine"]
    found = [
        a_row(kind="ceiling", subject=name, seconds=s)
        for name, s in (("float32", 1.0), ("float32", 2.0), ("copy", 1.0))
    ]
    found = [dataclasses.replace(row, machine=here) for row in found]
    device = roofline.this_cpu("float32", 3, found)
    assert device.flops == {"float32": 6e9} and device.bandwidth == 3e9 and device.processors == 0
    options = ["--device", "cpu", "--model", "tiny", "--threads", "3", "--dtype", "float32", "--results", str(tmp_path)]
    rows.append(tmp_path / "machine.jsonl", found)
    with pytest.raises(SystemExit):
        main(["roofline", *options, "--tflops", "0.001"])
    assert "with calls" in capsys.readouterr().out
