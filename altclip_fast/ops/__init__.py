"""The fused operators, usable on their own: `af.ops.attention(...)`. Each is one `Op` of `dispatch`."""

from . import contrastive_cuda  # noqa: F401  (registers a backend)
from .attention import attention, attention_weights, masked_attention
from .contrastive import (
    contrastive_loss,
    l2_normalize,
    similarity,
    similarity_argmax,
    similarity_softmax,
    similarity_topk,
)
from .distributed import distributed_contrastive_loss
from .embedding import interpolate_positions, patch_embed, text_embed
from .linear import linear, mlp, qkv
from .norm import add_layer_norm, layer_norm

__all__ = [
    "add_layer_norm",
    "attention",
    "attention_weights",
    "contrastive_loss",
    "distributed_contrastive_loss",
    "interpolate_positions",
    "l2_normalize",
    "layer_norm",
    "linear",
    "masked_attention",
    "mlp",
    "patch_embed",
    "qkv",
    "similarity",
    "similarity_argmax",
    "similarity_softmax",
    "similarity_topk",
    "text_embed",
]
