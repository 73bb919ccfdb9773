"""`af.load`: embeddings and labels equal transformers', in order, whatever the batch; bad items are named."""

import io

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

import altclip_fast as af
from altclip_fast import feed, notices
from altclip_fast.testing.embeddings import FLOAT32

LABELS = ["cat", "two dogs", "一张猫的照片", "une fleur", "a very long label that goes on and on for a while"]


@pytest.fixture
def encoder(folder):
    return af.load(folder, device="cpu")


def theirs(folder):
    return hf.AutoModel.from_pretrained(folder), hf.AutoProcessor.from_pretrained(folder)


def normalised(x):
    return x / x.norm(dim=-1, keepdim=True)


def gate(ours, reference):
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= FLOAT32


def test_images_equal_transformers(folder, encoder, photos):
    model, processor = theirs(folder)
    with torch.no_grad():
        expected = model.get_image_features(**processor(images=photos, return_tensors="pt")).pooler_output
    gate(encoder.encode_image(photos), normalised(expected))
    found = encoder.encode_image(photos, normalize_embeddings=False)
    assert (found - expected).abs().max() <= FLOAT32 * max(1, expected.abs().max())


def test_texts_equal_transformers(folder, encoder):
    model, processor = theirs(folder)
    with torch.no_grad():
        inputs = processor(text=LABELS, return_tensors="pt", padding=True)
        expected = normalised(model.get_text_features(**inputs).pooler_output)
    gate(encoder.encode_text(LABELS), expected)
    gate(encoder.encode_text(LABELS, batch_size=2), expected)
    gate(encoder.encode_text(LABELS[1]), expected[1:2])


@pytest.mark.parametrize("form", ["path", "string", "bytes", "array", "tensor", "pil"])
def test_every_form_of_an_image_gives_the_same(encoder, photo_paths, photos, form):
    forms = {
        "path": lambda i: photo_paths[i],
        "string": lambda i: str(photo_paths[i]),
        "bytes": lambda i: photo_paths[i].read_bytes(),
        "array": lambda i: np.asarray(photos[i]),
        "tensor": lambda i: torch.from_numpy(np.array(photos[i])).permute(2, 0, 1),
        "pil": lambda i: photos[i],
    }
    expected = encoder.encode_image(photos)
    gate(encoder.encode_image([forms[form](0), forms[form](1)]), expected)
    gate(encoder.encode_image(forms[form](1)), expected[1:])


def test_output_form(encoder, photos):
    found = encoder.encode_image(photos)
    assert found.dtype is torch.float32 and found.device.type == "cpu" and found.shape == (2, encoder.embedding_dim)
    assert not found.requires_grad
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def jpegs(photos, count):
    """Different photos as files in memory."""
    found = []
    for i in range(count):
        buffer = io.BytesIO()
        photos[i % 2].crop((i, 2 * i, 300 + 5 * i, 280 + i)).save(buffer, "JPEG")
        found.append(buffer.getvalue())
    return found


@pytest.fixture(params=[1, 3])
def threads(request, monkeypatch):
    """Threads that prepare images, whatever the machine has."""
    monkeypatch.setattr("altclip_fast.feed.processors", lambda: request.param)
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    return request.param


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_images_have_the_bits_of_calls_one_by_one(encoder, photos, threads, batch_size):
    sources = jpegs(photos, 7)
    expected = torch.cat([encoder.encode_image(source) for source in sources])
    assert torch.equal(encoder.encode_image(sources, batch_size=batch_size), expected)
    found, failures = encoder.encode_image([sources[0], b"", *sources[1:]], batch_size=batch_size, errors="skip")
    assert torch.equal(found, expected) and [failure.index for failure in failures] == [1]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_texts_have_the_bits_of_calls_one_by_one(encoder, monkeypatch, batch_size):
    monkeypatch.setattr("altclip_fast.feed.WINDOW", 2)
    expected = torch.cat([encoder.encode_text(label) for label in LABELS * 3])
    assert torch.equal(encoder.encode_text(LABELS * 3, batch_size=batch_size), expected)


def test_preparing_ahead_changes_nothing(encoder, photos, threads, monkeypatch):
    sources = jpegs(photos, 7)
    expected, texts = encoder.encode_image(sources), encoder.encode_text(LABELS)
    monkeypatch.setattr("altclip_fast.feed.ahead", lambda device: 2)
    monkeypatch.setattr("altclip_fast.feed.WINDOW", 1)
    assert torch.equal(encoder.encode_image(sources, batch_size=2), expected)
    assert torch.equal(encoder.encode_text(LABELS, batch_size=2), texts)


