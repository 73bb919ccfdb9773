"""Gradients of every parameter, checkpointing, dropout, the classifier's losses, data parallelism."""

import copy
import gc
import os
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from oracle import (
    CASES,
    CLASSES,
    GATE,
    JOINT,
    TEXT,
    assert_close,
    assert_same_gradients,
    gradients,
    inputs_for,
    pair,
    pixels,
    texts,
)
from torch import nn

from altclip_fast.models.layers import Attention


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", CLASSES)
def test_gradients_of_every_parameter(name, case):
    found = pair(name, case).copy()
    inputs = inputs_for(found.ours)
    found.ours.train()
    found.theirs.train()
    loss, ours = gradients(found.ours, inputs)
    expected, theirs = gradients(found.theirs, inputs)
    assert_close(loss, expected, "loss")
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("side", ["left", "both"])
@pytest.mark.parametrize("name", JOINT)
def test_gradients_under_other_padding(name, side):
    found = pair(name).copy()
    inputs = inputs_for(found.ours, side=side)
    assert_same_gradients(gradients(found.ours, inputs)[1], gradients(found.theirs, inputs)[1])


@pytest.mark.parametrize("name", JOINT)
def test_gradients_reach_the_inputs(name):
    found = pair(name).copy()
    images = [pixels(found.ours).requires_grad_() for _ in range(2)]
    found.ours(**texts(), pixel_values=images[0], return_loss=True).loss.backward()
    found.theirs(**texts(), pixel_values=images[1], return_loss=True).loss.backward()
    largest = max(parameter.grad.abs().max().item() for parameter in found.theirs.parameters())
    assert images[1].grad.abs().max() > 100 * GATE * largest
    assert_close(images[0].grad, images[1].grad, "gradient of the pixels", scale=largest)


def test_gradients_reach_the_embeddings():
    found, given = pair("AltCLIPTextModel"), torch.randn(3, 11, 80)
    grads = []
    for model in (found.ours, found.theirs):
        leaf = given.clone().requires_grad_()
        model(inputs_embeds=leaf).pooler_output.square().sum().backward()
        grads.append(leaf.grad)
    assert_close(grads[0], grads[1], "inputs_embeds", scale=grads[1].abs().max().item())


