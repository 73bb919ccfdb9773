"""`attn_implementation="altclip_fast"`: the attention alone, in models that are not accelerated."""

import pytest
import torch
import transformers
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

import altclip_fast as af
from altclip_fast.accelerate import attention
from tests.models import oracle

NAME = "altclip_fast"


@pytest.fixture
def kernel_calls(monkeypatch):
    calls, run = [], attention.ops.attention

    def counted(*args):
        calls.append(args)
        return run(*args)

    monkeypatch.setattr(attention.ops, "attention", counted)
    return calls


def test_it_is_registered_with_a_mask():
    assert af.accelerate is not None
    assert NAME in AttentionInterface._global_mapping and NAME in AttentionMaskInterface._global_mapping


@pytest.mark.parametrize("name", oracle.CLASSES)
@torch.no_grad()
def test_at_load(make, tmp_path, kernel_calls, name):
    plain = make(name).plain
    plain.save_pretrained(tmp_path)
    ours = getattr(transformers, name).from_pretrained(tmp_path, attn_implementation=NAME)
    for options in ({}, {"side": "left"}, {"lengths": (9, 9)}):
        inputs = oracle.inputs_for(plain, **options)
        oracle.assert_same(ours(**inputs), plain(**inputs))
    assert len(kernel_calls) >= sum("self_attn" in n or "attention.self" in n for n, _ in plain.named_modules()) / 6


@torch.no_grad()
def test_set_on_a_live_model_and_accelerated(make, kernel_calls, encoder_left):
    twins = make("CLIPModel")
    inputs = oracle.inputs_for(twins.plain)
    wanted = twins.plain(**inputs)
    twins.plain.set_attn_implementation({"text_config": NAME, "vision_config": "sdpa"})
    oracle.assert_same(twins.plain(**inputs), wanted)
    twins.fast.set_attn_implementation(NAME)
    oracle.assert_same(twins.fast(**inputs), wanted)
    assert not encoder_left()


def test_gradients_and_dropout(make):
    plain = make("CLIPModel").plain
    ours = make("CLIPModel", attention=NAME).plain
    inputs, found = oracle.inputs_for(plain, lengths=(5, 5, 5)), []
    for model in (ours, plain):
        model.train()
        found.append(oracle.gradients(model, inputs)[1])
    largest = max(g.abs().max().item() for g in found[1].values())
    for path, gradient in found[1].items():
        oracle.assert_close(found[0][path], gradient, path, scale=largest)
    outputs = []
    for model in (ours, plain):
        for layer in model.vision_model.encoder.layers:
            layer.self_attn.dropout = 0.5
        torch.manual_seed(0)
        outputs.append(model(**inputs))
    oracle.assert_same(*outputs)


@pytest.mark.parametrize("kind", ["Siglip", "Bert", "Llama"])
@torch.no_grad()
def test_other_models(kernel_calls, kind):
    """Bidirectional, causal, grouped keys: the kernel where it fits, the same results everywhere."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "Siglip":
        config = transformers.SiglipVisionConfig(**size, image_size=20, patch_size=5)
        model, inputs = transformers.SiglipVisionModel(config), {"pixel_values": torch.randn(2, 3, 20, 20)}
    elif kind == "Bert":
        model = transformers.BertModel(transformers.BertConfig(**size, vocab_size=99))
        inputs = oracle.texts((6, 6))
    else:
        model = transformers.LlamaModel(transformers.LlamaConfig(**size, vocab_size=99, num_key_value_heads=2))
        inputs = oracle.texts((6, 6))
    model.eval()
    wanted = model(**inputs).last_hidden_state
    model.set_attn_implementation(NAME)
    oracle.assert_close(model(**inputs).last_hidden_state, wanted, kind)
    assert bool(kernel_calls) == (kind != "Llama")
