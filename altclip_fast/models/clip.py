"""CLIP (Radford et al., arXiv 2103.00020): the joint model; its towers alone, with projections, with a classifier."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from .base import Model, normal_, zeros_
from .clip_text import CLIPTextTower
from .joint import DualEncoder
from .layers import Linear
from .outputs import (
    BaseModelOutputWithPooling,
    CLIPOutput,
    CLIPTextModelOutput,
    CLIPVisionModelOutput,
    ImageClassifierOutput,
)
from .text import host_can_read
from .tower import HiddenStates
from .vision import VisionTower


class CLIPVisionModel(VisionTower):
    """CLIP's image tower. Call it with `pixel_values`; see `VisionTower.forward`."""

    config_class = CLIPVisionConfig

    def forward(  # type: ignore[override]  # CLIP and AltCLIP document different orders
        self,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: HiddenStates = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple:
        """Encode images: `VisionTower.forward`, with the arguments in CLIP's order."""
        return super().forward(
            pixel_values, output_attentions, output_hidden_states, interpolate_pos_encoding, return_dict
        )


class CLIPTextModel(CLIPTextTower):
    """CLIP's text tower. Call it with `input_ids`; see `CLIPTextTower.forward`."""

    config_class = CLIPTextConfig


class CLIPModel(DualEncoder):
    """The joint model: image and text embeddings, their logits and the contrastive loss."""

    config_class = CLIPConfig
    config: CLIPConfig
    text_class = CLIPTextModel
    vision_class = CLIPVisionModel
    output_class = CLIPOutput
    projects_pooler_output = True

    @staticmethod
    def text_width(config: Any) -> int:
        return config.hidden_size

    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: HiddenStates = None,
        return_dict: bool | None = None,
    ) -> Tensor:
        """The embedding of texts.

        Args:
            input_ids, attention_mask, position_ids: as in `CLIPTextModel`.
            output_attentions, output_hidden_states, return_dict: accepted for the sake of older callers; the
                result is the same tensor.

        Returns:
            [B, projection_dim], projected, not normalised.

        Raises:
            ValueError, TypeError: an input is absent or does not fit the model.
        """
        return self.text_features(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: HiddenStates = None,
        return_dict: bool | None = None,
    ) -> CLIPOutput | tuple:
        """Embed texts and images, and compare each with each.

        Args:
            input_ids, attention_mask, position_ids: of B texts, as in `CLIPTextModel`.
            pixel_values, interpolate_pos_encoding: of N images, as in `CLIPVisionModel`.
            return_loss: adds the contrastive loss of the pairs (text i, image i); B == N.
            output_attentions, output_hidden_states: add them to the towers' outputs.
            return_dict: False gives a tuple; None is the configuration's choice.

        Returns:
            A `CLIPOutput`; its logits and sequences are computed when they are read. The towers' `pooler_output`
            is the projected embedding here, as in transformers.

        Raises:
            ValueError, TypeError: an input is absent or does not fit the model.
        """
        return self.combine(
            {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids},
            {"pixel_values": pixel_values, "interpolate_pos_encoding": interpolate_pos_encoding},
            {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states},
            return_loss,
            return_dict,
        )


def _sequence_fields(output: Any) -> dict[str, Any]:
    """The fields of a tower's output that a head passes on, unread."""
    return {
        name: dict.__getitem__(output, name)
        for name in ("last_hidden_state", "hidden_states", "attentions")
        if name in output
    }


class CLIPTextModelWithProjection(Model):
    """CLIP's text tower and its projection."""

    config_class = CLIPTextConfig
    config: CLIPTextConfig

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(config)
        self.text_model = CLIPTextModel(config)
        self.text_projection = Linear(config.hidden_size, config.projection_dim, bias=False)
        normal_(self.text_projection.weight, config.hidden_size**-0.5 * config.initializer_factor)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.text_model.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: HiddenStates = None,
        return_dict: bool | None = None,
    ) -> CLIPTextModelOutput | tuple:
        """Embed texts.

        Args:
            As in `CLIPTextModel`.

        Returns:
            text_embeds [B, projection_dim], not normalised; last_hidden_state and what was asked for.

        Raises:
            ValueError, TypeError: an input is absent or does not fit the model.
        """
        found = self.text_model(input_ids, attention_mask, position_ids, output_attentions, output_hidden_states, True)
        output = CLIPTextModelOutput(text_embeds=self.text_projection(found.pooler_output), **_sequence_fields(found))
        return output if self.return_dict(return_dict) else output.to_tuple()


