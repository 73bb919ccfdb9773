"""Towers run by graphs (a stand-in for them): the bits of the plain call, for any batch, and never stale."""

import copy
import pickle
import warnings

import pytest
import torch
from stand_in import StandIn, StandIns

import altclip_fast as af
from altclip_fast import notices
from altclip_fast.runtime import Runtime, cuda
from altclip_fast.runtime.graphs import RecordingError


@pytest.fixture
def model(folder):
    with torch.inference_mode(False):
        return af.AutoModel.from_pretrained(folder)


@pytest.fixture
def recorders():
    return StandIns(multiprocessors=1)


@pytest.fixture
def runtime(model, recorders):
    return Runtime(model, recorder=recorders)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def images(model, count, seed=0):
    side = model.config.vision_config.image_size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, side, side, generator=generator)


def texts(model, lengths, seed=0):
    """Padded ids and their mask; each text ends in the end-of-text token."""
    config, generator = model.config.text_config, torch.Generator().manual_seed(seed)
    ids = torch.randint(5, config.vocab_size - 2, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = config.eos_token_id
    pad = 1 if config.pad_token_id is None else config.pad_token_id
    return torch.where(mask, ids, pad), mask.long()


def twice(call):
    """The second result: from a graph."""
    call()
    return call()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 34, 35, 36, 71])
def test_images_have_the_bits_of_the_plain_call(model, runtime, recorders, count):
    pixels = images(model, count)
    assert torch.equal(twice(lambda: runtime.image_features(pixels)), model.image_features(pixels))
    assert recorders.recordings > 0


