"""Layers in one native call: the bits of the layers called one by one, and when they are called one by one."""

import copy

import pytest
import torch
from torch import nn

import altclip_fast as af
from altclip_fast import native, use_backend
from altclip_fast.models import fused
from altclip_fast.models.fused import run_layers
from altclip_fast.models.layers import Linear, PostNormLayer, PreNormLayer
from altclip_fast.models.rows import Rows, dense_rows

WIDE, HEADS, INNER = 32, 4, 72


def layers(kind, dtype=torch.float32, count=3, activation="quick_gelu", **options):
    torch.manual_seed(0)
    extra = {} if kind is PreNormLayer else {"hidden_dropout": 0.5, "chunk_size": 0}
    made = [kind(WIDE, HEADS, INNER, activation, 1e-5, 0.0, **{**extra, **options}).eval() for _ in range(count)]
    for layer in made:
        for parameter in layer.requires_grad_(False).parameters():
            nn.init.normal_(parameter, 0, 0.2)
        layer.to(dtype)
    return made


def quantized(made):
    for layer in made:
        for module in layer.modules():
            if isinstance(module, Linear):
                module.use_int8()
    return made


def rows_of(lengths, causal=False):
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    pooled = (offsets[1:] - 1 if causal else offsets[:-1]).long()
    return Rows(len(lengths), max(lengths), pooled, offsets, max(lengths), causal=causal)


def drawn(rows, dtype=torch.float32):
    return torch.randn(int(rows.cu_seqlens[-1]), WIDE, generator=torch.Generator().manual_seed(1)).to(dtype)


def one_by_one(made, x, rows, select=None):
    for layer in made:
        x = layer(x, rows, select if layer is made[-1] else None)
    return x


needs_panels = pytest.mark.skipif(
    native.missing() is not None or not native.kernels().cpu_capability().startswith("avx512"),
    reason="weights are in panels of our own where there is AVX-512",
)
needs_native = pytest.mark.skipif(native.missing() is not None, reason="needs the native library")
KINDS = pytest.mark.parametrize("kind", [PreNormLayer, PostNormLayer])


