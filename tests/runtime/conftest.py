"""That graphs are recorded is no news here."""

import pytest

from altclip_fast import notices


@pytest.fixture(autouse=True)
def known():
    notices.mark_said("recording")
