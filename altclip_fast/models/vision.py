"""The vision transformer of CLIP and AltCLIP.

pixels -> patches + class token + positions -> norm -> pre-norm layers -> norm of the class token
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import ops
from ..config import AltCLIPVisionConfig, CLIPVisionConfig
from .base import normal_
from .layers import LayerNorm, Linear, embedding
from .outputs import BaseModelOutputWithPooling
from .rows import Rows, whole_rows
from .tower import HiddenStates, Tower, init_pre_norm_layers, padded, pre_norm_layers


class PatchEmbedding(Linear):
    """A linear map of patches; its weight is that of a convolution whose stride is its size."""

    def __init__(self, channels: int, hidden: int, patch: int) -> None:
        super().__init__(channels * patch * patch, hidden, bias=False)
        self.weight = nn.Parameter(torch.empty(hidden, channels, patch, patch))


class VisionTower(Tower):
    """A ViT whose pooled output is its normalised class token."""

    main_input_name = "pixel_values"
    config: CLIPVisionConfig | AltCLIPVisionConfig

    def __init__(self, config: CLIPVisionConfig | AltCLIPVisionConfig) -> None:
        super().__init__(config)
        hidden, eps = config.hidden_size, config.layer_norm_eps
        positions = (config.image_size // config.patch_size) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.empty(hidden))
        self.patch_embedding = PatchEmbedding(config.num_channels, hidden, config.patch_size)
        self.position_embedding = embedding(positions, hidden)
        self.pre_norm = LayerNorm(hidden, eps)
        self.layers = pre_norm_layers(config)
        self.post_norm = LayerNorm(hidden, eps)
        factor = config.initializer_factor
        normal_(self.class_embedding, hidden**-0.5 * factor)
        normal_(self.patch_embedding.weight, config.initializer_range * factor)
        normal_(self.position_embedding.weight, config.initializer_range * factor)
        init_pre_norm_layers(self.layers, hidden, factor)

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding."""
        return self.patch_embedding

    def pooled(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Tensor:
        """The pooled output alone, [B, hidden]: the cheapest way to an embedding.

        With `mean` and `std`, one number a channel, pixels are normalised here, see `ops.patch_embed`.
        """
        x, rows = self._embed(pixel_values, interpolate_pos_encoding, self.attention_dropout > 0, mean, std)
        x, _ = self.run_layers(x, rows, self.record(False, False), pooled_only=True)
        return self.post_norm(x)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: HiddenStates = None,
        interpolate_pos_encoding: bool = False,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple:
        """Encode images.

        Args:
            pixel_values: [B, channels, image_size, image_size], normalised; cast to the dtype of the weights.
            output_attentions: adds `attentions`, one [B, heads, S, S] a layer, S = 1 + patches.
            output_hidden_states: adds `hidden_states`, [B, S, hidden] each; True, or the indices to keep.
            interpolate_pos_encoding: take images of another size, resampling the positions (bicubic).
            return_dict: False gives a tuple; None is the configuration's choice.

        Returns:
            last_hidden_state [B, S, hidden], before the last norm; pooler_output [B, hidden], after it.

        Raises:
            ValueError, TypeError: pixel_values is absent or does not fit the model.
        """
        record = self.record(output_hidden_states, output_attentions)
        dense = record.weights is not None or self.attention_dropout > 0
        x, rows = self._embed(pixel_values, interpolate_pos_encoding, dense)
        pooled, sequence = self.run_layers(x, rows, record, pooled_only=False)
        output = BaseModelOutputWithPooling(
            last_hidden_state=padded(sequence, rows), pooler_output=self.post_norm(pooled), **record.fields(rows)
        )
        return output if self.return_dict(return_dict) else output.to_tuple()

    def _embed(
        self,
        pixel_values: Tensor | None,
        interpolate: bool,
        dense: bool,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> tuple[Tensor, Rows]:
        self._check(pixel_values, interpolate)
        assert pixel_values is not None
        positions = self.position_embedding.weight
        if pixel_values.dtype is not torch.uint8 and mean is None:
            pixel_values = pixel_values.to(self.patch_embedding.weight.dtype)
        if interpolate:
            patch = self.config.patch_size
            positions = ops.interpolate_positions(
                positions, pixel_values.shape[2] // patch, pixel_values.shape[3] // patch
            )
        weight = self.patch_embedding.packed(pixel_values)
        x = ops.patch_embed(pixel_values, weight, self.class_embedding, positions, mean, std)
        rows = whole_rows(x.shape[0], x.shape[1], x.device, dense)
        return self.pre_norm(x).flatten(0, 1), rows

    def _check(self, pixel_values: Tensor | None, interpolate: bool) -> None:
        config = self.config
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        if not isinstance(pixel_values, Tensor):
            raise TypeError(
                f"pixel_values must be a Tensor, not {type(pixel_values).__name__}; pass return_tensors='pt'"
            )
        if pixel_values.dim() != 4 or pixel_values.shape[1] != config.num_channels:
            raise ValueError(
                f"pixel_values has shape {list(pixel_values.shape)}; [batch, {config.num_channels}, "
                f"{config.image_size}, {config.image_size}] is needed"
            )
        height, width = pixel_values.shape[2:]
        if interpolate:
            if min(height, width) < config.patch_size:
                raise ValueError(f"Input image size ({height}*{width}) is smaller than a patch of {config.patch_size}")
        elif (height, width) != (config.image_size, config.image_size):
            raise ValueError(
                f"Input image size ({height}*{width}) doesn't match model ({config.image_size}*{config.image_size})."
            )
        if pixel_values.device != self.device:
            raise ValueError(f"pixel_values is on {pixel_values.device}, the model on {self.device}; move one of them")
