"""patch_embed, text_embed and interpolate_positions against their formulas; what they refuse."""

import pytest
import torch
import torch.nn.functional as F

from altclip_fast import ops


def doubles(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def weights(hidden, channels, patch, patches):
    return doubles(hidden, channels, patch, patch), doubles(hidden), doubles(1 + patches, hidden)


def plain_patches(pixels, weight, class_embedding, position_embedding):
    """Cut out every patch and multiply it with every filter."""
    p = weight.shape[2]
    images = []
    for image in pixels:
        tokens = [class_embedding]
        for top in range(0, image.shape[1] - p + 1, p):
            for left in range(0, image.shape[2] - p + 1, p):
                cut = image[:, top : top + p, left : left + p]
                tokens.append(torch.stack([(cut * filter_).sum() for filter_ in weight]))
        images.append(torch.stack(tokens) + position_embedding)
    return torch.stack(images)


@pytest.mark.parametrize("shape, patch", [((2, 3, 8, 12), 4), ((1, 1, 1, 1), 1), ((2, 2, 7, 9), 3)])
def test_patches(shape, patch):
    args = doubles(*shape), *weights(5, shape[1], patch, (shape[2] // patch) * (shape[3] // patch))
    torch.testing.assert_close(ops.patch_embed(*args), plain_patches(*args))
    assert torch.autograd.gradcheck(ops.patch_embed, args)


MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.1]


def normalised(pixels):
    return torch.stack([(pixels[:, c].double() - MEAN[c]) / STD[c] for c in range(3)], dim=1)


def test_normalisation():
    some = weights(5, 3, 4, 4)
    floats = doubles(2, 3, 8, 8)
    torch.testing.assert_close(ops.patch_embed(floats, *some, MEAN, STD), plain_patches(normalised(floats), *some))
    assert torch.autograd.gradcheck(lambda x: ops.patch_embed(x, *some, MEAN, STD), (floats,))


def test_bytes():
    some = weights(5, 3, 4, 4)
    bytes_ = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(ops.patch_embed(bytes_, *some), plain_patches(bytes_.double(), *some))
    expected = plain_patches(normalised(bytes_ / torch.tensor(255, dtype=torch.float64)), *some)
    torch.testing.assert_close(ops.patch_embed(bytes_, *some, MEAN, STD), expected)


def test_bytes_are_normalised_in_float32():
    """In bfloat16, 254 / 255 would be 1."""
    half = [w.detach().bfloat16() for w in weights(5, 3, 4, 4)]
    bytes_ = torch.full((1, 3, 8, 8), 254, dtype=torch.uint8)
    expected = ops.patch_embed(((bytes_.float() / 255 - 0.99) / 0.01).bfloat16(), *half)
    assert torch.equal(ops.patch_embed(bytes_, *half, [0.99] * 3, [0.01] * 3), expected)


def test_pixels_take_the_dtype_of_the_weight():
    some = [w.detach().bfloat16() for w in weights(5, 3, 4, 4)]
    pixels = torch.randn(2, 3, 8, 8)
    assert torch.equal(ops.patch_embed(pixels, *some), ops.patch_embed(pixels.bfloat16(), *some))


PATCH = {
    "pixels": torch.ones(2, 3, 8, 8),
    "weight": torch.ones(5, 3, 4, 4),
    "class_embedding": torch.ones(5),
    "position_embedding": torch.ones(5, 5),
    "mean": MEAN,
    "std": STD,
}


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("pixels", None, TypeError),
        ("pixels", PATCH["pixels"].int(), TypeError),
        ("pixels", torch.ones(3, 8, 8), ValueError),
        ("pixels", torch.ones(2, 1, 8, 8), ValueError),
        ("pixels", torch.ones(2, 3, 3, 8), ValueError),
        ("pixels", torch.ones(2, 3, 8, 8, device="meta"), ValueError),
        ("pixels", torch.ones(2, 3, 8, 8, dtype=torch.uint8, device="meta"), ValueError),
        ("weight", None, TypeError),
        ("weight", torch.ones(5, 48), ValueError),
        ("weight", torch.ones(5, 3, 0, 4), ValueError),
        ("weight", torch.ones(0, 3, 4, 4), ValueError),
        ("class_embedding", torch.ones(4), ValueError),
        ("class_embedding", torch.ones(1, 5), ValueError),
        ("class_embedding", torch.ones(5).half(), TypeError),
        ("position_embedding", torch.ones(4, 5), ValueError),
        ("position_embedding", torch.ones(5, 5).double(), TypeError),
        ("position_embedding", None, TypeError),
        ("mean", None, ValueError),
        ("std", None, ValueError),
        ("mean", [0.5], ValueError),
        ("std", [0.5] * 4, ValueError),
        ("std", [0.2, 0.0, 0.2], ValueError),
    ],
)
def test_patch_embed_refuses(name, value, error):
    with pytest.raises(error, match=rf"patch_embed: .*\b{name}\b"):
        ops.patch_embed(**PATCH | {name: value})


# Positions


def test_interpolation_is_torchs_bicubic():
    positions = doubles(1 + 4 * 4, 6)
    found = ops.interpolate_positions(positions, 3, 7)
    grid = positions[1:].reshape(4, 4, 6).movedim(-1, 0)[None]
    expected = F.interpolate(grid, (3, 7), mode="bicubic", align_corners=False)[0]
    assert found.shape == (1 + 3 * 7, 6)
    assert torch.equal(found[0], positions[0])
    for row in range(3):
        for column in range(7):
            torch.testing.assert_close(found[1 + row * 7 + column], expected[:, row, column])
    assert torch.autograd.gradcheck(ops.interpolate_positions, (positions, 3, 7))


