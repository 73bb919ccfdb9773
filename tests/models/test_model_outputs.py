"""The outputs as containers: every way of reading them, and fields that are computed when they are read."""

import copy
import itertools
import pickle

import pytest
import torch
from oracle import CLASSES, JOINT, TEXT, VISION, assert_close, inputs_for, pair, texts
from torch.utils import _pytree as pytree

from altclip_fast.models.outputs import BaseModelOutputWithPooling, Lazy, ModelOutput


def run(name, grad=False, **options):
    model = pair(name).ours
    with torch.set_grad_enabled(grad):
        return model(**inputs_for(model), **options)


def equal(a, b):
    if isinstance(b, ModelOutput):
        return list(a) == list(b) and all(equal(a[name], b[name]) for name in b)
    if isinstance(b, tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b)


@pytest.fixture(params=CLASSES)
def name(request):
    return request.param


def test_attribute_key_index_slice_and_iteration_agree(name):
    output, theirs = run(name), pair(name).theirs(**inputs_for(pair(name).ours))
    assert type(output).__name__ == type(theirs).__name__
    assert list(output) == list(output.keys()) == list(theirs)
    assert len(output) == len(theirs) == len(output.to_tuple())
    for i, key in enumerate(output):
        value = getattr(output, key)
        assert value is not None
        assert output[key] is output.get(key) is value
        assert output[i] is output[i - len(output)] is value
        assert key in output and output.values()[i] is value and output.items()[i] == (key, value)
    assert equal(output[:], output.to_tuple()) and equal(output[1:], output.to_tuple()[1:])
    with pytest.raises(IndexError):
        output[len(output)]
    with pytest.raises(KeyError):
        output["no such field"]


def test_absent_fields_are_none_and_do_not_count(name):
    output = run(name)
    absent = [field for field in output.fields if field not in output]
    assert absent
    for field in absent:
        assert getattr(output, field) is None and output.get(field, 5) == 5
    with pytest.raises(AttributeError, match="no_such_field"):
        output.no_such_field  # noqa: B018
    with pytest.raises(KeyError, match="no_such_field"):
        output["no_such_field"] = torch.zeros(1)


def no_lazy_inside(value):
    if isinstance(value, dict):
        return all(no_lazy_inside(item) for item in value.values())
    if isinstance(value, tuple | list):
        return all(map(no_lazy_inside, value))
    return isinstance(value, torch.Tensor)


