"""AltCLIP's text tower: XLM-R (Conneau et al., arXiv 1911.02116), then a norm and a projection to the teacher's width.

word + token type + position -> norm -> post-norm layers -> norm -> projection; pooled at the first token
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..config import AltCLIPTextConfig
from .base import normal_, zeros_
from .layers import LayerNorm, Linear, PostNormLayer, embedding
from .outputs import BaseModelOutputWithPoolingAndProjection, then
from .text import Facts, TextTower, Tokens
from .tower import HiddenStates, padded


class XLMRobertaTower(TextTower):
    """A bidirectional encoder whose pooled output is its projected first token."""

    config: AltCLIPTextConfig
    causal = False

    def __init__(self, config: AltCLIPTextConfig) -> None:
        super().__init__(config)
        hidden, eps, pad = config.hidden_size, config.layer_norm_eps, self.padding
        self.word_embedding = embedding(config.vocab_size, hidden, pad)
        self.position_embedding = embedding(config.max_position_embeddings, hidden, pad)
        self.token_type_embedding = embedding(config.type_vocab_size, hidden)
        self.embedding_norm = LayerNorm(hidden, eps)
        self.layers = nn.ModuleList(
            PostNormLayer(
                hidden,
                config.num_attention_heads,
                config.intermediate_size,
                config.hidden_act,
                eps,
                config.attention_probs_dropout_prob,
                config.hidden_dropout_prob,
                config.chunk_size_feed_forward,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.final_norm = LayerNorm(hidden, eps)
        self.projection = Linear(hidden, config.project_dim)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, Linear):
                normal_(module.weight, self.config.initializer_range)
                zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                normal_(module.weight, self.config.initializer_range)
                if module.padding_idx is not None:
                    with torch.no_grad():
                        module.weight[module.padding_idx].zero_()

    @property
    def max_tokens(self) -> int:
        return self.config.max_position_embeddings - self.padding - 1  # positions count from padding + 1

    @property
    def padding(self) -> int:
        """The id of the padding token."""
        pad = self.config.pad_token_id
        if pad is None:
            raise ValueError("pad_token_id is None; XLM-R counts its positions from it, so an id is needed")
        return pad

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embedding."""
        return self.word_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding."""
        self.word_embedding = value

    def pooled(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """The pooled output alone, [B, project_dim]: the cheapest way to an embedding."""
        dense = self.attention_dropout > 0
        given = input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        return self._pooled(*self._tokens(*given, dense, True, self.device))

    def tokens(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tokens:
        """As the base class."""
        dense = self.attention_dropout > 0
        return self._tokens(input_ids, attention_mask, None, None, None, dense, True, input_ids.device)[0]

    def pooled_of(self, tokens: Tokens) -> Tensor:
        """As the base class: [B, project_dim]."""
        return self._pooled(tokens, None)

    def _pooled(self, tokens: Tokens, given: Tensor | None) -> Tensor:
        x, _ = self.run_layers(self._embed(tokens, given), tokens.rows, self.record(False, False), pooled_only=True)
        return self._project(x)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        output_hidden_states: HiddenStates = None,
    ) -> BaseModelOutputWithPoolingAndProjection | tuple:
        """Encode texts.

        Args:
            input_ids: [B, S] int64 or int32; or else `inputs_embeds`: [B, S, hidden].
            attention_mask: [B, S], 0 at padding; or 4-D, broadcast to [B, heads, S, S], bool or added to the
                scores. None looks at every token, padding too.
            token_type_ids, position_ids: [B, S] or [1, S]; zeros, and counted from the input ids.
            output_attentions: adds `attentions`, one [B, heads, S, S] a layer.
            output_hidden_states: adds `hidden_states`, [B, S, hidden] each; True, or the indices to keep.
            return_dict: False gives a tuple; None is the configuration's choice.

        Returns:
            last_hidden_state [B, S, project_dim], zero at padding; pooler_output [B, project_dim].

        Raises:
            ValueError, TypeError: ids out of range, shapes that do not fit, a text with nothing but padding.
        """
        record = self.record(output_hidden_states, output_attentions)
        dense = record.weights is not None or self.attention_dropout > 0
        given = input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        tokens, embeds = self._tokens(*given, dense, False, self.device)
        rows = tokens.rows
        pooled, sequence = self.run_layers(self._embed(tokens, embeds), rows, record, pooled_only=False)
        output = BaseModelOutputWithPoolingAndProjection(
            last_hidden_state=padded(then(sequence, self._project), rows),
            pooler_output=self._project(pooled),
            **record.fields(rows),
        )
        return output if self.return_dict(return_dict) else output.to_tuple()

    def _project(self, x: Tensor) -> Tensor:
        return self.projection(self.final_norm(x))

    def _embed(self, tokens: Tokens, given: Tensor | None) -> Tensor:
        assert tokens.types is not None
        x = ops.text_embed(
            tokens.ids,
            tokens.positions,
            tokens.types,
            self.word_embedding.weight if given is None else given,
            self.position_embedding.weight,
            self.token_type_embedding.weight,
            self.embedding_norm.weight,
            self.embedding_norm.bias,
            self.embedding_norm.eps,
            self.padding if given is None else None,
        )
        return F.dropout(x, self.config.hidden_dropout_prob, self.training)

    def _tokens(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        dense: bool,
        pooled_only: bool,
        device: torch.device,
    ) -> tuple[Tokens, Tensor | None]:
        """The tokens, and the caller's own word embeddings, a table [B * S, hidden] that their ids count through."""
        config, pad = self.config, self.padding
        batch, length = self._check(input_ids, inputs_embeds, device)
        visible, mask = self.split_mask(attention_mask, batch, length, device)
        facts = Facts()
        for name, ids in (("token_type_ids", token_type_ids), ("position_ids", position_ids)):
            if ids is not None:
                self.check_ids(name, ids, device, batch, length)
                facts.span(name, ids)
        facts.span("input_ids", input_ids)
        if input_ids is not None and input_ids.numel():
            facts.add("tokens", (input_ids != pad).sum(1))
        counted = position_ids is None
        if position_ids is None:
            position_ids = self._positions(input_ids, batch, length)
        pooled = torch.zeros(batch, dtype=torch.long, device=device)
        rows, read = self.plan(batch, length, visible, mask, pooled, facts, dense=dense, pooled_only=pooled_only)
        self.check_span("input_ids", read, len(self.word_embedding.weight), "the vocabulary")
        self.check_span("token_type_ids", read, config.type_vocab_size, "type_vocab_size")
        self.check_span("position_ids", read, config.max_position_embeddings, "max_position_embeddings")
        self._check_lengths(read.get("tokens") or ([] if inputs_embeds is None else [length]), counted)

        ids, given = input_ids, None
        if inputs_embeds is not None:
            given = inputs_embeds.flatten(0, 1).to(self.word_embedding.weight.dtype)
            ids = torch.arange(batch * length, device=device).view(batch, length)
        assert ids is not None
        types = token_type_ids if token_type_ids is not None else torch.zeros_like(position_ids)
        positions, types = (rows.pack(x.expand(batch, length)) for x in (position_ids, types))
        return Tokens(rows.pack(ids), positions, types, rows), given

    def _positions(self, input_ids: Tensor | None, batch: int, length: int) -> Tensor:
        """Positions count the tokens that are not padding, from pad + 1; padding is at pad."""
        pad = self.padding
        if input_ids is None:
            return torch.arange(pad + 1, length + pad + 1, device=self.device).expand(batch, length)
        real = input_ids != pad
        return real.cumsum(1) * real + pad

    def _check(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, device: torch.device) -> tuple[int, int]:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if input_ids is not None:
            self.check_ids("input_ids", input_ids, device)
            return input_ids.shape[0], input_ids.shape[1]
        assert inputs_embeds is not None
        self.check_tensor("inputs_embeds", inputs_embeds, device)
        if not inputs_embeds.is_floating_point():
            raise TypeError(
                f"inputs_embeds has dtype {str(inputs_embeds.dtype).removeprefix('torch.')}; a floating one is needed"
            )
        if inputs_embeds.dim() != 3 or inputs_embeds.shape[2] != self.config.hidden_size or inputs_embeds.shape[1] == 0:
            raise ValueError(
                f"inputs_embeds has shape {list(inputs_embeds.shape)}; "
                f"[batch, length, {self.config.hidden_size}] is needed"
            )
        return inputs_embeds.shape[0], inputs_embeds.shape[1]

    def _check_lengths(self, tokens: list[int], counted: bool) -> None:
        limit = self.max_tokens
        for row, count in enumerate(tokens):
            if count == 0:
                raise ValueError(
                    f"input_ids of text {row} are all padding (id {self.padding}): a text needs at least one token"
                )
            if counted and count > limit:
                raise ValueError(f"text {row} has {count} tokens; the model takes {limit}: pass truncation=True")