@pytest.mark.parametrize("name", JOINT)
def test_gradients_through_features_and_logits(name):
    found = pair(name).copy()
    images = pixels(found.ours)
    for model in (found.ours, found.theirs):
        model.zero_grad()
        text, image = model.get_text_features(**texts()), model.get_image_features(images)
        text, image = (x if isinstance(x, torch.Tensor) else x.pooler_output for x in (text, image))
        (text.square().sum() + image.square().sum()).backward()
        model(**texts(), pixel_values=images).logits_per_image.square().mean().backward()
    ours, theirs = (dict((n, p.grad) for n, p in m.named_parameters()) for m in (found.ours, found.theirs))
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("options", [None, {"use_reentrant": False}, {"use_reentrant": True}], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_gradient_checkpointing_changes_nothing_but_memory(name, options):
    model = copy.deepcopy(pair(name).ours).train()
    inputs = inputs_for(model)
    loss, plain = gradients(model, inputs)
    model.gradient_checkpointing_enable(options)
    assert model.is_gradient_checkpointing
    calls = count_calls(Attention)
    with calls as counted:
        again, recomputed = gradients(model, inputs)
    layers = sum(isinstance(module, Attention) for module in model.modules())
    assert counted.total == 2 * layers, "each layer runs again in the backward pass"
    assert_close(again, loss, "loss")
    assert_same_gradients(recomputed, plain)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    with count_calls(Attention) as counted:
        gradients(model, inputs)
    assert counted.total == layers
    model.gradient_checkpointing_enable(options)
    with count_calls(Attention) as counted:
        gradients(model.eval(), inputs)
    assert counted.total == layers, "in evaluation nothing is recomputed"


@contextmanager
def count_calls(cls):
    class Counter:
        total = 0

    def hook(module, *args):
        Counter.total += isinstance(module, cls)

    handle = nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield Counter
    finally:
        handle.remove()


@pytest.mark.parametrize("name", JOINT)
def test_checkpointing_with_hidden_states_and_attentions(name):
    model = copy.deepcopy(pair(name).ours).train()
    inputs = {**inputs_for(model), "output_hidden_states": True, "output_attentions": True}
    _, plain = gradients(model, inputs)
    model.gradient_checkpointing_enable()
    _, recomputed = gradients(model, inputs)
    assert_same_gradients(recomputed, plain)


def with_dropout(name, **values):
    model = copy.deepcopy(pair(name).ours).train()
    for module in model.modules():
        config = getattr(module, "config", None)
        for part in filter(
            None, (config, getattr(config, "text_config", None), getattr(config, "vision_config", None))
        ):
            for field, value in values.items():
                if hasattr(part, field):
                    setattr(part, field, value)
    rebuilt = type(model)(model.config).train()
    rebuilt.load_state_dict(model.state_dict())
    return rebuilt


DROPOUTS = {
    "AltCLIPTextModel": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "AltCLIPVisionModel": ("attention_dropout",),
    "CLIPTextModel": ("attention_dropout",),
    "CLIPVisionModel": ("attention_dropout",),
}
SITES = [(name, field) for name, fields in DROPOUTS.items() for field in fields]


@pytest.mark.parametrize("name, field", SITES)
def test_dropout_differs_between_calls_in_training_only(name, field):
    model = with_dropout(name, **{field: 0.3})
    inputs = inputs_for(model)
    with torch.no_grad():
        for options in ({}, {"output_hidden_states": True}, {"output_attentions": True}):
            first, second = model(**inputs, **options), model(**inputs, **options)
            assert not torch.equal(first.pooler_output, second.pooler_output)
        assert not torch.equal(model.pooled(**inputs), model.pooled(**inputs))
        torch.manual_seed(5)
        first = model(**inputs).pooler_output
        torch.manual_seed(5)
        assert torch.equal(first, model(**inputs).pooler_output), "the seed decides"
        model.eval()
        assert_close(model(**inputs).pooler_output, pair(name).ours(**inputs).pooler_output, "evaluation")
        assert torch.equal(model(**inputs).pooler_output, model(**inputs).pooler_output)


@pytest.mark.parametrize("name, field", SITES)
def test_dropout_of_everything_is_that_of_transformers(name, field):
    """At probability 1 nothing is random: each site gives zeros, and the rest of the model is compared."""
    found = pair(name).copy()
    ours = with_dropout(name, **{field: 1.0})
    for module in found.theirs.modules():
        if isinstance(module, nn.Dropout) and field == "hidden_dropout_prob":
            module.p = 1.0
        for attribute in ("dropout", "attention_dropout"):
            if field != "hidden_dropout_prob" and isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 1.0)
    found.theirs.train()
    inputs = inputs_for(ours)
    kept = inputs.get("attention_mask")
    with torch.no_grad():
        a, b = ours(**inputs, output_hidden_states=True), found.theirs(**inputs, output_hidden_states=True)
        plain = pair(name).ours(**inputs).pooler_output
    for i, (x, y) in enumerate(zip(a.hidden_states, b.hidden_states, strict=True)):
        assert_close(*((x, y) if kept is None else (x[kept.bool()], y[kept.bool()])), f"hidden_states[{i}]")
    assert_close(a.pooler_output, b.pooler_output, "pooler_output")
    assert not torch.allclose(a.pooler_output, plain, atol=1e-3)


def test_hidden_dropout_keeps_the_mean_and_drops_the_share():
    """Of the embeddings, after their norm: zeros at the rate p, the others scaled by 1 / (1 - p)."""
    model = with_dropout("AltCLIPTextModel", hidden_dropout_prob=0.25)
    inputs = texts((11,) * 64)
    with torch.no_grad():
        dropped = model(**inputs, output_hidden_states=[0]).hidden_states[0]
        whole = pair("AltCLIPTextModel").ours(**inputs, output_hidden_states=[0]).hidden_states[0]
    zeros = dropped == 0
    assert abs(zeros.float().mean().item() - 0.25) < 0.01  # 56320 numbers: five sigma
    assert_close(dropped[~zeros], (whole / 0.75)[~zeros], "kept numbers")


