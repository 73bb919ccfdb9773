"""patch_embed and text_embed out of the interpreter: every configuration, odd pictures, strides, fences of NaN."""

import pytest
import torch
from fences import fenced

from altclip_fast.dispatch import BackendUnavailableError, use_backend
from altclip_fast.kernels import embedding as kernel
from altclip_fast.kernels import tuning
from altclip_fast.kernels.launch import INTERPRETED, LAUNCHES, recording
from altclip_fast.ops import patch_embed, text_embed
from altclip_fast.testing import assert_parity

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NORMALISED = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def make(*shape, dtype=torch.float32, scale=1.0):
    return (torch.randn(shape) * scale).to(dtype).to(DEVICE)


def below(high, *shape, dtype=torch.int64):
    return torch.randint(high, shape).to(dtype).to(DEVICE)


def picture(images=2, height=28, width=42, patch=(14, 14), hidden=24, channels=3, dtype=torch.float32, pixels=None):
    """The arguments of patch_embed."""
    shape = (images, channels, height, width)
    tokens = 1 + (height // patch[0]) * (width // patch[1])
    weight = make(hidden, channels, *patch, dtype=dtype, scale=(channels * patch[0] * patch[1]) ** -0.5)
    if pixels is torch.uint8:
        x = below(256, *shape, dtype=torch.uint8)
    else:
        x = make(*shape, dtype=pixels or dtype)
    return x, weight, make(hidden, dtype=dtype), make(tokens, hidden, dtype=dtype)


def sentence(rows=19, hidden=24, dtype=torch.float32):
    """The arguments of text_embed."""
    tables = (make(50, hidden, dtype=dtype), make(20, hidden, dtype=dtype), make(2, hidden, dtype=dtype))
    ids = (below(50, rows), below(20, rows), below(2, rows))
    return *ids, *tables, make(hidden, dtype=dtype), make(hidden, dtype=dtype), 1e-5


def all_fenced(args):
    return tuple(fenced(a) if isinstance(a, torch.Tensor) else a for a in args)


# patch_embed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_configuration(dtype):
    args = picture(3, 59, 47, (7, 7), 70, dtype=dtype)
    for config in kernel.candidates(dtype):
        with tuning.trying("patch_embed", config):
            assert_parity("patch_embed", args, backend="triton")


def test_full_gpus_take_large_tiles():
    found = [recorded_rows(images) for images in (1, 64)]
    assert found == [64, 128]


def recorded_rows(images, dtype=torch.bfloat16):
    args = [a.to("meta") for a in picture(1, 224, 224, hidden=1024, dtype=dtype)]
    args[0] = torch.empty(images, 3, 224, 224, dtype=dtype, device="meta")
    with recording(90) as launches:
        kernel.patch_embed(*args)
    return launches[0].arguments["ROWS"]


def test_float32_takes_one_tile():
    assert recorded_rows(1, torch.float32) == recorded_rows(64, torch.float32)


@pytest.mark.parametrize("pixels", [torch.uint8, *DTYPES], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pixels_of_every_dtype(dtype, pixels):
    args = picture(dtype=dtype, pixels=pixels)
    assert_parity("patch_embed", (*args, *NORMALISED), backend="triton")
    if pixels is not torch.uint8:  # as they are, 255 of them would drown the parity of all else
        assert_parity("patch_embed", args, backend="triton")


@pytest.mark.parametrize("patch", [(1, 1), (3, 5), (2, 14), (9, 2), (32, 32), (1, 130), (16, 16)])
def test_patches_of_every_shape(patch):
    assert_parity("patch_embed", picture(1, 35, 140, patch, 11, 2), backend="triton")


@pytest.mark.parametrize("width, copied", [(14, True), (16, False)])
def test_weights_are_copied_for_their_padding_only(width, copied):
    args = picture(patch=(7, width))
    with recording(90) as launches:
        kernel.patch_embed(*args)
    assert (launches[0].arguments["weight_ptr"].data_ptr() != args[1].data_ptr()) == copied


def test_a_remainder_is_not_read():
    """Lines and columns beyond the last whole patch."""
    x, *rest = picture(2, 31, 45)
    x[:, :, 28:] = torch.nan
    x[:, :, :, 42:] = torch.nan
    found = run(patch_embed, x, *rest)
    torch.testing.assert_close(found, patch_embed.reference(x[:, :, :28, :42], *rest))


def run(op, *args):
    before = LAUNCHES.total()
    with use_backend("triton"):
        out = op(*args)
    assert LAUNCHES.total() > before
    return out


@pytest.mark.parametrize("pixels", [torch.uint8, torch.float32], ids=str)
def test_nothing_outside_of_the_pictures_is_read(pixels):
    args = (*picture(2, 31, 45, hidden=23, pixels=pixels), *NORMALISED)
    found = run(patch_embed, *all_fenced(args))
    assert torch.equal(found, run(patch_embed, *args)) and found.isfinite().all()


def test_expanded_pictures():
    x, *rest = picture(1)
    assert_parity("patch_embed", (x.expand(3, -1, -1, -1), *rest), backend="triton")
    assert_parity("patch_embed", (x[:, :1].expand(2, 3, -1, -1), *rest), backend="triton")
    assert_parity("patch_embed", (x.flip(0).transpose(2, 3), rest[0], rest[1], rest[2]), backend="triton")


def test_a_picture_has_the_same_bits_in_any_batch(one_order):
    x, *rest = picture(5, 35, 49, (7, 7), 13)
    whole = run(patch_embed, x, *rest)
    for i in range(5):
        assert torch.equal(run(patch_embed, x[i : i + 1], *rest)[0], whole[i])


def test_normalising_is_exact_to_its_bound():
    """2^-24 * (|y| + |y + mean / std| + |mean / std|), for all 256 bytes; see the module's docstring."""
    levels = torch.arange(256, dtype=torch.uint8, device=DEVICE).reshape(1, 1, 16, 16)
    ones = torch.ones(1, 1, 1, 1, device=DEVICE)
    zeros = torch.zeros(257, 1, device=DEVICE)
    for mean, std in zip(*NORMALISED, strict=True):
        found = run(patch_embed, levels, ones, zeros[0], zeros, [mean], [std])[0, 1:, 0].double()
        truth = (levels.flatten().double() / 255 - mean) / std
        bound = 2**-24 * (truth.abs() + (truth + mean / std).abs() + abs(mean / std))
        assert bool(((found - truth).abs() <= bound).all())


def test_float64_is_refused():
    with use_backend("triton"):
        with pytest.raises(BackendUnavailableError, match="float64"):
            patch_embed(*(a.double() for a in picture()))
        with pytest.raises(BackendUnavailableError, match="float64"):
            patch_embed(picture()[0].double(), *picture()[1:])


# text_embed


def test_ids_outside_of_a_table_give_nan_and_read_nothing():
    ids, positions, types, *rest = sentence(7)
    truth = text_embed.reference(ids, positions, types, *rest)
    tables = (torch.cat([table, table, table])[len(table) : -len(table)] for table in rest[:3])  # numbers around them
    ids[2], positions[3], types[4], ids[5] = 50, -1, 2, -(2**40)
    found = run(text_embed, ids, positions, types, *tables, *rest[3:])
    assert found[2:6].isnan().all()
    torch.testing.assert_close(found[[0, 1, 6]], truth[[0, 1, 6]])


@pytest.mark.parametrize("hidden", [1, 23, 64])
def test_nothing_outside_of_the_tables_is_read(hidden):
    args = sentence(hidden=hidden)
    found = run(text_embed, *all_fenced(args))
    assert torch.equal(found, run(text_embed, *args)) and found.isfinite().all()


def test_a_token_has_the_same_bits_in_any_batch():
    ids, positions, types, *tables = sentence(29, 101)
    whole = run(text_embed, ids, positions, types, *tables)
    for some in (slice(0, 1), slice(3, 4), slice(5, 29)):
        assert torch.equal(run(text_embed, ids[some], positions[some], types[some], *tables), whole[some])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_rows(dtype):
    assert_parity("text_embed", sentence(3, 2049, dtype), backend="triton", gradients=True)


def test_padding_gets_no_gradient():
    args = [a.requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in sentence()]
    args[0][:], args[1][:] = 1, 1
    with use_backend("triton"):
        text_embed(*args, padding_idx=1).square().sum().backward()
    assert not args[3].grad.any() and not args[4].grad.any() and args[5].grad.any()


def test_too_wide_rows_are_refused():
    with use_backend("triton"), pytest.raises(BackendUnavailableError, match="16385"):
        text_embed(*sentence(1, 16385))


@pytest.mark.skipif(not INTERPRETED, reason="the recorded launches are of the interpreter's kernels")
def test_launches_are_recorded_without_reading_a_tensor():
    for op, args in ((kernel.patch_embed, (*picture(), *NORMALISED)), (kernel.text_embed, sentence())):
        with recording(90) as launches:
            out = op(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args))
        assert out.is_meta and len(launches) == 1