def test_bytes_are_normalised_on_the_way(model, runtime):
    side = model.config.vision_config.image_size
    pixels, mean, std = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8), [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    expected = model.image_features(pixels, mean=mean, std=std)
    assert torch.equal(twice(lambda: runtime.image_features(pixels, mean, std)), expected)
    other = twice(lambda: runtime.image_features(pixels, std, std))
    assert torch.equal(other, model.image_features(pixels, mean=std, std=std)) and not torch.equal(other, expected)


@pytest.mark.parametrize("lengths", [[3], [16], [2, 9, 30, 3], [17] * 16, [5, 40, 5, 33, 2] * 7, [60] + [4] * 50])
def test_texts_have_the_bits_of_the_plain_call(model, runtime, recorders, monkeypatch, lengths):
    monkeypatch.setattr("altclip_fast.runtime.full_rows", lambda columns, multiprocessors: 256)
    ids, mask = texts(model, lengths)
    expected = model.text_features(input_ids=ids, attention_mask=mask)
    assert torch.equal(twice(lambda: runtime.text_features(ids, mask)), expected)
    assert recorders.recordings > 0 and all(key.bucket.rows <= 256 for key in runtime.graphs())


def test_without_a_mask(model, runtime):
    ids, _ = texts(model, [12, 12])
    assert torch.equal(twice(lambda: runtime.text_features(ids)), model.text_features(input_ids=ids))


def test_a_graph_serves_other_texts_of_its_shape(model, runtime, recorders):
    for seed in range(4):
        ids, mask = texts(model, [5 + seed, 9 - seed], seed)
        expected = model.text_features(input_ids=ids, attention_mask=mask)
        assert torch.equal(runtime.text_features(ids, mask), expected)
    assert recorders.recordings == 1 and list(runtime.graphs().values()) == [3]


def test_nothing_in_nothing_out(model, runtime):
    assert runtime.image_features(images(model, 0)).shape == (0, model.config.projection_dim)


def write(model):
    model.visual_projection.weight.data.mul_(2)  # torch does not count this


def count_a_write(model):
    with torch.inference_mode(False), torch.no_grad():
        model.vision_model.layers[0].mlp.fc1.weight.mul_(2)


def move(model):
    parameter = model.vision_model.post_norm.weight
    parameter.data = parameter.data * 2


def replace(model):
    parameter = model.vision_model.layers[1].norm1.weight
    model.vision_model.layers[1].norm1.weight = torch.nn.Parameter(parameter.detach() * 2)


def convert(model):
    model.to(torch.bfloat16)


@pytest.mark.parametrize("change", [write, count_a_write, move, replace, convert])
def test_changed_parameters_are_seen(model, runtime, change):
    pixels = images(model, 2)
    before = twice(lambda: runtime.image_features(pixels))
    with torch.inference_mode(False):
        change(model)
    after = runtime.image_features(pixels)
    assert torch.equal(after, model.image_features(pixels)) and not torch.equal(after, before)


@pytest.mark.parametrize("change", [count_a_write, move, replace, convert])
def test_changed_parameters_make_new_graphs(model, runtime, recorders, change):
    pixels = images(model, 2)
    twice(lambda: runtime.image_features(pixels))
    with torch.inference_mode(False):
        change(model)
    twice(lambda: runtime.image_features(pixels))
    assert recorders.recordings == 2 and len(recorders) == 2


def test_the_backend_is_part_of_the_key(model, runtime, recorders):
    pixels = images(model, 2)
    twice(lambda: runtime.image_features(pixels))
    with af.use_backend("reference"):
        expected = model.image_features(pixels)
        assert torch.equal(twice(lambda: runtime.image_features(pixels)), expected)
    assert recorders.recordings == 2


@pytest.mark.parametrize("reason", ["hook", "training", "autocast", "capture", "eager"])
def test_what_graphs_cannot_serve_is_computed_directly(model, recorders, reason, monkeypatch):
    runtime, pixels, seen = (
        Runtime(model, "eager" if reason == "eager" else None, recorder=recorders),
        images(model, 2),
        [],
    )
    if reason == "hook":
        model.vision_model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    if reason == "training":
        model.train()
    if reason == "capture":
        monkeypatch.setattr(cuda, "is_capturing", lambda device: True)
    with torch.autocast("cpu", enabled=reason == "autocast", dtype=torch.bfloat16):
        expected = model.image_features(pixels)
        for _ in range(3):
            assert torch.equal(runtime.image_features(pixels), expected)
    assert recorders.recordings == 0 and len(seen) == (4 if reason == "hook" else 0)


def test_gradients_flow(model, runtime, recorders):
    with torch.inference_mode(False), torch.enable_grad():
        model.requires_grad_()
        pixels, weight = images(model, 2), model.visual_projection.weight
        for _ in range(2):
            runtime.image_features(pixels).sum().backward()
        ids, mask = texts(model, [4, 7])
        runtime.text_features(ids, mask).sum().backward()
    assert weight.grad.abs().sum() > 0 and recorders.recordings == 0


def test_modes(model):
    assert Runtime(model).mode == Runtime(model, "eager").mode == "eager"
    with pytest.raises(ValueError, match="runtime is 'graphs', but the model is on cpu"):
        Runtime(model, "graphs")
    with pytest.raises(ValueError, match="runtime is 'fast'; choose 'graphs', 'eager' or None"):
        Runtime(model, "fast")


def test_load_takes_the_runtime(folder):
    assert af.load(folder, device="cpu").runtime.mode == "eager"
    with pytest.raises(ValueError, match="runtime is 'graphs', but"):
        af.load(folder, device="cpu", runtime="graphs")


def test_a_failed_recording_is_told_once_and_computed_directly(model, recorders, monkeypatch):
    def fail(self, compute):
        raise RuntimeError("not while capturing")

    monkeypatch.setattr(StandIn, "record", fail)
    notices.forget()
    notices.mark_said("recording")
    runtime, pixels = Runtime(model, recorder=recorders), images(model, 2)
    with pytest.warns(UserWarning, match="recording one failed: image: not while capturing") as told:
        found = twice(lambda: runtime.image_features(pixels))
    assert torch.equal(found, model.image_features(pixels)) and runtime.mode == "eager"
    runtime.image_features(pixels)
    assert len(told) == 1
    forced = Runtime(model, "graphs", recorder=recorders)
    with pytest.raises(RecordingError, match="not while capturing"):
        twice(lambda: forced.image_features(pixels))


@pytest.mark.parametrize("kind", ["graphs", "eager"])
def test_batches_that_do_not_fit_are_halved(model, recorders, monkeypatch, kind):
    pixels, (ids, mask) = images(model, 13), texts(model, [3, 9, 4, 4, 8, 2, 6])
    expected = model.image_features(pixels), model.text_features(input_ids=ids, attention_mask=mask)

    def limited(original, size):
        def run(x, *args, **kwargs):
            if size(x) > 3:
                raise torch.OutOfMemoryError("no memory")
            return original(x, *args, **kwargs)

        return run

    monkeypatch.setattr(model, "image_features", limited(model.image_features, len))
    monkeypatch.setattr(model.text_model, "pooled_of", limited(model.text_model.pooled_of, lambda x: x.rows.batch))
    notices.forget()
    runtime = Runtime(model, kind, recorder=recorders)
    with pytest.warns(UserWarning, match="13 images at once do not fit"):
        assert torch.equal(twice(lambda: runtime.image_features(pixels)), expected[0])
    assert torch.equal(runtime.text_features(ids, mask), expected[1])


def test_warmup_records_the_buckets_of_images(model, runtime, recorders):
    assert not runtime.graphs() and runtime.bytes() == 0
    runtime.warmup()
    buckets = [key.bucket for key in runtime.graphs()]
    assert recorders.recordings == len(buckets) > 5 and buckets[0] == 1 and runtime.bytes() > 0
    runtime.release()
    assert not runtime.graphs()
    Runtime(model).warmup()


def test_recording_is_told_once_unless_it_was_asked_for(model, runtime, recorders):
    notices.forget()
    pixels = images(model, 2)
    with pytest.warns(UserWarning, match=r"CUDA graphs are being recorded.*warmup\(\)") as told:
        for count in (1, 2):
            twice(lambda count=count: runtime.image_features(pixels[:count]))
    assert len(told) == 1
    notices.forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Runtime(model, recorder=recorders).warmup()


def test_the_encoder_warms_up_for_texts_like_these(folder, recorders):
    encoder = af.load(folder, device="cpu")
    encoder.runtime = Runtime(encoder.model, recorder=recorders)
    encoder.warmup(["a cat", "two dogs"])
    towers = [key.tower for key in encoder.runtime.graphs()]
    assert towers.count("text") == 1 and towers.count("image") > 5


def test_what_is_no_batch_of_tensors(runtime):
    with pytest.raises(TypeError, match=r"pixels must be a Tensor with a batch, not \[\]"):
        runtime.image_features([])
    with pytest.raises(TypeError, match="attention_mask must be a Tensor"):
        runtime.text_features(torch.ones(1, 2, dtype=torch.long), 3)


def test_the_encoder_by_graphs(folder, photos, recorders):
    plain = af.load(folder, device="cpu")
    sentences = ["a cat", "two dogs on a sofa", "une fleur"] * 5
    encoder = af.load(folder, device="cpu")
    encoder.runtime = Runtime(encoder.model, recorder=recorders)
    for _ in range(2):
        assert torch.equal(encoder.encode_image(photos * 3, batch_size=2), plain.encode_image(photos * 3))
        assert torch.equal(encoder.encode_text(sentences, batch_size=4), plain.encode_text(sentences))
    assert recorders.recordings > 1


def test_copies_have_graphs_of_their_own(folder, photos):
    encoder = af.load(folder, device="cpu")
    encoder.runtime = Runtime(encoder.model, recorder=StandIn)
    expected = twice(lambda: encoder.encode_image(photos))
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert other.runtime.model is other.model and not other.runtime.graphs()
        assert torch.equal(twice(lambda other=other: other.encode_image(photos)), expected)
        assert other.runtime.graphs()


def test_after_a_fork(monkeypatch):
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    cuda.check_fork(torch.device("cpu"))
    with pytest.raises(OSError, match=r"forked from one that had used CUDA.*'spawn'"):
        cuda.check_fork(torch.device("cuda", 0))
