"""The dual encoder: an image tower, a text tower, a projection each, and their scaled similarity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..config import AltCLIPConfig, CLIPConfig
from .base import Model, normal_
from .layers import Linear
from .outputs import AltCLIPOutput, CLIPOutput, Lazy, later
from .tower import HiddenStates


class DualEncoder(Model):
    """Base of `AltCLIPModel` and `CLIPModel`."""

    text_class: ClassVar[Any]
    vision_class: ClassVar[Any]
    output_class: ClassVar[type[CLIPOutput] | type[AltCLIPOutput]]
    config: AltCLIPConfig | CLIPConfig
    projects_pooler_output: ClassVar[bool]  # whether the towers' outputs show the projected embedding

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        text, vision, width = config.text_config, config.vision_config, config.projection_dim
        self.text_model = self.text_class(text)
        self.vision_model = self.vision_class(vision)
        self.visual_projection = Linear(vision.hidden_size, width, bias=False)
        self.text_projection = Linear(self.text_width(text), width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        for linear in (self.visual_projection, self.text_projection):
            normal_(linear.weight, linear.in_features**-0.5 * config.initializer_factor)

    @staticmethod
    def text_width(config: Any) -> int:
        """The width of the text tower's pooled output."""
        raise NotImplementedError

    def image_features(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Tensor:
        """The projected, not normalised embedding of images, [B, projection_dim]; `mean` and `std`: see `pooled`."""
        return self.visual_projection(self.vision_model.pooled(pixel_values, interpolate_pos_encoding, mean, std))

    def text_features(self, **inputs: Any) -> Tensor:
        """The projected, not normalised embedding of texts, [B, projection_dim]."""
        return self.text_projection(self.text_model.pooled(**inputs))

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: HiddenStates = None,
        interpolate_pos_encoding: bool = False,
        return_dict: bool | None = None,
    ) -> Tensor:
        """The embedding of images.

        Args:
            pixel_values: [B, channels, image_size, image_size], normalised.
            interpolate_pos_encoding: take images of another size, resampling the positions.
            output_attentions, output_hidden_states, return_dict: accepted for the sake of older callers; the
                result is the same tensor.

        Returns:
            [B, projection_dim], projected, not normalised.

        Raises:
            ValueError, TypeError: pixel_values is absent or does not fit the model.
        """
        return self.image_features(pixel_values, interpolate_pos_encoding)  # type: ignore[arg-type]

    def combine(
        self,
        text: dict[str, Any],
        image: dict[str, Any],
        flags: dict[str, Any],
        return_loss: bool | None,
        return_dict: bool | None,
    ) -> Any:
        """Run both towers and put their embeddings side by side."""
        flags = {name: self._default(name) if value is None else value for name, value in flags.items()}
        vision_output = self.vision_model(**image, **flags, return_dict=True)
        text_output = self.text_model(**text, **flags, return_dict=True)
        image_embeds = self.visual_projection(vision_output.pooler_output)
        text_embeds = self.text_projection(text_output.pooler_output)
        if self.projects_pooler_output:
            vision_output.pooler_output, text_output.pooler_output = image_embeds, text_embeds
        image_embeds, text_embeds = ops.l2_normalize(image_embeds), ops.l2_normalize(text_embeds)
        loss = None
        if return_loss:
            if len(image_embeds) != len(text_embeds):
                raise ValueError(
                    f"return_loss needs as many texts as images, in pairs; "
                    f"got {len(text_embeds)} texts and {len(image_embeds)} images"
                )
            loss = ops.contrastive_loss(image_embeds, text_embeds, self.logit_scale, normalize=False)
        scale = self.logit_scale.exp()
        logits = later(lambda: ops.similarity(text_embeds, image_embeds, normalize=False) * scale)
        output = self.output_class(
            loss=loss,
            logits_per_image=later(lambda: output.logits_per_text.t()) if isinstance(logits, Lazy) else logits.t(),
            logits_per_text=logits,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_output,
            vision_model_output=vision_output,
        )
        return output if self.return_dict(return_dict) else output.to_tuple()

    def _default(self, flag: str) -> Any:
        """True where the joint configuration asks; else None, and each tower's own configuration decides."""
        return getattr(self.config, flag) or None
