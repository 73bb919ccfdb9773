"""Twins: a small random transformers model, and the same one accelerated; and who computed a call."""

import copy
from typing import NamedTuple

import pytest
import torch

import altclip_fast as af
from altclip_fast.accelerate.forwards import FusedEncoder, FusedTower
from tests.models import oracle


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Twins(NamedTuple):
    fast: torch.nn.Module
    plain: torch.nn.Module

    def assert_same(self, *args, **kwargs):
        oracle.assert_same(self.fast(*args, **kwargs), self.plain(*args, **kwargs))


@pytest.fixture(scope="session")
def make():
    """Twins of class `name`."""

    def twins(name, case="odd", attention="sdpa", dtype=None):
        plain = copy.deepcopy(oracle.pair(name, case).theirs)
        plain.set_attn_implementation(attention)
        plain.to(dtype)
        return Twins(af.accelerate(copy.deepcopy(plain)), plain)

    return twins


@pytest.fixture
def encoder_left(monkeypatch):
    """Whether an encoder has left a call to transformers since this was asked last."""
    return _watch(monkeypatch, FusedEncoder)


@pytest.fixture
def tower_left(monkeypatch):
    """Whether a tower has computed all rows since this was asked last."""
    return _watch(monkeypatch, FusedTower)


def _watch(monkeypatch, kind):
    seen, leave = [], kind.theirs

    def theirs(fused, *args, **kwargs):
        seen.append(fused)
        return leave(fused, *args, **kwargs)

    monkeypatch.setattr(kind, "theirs", theirs)

    def left():
        found = bool(seen)
        seen.clear()
        return found

    return left
