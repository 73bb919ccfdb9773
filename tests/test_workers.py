"""Workers: results in order, errors where they belong, a bounded number begun, and none left behind."""

import threading
import time

import pytest

from altclip_fast.workers import Workers, processors


def values(batches):
    return [[future.result() for future in batch] for batch in batches]


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_results_come_in_order(count, ahead):
    def slow_at_first(x):
        time.sleep(0.002 if x < 3 else 0)
        return x * x

    with Workers(count) as workers:
        found = values(workers.batches(slow_at_first, range(10), 4, ahead))
    assert found == [[0, 1, 4, 9], [16, 25, 36, 49], [64, 81]]


@pytest.mark.parametrize("count", [0, 2])
def test_an_error_stays_with_its_item(count):
    with Workers(count) as workers:
        (batch,) = workers.batches(lambda x: 1 / x, [1, 0, 2], 3, 0)
        assert batch[0].result() == 1 and batch[2].result() == 0.5
        with pytest.raises(ZeroDivisionError):
            batch[1].result()


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_no_more_is_begun_than_asked_for(ahead):
    begun = []
    with Workers(2) as workers:
        for done, batch in enumerate(workers.batches(begun.append, range(40), 4, ahead), 1):
            [future.result() for future in batch]
            assert len(begun) <= 4 * (done + ahead)
    assert sorted(begun) == list(range(40))


def test_leaving_cancels_what_has_not_begun():
    release, begun = threading.Event(), []

    def wait(x):
        begun.append(x)
        release.wait(10)

    with pytest.raises(KeyError), Workers(2) as workers:
        next(workers.batches(wait, range(100), 50, 1))
        while len(begun) < 2:
            time.sleep(0.001)
        threading.Timer(0.02, release.set).start()
        raise KeyError("the caller stops")
    assert len(begun) == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("altclip_fast")]


def test_nothing_to_do():
    with Workers(2) as workers:
        assert list(workers.batches(print, [], 4, 1)) == []


def test_at_least_one_processor():
    assert processors() >= 1
