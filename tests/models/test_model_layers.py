"""Layers that a user wraps or replaces (LoRA, hooks) are called as they are; nothing reads their weights past them."""

import pytest
import torch
from torch import nn

import altclip_fast as af


class LowRank(nn.Module):
    """A linear layer and a low-rank addition, as LoRA wraps one."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))

    def merged(self):
        result = nn.Linear(self.layer.in_features, self.layer.out_features)
        result.weight.data = self.layer.weight + self.up.weight @ self.down.weight
        result.bias.data = self.layer.bias.clone()
        return result


PLACES = ["mlp.fc1", "mlp.fc2", "attention.query", "attention.output"]


def vision():
    config = af.CLIPVisionConfig(
        hidden_size=24, num_attention_heads=2, num_hidden_layers=2, intermediate_size=40, image_size=16, patch_size=8
    )
    return af.CLIPVisionModel(config).eval()


@pytest.mark.parametrize("place", PLACES)
def test_a_wrapped_linear_is_called(place):
    model, pixels = vision(), torch.randn(2, 3, 16, 16)
    parent, name = model.layers[0].get_submodule(place.split(".")[0]), place.split(".")[1]
    plain = model(pixels).last_hidden_state
    wrapped = LowRank(getattr(parent, name))
    setattr(parent, name, wrapped)
    found = model(pixels).last_hidden_state
    setattr(parent, name, wrapped.merged())
    torch.testing.assert_close(found, model(pixels).last_hidden_state)
    assert not torch.allclose(found, plain)


@pytest.mark.parametrize("place", PLACES)
def test_hooks_of_a_linear_run(place):
    model, pixels, calls = vision(), torch.randn(2, 3, 16, 16), []
    plain = model(pixels).last_hidden_state
    model.layers[1].get_submodule(place).register_forward_hook(lambda module, args, output: calls.append(output.shape))
    torch.testing.assert_close(model(pixels).last_hidden_state, plain)
    assert len(calls) == 1