def test_interpolation_to_the_same_grid_is_the_same_tensor():
    positions = doubles(1 + 4 * 4, 6)
    assert ops.interpolate_positions(positions, 4, 4) is positions
    assert ops.interpolate_positions(positions, 2, 8) is not positions


def test_interpolation_keeps_what_is_constant():
    positions = torch.full((10, 6), 0.25)
    torch.testing.assert_close(ops.interpolate_positions(positions, 5, 2), torch.full((11, 6), 0.25))


@pytest.mark.parametrize(
    "positions, height, width, message",
    [
        (torch.ones(6, 4), 2, 2, "has 6 rows"),
        (torch.ones(1, 4), 2, 2, "has 1 rows"),
        (torch.ones(0, 4), 2, 2, "has 0 rows"),
        (torch.ones(5), 3, 3, r"float32\[5\]"),
        (torch.ones(5, 4), 0, 3, "0x3"),
        (torch.ones(5, 4), 3, -1, "3x-1"),
    ],
)
def test_interpolation_refuses(positions, height, width, message):
    with pytest.raises(ValueError, match=f"interpolate_positions: .*{message}"):
        ops.interpolate_positions(positions, height, width)
    with pytest.raises(TypeError, match="position_embedding must be a Tensor"):
        ops.interpolate_positions([1.0], 2, 2)


# Text


def text(rows=6, hidden=5, types=2):
    return {
        "input_ids": torch.randint(9, (rows,)),
        "position_ids": torch.randint(7, (rows,)),
        "token_type_ids": torch.randint(types, (rows,)),
        "word": doubles(9, hidden),
        "position": doubles(7, hidden),
        "token_type": doubles(types, hidden),
        "weight": doubles(hidden),
        "bias": doubles(hidden),
        "eps": 1e-5,
    }


@pytest.mark.parametrize(
    "missing",
    [(), ("token_type_ids", "token_type"), ("weight", "bias"), ("token_type_ids", "token_type", "weight", "bias")],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_text(missing, dtype):
    args = text() | dict.fromkeys(missing)
    args |= {name: ids.to(dtype) for name, ids in args.items() if name.endswith("ids") and ids is not None}
    rows = []
    for i in range(6):
        x = args["word"][int(args["input_ids"][i])] + args["position"][int(args["position_ids"][i])]
        if args["token_type"] is not None:
            x = x + args["token_type"][int(args["token_type_ids"][i])]
        if args["weight"] is not None:
            variance = ((x - x.mean()) ** 2).sum() / 5
            x = (x - x.mean()) / (variance + 1e-5).sqrt() * args["weight"] + args["bias"]
        rows.append(x)
    torch.testing.assert_close(ops.text_embed(**args), torch.stack(rows))
    assert torch.autograd.gradcheck(ops.text_embed, tuple(args.values()))


def test_padding_gets_no_gradient():
    args = text() | {"input_ids": torch.tensor([1, 2, 1, 3, 1, 4]), "position_ids": torch.tensor([1, 2, 1, 3, 4, 1])}
    ops.text_embed(**args, padding_idx=1).square().sum().backward()
    for table, used in (("word", [2, 3, 4]), ("position", [2, 3, 4])):
        gradient = args[table].grad
        assert not gradient[1].any()
        assert gradient[used].any(-1).all()
    expected = ops.text_embed(**args)
    torch.testing.assert_close(ops.text_embed(**args, padding_idx=1), expected, rtol=0, atol=0)


IDS = torch.tensor([0, 1, 2])
TEXT = {
    "input_ids": IDS,
    "position_ids": IDS,
    "token_type_ids": IDS * 0,
    "word": torch.ones(9, 4),
    "position": torch.ones(7, 4),
    "token_type": torch.ones(1, 4),
    "weight": torch.ones(4),
    "bias": torch.ones(4),
    "eps": 1e-5,
    "padding_idx": 1,
}


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("input_ids", None, TypeError),
        ("input_ids", IDS.float(), TypeError),
        ("input_ids", IDS[None], ValueError),
        ("input_ids", [0, 1], TypeError),
        ("input_ids", IDS.to("meta"), ValueError),
        ("position_ids", None, TypeError),
        ("position_ids", IDS[:2], ValueError),
        ("position_ids", IDS.bool(), TypeError),
        ("token_type_ids", IDS[:1], ValueError),
        ("token_type_ids", None, ValueError),
        ("token_type", None, ValueError),
        ("token_type", torch.ones(1, 3), ValueError),
        ("token_type", torch.ones(1, 4).half(), TypeError),
        ("word", None, TypeError),
        ("word", torch.ones(9), ValueError),
        ("word", torch.ones(9, 4).long(), TypeError),
        ("position", torch.ones(7, 3), ValueError),
        ("position", torch.ones(7, 4).double(), TypeError),
        ("weight", torch.ones(3), ValueError),
        ("weight", None, ValueError),
        ("bias", torch.ones(1, 4), ValueError),
        ("bias", None, ValueError),
        ("bias", torch.ones(4).bfloat16(), TypeError),
        ("eps", 0.0, ValueError),
        ("padding_idx", 7, ValueError),
        ("padding_idx", -1, ValueError),
    ],
)
def test_text_embed_refuses(name, value, error):
    with pytest.raises(error, match=rf"text_embed: .*\b{name}\b"):
        ops.text_embed(**TEXT | {name: value})
