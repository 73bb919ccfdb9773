"""CLIP's text tower: a causal transformer, pooled at the end-of-text token.

token + position -> causal pre-norm layers -> norm; pooled at the end-of-text token
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from ..config import CLIPTextConfig
from .base import normal_
from .layers import LayerNorm, embedding
from .outputs import BaseModelOutputWithPooling, then
from .text import Facts, TextTower, Tokens
from .tower import HiddenStates, init_pre_norm_layers, padded, pre_norm_layers


class CLIPTextTower(TextTower):
    """A causal encoder whose pooled output is its normalised end-of-text token."""

    config: CLIPTextConfig
    causal = True

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(config)
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.token_embedding = embedding(config.vocab_size, hidden)
        self.position_embedding = embedding(config.max_position_embeddings, hidden)
        self.layers = pre_norm_layers(config)
        self.final_norm = LayerNorm(hidden, eps)
        factor = config.initializer_factor
        normal_(self.token_embedding.weight, factor * 0.02)
        normal_(self.position_embedding.weight, factor * 0.02)
        init_pre_norm_layers(self.layers, hidden, factor)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.token_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.token_embedding = value

    def pooled(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """The pooled output alone, [B, hidden]: the cheapest way to an embedding."""
        dense = self.attention_dropout > 0
        return self.pooled_of(self._tokens(input_ids, attention_mask, position_ids, dense, True, self.device))

    def tokens(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tokens:
        """As the base class."""
        return self._tokens(input_ids, attention_mask, None, self.attention_dropout > 0, True, input_ids.device)

    def pooled_of(self, tokens: Tokens) -> Tensor:
        """As the base class: [B, hidden]."""
        x, _ = self.run_layers(self._embed(tokens), tokens.rows, self.record(False, False), pooled_only=True)
        return self.final_norm(x)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: HiddenStates = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple:
        """Encode texts.

        Args:
            input_ids: [B, S] int64 or int32, S <= max_position_embeddings; more leading dimensions are flattened.
            attention_mask: [B, S], 0 at padding; or 4-D, broadcast to [B, heads, S, S], bool or added to the
                scores, which then has to be causal itself. None looks at every earlier token.
            position_ids: [B, S] or [1, S]; counted from 0.
            output_attentions: adds `attentions`, one [B, heads, S, S] a layer.
            output_hidden_states: adds `hidden_states`, [B, S, hidden] each; True, or the indices to keep.
            return_dict: False gives a tuple; None is the configuration's choice.

        Returns:
            last_hidden_state [B, S, hidden], after the last norm, zero at padding; pooler_output [B, hidden]: of the
            first token that is `eos_token_id` (the first one of the text where there is none); of the largest id
            where `eos_token_id` is 2, as in configurations from before it was corrected.

        Raises:
            ValueError, TypeError: ids out of range, shapes that do not fit, a text with nothing but padding.
        """
        record = self.record(output_hidden_states, output_attentions)
        dense = record.weights is not None or self.attention_dropout > 0
        tokens = self._tokens(input_ids, attention_mask, position_ids, dense, False, self.device)
        rows = tokens.rows
        pooled, sequence = self.run_layers(self._embed(tokens), rows, record, pooled_only=False)
        output = BaseModelOutputWithPooling(
            last_hidden_state=padded(then(sequence, self.final_norm), rows),
            pooler_output=self.final_norm(pooled),
            **record.fields(rows),
        )
        return output if self.return_dict(return_dict) else output.to_tuple()

    def _embed(self, tokens: Tokens) -> Tensor:
        word, position = self.token_embedding.weight, self.position_embedding.weight
        return ops.text_embed(tokens.ids, tokens.positions, None, word, position, None, None, None, self.final_norm.eps)

    def _tokens(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        dense: bool,
        pooled_only: bool,
        device: torch.device,
    ) -> Tokens:
        config = self.config
        if input_ids is None:
            raise ValueError("You have to specify input_ids")
        if isinstance(input_ids, Tensor) and input_ids.dim() != 2 and input_ids.numel():
            input_ids = input_ids.reshape(-1, input_ids.shape[-1]) if input_ids.dim() else input_ids
        self.check_ids("input_ids", input_ids, device)
        batch, length = input_ids.shape
        if length > config.max_position_embeddings:
            raise ValueError(
                f"Sequence length must be less than max_position_embeddings (got `sequence length`: {length} "
                f"and max_position_embeddings: {config.max_position_embeddings}); pass truncation=True"
            )
        visible, mask = self.split_mask(attention_mask, batch, length, device)
        facts = Facts()
        facts.span("input_ids", input_ids)
        if position_ids is None:
            position_ids = torch.arange(length, device=device)[None]
        else:
            self.check_ids("position_ids", position_ids, device, batch, length)
            facts.span("position_ids", position_ids)
        rows, read = self.plan(
            batch, length, visible, mask, self._end_of_text(input_ids), facts, dense=dense, pooled_only=pooled_only
        )
        self.check_span("input_ids", read, len(self.token_embedding.weight), "the vocabulary")
        self.check_span("position_ids", read, config.max_position_embeddings, "max_position_embeddings")
        return Tokens(rows.pack(input_ids), rows.pack(position_ids.expand(batch, length)), None, rows)

    def _end_of_text(self, input_ids: Tensor) -> Tensor:
        """[B] the pooled position: of the first match, or 0."""
        eos = self.config.eos_token_id
        if eos == 2:
            match = input_ids == input_ids.amax(1, keepdim=True)
        elif isinstance(eos, list):
            match = torch.isin(input_ids, torch.tensor(eos, device=input_ids.device))
        else:
            match = input_ids == (-1 if eos is None else eos)
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        first = torch.where(match, place, input_ids.shape[1]).amin(1)
        return torch.where(first < input_ids.shape[1], first, 0)
