"""What acceleration leaves as it was: the model's classes, tensors, files, copies, hooks; and how it is taken back."""

import copy
import io
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrize

import altclip_fast as af
from altclip_fast.accelerate import forwards
from altclip_fast.dispatch import forced_backend
from altclip_fast.models import layers
from tests.models import oracle

ENCODERS = {
    "AltCLIPModel": {"text_model.roberta.encoder", "vision_model.encoder"},
    "CLIPModel": {"text_model.encoder", "vision_model.encoder"},
    "AltCLIPTextModel": {"roberta.encoder"},
    "CLIPTextModel": {"encoder"},
    "CLIPTextModelWithProjection": {"text_model.encoder"},
    "AltCLIPVisionModel": {"encoder"},
    "CLIPVisionModel": {"encoder"},
    "CLIPVisionModelWithProjection": {"vision_model.encoder"},
    "CLIPForImageClassification": {"vision_model.encoder"},
}


def fused(model):
    return {row.module for row in af.explain(model) if row.fused}


def traces(model):
    """What a model has besides its tensors: nothing of ours may be left in it after `revert`."""
    return {name: (type(module), sorted(module.__dict__)) for name, module in model.named_modules()}


@pytest.mark.parametrize("name", oracle.CLASSES)
def test_nothing_else_changes_and_revert(make, name):
    plain = make(name).plain
    fast = copy.deepcopy(plain)
    tensors = {k: (id(v), v.data_ptr()) for k, v in fast.named_parameters()}
    before, config = traces(fast), fast.config.to_dict()
    assert af.accelerate(fast) is fast and fused(fast) == ENCODERS[name]
    assert {n: kind for n, (kind, _) in traces(fast).items()} == {n: kind for n, (kind, _) in before.items()}
    assert list(fast.state_dict()) == list(plain.state_dict()) and fast.config.to_dict() == config
    with torch.no_grad():
        fast(**oracle.inputs_for(fast))
    assert {k: (id(v), v.data_ptr()) for k, v in fast.named_parameters()} == tensors
    assert af.revert(fast) is fast and af.revert(fast) is fast
    assert traces(fast) == before and fused(fast) == set()


@pytest.mark.parametrize("name", oracle.CLASSES)
@torch.no_grad()
def test_copies_and_pickles_are_accelerated_models_of_their_own(make, encoder_left, name):
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain)
    wanted = twins.fast(**inputs)
    file = io.BytesIO()
    torch.save(twins.fast, file)
    file.seek(0)
    size = sum(p.numel() * p.element_size() for p in twins.fast.parameters())
    assert file.getbuffer().nbytes < 1.5 * size + 200_000
    for model in (
        copy.deepcopy(twins.fast),
        pickle.loads(pickle.dumps(twins.fast)),
        torch.load(file, weights_only=False),
    ):
        assert fused(model) == ENCODERS[name]
        oracle.assert_same(model(**inputs), wanted)
        for parameter in model.parameters():
            parameter.mul_(0.9)
        oracle.assert_same(model(**inputs), af.revert(copy.deepcopy(model))(**inputs))
        oracle.assert_same(twins.fast(**inputs), wanted)
    assert not encoder_left()


@pytest.mark.parametrize("name", oracle.CLASSES)
@torch.no_grad()
def test_save_and_load(make, tmp_path, name):
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain)
    twins.fast(**inputs)
    twins.fast.save_pretrained(tmp_path / "fast")
    twins.plain.save_pretrained(tmp_path / "plain")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "fast" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
    loaded = getattr(transformers, name).from_pretrained(tmp_path / "fast")
    assert fused(loaded) == set()
    oracle.assert_same(loaded(**inputs), twins.plain(**inputs))


@pytest.mark.parametrize("name", oracle.CLASSES)
@torch.no_grad()
def test_on_the_meta_device_before_the_weights(make, encoder_left, name):
    plain = make(name).plain
    for assign in (True, False):
        with torch.device("meta"):
            fast = af.accelerate(type(plain)(copy.deepcopy(plain.config))).eval()
        if name in oracle.VISION:
            fast(oracle.pixels(plain).to("meta"))
            assert encoder_left()
        if not assign:
            fast.to_empty(device="cpu")
        fast.load_state_dict(plain.state_dict(), assign=assign)
        for (_, ours), (_, theirs) in zip(fast.named_buffers(), plain.named_buffers(), strict=True):
            if ours.is_meta:
                torch.utils.swap_tensors(ours, theirs.clone())
            else:
                ours.copy_(theirs)
        assert fused(fast) == ENCODERS[name]
        oracle.assert_same(fast(**oracle.inputs_for(plain)), plain(**oracle.inputs_for(plain)))
        assert not encoder_left()


