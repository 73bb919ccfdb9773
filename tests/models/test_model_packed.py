"""Packed weights: when a layer makes them, when it drops them, and that nobody else notices."""

import copy
import io
import pickle

import pytest
import torch
from oracle import JOINT, assert_same, inputs_for, pair
from torch import nn

from altclip_fast import use_backend
from altclip_fast.models.layers import Linear, Mlp
from altclip_fast.ops.packed import PackedWeight


@pytest.fixture
def layer():
    made = Linear(24, 40)
    nn.init.normal_(made.weight)
    nn.init.normal_(made.bias)
    return made.eval()


X = torch.randn(7, 24, generator=torch.Generator().manual_seed(1))


def run(layer):
    with torch.no_grad():
        found = layer(X)
    torch.testing.assert_close(found, nn.functional.linear(X, layer.weight, layer.bias))
    return layer.packed_now


@pytest.fixture(autouse=True)
def packed_now(monkeypatch):
    monkeypatch.setattr(Linear, "packed_now", property(lambda self: self._kept is not None), raising=False)


def test_packed_by_a_call_without_gradients(layer):
    assert not layer.packed_now
    layer(X)
    assert not layer.packed_now
    with torch.no_grad():
        assert isinstance(layer.packed(X), PackedWeight) and layer.packed(X) is layer.packed(X)
    assert run(layer)


def test_not_packed_for_another_backend(layer):
    with use_backend("reference"):
        assert not run(layer)


def one_number(layer):
    """In place, and none of those that are looked at."""
    with torch.no_grad():
        layer.weight.view(-1)[73] += 1


@pytest.mark.parametrize(
    "change",
    [
        one_number,
        lambda layer: layer.weight.data.add_(1),
        lambda layer: layer.weight.data.mul_(2),
        lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn(40, 24))),
        lambda layer: layer.load_state_dict({"weight": torch.randn(40, 24), "bias": torch.zeros(40)}),
        lambda layer: nn.init.normal_(layer.weight),
        lambda layer: layer.double().float(),
        lambda layer: torch.optim.SGD([layer.weight], lr=1.0, fused=True).step(),
    ],
    ids=[
        "one number",
        "data.add_",
        "data.mul_",
        "another parameter",
        "load_state_dict",
        "in place",
        "to",
        "fused step",
    ],
)
def test_a_changed_weight_is_packed_again(layer, change):
    run(layer)
    layer.weight.grad = torch.ones_like(layer.weight)
    change(layer)
    run(layer)


def test_dropped_for_training(layer):
    run(layer)
    layer.train()
    assert not layer.packed_now
    layer(X).sum().backward()
    assert layer.weight.grad is not None


def test_copies_and_files_have_no_packed_weights(layer):
    run(layer)
    assert not copy.deepcopy(layer).packed_now
    stored = pickle.dumps(layer)
    assert len(stored) < 3 * layer.weight.numel() * 4 and not pickle.loads(stored).packed_now
    assert layer.state_dict().keys() == {"weight", "bias"} and type(layer.weight) is nn.Parameter
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert not torch.load(file, weights_only=False).packed_now


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_run_as_they_are(layer, dtype):
    layer = layer.to(dtype)
    with torch.no_grad():
        layer(X.to(dtype))
    assert not layer.packed_now


def test_one_layer_with_and_without_a_factor():
    """The same weights as a quick_gelu mlp, and as two layers."""
    mlp = Mlp(24, 40, "quick_gelu").eval()
    for parameter in mlp.parameters():
        nn.init.normal_(parameter)
    with torch.no_grad():
        for _ in range(2):
            found = mlp(X)
            spelled_out = mlp.fc2(mlp.fc1(X, "quick_gelu"))
            torch.testing.assert_close(found, spelled_out, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", JOINT)
def test_models_are_those_of_transformers_packed_or_not(name):
    found = pair(name).copy()
    inputs = inputs_for(found.ours)
    with torch.no_grad():
        theirs = found.theirs(**inputs)
        for backend in ("cpu", "reference"):
            with use_backend(backend):
                assert_same(found.ours(**inputs), theirs, inputs["attention_mask"])
        with torch.inference_mode():
            assert_same(found.ours(**inputs), theirs, inputs["attention_mask"])


def test_patches_are_a_packed_product():
    tower = pair("CLIPVisionModel").copy().ours.eval()
    assert not tower.patch_embedding.packed_now
    with torch.no_grad():
        tower(**inputs_for(tower))
    assert tower.patch_embedding.packed_now and tower.patch_embedding.weight.dim() == 4
