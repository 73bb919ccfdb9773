"""Packed weights are never stale, and linear layers that somebody has replaced are called as they are."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import altclip_fast as af
from altclip_fast.models.layers import Linear
from tests.models import oracle
from tests.models.test_model_layers import LowRank

LINEAR = {
    "AltCLIPModel": [
        "text_model.roberta.encoder.layers.0.attention.self.query",
        "vision_model.encoder.layers.1.mlp.fc2",
    ],
    "CLIPModel": ["text_model.encoder.layers.2.mlp.fc1", "vision_model.encoder.layers.0.self_attn.out_proj"],
}
PLACES = [(name, place) for name, places in LINEAR.items() for place in places]


def swap_data(model, place):
    weight = model.get_submodule(place).weight
    weight.data = weight.data * 1.25


def load(model, place, **options):
    model.load_state_dict({k: v * 0.75 for k, v in model.state_dict().items()}, **options)


def step(model, place, **options):
    weight = model.get_submodule(place).weight
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1, **options).step()


CHANGES = {
    "data.add_": lambda model, place: model.get_submodule(place).weight.data.add_(0.1),
    "data swapped": swap_data,
    "bias": lambda model, place: model.get_submodule(place).bias.data.sub_(1),
    "load_state_dict": load,
    "load_state_dict, assign": lambda model, place: load(model, place, assign=True),
    "optimiser": step,
    "fused optimiser": lambda model, place: step(model, place, fused=True),
    "parameter": lambda m, p: setattr(m.get_submodule(p), "weight", nn.Parameter(m.get_submodule(p).weight * 2)),
    "module": lambda model, place: model.set_submodule(
        place, copy.deepcopy(model.get_submodule(place)).bfloat16().float()
    ),
    "vector_to_parameters": lambda model, place: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(model.parameters()) * 0.9, model.parameters()
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name, place", PLACES)
@torch.no_grad()
def test_a_change_is_seen(make, encoder_left, name, place, change):
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain)
    before = twins.fast(**inputs).logits_per_image
    twins.assert_same(**inputs)
    for model in twins:
        CHANGES[change](model, place)
    twins.assert_same(**inputs)
    assert not torch.equal(before, twins.fast(**inputs).logits_per_image) and not encoder_left()


@pytest.mark.parametrize("name", oracle.JOINT)
def test_what_is_kept_and_what_training_drops(make, name):
    """Without gradients every linear layer of the encoders is packed, and only then."""
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain)
    linears = [m for m in twins.plain.modules() if isinstance(m, nn.Linear)]

    def packed():
        stacks = [
            m.__dict__["forward"].stack for m in twins.fast.modules() if hasattr(m.__dict__.get("forward"), "stack")
        ]
        ours = [m for stack in stacks for layer in stack.layers for m in layer.modules() if isinstance(m, Linear)]
        return sum(m._kept is not None for m in ours)

    twins.fast(**inputs)
    assert packed() == 0
    with torch.no_grad():
        twins.fast(**inputs)
    outside = 3 if name == "AltCLIPModel" else 2  # projections, and the text tower's transformation
    assert packed() == len(linears) - outside
    twins.fast.train()(**inputs)
    assert packed() == 0


@pytest.mark.parametrize("name, place", PLACES)
@torch.no_grad()
def test_a_late_field_of_a_changed_model(make, name, place):
    """It is refused: its value would be of other weights than the rest of the output."""
    twins = make(name)
    output = twins.fast(**oracle.inputs_for(twins.plain))
    twins.fast.get_submodule(place).weight.mul_(2)
    late = output.text_model_output if "text" in place else output.vision_model_output
    assert late.pooler_output is not None
    with pytest.raises(RuntimeError, match="before the model changed"):
        late["last_hidden_state"]


@pytest.mark.parametrize("name, place", PLACES)
def test_low_rank_layers(make, encoder_left, name, place):
    """Wrapped after the first call, trained, merged by value and by module."""
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain)
    with torch.no_grad():
        twins.assert_same(**inputs)
    torch.manual_seed(0)
    wrapped = LowRank(twins.plain.get_submodule(place))
    for model in twins:
        added = copy.deepcopy(wrapped)
        added.layer = model.get_submodule(place)
        model.set_submodule(place, added)
    with torch.no_grad():
        twins.assert_same(**inputs)
    rows = {row.module: row for row in af.explain(twins.fast)}
    assert "LowRank" in rows[place].reason and sum(row.fused for row in rows.values()) == 2
    for model in twins:
        oracle.loss_of(model, inputs).backward()
    ours, theirs = (model.get_submodule(place).down.weight.grad for model in twins)
    oracle.assert_close(ours, theirs, "gradient", scale=theirs.abs().max().item())
    assert not encoder_left()
    with torch.no_grad():
        for model in twins:
            model.get_submodule(place).down.weight.add_(0.3)
        twins.assert_same(**inputs)
        merged = twins.plain.get_submodule(place).merged()
        for model in twins:
            wrapper = model.get_submodule(place)
            wrapper.layer.weight.data += wrapper.up.weight @ wrapper.down.weight
            model.set_submodule(place, wrapper.layer)
        twins.assert_same(**inputs)
        oracle.assert_close(twins.fast.get_submodule(place).weight, merged.weight, "merged")
    assert {row.fused for row in af.explain(twins.fast)} == {True} and not encoder_left()


@pytest.mark.parametrize("name, place", PLACES)
@torch.no_grad()
def test_weights_that_are_not_parameters(make, encoder_left, name, place):
    """Computed from others, by a layer whose class changes in place; then a tensor; then a parameter again."""

    def as_is():
        return [row.module for row in af.explain(twins.fast) if not row.fused]

    twins = make(name)
    inputs = oracle.inputs_for(twins.plain)
    twins.assert_same(**inputs)
    layers = [model.get_submodule(place) for model in twins]
    for layer in layers:
        parametrizations.weight_norm(layer).parametrizations.weight.original0.mul_(1.5)
    twins.assert_same(**inputs)
    assert as_is() == [place]
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight")
    twins.assert_same(**inputs)
    assert "weight" not in layers[0]._parameters and as_is() == [place]
    for layer in layers:
        layer.weight = nn.Parameter(layer.weight)
    twins.assert_same(**inputs)
    for layer in layers:
        weight = layer.weight.data
        del layer.weight
        layer.weight = 2 * weight
    twins.assert_same(**inputs)
    assert as_is() == [place] and not encoder_left()


@torch.no_grad()
def test_weights_of_another_kind(make, encoder_left):
    """A quantised weight is a tensor of a class of its own: only its own layer knows what to do with it."""

    class Doubled(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is nn.functional.linear:
                x, weight, *bias = (a.as_subclass(torch.Tensor) for a in args)
                return nn.functional.linear(x, 2 * weight, *bias)
            return super().__torch_function__(function, types, args, kwargs or {})

    twins = make("CLIPVisionModel")
    pixels = oracle.pixels(twins.plain)
    twins.assert_same(pixels)
    for model in twins:
        fc1 = model.encoder.layers[0].mlp.fc1
        fc1._parameters["weight"] = fc1.weight.detach().as_subclass(Doubled)
    twins.assert_same(pixels)
    assert [row.module for row in af.explain(twins.fast) if not row.fused] == ["encoder.layers.0.mlp.fc1"]
    assert not encoder_left()


@torch.no_grad()
def test_layers_of_several_dtypes(make, encoder_left):
    """A norm kept in float32, as some loaders do: transformers' code, bit for bit."""
    twins = make("CLIPVisionModel", dtype=torch.bfloat16)
    for model in twins:
        model.encoder.layers[0].layer_norm1.float()
    found, wanted = (model(oracle.pixels(twins.plain)).pooler_output for model in twins)
    assert torch.equal(found, wanted) and encoder_left()