@pytest.mark.parametrize("name", oracle.JOINT)
@torch.no_grad()
def test_twice_and_in_either_order(make, tower_left, name):
    plain = make(name).plain
    orders = [["", "text_model", "vision_model"], ["text_model", "vision_model", ""], ["", ""]]
    for order in orders:
        fast = copy.deepcopy(plain)
        for part in order:
            af.accelerate(fast.get_submodule(part))
        inputs = oracle.inputs_for(plain)
        assert fast(**inputs).logits_per_image is not None and not tower_left()
        oracle.assert_same(fast(**inputs), plain(**inputs))
        tower_left()
        assert fused(fast) == ENCODERS[name]
        af.revert(fast)
        assert traces(fast) == traces(plain)


@torch.no_grad()
def test_revert_of_a_part(make):
    twins = make("CLIPModel")
    af.revert(twins.fast.text_model)
    assert fused(twins.fast) == {"vision_model.encoder"}
    twins.assert_same(**oracle.inputs_for(twins.plain))


@pytest.mark.parametrize("name", oracle.CLASSES)
@torch.no_grad()
def test_conversions(make, encoder_left, name):
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain)
    twins.fast(**inputs)
    for model in twins:
        model.double()
    twins.assert_same(**inputs)
    for model in twins:
        model.float()
    twins.assert_same(**inputs)
    assert {p.dtype for p in af.accelerate(copy.deepcopy(twins.fast), dtype="bfloat16").parameters()} == {
        torch.bfloat16
    }
    assert not encoder_left()


@pytest.mark.parametrize("name", oracle.JOINT)
@torch.no_grad()
def test_dynamic_quantisation_and_functional_calls(make, name):
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain)
    halved = {k: v / 2 for k, v in twins.plain.state_dict().items()}
    found, wanted = (torch.func.functional_call(model, halved, (), inputs) for model in twins)
    oracle.assert_same(found, wanted)
    twins.assert_same(**inputs)


HOOKED = {
    "AltCLIPModel": [
        "text_model",
        "text_model.roberta",
        "text_model.roberta.embeddings",
        "text_model.roberta.encoder",
        "text_model.roberta.encoder.layers.1",
        "text_model.roberta.encoder.layers.1.attention.self.query",
        "text_model.pre_LN",
        "text_projection",
    ],
    "CLIPModel": [
        "text_model",
        "text_model.embeddings",
        "text_model.encoder",
        "text_model.final_layer_norm",
        "vision_model",
        "vision_model.embeddings.patch_embedding",
        "vision_model.pre_layrnorm",
        "vision_model.encoder",
        "vision_model.encoder.layers.0",
        "vision_model.encoder.layers.1.self_attn",
        "vision_model.encoder.layers.1.layer_norm2",
        "vision_model.encoder.layers.1.mlp.fc2",
        "vision_model.post_layernorm",
        "visual_projection",
    ],
}