def test_a_picture_may_be_given_often_before_it_is_read(encoder, photos, threads):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    photos[0].save(buffer, "JPEG", exif=exif)
    expected = encoder.encode_image(buffer.getvalue())
    assert torch.equal(encoder.encode_image([Image.open(buffer)] * 8), expected.expand(8, -1))


def test_a_bad_image_stops_the_work(encoder, photos, threads, monkeypatch):
    begun = []
    original = feed.load_image
    monkeypatch.setattr("altclip_fast.feed.load_image", lambda source: begun.append(1) or original(source))
    with pytest.raises(OSError, match="image 2 "):
        encoder.encode_image([*jpegs(photos, 2), b"no image", *jpegs(photos, 40)], batch_size=4)
    assert len(begun) <= 4


@pytest.mark.parametrize(
    "options",
    [
        {"do_rescale": False},
        {"do_normalize": False},
        {"rescale_factor": 1 / 128},
        {"image_mean": 0.4, "image_std": [0.2, 0.3, 0.5]},
        {"do_pad": True},
        {"fast": True},
    ],
)
def test_the_processors_options_count(encoder, photos, options):
    processor = encoder.processor.image_processor
    if options.pop("fast", False):
        encoder.processor.image_processor = processor = af.CLIPImageProcessorFast(**processor.to_dict())
    for name, value in options.items():
        setattr(processor, name, value)
    with torch.no_grad():
        features = encoder.model.get_image_features(processor(photos, return_tensors="pt")["pixel_values"])
    found = encoder.encode_image(photos, normalize_embeddings=False)
    assert (found - features).abs().max() <= FLOAT32 * max(1, features.abs().max())


def test_pixels_that_do_not_fit_the_model(encoder, photos):
    encoder.processor.image_processor.crop_size = {"height": 24, "width": 24}
    with pytest.raises(ValueError, match=r"image 0 .*\(3, 24, 24\), the model takes"):
        encoder.encode_image(photos)


def test_nothing_in_nothing_out(encoder):
    assert encoder.encode_image([]).shape == (0, encoder.embedding_dim)
    assert encoder.encode_text([]).shape == (0, encoder.embedding_dim)


def test_a_bad_image_raises_with_its_index_and_name(encoder, photo_paths, tmp_path):
    bad = tmp_path / "broken.jpg"
    bad.write_bytes(photo_paths[0].read_bytes()[:900])
    with pytest.raises(OSError, match=r"image 1 \(.*broken\.jpg\)"):
        encoder.encode_image([photo_paths[0], bad])
    with pytest.raises(OSError, match=r"image 0 \(.*absent\.jpg\)"):
        encoder.encode_image([tmp_path / "absent.jpg"])
    with pytest.raises(ValueError, match="image 0"):
        encoder.encode_image(["http://example.org/cat.jpg"])
    with pytest.raises(TypeError, match="image 0"):
        encoder.encode_image([3.5])


def test_bad_images_are_skipped_and_reported(encoder, photo_paths, tmp_path):
    bad = tmp_path / "empty.png"
    bad.write_bytes(b"")
    found, failures = encoder.encode_image([bad, *photo_paths, "absent.jpg"], errors="skip", batch_size=2)
    gate(found, encoder.encode_image(photo_paths))
    assert [failure.index for failure in failures] == [0, 3]
    assert failures[0].source == str(bad) and "absent.jpg" in failures[1].error
    found, failures = encoder.encode_image([bad], errors="skip")
    assert found.shape == (0, encoder.embedding_dim) and len(failures) == 1


