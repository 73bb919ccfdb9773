"""float32 on the CPU: the same bits for an input whatever it is batched and padded with, and in any thread."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import altclip_fast as af

HIDDEN, INNER = 512, 2048  # oneDNN sums rows of 2048 in another order where there is one of them
LENGTHS = (3, 12, 6, 20, 9)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    size = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": 8}
    vision, text = {**size, "patch_size": 14, "image_size": 112}, {**size, "vocab_size": 1000, "project_dim": 256}
    config = af.AltCLIPConfig(vision_config=vision, text_config=text, projection_dim=256)
    return af.AltCLIPModel(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images(model):
    pixels = torch.randn(7, 3, 112, 112)
    return pixels, model.get_image_features(pixels)


def text(number, width):
    ids = torch.full((1, width), 1)
    draw = torch.Generator().manual_seed(number)
    ids[0, : LENGTHS[number]] = torch.randint(3, 999, (LENGTHS[number],), generator=draw)
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


@pytest.mark.parametrize("first, count", [(0, 1), (3, 1), (1, 2), (2, 5), (0, 3)])
def test_images(model, images, first, count):
    pixels, whole = images
    some = slice(first, first + count)
    assert torch.equal(model.get_image_features(pixels[some]), whole[some])


@pytest.mark.parametrize("number", range(len(LENGTHS)))
def test_texts(model, number):
    texts = [text(i, max(LENGTHS)) for i in range(len(LENGTHS))]
    whole = model.get_text_features(**{name: torch.cat([t[name] for t in texts]) for name in texts[0]})
    for width in (LENGTHS[number], 20, 77):
        assert torch.equal(model.get_text_features(**text(number, width)), whole[number : number + 1])


def test_eight_threads(model, images):
    """The first calls pack the weights, which the threads do at the same time."""
    pixels, whole = images
    model.eval().to("cpu")  # drops what is packed
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: model.get_image_features(pixels[i % 7 : i % 7 + 1]), range(24)))
    assert all(torch.equal(x, whole[i % 7 : i % 7 + 1]) for i, x in enumerate(found))