def shapes(value):
    return [leaf.shape for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def doubled(module, args, output):
    return 2 * output if isinstance(output, torch.Tensor) else None


@pytest.mark.parametrize("name, place", [(name, place) for name, places in HOOKED.items() for place in places])
def test_hooks_see_what_they_saw(make, name, place):
    """Forward hooks, backward hooks and hooks that replace the output, before and after the first call."""
    twins = make(name)
    inputs, seen = oracle.inputs_for(twins.plain), ([], [])
    for model, calls in zip(twins, seen, strict=True):
        with torch.no_grad():
            model(**inputs)
        module = model.get_submodule(place)
        module.register_forward_hook(lambda m, args, out, calls=calls: calls.append(shapes(out)))
        module.register_full_backward_hook(lambda m, grads, outs, calls=calls: calls.append(shapes(outs)))
    losses = [oracle.loss_of(model, inputs) for model in twins]
    for loss in losses:
        loss.backward()
    oracle.assert_close(*losses, "loss")
    assert seen[0] == seen[1] != []
    with torch.no_grad():
        for model in twins:
            model.get_submodule(place).register_forward_hook(doubled)
        twins.assert_same(**inputs)


@torch.no_grad()
def test_explain_follows_the_hooks(make):
    fast = make("CLIPModel").fast
    handle = fast.vision_model.encoder.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert fused(fast) == {"text_model.encoder"}
    (row,) = (row for row in af.explain(fast) if not row.fused)
    assert row.module == "vision_model.encoder" and "layers.1.mlp has hooks" in row.reason
    handle.remove()
    assert fused(fast) == ENCODERS["CLIPModel"]


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


@torch.no_grad()
def test_replaced_parts_are_left_to_transformers(make, encoder_left):
    class Loud(nn.GELU):
        pass

    class Layer(transformers.models.clip.modeling_clip.CLIPEncoderLayer):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs) * 1.5

    for change in (
        lambda layers, config: setattr(layers[1].mlp, "activation_fn", Loud()),
        lambda layers, config: setattr(layers[0], "layer_norm1", nn.Identity()),
        lambda layers, config: parametrize.register_parametrization(layers[0].layer_norm1, "weight", Twice()),
        lambda layers, config: setattr(layers[1].self_attn, "is_causal", True),
        lambda layers, config: layers.append(Layer(config).eval()),
        lambda layers, config: setattr(
            layers[0].self_attn, "forward", lambda hidden_states, **_: (hidden_states, None)
        ),
    ):
        twins = make("CLIPVisionModel")
        twins.assert_same(oracle.pixels(twins.plain))
        assert not encoder_left()
        torch.manual_seed(0)
        for model in twins:
            torch.manual_seed(0)
            change(model.encoder.layers, model.config)
        twins.assert_same(oracle.pixels(twins.plain))
        assert encoder_left() and fused(twins.fast) == set()


@torch.no_grad()
def test_a_bound_forward_of_the_class_is_no_change(make, encoder_left):
    """What accelerate's hooks leave behind."""
    twins = make("CLIPVisionModel")
    layer, other = twins.fast.encoder.layers
    layer.forward = layer.forward
    twins.assert_same(oracle.pixels(twins.plain))
    assert not encoder_left()
    layer.forward = other.forward
    twins.fast(**oracle.inputs_for(twins.plain))
    assert encoder_left()


SETTINGS = [
    ("CLIPVisionModel", "encoder.layers.1.layer_norm2", "eps", 1.0),
    ("CLIPVisionModel", "encoder.layers.0.self_attn", "scale", 2.0),
    ("CLIPVisionModel", "encoder.layers.0.self_attn", "head_dim", 24),
    ("AltCLIPTextModel", "roberta.encoder.layers.1.output.LayerNorm", "eps", 1.0),
    ("AltCLIPTextModel", "roberta.encoder.layers.0.attention.self", "scaling", 2.0),
    ("AltCLIPTextModel", "roberta.encoder.layers.0.attention.self", "attention_head_size", 8),
]


@pytest.mark.parametrize("name, place, setting, value", SETTINGS)
@torch.no_grad()
def test_settings_may_change(make, encoder_left, name, place, setting, value):
    twins = make(name)
    inputs = oracle.inputs_for(twins.plain)
    before = twins.fast(**inputs).pooler_output
    for model in twins:
        setattr(model.get_submodule(place), setting, value)
    twins.assert_same(**inputs)
    assert not torch.equal(before, twins.fast(**inputs).pooler_output) and not encoder_left()


@torch.no_grad()
def test_layers_may_come_and_go(make, encoder_left):
    twins = make("CLIPVisionModel", "tanh")
    pixels = oracle.pixels(twins.plain)
    twins.assert_same(pixels)
    for model in twins:
        del model.encoder.layers[1]
    twins.assert_same(pixels)
    for model in twins:
        model.encoder.layers.append(model.encoder.layers[0])
    twins.assert_same(pixels)
    assert not encoder_left()


def test_replicas_for_data_parallel(make):
    """They hold the tensors of another device, which attributes of the module itself would not see."""
    fast = make("AltCLIPModel").fast
    for module in fast.modules():
        replica = module._replicate_for_data_parallel()
        assert type(replica) is type(module) and not set(forwards.METHODS) & set(replica.__dict__)
    assert fused(fast) == ENCODERS["AltCLIPModel"]


