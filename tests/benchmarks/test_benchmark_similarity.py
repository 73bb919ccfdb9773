"""The joint head beside its peers: the same answers, no row without parity, and what a call adds to the memory."""

import time

import pytest
import torch

from benchmarks import report, similarity
from benchmarks.systems import OURS


def refused(*args):
    raise AssertionError("too far off")


@pytest.fixture(scope="module")
def cases():
    return {dtype: list(similarity.cases(9000, dtype)) for dtype in similarity.DTYPES}


def test_peers_find_the_same(cases):
    for case in cases["float32"]:
        if case.op == "similarity_topk":
            own, *others = (call() for call in case.systems.values())
            assert len(others) >= 3
            for found in others:
                best = [torch.as_tensor(x) for x in found]
                assert torch.equal(best[1] if best[1].dtype is torch.int64 else best[0], own[1])


@pytest.mark.parametrize("dtype", similarity.DTYPES)
def test_a_table_of_rows(dtype, cases, local):
    found = [row for case in cases[dtype] for row in similarity.measure(case, 1, 1).rows]
    own = [row for row in found if row.system == OURS]
    assert [row.subject for row in own] == ["similarity_topk"] * 2 + ["similarity_softmax", "contrastive_loss"]
    assert all(row.kind == similarity.KIND and row.share > 0 for row in own)
    assert {row.backend for row in found if row.kind == "ceiling"} > {"Tensor.copy_", "Tensor.sum"}
    lines = [line for line in report.tables(found).splitlines() if line.startswith("| similarity_topk")]
    assert [line.split(" | ")[1] for line in lines] == ["1 x 9000", "1024 x 9000"]
    assert all(" x |" in line and "%" in line for line in lines)


def test_no_row_without_parity(cases):
    found = similarity.measure(cases["float32"][0]._replace(check=refused), 1, 1)
    assert found.rows == [] and found.refused == {"similarity_topk 1 x 9000 float32": "too far off"}


def test_what_a_call_adds_to_the_memory():
    case = similarity.Large("an op", "", "float32", 1, 1.0, 1.0, holding)
    (row,) = similarity.measure_alone(case, 1).rows
    assert 64 << 20 <= row.peak_memory < 80 << 20 and row.median > 0


def holding(dtype, folder):
    def call():
        held = torch.ones(16 << 20)
        time.sleep(0.1)
        return held

    torch.ones(1 << 20).sum()
    return call
