"""Graphs: computed once, recorded the second time, run again; dropped when what they read is no longer the same."""

import copy
import pickle
import threading

import pytest
import torch
from stand_in import StandIn, StandIns

from altclip_fast.runtime.graphs import Graphs, RecordingError

KEY = ("image", 4)


def square(x):
    return x * x


def run(graphs, x, key=KEY, stamp=0, compute=square, size=4):
    return graphs.run(key, stamp, compute, x, size, len(x))


@pytest.fixture
def recorders():
    return StandIns()


@pytest.fixture
def graphs(recorders):
    return Graphs(recorders, budget=1 << 20)


def test_recorded_when_a_shape_comes_again(graphs, recorders):
    for i in range(4):
        x = torch.randn(3, 2)
        assert torch.equal(run(graphs, x), x * x)
        assert recorders.recordings == min(i, 1)
    (graph,) = graphs.kept().values()
    assert graph.runs == 3 and graph.input.shape == (4, 2)


def test_results_are_memory_of_their_own(graphs):
    inputs = torch.randn(5, 3, 2)
    found = [run(graphs, x) for x in inputs]
    assert torch.equal(torch.stack(found), inputs * inputs)


def test_a_shorter_input_is_not_mixed_with_what_was_there(graphs):
    run(graphs, torch.ones(4, 2)), run(graphs, torch.ones(4, 2))
    assert torch.equal(run(graphs, torch.full((1, 2), 3.0)), torch.full((1, 2), 9.0))


def test_keys_have_graphs_of_their_own(graphs, recorders):
    for _ in range(3):
        assert run(graphs, torch.ones(4, 2)).shape == (4, 2)
        assert run(graphs, torch.ones(6, 2), key=("image", 8), size=8).shape == (6, 2)
    assert len(recorders) == 1 and recorders.recordings == 2


def test_another_stamp_drops_all(graphs, recorders):
    for stamp in (0, 1):
        for key in (KEY, ("text", 1)):
            for _ in range(3):
                run(graphs, torch.ones(2, 2), key=key, stamp=stamp if key is KEY else 7)
    assert len(recorders) == 2 and recorders[0].waits == 1
    assert recorders.recordings == 4 and len(graphs.kept()) == 2


def test_the_budget_holds(recorders):
    recorders.options["size"] = 400
    graphs = Graphs(recorders, budget=1000)
    for bucket in range(1, 8):
        for _ in range(2):
            run(graphs, torch.ones(1, 2), key=("image", bucket), size=bucket)
        assert graphs.bytes() <= 1000 + 500
    assert len(recorders) > 1 and recorders[0].waits == 1


def test_beyond_the_budget_the_least_recently_used_are_dropped(recorders):
    recorders.options["size"] = 400
    graphs = Graphs(recorders, budget=1500)

    def used(*buckets):
        for bucket in buckets:
            run(graphs, torch.ones(1, 2), key=("image", bucket), size=1)
        return [bucket for _, bucket in graphs.kept()]

    assert used(1, 2, 3, 4, 1, 2, 3, 4, 2, 1) == [3, 4, 2, 1]  # full
    assert used(5, 5) == [5] and len(recorders) == 2 and recorders[0].waits == 1
    assert used(1, 2) == [5, 1, 2]  # moved: no need to come twice
    assert used(3, 4) == [5, 1, 2]  # dropped: this counts as the first time
    assert used(4) == [5, 1, 2, 4]


def test_another_stamp_is_seen_after_the_budget_was_spent(recorders):
    recorders.options["size"] = 400
    graphs = Graphs(recorders, budget=300)
    for key in (KEY, ("image", 5), ("text", 1)):
        run(graphs, torch.ones(1, 2), key=key), run(graphs, torch.ones(1, 2), key=key)
        made = len(recorders)
        run(graphs, torch.ones(1, 2), key=key, stamp=1)
        assert len(recorders) == made + 1
        run(graphs, torch.ones(1, 2), key=key, stamp=0)


def test_release(graphs, recorders):
    run(graphs, torch.ones(1, 2)), run(graphs, torch.ones(1, 2))
    graphs.release()
    assert graphs.bytes() == 0 and not graphs.kept() and recorders[0].waits == 1
    assert torch.equal(run(graphs, torch.full((1, 2), 3.0)), torch.full((1, 2), 9.0))
    assert recorders.recordings == 2


def test_a_failed_recording_is_told(graphs, recorders, monkeypatch):
    def fail(self, compute):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(StandIn, "record", fail)
    run(graphs, torch.ones(1, 2))
    with pytest.raises(RecordingError, match="image: operation not permitted"):
        run(graphs, torch.ones(1, 2))


def test_running_out_of_memory_is_no_failed_recording(graphs, monkeypatch):
    def fail(self, compute):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(StandIn, "record", fail)
    run(graphs, torch.ones(1, 2))
    with pytest.raises(torch.OutOfMemoryError):
        run(graphs, torch.ones(1, 2))


def test_modes_of_the_callers_mix(graphs):
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode, torch.no_grad):
        with mode():
            found = run(graphs, torch.full((2, 2), 3.0))
            found += 1  # a plain tensor, whoever called
        assert not found.is_inference() and not found.requires_grad and found[0, 0] == 10


def test_threads_take_turns(graphs, recorders):
    wrong = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for i in range(40):
            bucket = 1 + (seed + i) % 3
            x = torch.randn(bucket, 2, generator=generator)
            if not torch.equal(run(graphs, x, key=("image", bucket), size=bucket), x * x):
                wrong.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and recorders.recordings == 3


def test_copies_start_without_graphs():
    graphs = Graphs(StandIn, budget=9)
    run(graphs, torch.ones(1, 2)), run(graphs, torch.ones(1, 2))
    for other in (copy.deepcopy(graphs), pickle.loads(pickle.dumps(graphs))):
        assert not other.kept()
        assert torch.equal(run(other, torch.full((1, 2), 3.0)), torch.full((1, 2), 9.0))
