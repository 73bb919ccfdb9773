"""Out of memory: halves, told once, in order; a single one that does not fit raises."""

import pytest
import torch

from altclip_fast import notices
from altclip_fast.runtime.memory import in_halves


def limited(most, calls):
    def run(start, stop):
        calls.append((start, stop))
        if stop - start > most:
            raise torch.OutOfMemoryError(f"{stop - start} do not fit")
        return torch.arange(start, stop)

    return run


@pytest.mark.parametrize("count", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("most", [1, 3, 16, 100])
def test_halves_until_it_fits(count, most, recwarn):
    notices.forget()
    calls, shortages = [], []
    found = in_halves(limited(most, calls), count, "images", lambda: shortages.append(1))
    assert torch.equal(found, torch.arange(count))
    failed = [stop - start for start, stop in calls if stop - start > most]
    assert len(shortages) == len(failed)
    assert [str(w.message).split(" at once")[0] for w in recwarn] == ([f"{count} images"] if failed else [])


def test_a_single_one_that_does_not_fit():
    notices.forget()
    with pytest.warns(UserWarning, match="smaller batch_size"), pytest.raises(torch.OutOfMemoryError, match="1 do not"):
        in_halves(limited(0, []), 4, "texts", lambda: None)


def test_other_errors_pass():
    def run(start, stop):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        in_halves(run, 4, "texts", lambda: None)