def test_long_texts_are_cut_and_said_once(encoder):
    notices.forget()
    long = "cat dog " * 600
    with pytest.warns(UserWarning, match="2 of 3 texts are longer than"):
        found = encoder.encode_text([long, "cat", long + "park"])
    gate(found[0], found[2])
    ids = encoder.processor.tokenizer(long, truncation=True, max_length=encoder.max_text_length)["input_ids"]
    assert len(ids) == encoder.max_text_length and ids[-1] == encoder.processor.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda e: e.encode_text(["a", 3]), TypeError, "1"),
        (lambda e: e.encode_text(None), TypeError, "texts is None"),
        (lambda e: e.encode_text("a", batch_size=0), ValueError, "batch_size is 0"),
        (lambda e: e.encode_image([], batch_size=1.5), ValueError, "batch_size is 1.5"),
        (lambda e: e.encode_image([], errors="ignore"), ValueError, "errors is 'ignore'"),
        (lambda e: e.classifier([]), ValueError, "labels is empty"),
        (lambda e: e.classifier("cat"), TypeError, "labels is 'cat'; a list"),
        (lambda e: e.classifier(5), TypeError, "labels is 5; a list"),
        (lambda e: e.classifier(["cat", None]), TypeError, "label 1 is None"),
        (lambda e: e.classifier(["cat"], "a photo"), ValueError, "template is 'a photo'"),
        (lambda e: e.classifier(["cat"], "{} and {}"), ValueError, "one {} for the label"),
        (lambda e: e.classifier(["cat"], "{.foo}"), ValueError, "one {} for the label"),
        (lambda e: e.classifier(["cat"], "{[0]}{[a]}"), ValueError, "one {} for the label"),
        (lambda e: e.classifier(["cat"], "{{}}"), ValueError, "it needs {} where the label goes"),
        (lambda e: e.classifier(["cat"], None), TypeError, "template is None"),
        (lambda e: e.classifier(["cat"], []), ValueError, "template is an empty list"),
    ],
)
def test_bad_arguments(encoder, call, error, match):
    with pytest.raises(error, match=match):
        call(encoder)


def test_classifier_equals_transformers(folder, encoder, photos):
    model, processor = theirs(folder)
    texts = [f"This is a photo of {label}." for label in LABELS]
    with torch.no_grad():
        output = model(**processor(text=texts, images=photos, return_tensors="pt", padding=True))
    expected = output.logits_per_image.softmax(1)
    found = encoder.classifier(LABELS)(photos)
    for row, ranked in zip(expected, found, strict=True):
        assert [pair["label"] for pair in ranked] == [LABELS[i] for i in row.argsort(descending=True)]
        scores = torch.tensor([pair["score"] for pair in ranked])
        gate(scores, row.sort(descending=True).values)


def test_the_text_tower_runs_once(encoder, photos):
    calls = []
    encoder.model.text_model.register_forward_hook(lambda *_: calls.append(1))
    original = encoder.model.text_model.pooled_of
    encoder.model.text_model.pooled_of = lambda tokens: calls.append(1) or original(tokens)
    classify = encoder.classifier(LABELS)
    assert len(calls) == 1
    classify(photos)
    classify(photos[0])
    encoder.classifier(LABELS)
    assert len(calls) == 1
    with torch.no_grad():
        encoder.model.text_projection.weight.mul_(2)
    encoder.classifier(LABELS)
    assert len(calls) == 2


def test_the_labels_asked_for_last_are_kept(encoder):
    calls = []
    original = encoder.model.text_model.pooled_of
    encoder.model.text_model.pooled_of = lambda tokens: calls.append(1) or original(tokens)
    first = encoder.classifier(["0"]).embeddings
    for i in range(40):
        encoder.classifier([str(i)])
        assert encoder.classifier(["0"]).embeddings is first
    assert len(calls) == 40 and len(encoder._labels) < 40
    encoder.classifier(["1"])
    assert len(calls) == 41


def test_templates_are_averaged(encoder):
    one, two = encoder.classifier(LABELS, "{}"), encoder.classifier(LABELS, "a photo of {}")
    both = encoder.classifier(LABELS, ["{}", "a photo of {}"])
    gate(both.embeddings, normalised((one.embeddings + two.embeddings) / 2))


def test_exif_orientation_counts(encoder, photos):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    photos[0].rotate(90, expand=True).save(buffer, "PNG", exif=exif)
    gate(encoder.encode_image(buffer.getvalue()), encoder.encode_image(photos[0]))


def test_wrong_parts(encoder):
    with pytest.raises(TypeError, match="model must be"):
        af.Encoder(encoder.model.vision_model, encoder.processor)
    with pytest.raises(TypeError, match="processor must be"):
        af.Encoder(encoder.model, encoder.processor.tokenizer)


def test_load_refuses_what_it_cannot_do(altclip_folder, tmp_path):
    with pytest.raises(ValueError, match="quantization is 'int4'"):
        af.load(altclip_folder, quantization="int4")
    with pytest.raises(OSError, match=r"config\.json"):
        af.load(tmp_path)
    with pytest.raises(ValueError, match="device is 'nowhere'"):
        af.load(altclip_folder, device="nowhere")


def test_dtype(altclip_folder, photos):
    encoder = af.load(altclip_folder, dtype="bfloat16", device="cpu")
    assert encoder.dtype is torch.bfloat16
    assert encoder.encode_image(photos).dtype is torch.float32
