"""Named arguments for every op: AltCLIP's shapes cut in depth, and the corners where kernels go wrong.

Sizes 1 and primes, 257 tokens, head sizes 12, 64 and 80, ragged and empty sequences, rows with nothing to attend
to, views with odd strides and offsets, |x| near 1e4, empty batches, ties, zero rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.linear import ACTIVATION


class Sample(NamedTuple):
    """The arguments of one call, and what is special about them."""

    name: str
    args: tuple


class _Make:
    """Random tensors of one dtype on one device; the same numbers, rounded, in every dtype."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str, generator: torch.Generator) -> None:
        self.dtype, self.device, self.generator = dtype, device, generator

    def __call__(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        x = torch.randn(shape, generator=self.generator) * scale + shift
        return x.to(self.dtype).to(self.device)

    def below(self, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(high, shape, generator=self.generator).to(dtype).to(self.device)

    def integers(self, values: Sequence[int], dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)


def samples(op_name: str, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0) -> Iterator[Sample]:
    """The samples of one op.

    Args:
        op_name: a key of `altclip_fast.dispatch.OPS`.
        dtype: of the floating tensors; uint8 pixels and ids stay what they are.
        seed: the same seed gives the same numbers on every device.

    Raises:
        KeyError: there are no samples for this op.
    """
    make = _Make(dtype, device, torch.Generator().manual_seed(seed))
    for name, args in SAMPLES[op_name](make):
        yield Sample(name, args)


def _offset(x: Tensor) -> Tensor:
    """The same values as a view: gaps between the rows, and a storage that begins earlier."""
    wide = x.new_full((*x.shape[:-1], x.shape[-1] + 3), 7)
    wide[..., 1:-2] = x
    return wide[..., 1:-2]


def _swapped(x: Tensor) -> Tensor:
    """The same values with the first two dimensions exchanged in memory."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def _layer_norm(make: _Make) -> Iterator[tuple[str, tuple]]:
    def on(x: Tensor, eps: float = 1e-5) -> tuple:
        return x, make(x.shape[-1], shift=1), make(x.shape[-1]), eps

    for shape in ((1, 1), (3, 7), (1, 768), (257, 64), (13, 101), (5, 1024), (2, 3, 12), (5,), (0, 8)):
        yield f"shape {list(shape)}", on(make(*shape))
    yield "mean near 1e4", on(make(33, 96, shift=1e4))
    yield "deviation near 1e4", on(make(33, 96, scale=1e4 / 4))
    yield "below eps", on(make(9, 64, scale=1e-4), 1e-3)
    whole = make.integers([-3, 0, 1, 5])[:, None].to(make.dtype)  # its mean is exact in any order of summation
    yield "constant rows", on(whole.expand(4, 64).contiguous())
    yield "rows with gaps", on(_offset(make(11, 40)))
    yield "transposed", on(_swapped(make(17, 24)))
    yield "batch and length exchanged", on(_swapped(make(4, 6, 24)))
    yield "expanded", on(make(1, 24).expand(5, 24))
    yield "weights with offset", (make(5, 31), _offset(make(31)), _offset(make(31)), 1e-5)


def _add_layer_norm(make: _Make) -> Iterator[tuple[str, tuple]]:
    for name, (x, weight, bias, eps) in _layer_norm(make):
        yield name, (x, make(*x.shape), weight, bias, eps)
        if not x.is_contiguous():
            view = _swapped if name.startswith(("transposed", "batch")) else _offset
            yield f"{name}, and the residual", (x, view(make(*x.shape)), weight, bias, eps)


def _linear(make: _Make) -> Iterator[tuple[str, tuple]]:
    def on(x: Tensor, n: int, activation: str = "none", bias: bool = True, residual: bool = False) -> tuple:
        k = x.shape[-1]
        return (
            x,
            make(n, k, scale=k**-0.5),
            make(n) if bias else None,
            activation,
            make(*x.shape[:-1], n) if residual else None,
        )

    for m, k, n in ((1, 1, 1), (1, 1024, 48), (2, 64, 1), (7, 13, 11), (257, 64, 48), (67, 129, 131), (0, 8, 4)):
        yield f"{m}x{k}x{n}", on(make(m, k), n)
    for activation in ACTIVATION:
        yield activation, on(make(17, 32, scale=2), 24, activation)
        yield f"{activation}, residual", on(make(17, 32, scale=2), 24, activation, residual=True)
    yield "no bias", on(make(7, 24), 12, bias=False)
    yield "no bias, gelu, residual", on(make(7, 24), 12, "gelu", bias=False, residual=True)
    yield "three dimensions", on(make(2, 5, 24), 12, "quick_gelu", residual=True)
    yield "one dimension", on(make(24), 12, residual=True)
    yield "x near 1e4", on(make(19, 32, scale=1e4 / 4), 24, "quick_gelu", residual=True)
    x, weight, bias, activation, residual = on(make(19, 40), 24, "gelu", residual=True)
    yield "rows with gaps", (_offset(x), _offset(weight), _offset(bias), activation, _offset(residual))
    yield "transposed", (_swapped(x), _swapped(weight), bias, activation, _swapped(residual))
    yield "expanded residual", (x, weight, bias, activation, residual[:1].expand(19, 24))
    yield "batch and length exchanged", on(_swapped(make(3, 5, 24)), 12, "none", residual=True)


def _qkv(make: _Make) -> Iterator[tuple[str, tuple]]:
    def on(x: Tensor, *sizes: int, biases: str = "qkv") -> tuple:
        k = x.shape[-1]
        layers = (
            (make(n, k, scale=k**-0.5), make(n) if name in biases else None)
            for name, n in zip("qkv", sizes, strict=True)
        )
        return x, *(part for layer in layers for part in layer)

    for m, k, n in ((1, 1, 1), (1, 256, 64), (7, 13, 11), (67, 40, 131), (0, 8, 4)):
        yield f"{m}x{k}x{n}", on(make(m, k), n, n, n)
    yield "three sizes", on(make(17, 32), 24, 8, 70)
    yield "no bias of the keys", on(make(7, 24), 12, 12, 12, biases="qv")
    yield "no bias", on(make(7, 24), 12, 12, 12, biases="")
    yield "three dimensions", on(make(2, 5, 24), 12, 12, 12)
    yield "one dimension", on(make(24), 12, 12, 12)
    yield "x near 1e4", on(make(19, 32, scale=1e4 / 4), 24, 24, 24)
    yield "rows with gaps", tuple(map(_offset, on(make(19, 40), 24, 24, 24)))
    yield "transposed", on(_swapped(make(19, 40)), 24, 24, 24)


def _mlp(make: _Make) -> Iterator[tuple[str, tuple]]:
    def on(x: Tensor, inner: int, n: int, activation: str, biases: str = "both", residual: bool = True) -> tuple:
        k = x.shape[-1]
        b1 = make(inner) if biases in ("both", "first") else None
        b2 = make(n) if biases in ("both", "second") else None
        return (
            x,
            make(inner, k, scale=k**-0.5),
            b1,
            make(n, inner, scale=inner**-0.5),
            b2,
            activation,
            make(*x.shape[:-1], n) if residual else None,
        )

    for m, k, inner, n in ((1, 1, 1, 1), (1, 64, 256, 64), (7, 13, 29, 11), (33, 64, 256, 64), (0, 8, 16, 8)):
        yield f"{m}x{k}x{inner}x{n}", on(make(m, k), inner, n, "quick_gelu")
    for activation in ACTIVATION:
        yield activation, on(make(17, 32), 64, 24, activation, residual=False)
    for biases in ("neither", "first", "second"):
        yield f"biases: {biases}", on(make(5, 24), 40, 24, "gelu", biases)
    yield "three dimensions", on(make(2, 5, 24), 40, 24, "gelu")
    yield "x near 1e4", on(make(19, 32, scale=1e4 / 4), 64, 32, "quick_gelu")
    x, w1, b1, w2, b2, activation, residual = on(make(19, 24), 40, 32, "gelu")
    yield "rows with gaps", (_offset(x), _offset(w1), b1, _offset(w2), b2, activation, _offset(residual))
    yield "transposed", (_swapped(x), _swapped(w1), b1, _swapped(w2), b2, activation, _swapped(residual))


def _attention(make: _Make) -> Iterator[tuple[str, tuple]]:
    def offsets(lengths: Sequence[int], dtype: torch.dtype = torch.int32) -> Tensor:
        return make.integers([0, *accumulate(lengths)], dtype)

    def on(
        lengths: Sequence[int],
        k_lengths: Sequence[int] | None = None,
        heads: int = 2,
        dim: int = 12,
        causal: bool = False,
        scale: float | None = None,
        dim_v: int | None = None,
    ) -> tuple:
        cu = offsets(lengths)
        keys = lengths if k_lengths is None else k_lengths
        k = make(sum(keys), heads, dim)
        return (
            make(sum(lengths), heads, dim),
            k,
            make(sum(keys), heads, dim_v or dim),
            cu,
            cu if k_lengths is None else offsets(keys),
            max(lengths),
            max(keys),
            causal,
            scale,
        )

    for dim in (64, 80, 12):
        yield f"257 tokens, heads of {dim}", on([257], dim=dim)
    ragged = [5, 1, 17, 0, 3]
    for causal in (False, True):
        kind = "causal" if causal else "full"
        yield f"{kind}, one row", on([1], causal=causal)
        yield f"{kind}, equal lengths", on([7, 7, 7], causal=causal)
        yield f"{kind}, ragged", on(ragged, causal=causal)
        yield f"{kind}, ragged, heads of 64", on([77, 31, 2], dim=64, causal=causal)
        yield f"{kind}, heads of 1", on([4, 3], dim=1, heads=3, causal=causal)
        yield f"{kind}, fewer queries", on([2, 1, 5, 0], [7, 1, 19, 3], causal=causal)
        yield f"{kind}, more queries", on([7, 3, 5], [2, 3, 1], causal=causal)
        yield f"{kind}, sequences without keys", on([3, 2, 4], [0, 5, 0], causal=causal)
        yield f"{kind}, no rows", on([0, 0], causal=causal)
        yield f"{kind}, no keys", on([3, 2], [0, 0], causal=causal)
    yield "one query each", on([1, 1, 1], [13, 1, 257], dim=64)
    yield "values wider than keys", on([5, 11], dim=12, dim_v=20)
    yield "scale", on([5, 11], scale=0.7)
    q, k, v, cu, _, longest, *_ = on(ragged)
    yield "long offsets", (q, k, v, offsets(ragged, torch.int64), offsets(ragged, torch.int64), longest, longest)
    yield "longest is an upper bound", (q, k, v, cu, cu, longest + 6, longest + 9, True)
    yield "values near 1e4", (q, k, make(*v.shape, scale=1e4 / 4), cu, cu, longest, longest)
    yield "sharp scores", (make(*q.shape, scale=8), make(*k.shape, scale=8), v, cu, cu, longest, longest)
    for dim in (64, 12):
        packed = make(sum(ragged), 3, 2, dim)
        yield f"packed qkv rows, heads of {dim}", (*packed.unbind(1), cu, cu, longest, longest)
    yield "heads outside", (_swapped(q), _swapped(k), _swapped(v), cu, cu, longest, longest, True)
    yield "rows with gaps", (_offset(q), _offset(k), _offset(v), cu, cu, longest, longest)


def _padded(make: _Make) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
    """Name, q, k and mask of a padded batch."""

    def qk(batch: int, queries: int, keys: int, heads: int = 2, dim: int = 12) -> tuple[Tensor, Tensor]:
        return make(batch, queries, heads, dim), make(batch, keys, heads, dim)

    def may_look(*shape: int) -> Tensor:
        return make.below(3, *shape) > 0

    for dim in (64, 80, 12):
        yield f"257 tokens, heads of {dim}", *qk(1, 257, 257, dim=dim), None
    yield "one row", *qk(1, 1, 1, 1, 1), None
    yield "fewer queries", *qk(2, 3, 11), None
    yield "no batch", *qk(0, 3, 5), None
    yield "no queries", *qk(2, 0, 5), None
    yield "no keys", *qk(2, 3, 0), None
    lengths = make.integers([7, 1, 0, 4])[:, None, None, None]
    columns = torch.arange(7, device=lengths.device)
    yield "key padding, one row all padding", *qk(4, 7, 7), columns < lengths
    yield "causal", *qk(3, 7, 7), (columns <= columns[:, None])[None, None]
    yield "full mask", *qk(3, 5, 7), may_look(3, 2, 5, 7)
    yield "nothing to look at", *qk(2, 3, 5), torch.zeros(1, 1, 1, 5, dtype=torch.bool, device=lengths.device)
    added = make(3, 1, 5, 7)
    yield "added mask", *qk(3, 5, 7), added
    yield "added mask, minus infinity", *qk(3, 5, 7), added.masked_fill(~may_look(3, 1, 5, 7), -torch.inf)
    yield (
        "added mask, the lowest number",
        *qk(4, 7, 7),
        make(4, 1, 1, 7, scale=0).masked_fill(columns >= lengths, torch.finfo(make.dtype).min),
    )
    q, k = qk(3, 5, 7)
    yield "lengths outside", _swapped(q), _swapped(k), may_look(3, 1, 1, 7)
    q_outside, k_outside = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    yield "heads outside", q_outside, k_outside, may_look(3, 1, 5, 7)
    yield "rows with gaps", _offset(q), _offset(k), _offset(added)
    yield "sharp scores", make(3, 5, 2, 12, scale=8), make(3, 7, 2, 12, scale=8), may_look(3, 1, 5, 7)


def _masked_attention(make: _Make) -> Iterator[tuple[str, tuple]]:
    for name, q, k, mask in _padded(make):
        v = make(*k.shape)
        yield name, (q, k, _offset(v) if name == "rows with gaps" else v, mask)
    q, k, v = make(3, 5, 2, 12), make(3, 7, 2, 12), make(3, 7, 2, 20, scale=1e4 / 4)
    yield "wider values near 1e4, scale", (q, k, v, make.below(3, 3, 1, 5, 7) > 0, 0.7)
    yield "packed qkv rows", (*make(2, 9, 3, 4, 64).unbind(2), None)


def _attention_weights(make: _Make) -> Iterator[tuple[str, tuple]]:
    for name, q, k, mask in _padded(make):
        yield name, (q, k, mask)
    yield "scale", (make(2, 5, 2, 12), make(2, 7, 2, 12), None, 0.7)


def _patch_embed(make: _Make) -> Iterator[tuple[str, tuple]]:
    def on(pixels: Tensor, patch: int, hidden: int = 24, weight: float | None = None, normalize: tuple = ()) -> tuple:
        channels = pixels.shape[1]
        tokens = 1 + (pixels.shape[2] // patch) * (pixels.shape[3] // patch)
        scale = (channels * patch * patch) ** -0.5 if weight is None else weight
        return (
            pixels,
            make(hidden, channels, patch, patch, scale=scale),
            make(hidden),
            make(tokens, hidden),
            *normalize,
        )

    mean_std = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    yield "patches of 14", on(make(2, 3, 28, 42), 14)
    yield "patches of 14, a remainder", on(make(1, 3, 31, 45), 14)
    yield "256 patches", on(make(1, 3, 64, 64), 4, 64)
    yield "one pixel", on(make(1, 1, 1, 1), 1, 1)
    yield "primes", on(make(3, 3, 35, 21), 7, 13)
    yield "no images", on(make(0, 3, 8, 8), 4)
    yield "normalised", on(make(2, 3, 16, 24), 8, normalize=mean_std)
    yield "x near 1e4", on(make(2, 3, 16, 24, scale=1e4 / 4), 8)
    yield "bytes", on(make.below(256, 2, 3, 16, 24, dtype=torch.uint8), 8, weight=0.01)
    yield "bytes, normalised", on(make.below(256, 2, 3, 16, 24, dtype=torch.uint8), 8, normalize=mean_std)
    channels_last = make.below(256, 2, 16, 24, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    yield "bytes, channels last, normalised", on(channels_last, 8, normalize=mean_std)
    yield "channels last", on(make(2, 16, 24, 3).permute(0, 3, 1, 2), 8)
    yield "rows with gaps", on(_offset(make(2, 3, 16, 24)), 8)
    pixels, weight, first, positions = on(make(2, 3, 16, 24), 8)
    yield "strided weights", (pixels, _swapped(weight), _offset(first), _swapped(positions))


def _text_embed(make: _Make) -> Iterator[tuple[str, tuple]]:
    def on(
        rows: int,
        hidden: int = 24,
        vocabulary: int = 50,
        types: int = 1,
        norm: bool = True,
        padding_idx: int | None = 1,
        dtype: torch.dtype = torch.int64,
        scale: float = 1.0,
    ) -> tuple:
        return (
            make.below(vocabulary, rows, dtype=dtype),
            make.below(20, rows, dtype=dtype),
            make.below(types, rows, dtype=dtype) if types else None,
            make(vocabulary, hidden, scale=scale),
            make(20, hidden),
            make(types, hidden) if types else None,
            *((make(hidden, shift=1), make(hidden)) if norm else (None, None)),
            1e-5,
            padding_idx,
        )

    for rows, hidden in ((257, 64), (13, 101), (1, 1024), (1, 1), (0, 8)):
        yield f"{rows} rows of {hidden}", on(rows, hidden)
    yield "int32 ids", on(19, dtype=torch.int32)
    yield "two types", on(19, types=2)
    yield "no types", on(19, types=0)
    yield "no norm", on(19, norm=False)
    yield "no types, no norm, no padding", on(19, types=0, norm=False, padding_idx=None)
    yield "the same id again and again", on(31, vocabulary=2)
    yield "word near 1e4", on(19, scale=1e4 / 4)
    ids, positions, types, word, *rest = on(19)
    strided = make.below(50, 38)[::2]
    yield "strided ids and tables", (strided, _offset(positions), types, _offset(word), *rest)
    yield "transposed table", (ids, positions, types, _swapped(word), *rest)


def _l2_normalize(make: _Make) -> Iterator[tuple[str, tuple]]:
    for shape in ((1, 1), (3, 7), (257, 64), (1, 768), (13, 101), (2, 3, 12), (5,), (0, 8)):
        yield f"shape {list(shape)}", (make(*shape),)
    yield "x near 1e4", (make(9, 64, scale=1e4 / 4),)
    yield "x near 1e-4", (make(9, 64, scale=1e-4),)
    yield "zero rows", (make(5, 12) * make.integers([0, 1, 0, 1, 1])[:, None],)
    yield "rows with gaps", (_offset(make(11, 40)),)
    yield "transposed", (_swapped(make(17, 24)),)
    yield "expanded", (make(1, 24).expand(5, 24),)


def _pairs(make: _Make) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, a and b of two sets of embeddings."""
    for n, m, d in ((1, 1, 1), (3, 5, 7), (1, 257, 64), (33, 17, 768), (64, 101, 32), (0, 5, 8)):
        yield f"{n}x{m}x{d}", make(n, d), make(m, d)
    a, b = make(7, 24), make(11, 24)
    zero = make.integers([0, 1, 1, 0, 1, 1, 0])[:, None]
    yield "zero rows", a * zero, torch.cat([b[:4], b[:4] * zero[:4]])
    yield "ties", a, torch.cat([b, b, b])
    yield "b is a", a, a
    yield "x near 1e4", a * 2500, b * 2500
    yield "rows with gaps", _offset(a), _offset(b)
    yield "transposed", _swapped(a), _swapped(b)


def _similarity(make: _Make) -> Iterator[tuple[str, tuple]]:
    for name, a, b in _pairs(make):
        yield name, (a, b)
    yield "scale 100", (make(7, 24), make(11, 24), 100.0)
    yield "not normalised", (make(7, 24), make(11, 24), 0.5, False)


def _similarity_softmax(make: _Make) -> Iterator[tuple[str, tuple]]:
    yield from _similarity(make)


def _similarity_argmax(make: _Make) -> Iterator[tuple[str, tuple]]:
    yield from _similarity(make)
    yield "all equal", (make(7, 24) * 0, make(11, 24))


def _similarity_topk(make: _Make) -> Iterator[tuple[str, tuple]]:
    for name, (a, b, *rest) in _similarity_argmax(make):
        for k in sorted({1, min(5, b.shape[0]), b.shape[0]}):
            yield f"{name}, top {k}", (a, b, k, *rest)


def _contrastive_loss(make: _Make) -> Iterator[tuple[str, tuple]]:
    def on(n: int, d: int, *rest: Any) -> tuple:
        return make(n, d), make(n, d), make(1, scale=0, shift=2.6592).reshape(()), *rest

    for n, d in ((1, 1), (2, 7), (17, 64), (33, 768)):
        yield f"{n} pairs of {d}", on(n, d)
    image, text, scale = on(7, 24)
    yield "not normalised", (image * 0.2, text * 0.2, scale, False)
    yield "scale [1]", (image, text, scale.reshape(1))
    yield "scale 100", (image, text, make(1, scale=0, shift=4.6052).reshape(()))
    yield "zero rows", (image * make.integers([0, 1, 1, 1, 1, 1, 1])[:, None], text, scale)
    yield "all equal", (image[:1].expand(7, 24), text[:1].expand(7, 24), scale)
    yield "x near 1e4", (image * 2500, text * 2500, scale)
    yield "rows with gaps", (_offset(image), _offset(text), scale)
    yield "transposed", (_swapped(image), _swapped(text), scale)


SAMPLES: dict[str, Callable[[_Make], Iterator[tuple[str, tuple]]]] = {
    "add_layer_norm": _add_layer_norm,
    "attention": _attention,
    "attention_weights": _attention_weights,
    "contrastive_loss": _contrastive_loss,
    "l2_normalize": _l2_normalize,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "masked_attention": _masked_attention,
    "mlp": _mlp,
    "patch_embed": _patch_embed,
    "qkv": _qkv,
    "similarity": _similarity,
    "similarity_argmax": _similarity_argmax,
    "similarity_softmax": _similarity_softmax,
    "similarity_topk": _similarity_topk,
    "text_embed": _text_embed,
}