READERS = {
    "dict": dict,
    "unpacked": lambda output: {**output},
    "keywords": lambda output: (lambda **fields: fields)(**output),
    "copy": copy.copy,
    "own copy": lambda output: output.copy(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda output: pickle.loads(pickle.dumps(output)),
    "tuple": lambda output: output.to_tuple(),
    "values": lambda output: tuple(output.values()),
    "items": lambda output: dict(output.items()),
    "union": lambda output: output | {},
    "pop": lambda output: [output.pop(name) for name in list(output)],
    "popitem": lambda output: [output.popitem()[1] for _ in list(output)],
    "setdefault": lambda output: [output.setdefault(name, None) for name in list(output)],
    "update": lambda output: output.update({}),
    "tree_map": lambda output: pytree.tree_map(lambda x: x, output),
    "tree_leaves": lambda output: pytree.tree_leaves(output),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_way_of_reading_gives_tensors(name, reader):
    output = run(name, output_hidden_states=True)
    if reader in ("pop", "popitem", "setdefault", "update"):  # refused, as in transformers
        with pytest.raises(TypeError, match=type(output).__name__):
            READERS[reader](output)
    else:
        assert no_lazy_inside(READERS[reader](output))


def test_repr_shows_values(name):
    text = repr(run(name))
    assert "Lazy" not in text and "tensor(" in text


@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle", "own copy", "tree_map"])
def test_copies_keep_class_order_and_values(name, how):
    output = run(name, output_hidden_states=True, output_attentions=True)
    copied = READERS[how](output)
    assert type(copied) is type(output)
    assert equal(copied, output)


def test_pytree_round_trip(name):
    output = run(name, output_hidden_states=True)
    leaves, spec = pytree.tree_flatten(output)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    restored = pytree.tree_unflatten([leaf + 1 for leaf in leaves], spec)
    assert type(restored) is type(output)
    assert equal(restored, pytree.tree_map(lambda x: x + 1, output))
    spec_again = pytree.treespec_loads(pytree.treespec_dumps(spec))
    assert equal(pytree.tree_unflatten(leaves, spec_again), output)


@pytest.mark.parametrize("joint", JOINT)
def test_fields_read_in_any_order(joint):
    late = ["logits_per_image", "logits_per_text", "text_model_output", "vision_model_output", "text_embeds"]
    expected = run(joint)
    expected.to_tuple()
    for order in itertools.permutations(late[:4]):
        output = run(joint)
        for field in order:
            assert equal(output[field], expected[field]), (order, field)
    output = run(joint)
    assert torch.equal(output.text_model_output.last_hidden_state, expected.text_model_output.last_hidden_state)


def test_a_field_is_computed_once(name):
    output = run(name, output_hidden_states=True)
    for field in output:
        assert output[field] is output[field]


def test_logits_and_sequences_are_computed_when_they_are_read():
    """Else `return_loss` and embeddings would pay for them."""
    output = run("AltCLIPModel")
    assert isinstance(dict.__getitem__(output, "logits_per_text"), Lazy)
    assert isinstance(dict.__getitem__(output, "logits_per_image"), Lazy)
    for tower in (output.text_model_output, output.vision_model_output):
        assert isinstance(dict.__getitem__(tower, "last_hidden_state"), Lazy)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("later", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_grad_mode_is_that_of_the_call(name, mode, later):
    model, inputs = pair(name).ours, inputs_for(pair(name).ours)
    with mode():
        output = model(**inputs, output_hidden_states=True)
        expected = pytree.tree_leaves(model(**inputs, output_hidden_states=True))
    with later():
        leaves = pytree.tree_leaves(output)
    for leaf, wanted in zip(leaves, expected, strict=True):
        assert torch.equal(leaf, wanted)
        assert leaf.is_inference() == (mode is torch.inference_mode)
        assert leaf.requires_grad == (mode is torch.enable_grad)


def test_the_forced_backend_is_that_of_the_call():
    import altclip_fast as af
    from altclip_fast.dispatch import forced_backend

    with af.use_backend("reference"):
        late = Lazy(forced_backend)
    assert late() == "reference" and forced_backend() is None


def change_last_layer(model):
    with torch.no_grad():
        model.layers[-1].mlp.fc1.weight.add_(1)


def change_projection(model):
    with torch.no_grad():
        model.projection.weight.add_(1)


def change_final_norm(model):
    with torch.no_grad():
        model.final_norm.bias.add_(1)


CHANGES = {
    "last layer": change_last_layer,
    "projection": change_projection,
    "final norm": change_final_norm,
    "load_state_dict": lambda model: model.load_state_dict(model.state_dict()),
    "assign": lambda model: model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True),
    "half": lambda model: model.half(),
    "storage": lambda model: [setattr(p, "data", p.data.clone()) for p in model.parameters()],
}


@pytest.mark.parametrize(
    "name, change",
    [(name, change) for name in TEXT[:2] for change in CHANGES if (name, change) != ("CLIPTextModel", "projection")],
)
def test_a_late_field_refuses_weights_that_changed(name, change):
    """Rather than mixing the old activations with the new weights."""
    model = copy.deepcopy(pair(name).ours)
    with torch.no_grad():
        output = model(**texts())
        before = model(**texts()).pooler_output
    CHANGES[change](model)
    with pytest.raises(RuntimeError, match=r"last_hidden_state.*parameters changed"):
        output.last_hidden_state  # noqa: B018
    assert torch.equal(output.pooler_output, before)
    assert not isinstance(model(**texts()).last_hidden_state, Lazy)


@pytest.mark.parametrize("name", VISION[:2])
def test_a_late_field_of_the_vision_tower_refuses_too(name):
    model = copy.deepcopy(pair(name).ours)
    with torch.no_grad():
        output = model(**inputs_for(model))
    change_last_layer(model)
    with pytest.raises(RuntimeError, match="parameters changed"):
        output.last_hidden_state  # noqa: B018


def test_fields_that_were_read_survive_a_change():
    model = copy.deepcopy(pair("AltCLIPModel").ours)
    with torch.no_grad():
        output = model(**inputs_for(model))
        read = output.logits_per_text.clone(), output.text_model_output.last_hidden_state.clone()
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(output.logits_per_text, read[0])
    assert torch.equal(output.text_model_output.last_hidden_state, read[1])


@pytest.mark.parametrize("joint", JOINT)
def test_late_logits_use_the_scale_of_the_call(joint):
    model = copy.deepcopy(pair(joint).ours)
    with torch.no_grad():
        expected = model(**inputs_for(model)).logits_per_text
        output = model(**inputs_for(model))
        model.logit_scale.add_(1)
    assert_close(output.logits_per_text, expected, "logits_per_text")
    assert torch.equal(output.logits_per_image, output.logits_per_text.t())


def test_fields_can_be_set_and_keep_their_order():
    output = BaseModelOutputWithPooling(pooler_output=torch.ones(1))
    output.last_hidden_state = torch.zeros(1)
    output["attentions"] = (torch.ones(2),)
    assert list(output) == ["last_hidden_state", "pooler_output", "attentions"]
    output.pooler_output = None
    assert list(output) == ["last_hidden_state", "attentions"] and output.pooler_output is None
    with pytest.raises(TypeError, match="no field 'wrong'"):
        BaseModelOutputWithPooling(wrong=1)
