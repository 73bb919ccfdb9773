"""What a call of an operator costs at least: its products, and every input and output once. Read from shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Cost(NamedTuple):
    """Operations, two for a product and its sum; and bytes."""

    flops: float
    bytes: float


def cost(op: str, args: Sequence[Any]) -> Cost:
    """Of a call of `op`.

    Args:
        args: as the operator takes them; on the meta device sequences are all as long as the longest.
    """
    return COSTS[op](*args)


def size(*tensors: Tensor | None) -> int:
    """Bytes of these."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def shape(args: tuple) -> str:
    """The matrices among an operator's arguments, as rows name them."""
    return ", ".join(" x ".join(map(str, a.shape)) for a in args if isinstance(a, Tensor) and a.dim() > 1)


def _norm(x: Tensor, *_: Any) -> Cost:
    return Cost(0, 2 * size(x))


def _add_norm(x: Tensor, *_: Any) -> Cost:
    return Cost(0, 4 * size(x))


def _linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none", residual: Tensor | None = None
) -> Cost:
    count = x.numel() // x.shape[-1]
    out = count * weight.shape[0] * x.element_size()
    return Cost(2 * count * weight.numel(), size(x, weight, bias, residual) + out)


def _qkv(x: Tensor, *layers: Tensor | None) -> Cost:
    parts = [_linear(x, *layers[i : i + 2]) for i in (0, 2, 4)]  # type: ignore[arg-type]
    return Cost(sum(part.flops for part in parts), sum(part.bytes for part in parts) - 2 * size(x))


def _mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    activation: str,
    residual: Tensor | None = None,
) -> Cost:
    count = x.numel() // x.shape[-1]
    out = count * w2.shape[0] * x.element_size()
    return Cost(2 * count * (w1.numel() + w2.numel()), size(x, w1, b1, w2, b2, residual) + out)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
    scale: float | None = None,
) -> Cost:
    queries, keys = _lengths(cu_seqlens_q, max_seqlen_q), _lengths(cu_seqlens_k, max_seqlen_k)
    pairs = sum(a * b for a, b in zip(queries, keys, strict=True)) / (2 if causal else 1)
    out = q.shape[0] * v.shape[1] * v.shape[2] * q.element_size()
    return Cost(2 * pairs * q.shape[1] * (q.shape[2] + v.shape[2]), size(q, k, v) + out)


def _lengths(cu_seqlens: Tensor, longest: int) -> list[int]:
    return [longest] * (len(cu_seqlens) - 1) if cu_seqlens.is_meta else cu_seqlens.diff().tolist()


def _patch_embed(pixels: Tensor, weight: Tensor, class_embedding: Tensor, positions: Tensor, *_: Any) -> Cost:
    batch, out = pixels.shape[0], pixels.shape[0] * size(positions)
    return Cost(2 * batch * (positions.shape[0] - 1) * weight.numel(), size(pixels, weight, positions) + out)


def _text_embed(ids: Tensor, positions: Tensor, types: Tensor | None, word: Tensor, *_: Any) -> Cost:
    """A row of each table, and one that is written."""
    tables = 2 if types is None else 3
    return Cost(0, (1 + tables) * len(ids) * word.shape[1] * word.element_size())


def _similarity(a: Tensor, b: Tensor, *_: Any) -> Cost:
    out = a.shape[0] * b.shape[0] * a.element_size()
    return Cost(2 * a.shape[0] * b.numel(), size(a, b) + out)


def _selection(a: Tensor, b: Tensor, *_: Any) -> Cost:
    """What is chosen is small beside what it is chosen from."""
    return Cost(2 * a.shape[0] * b.numel(), size(a, b))


def _loss(image: Tensor, text: Tensor, *_: Any) -> Cost:
    return Cost(2 * image.shape[0] * text.numel(), size(image, text))


COSTS: dict[str, Callable[..., Cost]] = {
    "layer_norm": _norm,
    "add_layer_norm": _add_norm,
    "linear": _linear,
    "qkv": _qkv,
    "mlp": _mlp,
    "attention": _attention,
    "patch_embed": _patch_embed,
    "text_embed": _text_embed,
    "l2_normalize": _norm,
    "similarity": _similarity,
    "similarity_softmax": _similarity,
    "similarity_topk": _selection,
    "similarity_argmax": _selection,
    "contrastive_loss": _loss,
}