@pytest.mark.parametrize("name", ["AltCLIPTextModel", "CLIPVisionModel"])
def test_attention_dropout_keeps_the_mean_and_drops_the_share(name):
    model = with_dropout(name, attention_probs_dropout_prob=0.25, attention_dropout=0.25)
    inputs = {key: value[:1].expand(64, *value.shape[1:]) for key, value in inputs_for(model).items()}
    inputs.pop("attention_mask", None)
    with torch.no_grad():
        dropped = model(**inputs, output_attentions=True).attentions[0]
        whole = pair(name).ours(**inputs, output_attentions=True).attentions[0]
    zeros = dropped == 0
    assert abs(zeros.float().mean().item() - 0.25) < 0.02  # 15360 numbers and more: five sigma
    assert_close(dropped[~zeros], (whole / 0.75)[~zeros], "kept numbers")


@pytest.mark.parametrize("name, field", SITES)
def test_gradients_under_dropout_are_those_of_the_forward_masks(name, field):
    """With checkpointing too: the recomputed masks are the same."""
    model = with_dropout(name, **{field: 0.3})
    inputs, found = inputs_for(model), []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable()
        torch.manual_seed(7)
        found.append(gradients(model, inputs)[1])
    assert_same_gradients(found[1], found[0])


LABELS = {
    "single": ("odd", None, torch.tensor([1, 0, 1])),
    "single of five": ("labels5", None, torch.tensor([4, 0, 2])),
    "single, 32 bits": ("labels5", None, torch.tensor([4, 0, 2], dtype=torch.int32)),
    "single, ignored": ("labels5", None, torch.tensor([4, -100, 2])),
    "single, in a column": ("labels5", None, torch.tensor([[4], [0], [2]])),
    "multi": ("labels5", None, torch.randint(0, 2, (3, 5)).float()),
    "regression": ("regression", None, torch.randn(3)),
    "regression in a column": ("regression", None, torch.randn(3, 1)),
    "regression of five": ("labels5", "regression", torch.randn(3, 5)),
    "said to be single": ("labels5", "single_label_classification", torch.tensor([4, 0, 2])),
    "said to be multi": ("labels5", "multi_label_classification", torch.rand(3, 5)),
}


@pytest.mark.parametrize("kind", LABELS)
def test_losses_of_the_classifier(kind):
    case, problem, labels = LABELS[kind]
    found = pair("CLIPForImageClassification", case).copy()
    images = pixels(found.ours)
    for model in (found.ours, found.theirs):
        model.config.problem_type = problem
    for options in ({}, {"return_dict": False}):
        target = labels.long() if labels.dtype == torch.int32 else labels  # torch's cross-entropy takes int64 only
        ours = found.ours(images, labels=labels, **options)
        theirs = found.theirs(images, labels=target, **options)
        assert_close(ours[0], theirs[0], "loss")
        assert_close(ours[1], theirs[1], "logits")
    assert found.ours.config.problem_type == found.theirs.config.problem_type
    assert found.ours(images).loss is None


def test_labels_of_the_other_kind_are_converted():
    """0 and 1 as ints serve several labels, ints serve a regression: transformers fails in torch there."""
    found = pair("CLIPForImageClassification", "labels5").copy()
    images, labels = pixels(found.ours), torch.randint(0, 2, (3, 5))
    for problem in ("multi_label_classification", "regression"):
        found.ours.config.problem_type = problem
        assert_close(found.ours(images, labels).loss, found.ours(images, labels.float()).loss, problem)
    found.ours.config.problem_type = None
    loss = found.ours(images, labels.bool()).loss
    assert found.ours.config.problem_type == "multi_label_classification"
    assert_close(loss, found.ours(images, labels.float()).loss, "bool")


