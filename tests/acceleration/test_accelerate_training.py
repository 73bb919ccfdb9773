"""Training an accelerated model, and the surroundings under which it is left to transformers' code."""

import copy
import warnings

import pytest
import torch

import altclip_fast as af
from tests.models import oracle


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", oracle.CLASSES)
def test_gradients(make, encoder_left, name, side):
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain, side=side)
    for model in twins:
        model.train()
    (a, ours), (b, theirs) = (oracle.gradients(model, inputs) for model in twins)
    oracle.assert_close(a, b, "loss")
    largest = max(g.abs().max().item() for g in theirs.values() if g is not None)
    for path, gradient in theirs.items():
        if gradient is None:
            assert ours[path] is None
        else:
            oracle.assert_close(ours[path], gradient, path, scale=largest)
    if side == "right":
        assert not encoder_left()


@pytest.mark.parametrize("name", oracle.JOINT)
def test_gradients_through_what_is_read_late(make, name):
    twins = make(name)
    inputs, found = oracle.inputs_for(twins.plain), []
    for model in twins:
        model.train()
        output = model(**inputs, return_loss=True)
        total = output.loss
        for part in (output.text_model_output, output.vision_model_output):
            total = total + part.last_hidden_state.square().mean()
        total.backward()
        found.append({path: p.grad for path, p in model.named_parameters()})
    largest = max(g.abs().max().item() for g in found[1].values())
    for path, gradient in found[1].items():
        oracle.assert_close(found[0][path], gradient, path, scale=largest)


@pytest.mark.parametrize("name", oracle.CLASSES)
def test_hidden_states_have_gradients(make, name):
    twins, found = make(name), []
    if name in oracle.JOINT or name == "CLIPForImageClassification":
        twins = [model.vision_model for model in twins]
    for model in twins:
        inputs = oracle.texts() if name in oracle.TEXT else {"pixel_values": oracle.pixels(model)}
        output = model(**inputs, output_hidden_states=True)
        for state in output.hidden_states:
            state.retain_grad()
        output.last_hidden_state.square().sum().backward()
        found.append([state.grad for state in output.hidden_states])
    for i, (ours, theirs) in enumerate(zip(*found, strict=True)):
        oracle.assert_close(ours, theirs, f"gradient of hidden state {i}", scale=theirs.abs().max().item())


@pytest.mark.parametrize("name", oracle.JOINT)
def test_dropout_is_read_at_call_time(make, encoder_left, name):
    """Transformers' code draws it, from the same numbers; without it the fused path trains."""
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain)
    for model in twins:
        model.train()
    twins.assert_same(**inputs)
    assert not encoder_left()
    encoder = "text_model.roberta.encoder" if name == "AltCLIPModel" else "text_model.encoder"
    layer = "attention.output.dropout" if name == "AltCLIPModel" else "self_attn"
    attribute = "p" if name == "AltCLIPModel" else "dropout"
    for model in twins:
        setattr(model.get_submodule(f"{encoder}.layers.1.{layer}"), attribute, 0.5)
    outputs = []
    for model in twins:
        torch.manual_seed(3)
        outputs.append(model(**inputs))
    oracle.assert_same(*outputs)
    assert encoder_left()
    reasons = {row.module: row.reason for row in af.explain(twins.fast)}
    assert "dropout" in reasons[encoder] and not reasons["vision_model.encoder"]
    for model in twins:
        model.eval()
    twins.assert_same(**inputs)
    assert not encoder_left()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", oracle.JOINT)
def test_activation_checkpointing(make, encoder_left, name, reentrant):
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain)
    for model in twins:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.text_model.get_input_embeddings().weight.requires_grad_()
    (_, ours), (_, theirs) = (oracle.gradients(model, inputs) for model in twins)
    assert encoder_left()
    largest = max(g.abs().max().item() for g in theirs.values() if g is not None)
    for path, gradient in theirs.items():
        if gradient is not None:
            oracle.assert_close(ours[path], gradient, path, scale=largest)
    twins.fast.eval()
    twins.plain.eval()
    with torch.no_grad():
        twins.assert_same(**inputs)
    assert not encoder_left()


@pytest.mark.parametrize("name", oracle.CLASSES)
@torch.no_grad()
def test_autocast(make, encoder_left, name):
    """Transformers' own operations, bit for bit."""
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = (model(**inputs).to_tuple() for model in twins)
    assert encoder_left()
    for a, b in zip(*(torch.utils._pytree.tree_leaves(x) for x in (found, wanted)), strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_a_late_field_read_under_autocast(make):
    twins = make("CLIPModel")
    inputs = oracle.inputs_for(twins.plain)
    found, wanted = (model(**inputs) for model in twins)
    with torch.autocast("cpu", torch.bfloat16):
        oracle.assert_same(found, wanted)


def test_a_late_field_has_the_grad_mode_of_its_call(make):
    fast = make("CLIPModel").fast
    inputs = oracle.inputs_for(fast)
    with torch.inference_mode():
        output = fast(**inputs)
    assert not output.text_model_output.last_hidden_state.requires_grad
    output = fast(**inputs)
    with torch.no_grad():
        assert output.text_model_output.last_hidden_state.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("name", oracle.JOINT)
def test_compiled(make, encoder_left, name):
    """One graph without breaks, of transformers' code; acceleration before and after compiling."""
    plain = make(name).plain
    inputs = oracle.inputs_for(plain)
    fast = af.accelerate(copy.deepcopy(plain))
    torch._dynamo.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.compile(fast, fullgraph=True, backend="eager")(**inputs)
        wanted = torch.compile(plain, fullgraph=True, backend="eager")(**inputs)
    oracle.assert_same(found, wanted)
    assert encoder_left()
    with torch.no_grad():
        oracle.assert_same(fast(**inputs), plain(**inputs))
    assert not encoder_left()


def test_exported(make):
    twins = make("CLIPVisionModel")
    pixels = oracle.pixels(twins.plain)
    with torch.no_grad():
        program = torch.export.export(twins.fast, (pixels,))
        oracle.assert_close(program.module()(pixels).pooler_output, twins.plain(pixels).pooler_output, "exported")
