"""`attn_implementation="altclip_fast"`: our attention for any transformers model that takes its attention by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from .. import ops

NAME = "altclip_fast"


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`ops.attention` where every row is whole and self-attending; else what "sdpa" does.

    Args:
        query, key, value: [B, heads, S, D].
        attention_mask: from `sdpa_mask`, None where no row is hidden.
        is_causal: None is the module's own choice.

    Returns:
        [B, S, heads, D], contiguous, and no probabilities.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    whole = attention_mask is None and dropout == 0.0 and query.shape[:3] == key.shape[:3]
    plain = all(type(t) is Tensor for t in (query, key, value)) and kwargs.get("position_bias") is None
    if not (whole and plain) or _transformed() or query.numel() == 0:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
        )
    batch, heads, length, _ = query.shape
    ends = torch.arange(0, batch * length + 1, length, dtype=torch.int32, device=query.device)
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
    out = ops.attention(q, k, v, ends, ends, length, length, bool(causal), scaling)
    return out.view(batch, length, heads, -1), None


def _transformed() -> bool:
    compiling = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return compiling or torch._C._are_functorch_transforms_active()


def register() -> None:
    """Make the name known to transformers. Without a mask of its own a model would ignore padding."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