def test_no_labels_leave_the_features():
    found = pair("CLIPForImageClassification", "labels0")
    images = pixels(found.ours)
    assert_close(found.ours(images).logits, found.theirs(images).logits, "logits")


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "file"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    gc.collect()  # what still holds the group would destroy it later, under the interpreter's lock
    dist.destroy_process_group()


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
@pytest.mark.parametrize("name", JOINT)
def test_distributed_data_parallel(process_group, name, options):
    model = copy.deepcopy(pair(name).ours).train()
    inputs = inputs_for(model)
    _, plain = gradients(model, inputs)
    model.zero_grad(set_to_none=True)
    wrapped = nn.parallel.DistributedDataParallel(model, **options)
    for _ in range(2):  # a second step fails when the first did not use every parameter
        model.zero_grad(set_to_none=True)
        output = wrapped(**inputs, return_loss=True)
        output.loss.backward()
    assert output.logits_per_image.shape == (3, 3)
    assert_same_gradients({n: p.grad for n, p in model.named_parameters()}, plain)


def distributed_step(rank, store, folder):
    import altclip_fast as af

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = af.AltCLIPModel.from_pretrained(folder).train()
    wrapped = nn.parallel.DistributedDataParallel(model)
    inputs = inputs_for(model)
    share = {key: value[[rank]].repeat(2, *[1] * (value.dim() - 1)) for key, value in inputs.items()}
    share["pixel_values"] = inputs["pixel_values"][:2] + rank
    wrapped(**share, return_loss=True).loss.backward()
    torch.save({name: p.grad for name, p in model.named_parameters()}, f"{folder}/grad-{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's destructor joins a thread that may wait for the interpreter's lock: seen to hang


@pytest.mark.slow
def test_two_processes_average_their_gradients(tmp_path):
    model = copy.deepcopy(pair("AltCLIPModel").ours).train()
    model.save_pretrained(tmp_path)
    ranks = torch.multiprocessing.spawn(distributed_step, (tmp_path / "store", str(tmp_path)), 2, join=False)
    try:
        assert any(ranks.join(timeout=120) for _ in range(2)), "a rank did not end"
    finally:
        for process in ranks.processes:
            process.kill()
    inputs, alone = inputs_for(model), []
    for rank in range(2):
        share = {key: value[[rank]].repeat(2, *[1] * (value.dim() - 1)) for key, value in inputs.items()}
        share["pixel_values"] = inputs["pixel_values"][:2] + rank
        alone.append(gradients(model, share)[1])
    mean = {name: (alone[0][name] + alone[1][name]) / 2 for name in alone[0]}
    for rank in range(2):
        assert_same_gradients(torch.load(tmp_path / f"grad-{rank}.pt"), mean)


@pytest.mark.parametrize("name", JOINT)
def test_a_few_steps_follow_transformers(name):
    """Ten steps of an optimiser: the losses stay together, and fall."""
    found = pair(name).copy()
    inputs, losses = inputs_for(found.ours), []
    for model in (found.ours.train(), found.theirs.train()):
        optimiser, run = torch.optim.SGD(model.parameters(), 0.01), []
        for _ in range(10):
            optimiser.zero_grad()
            loss = model(**inputs, return_loss=True).loss
            loss.backward()
            optimiser.step()
            run.append(loss.item())
        losses.append(run)
    assert losses[0][-1] < losses[0][0]
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 100 * GATE


@pytest.mark.parametrize("name", TEXT)
def test_padding_ids_get_no_gradient(name):
    """Where the table has a padding row (XLM-R); CLIP's has none."""
    found = pair(name).copy()
    ids = texts()["input_ids"]
    rows = []
    for model in (found.ours, found.theirs):
        gradients(model, {"input_ids": ids})
        rows.append(model.get_input_embeddings().weight.grad[1])
    assert rows[0].any() == rows[1].any() == name.startswith("CLIP")