@needs_native
@KINDS
@pytest.mark.parametrize("of_8_bits", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_same_bits(kind, of_8_bits, dtype, activation, causal):
    made = layers(kind, dtype, activation=activation)
    if of_8_bits:
        quantized(made)
    elif not native.kernels().cpu_capability().startswith("avx512_bf16" if dtype is torch.bfloat16 else "avx512"):
        pytest.skip("weights are not in panels")
    for lengths in ([5], [9, 1, 33, 12], [900, 1100, 800, 1, 2]):  # the last in more than one group
        rows = rows_of(lengths, causal)
        x = drawn(rows, dtype)
        before = x.clone()
        for select in (None, rows.pooled, rows.pooled.int()):
            for some in (made, made[:1]):
                found = fused._native(some, x, rows, select)
                assert torch.equal(found, one_by_one(some, x, rows, select))
        assert torch.equal(x, before)


@needs_panels
def test_a_row_of_another_sequence():
    """As padding texts of a graph ask for."""
    made, rows = layers(PreNormLayer), rows_of([1500, 1400, 0, 3])
    x, select = drawn(rows), torch.tensor([7, 2, 0, 2900])
    assert torch.equal(fused._native(made, x, rows, select), one_by_one(made, x, rows, select))
    for wrong in (-1, 2903):
        with pytest.raises(RuntimeError, match=f"no row {wrong}"):
            fused._native(made, x, rows, torch.tensor([7, 2, 0, wrong]))
    with pytest.raises(RuntimeError, match="one row of each sequence"):
        fused._native(made, x, rows, select[:3])


@needs_panels
def test_more_sequences_than_rows():
    made, rows = layers(PreNormLayer), rows_of([2] + [0] * 500)
    x, select = drawn(rows), torch.zeros(501, dtype=torch.long)
    assert torch.equal(fused._native(made, x, rows, select), one_by_one(made, x, rows, select))


def hooked(part):
    def change(made):
        made[1].get_submodule(part).register_forward_hook(lambda *_: None)

    return change


def replaced(made):
    made[1].mlp.forward = lambda x, residual=None: x


def other_scale(made):
    made[1].attention.scale = 0.25


def of_some_8_bits(made):
    made[2].attention.key.use_int8()


def wrapped(made):
    made[0].mlp.fc1 = nn.Sequential(made[0].mlp.fc1)


def recorded(made):
    made[2].norm2.weight.requires_grad_()


CHANGES = {
    **{
        f"hooked {part or 'layer'}": hooked(part)
        for part in ("", "attention", "attention.key", "norm1", "mlp", "mlp.fc2")
    },
    **{f.__name__: f for f in (replaced, other_scale, of_some_8_bits, wrapped, recorded)},
}


@needs_panels
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_layers_that_do_more_are_called(change):
    made, rows = layers(PreNormLayer), rows_of([4, 6])
    x = drawn(rows)
    assert fused._native(made, x, rows) is not None
    change(made)
    assert fused._native(made, x, rows) is None
    torch.testing.assert_close(run_layers(made, x, rows), one_by_one(made, x, rows))


@needs_panels
def test_rows_that_others_compute():
    made, rows = layers(PreNormLayer), rows_of([4, 6])
    x = drawn(rows)
    assert fused._native(made, x, rows) is not None
    assert fused._native([], x, rows) is None and run_layers([], x, rows) is x
    assert fused._native(made, x.clone().requires_grad_(), rows) is None
    assert fused._native(made, x.T.contiguous().T, rows) is None
    assert fused._native(made, x.bfloat16(), rows) is None
    assert fused._native(made, x, dense_rows(None, torch.zeros(2, dtype=torch.long), 2, 5, False)) is None
    with use_backend("reference"):
        assert fused._native(made, x, rows) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fused._native(made, x, rows) is None
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert fused._native(made, x, rows) is None
    finally:
        handle.remove()


@needs_panels
def test_post_norm_layers_with_dropout_or_in_chunks():
    rows = rows_of([4, 6])
    x, made = drawn(rows), layers(PostNormLayer)
    assert fused._native(made, x, rows) is not None
    made[1].train()
    assert fused._native(made, x, rows) is None
    assert fused._native(layers(PostNormLayer, chunk_size=3), x, rows) is None


@needs_panels
@pytest.mark.parametrize("write", [lambda p: p.mul_(2), lambda p: p.data.mul_(2)], ids=["counted", "through .data"])
@pytest.mark.parametrize("part", ["attention.value", "mlp.fc1", "norm2"])
def test_other_weights_are_seen(write, part):
    made, rows = layers(PreNormLayer), rows_of([4, 6])
    x = drawn(rows)
    old = fused._native(made, x, rows)
    with torch.no_grad():
        write(made[1].get_submodule(part).weight)
    found = fused._native(made, x, rows)
    assert not torch.equal(found, old)
    assert torch.equal(found, one_by_one(made, x, rows))


@needs_panels
def test_the_models_take_it(monkeypatch):
    calls = []
    found = fused._native
    monkeypatch.setattr(fused, "_native", lambda *args: calls.append(found(*args) is not None) or found(*args))
    sizes = {"hidden_size": WIDE, "intermediate_size": INNER, "num_hidden_layers": 3, "num_attention_heads": HEADS}
    vision, text = {**sizes, "patch_size": 8, "image_size": 32}, {**sizes, "vocab_size": 50, "project_dim": 16}
    model = af.AltCLIPModel(af.AltCLIPConfig(vision_config=vision, text_config=text, projection_dim=16)).eval()
    pixels, ids = torch.randn(2, 3, 32, 32), torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])
    with torch.no_grad():
        model.get_image_features(pixels), model.get_text_features(ids, attention_mask=ids != 1)
        assert calls == [True, True]
        output = model.vision_model(pixels)
        assert calls == [True] * 4  # all but the last layer, and its pooled rows
        shown = copy.deepcopy(model.vision_model)(pixels, output_hidden_states=True)
        assert calls == [True] * 4 and len(shown.hidden_states) == 4
    torch.testing.assert_close(output.pooler_output, shown.pooler_output)
    torch.testing.assert_close(output.last_hidden_state, shown.last_hidden_state)
    model.get_image_features(pixels)
    assert calls == [True] * 4 + [False]
