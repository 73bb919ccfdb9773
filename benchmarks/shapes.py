"""What the models ask of the operators whose configurations are chosen: what is tuned, and what is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from altclip_fast.kernels import attention, contrastive, contrastive_topk, embedding, launch, linear, tuning

Device = torch.device | str


class Work(NamedTuple):
    """Calls of one launcher at one size."""

    op: str  # as its configuration is looked up
    name: str
    arguments: Callable[[torch.dtype, Device], tuple]  # of the operator; new random values every time
    run: Callable[..., Any]  # called with them
    checked: str  # the operator whose parity is checked
    gradients: bool = False


class Sizes(NamedTuple):
    """The tables that the works are made from."""

    products: tuple[tuple[int, int, int], ...]  # rows, K, N
    sequences: tuple[tuple[int, int, int, int, bool], ...]  # sequences, tokens, heads, columns of a head, causal
    pictures: tuple[tuple[int, int, int, int], ...]  # pictures, side, side of a patch, hidden
    scores: tuple[tuple[int, int, int], ...]  # rows, rows of the other side, columns
    pairs: tuple[tuple[int, int], ...]  # rows, columns


# ViT-L/14 and XLM-R large have layers of 1024 and 4096, the text model of CLIP of 768 and 3072; one image is 257 rows.
# Rows of captions are packed: 8 captions are about 100.
LARGE = ((1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024))
SMALL = ((768, 2304), (768, 768), (768, 3072), (3072, 768))
MODELS = Sizes(
    products=tuple((rows, *layer) for rows in (8, 96, 257, 1024, 16 * 257, 64 * 257) for layer in LARGE)
    + tuple((rows, *layer) for rows in (77, 64 * 77) for layer in SMALL),
    sequences=(
        (64, 16, 16, 64, False),
        (64, 77, 16, 64, False),
        (64, 77, 12, 64, True),
        (64, 50, 12, 64, False),
        (64, 197, 12, 64, False),
        (1, 257, 16, 64, False),
        (32, 257, 16, 64, False),
        (32, 257, 16, 80, False),
        (16, 577, 16, 64, False),
    ),
    pictures=((1, 224, 14, 1024), (16, 224, 14, 1024), (128, 224, 14, 1024), (64, 224, 32, 768)),
    scores=((1, 1000, 768), (64, 1000, 768), (1, 1 << 18, 768), (64, 1 << 18, 768), (1024, 1 << 16, 768)),
    pairs=((512, 768), (4096, 768), (16384, 768)),
)
# For the interpreter, where a large tile costs as much as many small ones.
TINY = Sizes(
    products=((5, 24, 40),),
    sequences=((2, 9, 1, 16, False),),
    pictures=((1, 8, 4, 24),),
    scores=((3, 20, 16),),
    pairs=((9, 16),),
)


def works(sizes: Sizes) -> Iterator[Work]:
    """All of them, the largest of an operator last."""
    for rows, k, n in sizes.products:
        yield Work("linear", f"{rows}x{k}x{n}", _product(rows, k, n), linear.linear, "linear")
    for batch, tokens, heads, dim, causal in sizes.sequences:
        name = f"{batch} of {tokens}, {heads} heads of {dim}{', causal' if causal else ''}"
        arguments = _sequences(batch, tokens, heads, dim, causal)
        yield Work("attention", name, arguments, attention.attention, "attention")
        yield Work("attention_backward", name, arguments, _attention_backward, "attention", gradients=True)
    for picture in sizes.pictures:
        yield Work(
            "patch_embed", "{}x{}, {}, {}".format(*picture), _pictures(*picture), embedding.patch_embed, "patch_embed"
        )
    for n, m, d in sizes.scores:
        name = f"{n}x{m}x{d}"
        for run in (contrastive.similarity, contrastive.similarity_softmax):
            yield Work("similarity", name, _scores(n, m, d), run, run.__name__)
        yield Work("similarity_topk", name, _scores(n, m, d, 10), contrastive_topk.similarity_topk, "similarity_topk")
    for n, d in sizes.pairs:
        yield Work("contrastive_loss", f"{n}x{d}", _pairs(n, d), _loss, "contrastive_loss", gradients=True)


def candidates(op: str, dtype: torch.dtype) -> tuple[tuning.Config, ...]:
    """What an operator may be configured with, apart from its default."""
    if op.startswith("attention"):
        return attention.candidates(dtype, op == "attention_backward")
    return {"linear": linear, "patch_embed": embedding}.get(op, contrastive).candidates(dtype)


def asked(work: Work, dtype: torch.dtype, capability: int) -> tuning.Asked:
    """The shape that the work's configuration is looked up by, and its default."""
    with launch.recording(capability), tuning.trying(work.op, None) as found:
        work.run(*work.arguments(dtype, "meta"))
    return found[0]


def _product(rows: int, k: int, n: int) -> Callable[[torch.dtype, Device], tuple]:
    def arguments(dtype: torch.dtype, device: Device) -> tuple:
        x, weight, bias, residual = (_random(dtype, device, *s) for s in ((rows, k), (n, k), (n,), (rows, n)))
        return (x, weight.mul_(k**-0.5), bias, "quick_gelu" if n > k else "none", None if n > k else residual)

    return arguments


def _sequences(batch: int, tokens: int, heads: int, dim: int, causal: bool) -> Callable[[torch.dtype, Device], tuple]:
    def arguments(dtype: torch.dtype, device: Device) -> tuple:
        q, k, v = _random(dtype, device, batch * tokens, 3, heads, dim).unbind(1)
        cu_seqlens = torch.tensor([0, *accumulate([tokens] * batch)], dtype=torch.int32).to(device)
        return q, k, v, cu_seqlens, cu_seqlens, tokens, tokens, causal, None

    return arguments


def _attention_backward(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return attention.attention_backward(q.contiguous(), q, *rest)  # q for a gradient: any random values do


def _pictures(count: int, side: int, patch: int, hidden: int) -> Callable[[torch.dtype, Device], tuple]:
    def arguments(dtype: torch.dtype, device: Device) -> tuple:
        pixels, weight = _random(dtype, device, count, 3, side, side), _random(dtype, device, hidden, 3, patch, patch)
        positions = _random(dtype, device, 1 + (side // patch) ** 2, hidden)
        return pixels, weight.mul_((3 * patch * patch) ** -0.5), positions[0], positions

    return arguments


def _scores(n: int, m: int, d: int, *k: int) -> Callable[[torch.dtype, Device], tuple]:
    def arguments(dtype: torch.dtype, device: Device) -> tuple:
        return _random(dtype, device, n, d), _random(dtype, device, m, d), *k, 100.0, True

    return arguments


def _pairs(n: int, d: int) -> Callable[[torch.dtype, Device], tuple]:
    def arguments(dtype: torch.dtype, device: Device) -> tuple:
        image, noise = _random(dtype, device, n, d), _random(dtype, device, n, d)
        return image, image + noise, torch.full((), 2.5, dtype=dtype, device=device), True

    return arguments


def _loss(image: Tensor, text: Tensor, logit_scale: Tensor, normalize: bool) -> None:
    contrastive.contrastive_loss(image, text, logit_scale, normalize)
    contrastive.contrastive_loss_backward(logit_scale, image, text, logit_scale, normalize)


def _random(dtype: torch.dtype, device: Device, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