def test_a_class_that_changes_later(make, encoder_left):
    """As `fully_shard` changes it."""
    twins = make("CLIPVisionModel")
    encoder = twins.fast.encoder
    encoder.__class__ = type("ShardedEncoder", (type(encoder),), {})
    with torch.no_grad():
        twins.assert_same(oracle.pixels(twins.plain))
    assert encoder_left() and "ShardedEncoder" in af.explain(twins.fast)[0].reason


def test_generic_parents(make):
    class Pipeline(nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder, self.head = encoder, nn.Linear(80, 3)

        def forward(self, **inputs):
            return self.head(self.encoder(**inputs).last_hidden_state)

    plain = Pipeline(make("CLIPTextModel").plain)
    fast = af.accelerate(copy.deepcopy(plain))
    assert fused(fast) == {"encoder.encoder"}
    oracle.assert_close(fast(**oracle.texts()), plain(**oracle.texts()), "head")


def test_a_forced_backend(make, monkeypatch):
    plain = make("CLIPModel").plain
    fast = af.accelerate(copy.deepcopy(plain), backend="reference")
    assert {row.backend for row in af.explain(fast)} == {"reference"}
    used = []
    monkeypatch.setattr(layers, "packing", lambda: used.append(forced_backend()))
    with torch.no_grad():
        oracle.assert_same(fast(**oracle.inputs_for(plain)), plain(**oracle.inputs_for(plain)))
    assert set(used) == {"reference"}


def test_an_encoder_alone_is_one_call(make, monkeypatch):
    """Until hidden states are asked for: from then on transformers listens to every layer."""
    plain = make("CLIPVisionModel").plain
    fast = af.accelerate(copy.deepcopy(plain))
    calls, run = [], forwards.run_layers
    monkeypatch.setattr(forwards, "run_layers", lambda *args: calls.append(len(args[0])) or run(*args))
    rows = torch.randn(2, 5, plain.config.hidden_size)
    with torch.no_grad():
        found, expected = (next(m for n, m in x.named_modules() if n.endswith("encoder"))(rows) for x in (fast, plain))
    assert calls == [plain.config.num_hidden_layers]
    oracle.assert_close(found.last_hidden_state, expected.last_hidden_state, "hidden")


def test_errors(make):
    with pytest.raises(ValueError, match=r"nothing to accelerate in this Linear.*CLIPEncoder"):
        af.accelerate(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="SimpleNamespace"):
        af.accelerate(SimpleNamespace())
    for function in (af.revert, af.explain):
        with pytest.raises(TypeError, match="torch module, not a str"):
            function("model")
    plain = make("CLIPModel").plain
    for options, message in (
        ({"backend": "gpu"}, "backend is 'gpu'"),
        ({"quantization": "int3"}, "quantization is 'int3'"),
        ({"quantization": "int8", "backend": "triton"}, "backend 'triton'; 8-bit linears run on 'cpu'"),
        ({"dtype": "int8"}, "dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            af.accelerate(plain, **options)
    assert fused(plain) == set()


@pytest.mark.parametrize(
    "version, message", [("5.5.2", "5.5.2 is installed"), ("6.0.0.dev0", "6.0.0.dev0"), (None, "pip install")]
)
def test_other_versions_of_transformers(version, message):
    code = f"""
import sys, types
if {version!r}:
    import transformers
    transformers.__version__ = {version!r}
else:
    sys.modules["transformers"] = None
import torch, altclip_fast as af
for function in (af.accelerate, af.revert, af.explain):
    try:
        function(torch.nn.Linear(1, 1))
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("transformers 5.6 to 5.23") == 3 == done.stdout.count(message)


def test_the_module_may_be_imported_by_name(make):
    import altclip_fast.accelerate as module

    fast = copy.deepcopy(make("CLIPTextModel").plain)
    assert module(fast) is fast and fused(fast) == {"encoder"}


def test_signatures_are_those_of_transformers(make):
    import inspect

    for name in oracle.CLASSES:
        twins = make(name)
        for (path, ours), (_, theirs) in zip(twins.fast.named_modules(), twins.plain.named_modules(), strict=True):
            for method in forwards.METHODS:
                if method in ours.__dict__:
                    a, b = (list(inspect.signature(getattr(m, method)).parameters) for m in (ours, theirs))
                    assert a == b or a == ["args", "kwargs"], (name, path)
