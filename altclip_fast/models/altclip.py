"""AltCLIP (Chen et al., arXiv 2211.06679): CLIP's image tower and a multilingual text tower, XLM-R."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..config import AltCLIPConfig, AltCLIPTextConfig, AltCLIPVisionConfig
from .joint import DualEncoder
from .outputs import AltCLIPOutput
from .tower import HiddenStates
from .vision import VisionTower
from .xlm_roberta import XLMRobertaTower


class AltCLIPVisionModel(VisionTower):
    """AltCLIP's image tower. Call it with `pixel_values`; see `VisionTower.forward`."""

    config_class = AltCLIPVisionConfig


class AltCLIPTextModel(XLMRobertaTower):
    """AltCLIP's text tower. Call it with `input_ids`; see `XLMRobertaTower.forward`."""

    config_class = AltCLIPTextConfig


class AltCLIPModel(DualEncoder):
    """The joint model: image and text embeddings, their logits and the contrastive loss."""

    config_class = AltCLIPConfig
    config: AltCLIPConfig
    text_class = AltCLIPTextModel
    vision_class = AltCLIPVisionModel
    output_class = AltCLIPOutput
    projects_pooler_output = False

    @staticmethod
    def text_width(config: Any) -> int:
        return config.project_dim

    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: HiddenStates = None,
        return_dict: bool | None = None,
    ) -> Tensor:
        """The embedding of texts.

        Args:
            input_ids, attention_mask, position_ids, token_type_ids: as in `AltCLIPTextModel`.
            output_attentions, output_hidden_states, return_dict: accepted for the sake of older callers; the
                result is the same tensor.

        Returns:
            [B, projection_dim], projected, not normalised.

        Raises:
            ValueError, TypeError: an input is absent or does not fit the model.
        """
        return self.text_features(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, token_type_ids=token_type_ids
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_loss: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: HiddenStates = None,
        interpolate_pos_encoding: bool = False,
        return_dict: bool | None = None,
    ) -> AltCLIPOutput | tuple:
        """Embed texts and images, and compare each with each.

        Args:
            input_ids, attention_mask, position_ids, token_type_ids: of B texts, as in `AltCLIPTextModel`.
            pixel_values, interpolate_pos_encoding: of N images, as in `AltCLIPVisionModel`.
            return_loss: adds the contrastive loss of the pairs (text i, image i); B == N.
            output_attentions, output_hidden_states: add them to the towers' outputs.
            return_dict: False gives a tuple; None is the configuration's choice.

        Returns:
            An `AltCLIPOutput`; its logits and sequences are computed when they are read.

        Raises:
            ValueError, TypeError: an input is absent or does not fit the model.
        """
        return self.combine(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "position_ids": position_ids,
                "token_type_ids": token_type_ids,
            },
            {"pixel_values": pixel_values, "interpolate_pos_encoding": interpolate_pos_encoding},
            {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states},
            return_loss,
            return_dict,
        )