class CLIPVisionModelWithProjection(Model):
    """CLIP's image tower and its projection."""

    config_class = CLIPVisionConfig
    config: CLIPVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.vision_model = CLIPVisionModel(config)
        self.visual_projection = Linear(config.hidden_size, config.projection_dim, bias=False)
        normal_(self.visual_projection.weight, config.hidden_size**-0.5 * config.initializer_factor)

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding."""
        return self.vision_model.get_input_embeddings()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: HiddenStates = None,
        return_dict: bool | None = None,
    ) -> CLIPVisionModelOutput | tuple:
        """Embed images.

        Args:
            As in `CLIPVisionModel`.

        Returns:
            image_embeds [B, projection_dim], not normalised; last_hidden_state and what was asked for.

        Raises:
            ValueError, TypeError: pixel_values is absent or does not fit the model.
        """
        found = self.vision_model(pixel_values, interpolate_pos_encoding, output_attentions, output_hidden_states, True)
        output = CLIPVisionModelOutput(
            image_embeds=self.visual_projection(found.pooler_output), **_sequence_fields(found)
        )
        return output if self.return_dict(return_dict) else output.to_tuple()


class CLIPForImageClassification(Model):
    """CLIP's image tower with a linear classifier on the mean of its patch tokens."""

    config_class = CLIPConfig
    config: CLIPConfig
    main_input_name = "pixel_values"
    new_parameters = frozenset({"classifier.weight", "classifier.bias"})

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config)
        vision = config.vision_config
        self.vision_model = CLIPVisionModel(vision)
        self.classifier = Linear(vision.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self._init_classifier()

    def _init_classifier(self) -> None:
        if isinstance(self.classifier, Linear):
            normal_(self.classifier.weight, self.classifier.in_features**-0.5 * self.config.initializer_factor)
            zeros_(self.classifier.bias)

    def init_head(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        self.classifier.to_empty(device=device or "cpu").to(dtype or self.dtype)
        self._init_classifier()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: HiddenStates = None,
        interpolate_pos_encoding: bool = False,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput | tuple:
        """Classify images.

        Args:
            pixel_values, interpolate_pos_encoding: as in `CLIPVisionModel`.
            labels: adds a loss. Classes [B] (cross-entropy), numbers [B] or [B, num_labels] (mean squares), or 0/1
                floats [B, num_labels] (binary cross-entropy), as `config.problem_type` says; where it is None
                it is inferred from `num_labels` and the dtype of the labels, and kept in the configuration.
            output_attentions, output_hidden_states: add them.
            return_dict: False gives a tuple; None is the configuration's choice.

        Returns:
            logits [B, num_labels]; loss where labels are given.

        Raises:
            ValueError, TypeError: an input is absent or does not fit the model.
        """
        found = self.vision_model(pixel_values, interpolate_pos_encoding, output_attentions, output_hidden_states, True)
        logits = self.classifier(found.last_hidden_state[:, 1:].mean(1))
        loss = None if labels is None else self._loss(logits, labels)
        states = _sequence_fields(found)
        states.pop("last_hidden_state")
        output = ImageClassifierOutput(loss=loss, logits=logits, **states)
        return output if self.return_dict(return_dict) else output.to_tuple()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        config, classes = self.config, self.config.num_labels
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels must be a Tensor, not {type(labels).__name__}")
        labels = labels.to(logits.device)
        if config.problem_type is None:
            whole = not labels.is_floating_point() and labels.dtype is not torch.bool
            config.problem_type = (
                "regression"
                if classes == 1
                else "single_label_classification"
                if whole
                else "multi_label_classification"
            )
        if config.problem_type == "single_label_classification":
            self._check_classes(labels, len(logits))
            return F.cross_entropy(logits, labels.reshape(-1).long())
        if logits.numel() != labels.numel():
            raise ValueError(
                f"labels has shape {list(labels.shape)}; {list(logits.shape)} is needed for {config.problem_type}"
            )
        labels = labels.reshape(logits.shape).to(torch.promote_types(labels.dtype, logits.dtype))
        if config.problem_type == "regression":
            return F.mse_loss(logits, labels)
        return F.binary_cross_entropy_with_logits(logits, labels)

    def _check_classes(self, labels: Tensor, count: int) -> None:
        """They are `count` classes; cross-entropy leaves out those that are -100."""
        classes = self.config.num_labels
        if labels.is_floating_point():
            raise TypeError(f"labels has dtype {str(labels.dtype).removeprefix('torch.')}; classes are integers")
        if labels.numel() != count:
            raise ValueError(f"labels has shape {list(labels.shape)}; {count} classes are needed, one an image")
        if host_can_read(labels):
            wrong = labels[((labels < 0) | (labels >= classes)) & (labels != -100)].tolist()
            if wrong:
                raise ValueError(
                    f"labels contains {wrong[0]}; classes are 0 to {classes - 1}, or -100 to leave one out"
                )
