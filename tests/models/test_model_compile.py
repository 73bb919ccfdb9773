"""torch.compile in one graph, torch.func, and copies: the results of plain calls."""

import copy
import pickle

import pytest
import torch
from oracle import CLASSES, JOINT, TEXT, assert_close, assert_same, inputs_for, pair, pixels, texts


@pytest.fixture(autouse=True)
def forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model):
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def assert_equal_outputs(found, expected):
    assert type(found) is type(expected) and list(found) == list(expected)
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_equal_outputs(found[name], value)
        else:
            values = value if isinstance(value, tuple) else (value,)
            for a, b in zip(found[name] if isinstance(value, tuple) else (found[name],), values, strict=True):
                assert_close(a, b, name)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in JOINT else n for n in CLASSES])
def test_one_graph_gives_what_a_call_gives(name):
    model = pair(name).ours
    inputs = inputs_for(model)
    with torch.no_grad():
        assert_equal_outputs(compiled(model)(**inputs), model(**inputs))


@pytest.mark.slow
@pytest.mark.parametrize("name", JOINT)
def test_one_graph_with_every_option(name):
    model = pair(name).ours
    inputs = {
        **inputs_for(model, side="both"),
        "return_loss": True,
        "output_hidden_states": True,
        "output_attentions": True,
    }
    with torch.no_grad():
        found = compiled(model)(**inputs)
        assert_equal_outputs(found, model(**inputs))
        assert found.text_model_output.hidden_states[0] is found["text_model_output"][-2][0]
        kept = inputs["attention_mask"].clone()
        kept[:, 0] |= name == "AltCLIPModel"  # the pooled token is computed, padding or not
        assert_same(found, pair(name).theirs(**inputs), kept)


@pytest.mark.parametrize("name", JOINT)
def test_one_graph_of_the_features(name):
    model = pair(name).ours
    with torch.no_grad():
        text = torch.compile(model.get_text_features, fullgraph=True, backend="aot_eager")(**texts())
        image = torch.compile(model.get_image_features, fullgraph=True, backend="aot_eager")(pixels(model))
        assert_close(text, model.get_text_features(**texts()), "text")
        assert_close(image, model.get_image_features(pixels(model)), "image")


def test_tuples_of_one_graph():
    model = pair("AltCLIPTextModel").ours
    with torch.no_grad():
        found = compiled(model)(**texts(), return_dict=False)
        for a, b in zip(found, model(**texts(), return_dict=False), strict=True):
            assert_close(a, b, "output")


@pytest.mark.parametrize("name", ["AltCLIPTextModel", "CLIPTextModel"])
def test_one_graph_serves_other_masks(name):
    """Lengths are values, not shapes: nothing is compiled again for another padding."""
    model, counted = pair(name).ours, torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    run = torch.compile(model, fullgraph=True, backend=counted)
    with torch.no_grad():
        for lengths in ((7, 4, 11), (11, 11, 11), (1, 2, 11)):
            inputs = texts(lengths)
            assert_equal_outputs(run(**inputs), model(**inputs))
    assert counted.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT[:2])
def test_one_graph_of_any_batch_and_length(name):
    model = pair(name).ours
    run = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for lengths in ((7, 4, 11), (5, 3), (13, 9, 2, 2)):
            inputs = texts(lengths)
            assert_equal_outputs(run(**inputs), model(**inputs))


@pytest.mark.slow
@pytest.mark.parametrize("name", JOINT)
def test_gradients_through_one_graph(name):
    model = copy.deepcopy(pair(name).ours).train()
    inputs = inputs_for(model)
    model(**inputs, return_loss=True).loss.backward()
    plain = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    compiled(model)(**inputs, return_loss=True).loss.backward()
    largest = max(g.abs().max().item() for g in plain.values())
    for n, p in model.named_parameters():
        assert_close(p.grad, plain[n], n, scale=largest)


def test_one_graph_of_the_classifier_with_labels():
    model = copy.deepcopy(pair("CLIPForImageClassification").ours)
    model.config.problem_type = "single_label_classification"
    images, labels = pixels(model), torch.tensor([0, 1, 1])
    with torch.no_grad():
        assert_equal_outputs(compiled(model)(images, labels), model(images, labels))


@pytest.mark.parametrize("name", CLASSES)
def test_functional_call_uses_the_given_parameters(name):
    model, inputs = pair(name).ours, inputs_for(pair(name).ours)
    given = {n: p.detach() * 1.1 for n, p in model.named_parameters()}
    changed = copy.deepcopy(model)
    changed.load_state_dict(given)
    output = torch.func.functional_call(model, given, kwargs=inputs)
    assert_equal_outputs(output, changed(**inputs))
    with torch.no_grad():
        index = -1 if name in JOINT else 0
        first = torch.func.functional_call(model, given, kwargs={**inputs, "return_dict": False})
        expected = changed(**inputs, return_dict=False)
        assert_close(first[index][0], expected[index][0], "return_dict=False")


@pytest.mark.parametrize("name", JOINT)
def test_grad_of_a_function_of_the_parameters(name):
    model, inputs = copy.deepcopy(pair(name).ours), inputs_for(pair(name).ours)
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def loss(given):
        return torch.func.functional_call(model, given, kwargs={**inputs, "return_loss": True}).loss

    found = torch.func.grad(loss)(parameters)
    model(**inputs, return_loss=True).loss.backward()
    largest = max(p.grad.abs().max().item() for p in model.parameters())
    for n, p in model.named_parameters():
        assert_close(found[n], p.grad, n, scale=largest)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("name", CLASSES)
def test_a_copy_is_equal_and_its_own(name, how):
    model, inputs = pair(name).ours, inputs_for(pair(name).ours)
    copied = how(model)
    with torch.no_grad():
        before = model(**inputs)
        assert_equal_outputs(copied(**inputs), before)
        for parameter in copied.parameters():
            parameter.zero_()
        assert_equal_outputs(model(**inputs), before)
    assert copied.config == model.config and copied.config is not model.config


@pytest.mark.parametrize("name", [*TEXT[:2], "CLIPVisionModel"])
def test_export(name):
    model, inputs = pair(name).ours, inputs_for(pair(name).ours)
    with torch.no_grad():
        program = torch.export.export(model, (), kwargs={**inputs, "return_dict": False})
        for a, b in zip(program.module()(**inputs, return_dict=False), model(**inputs, return_dict=False), strict=True):
            assert_close(a, b, "output")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", [*TEXT[:2], "CLIPVisionModel"])
def test_a_trace_serves_other_values(name):
    model, inputs = pair(name).ours, inputs_for(pair(name).ours)

    class Tuples(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *values):
            return self.model(**dict(zip(inputs, values, strict=True)), return_dict=False)

    other = texts((3, 9, 11), seed=9) if name in TEXT else {"pixel_values": pixels(model, seed=9)}
    with torch.no_grad():
        traced = torch.jit.trace(Tuples(), tuple(inputs.values()), check_trace=False)
        for a, b in zip(traced(*other.values()), model(**other, return_dict=False), strict=True):
            assert_close(a, b, "output")
