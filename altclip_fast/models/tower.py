"""A stack of layers between an embedding and a pooled token; what the three towers share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import AltCLIPVisionConfig, CLIPTextConfig, CLIPVisionConfig
from .base import Model, normal_, zeros_
from .fused import run_layers
from .layers import PostNormLayer, PreNormLayer
from .outputs import Lazy, later
from .rows import Rows
from .stamp import stamp

HiddenStates = bool | int | Sequence[int] | None


class Record:
    """The hidden states and attentions that a caller asked for.

    Args:
        hidden: True for all, False, 0 or None for none, an index or indices (negative ones count from the end;
            the others are None in the result).
        attentions: whether to keep the probabilities.
        layers: number of layers; there is one hidden state more.
    """

    def __init__(self, hidden: HiddenStates, attentions: bool | None, layers: int) -> None:
        count = layers + 1
        wanted: Sequence[int] = range(count) if hidden is True else _indices(hidden) if hidden else ()
        for i in wanted:
            if isinstance(i, bool) or not isinstance(i, int):
                raise TypeError(f"output_hidden_states is {hidden!r}; a bool, an int or a list of ints is needed")
        self.wanted = {i % count for i in wanted if -count <= i < count}
        self.states: list[Tensor | None] | None = [] if hidden else None
        self.weights: list[Tensor] | None = [] if attentions else None

    def hidden(self, x: Tensor) -> None:
        if self.states is not None:
            self.states.append(x if len(self.states) in self.wanted else None)

    @property
    def empty(self) -> bool:
        return self.states is None and self.weights is None

    def fields(self, rows: Rows) -> dict[str, Any]:
        """The output fields, padded; hidden states when they are read."""
        fields: dict[str, Any] = {}
        if (states := self.states) is not None:
            fields["hidden_states"] = later(lambda: tuple(None if x is None else rows.unpack(x) for x in states))
        if self.weights is not None:
            fields["attentions"] = tuple(self.weights)
        return fields


class Tower(Model):
    """Base of the encoders: `layers`, run over packed rows."""

    layers: nn.ModuleList

    @property
    def attention_dropout(self) -> float:
        """Of the probabilities, in training; then the batch stays padded."""
        layer = self.layers[0]
        assert isinstance(layer, PreNormLayer | PostNormLayer)
        return layer.attention.dropout if self.training else 0.0

    def record(self, hidden: HiddenStates, attentions: bool | None) -> Record:
        """What a caller asked for; None is the configuration's choice."""
        config = self.config
        hidden = config.output_hidden_states if hidden is None else hidden
        attentions = config.output_attentions if attentions is None else attentions
        return Record(hidden, attentions, len(self.layers))

    def run_layers(self, x: Tensor, rows: Rows, record: Record, pooled_only: bool) -> tuple[Tensor, Any]:
        """All layers.

        When nobody needs the other rows (`pooled_only`), or may ask for them later at the same cost, the last
        layer computes the pooled rows alone: 3.5 % of the work of ViT-L/14, 6.6 % of ViT-B/32.

        Args:
            x: [T, hidden], the embedded rows.

        Returns:
            The pooled rows [B, hidden], and all rows [T, hidden], as they are or still to be computed (`Lazy`).
        """
        record.hidden(x)
        revisable = not (torch.is_grad_enabled() or self.training or torch.compiler.is_compiling())
        if rows.cu_seqlens is None or not (rows.pooled_last and record.empty and (pooled_only or revisable)):
            x = self._through(self.layers, x, rows, record)
            return x[rows.pooled], x
        if pooled_only:
            return self._through(self.layers, x, rows, record, rows.pooled), None
        *body, last = self.layers
        x = self._through(body, x, rows, record)
        after = [child for child in self.children() if child is not self.layers]
        return self._through([last], x, rows, record, rows.pooled), later(_guarded(last, after, x, rows))

    def _through(
        self, layers: Iterable[Any], x: Tensor, rows: Rows, record: Record, select: Tensor | None = None
    ) -> Tensor:
        layers = list(layers)
        if record.empty and not self._checkpoints:
            return run_layers(layers, x, rows, select)
        for count, layer in enumerate(layers, 1):
            chosen = select if count == len(layers) else None
            x = self._run(layer, x, rows, select=chosen, weights=record.weights)
            record.hidden(x)
        return x

    @property
    def _checkpoints(self) -> bool:
        return self._checkpoint_options is not None and self.training and torch.is_grad_enabled()

    def _run(self, layer: nn.Module, x: Tensor, rows: Rows, **options: Any) -> Tensor:
        if self._checkpoints:
            run = partial(layer, rows=rows, **options)  # the reentrant form takes no keywords
            return checkpoint(run, x, **{"use_reentrant": False, **(self._checkpoint_options or {})})
        return layer(x, rows, **options)


def _indices(hidden: int | Sequence[int]) -> Sequence[int]:
    return hidden if isinstance(hidden, Sequence) else (hidden,)


def padded(sequence: Tensor | Lazy, rows: Rows) -> Tensor | Lazy:
    """The rows [T, H] as [B, S, H], when they are read."""
    return later(lambda: rows.unpack(sequence() if isinstance(sequence, Lazy) else sequence))


def _guarded(layer: nn.Module, after: list[nn.Module], x: Tensor, rows: Rows) -> Any:
    """The layer's full output, later; refused when its weights, or those of what comes after, have changed by then."""

    def now() -> tuple:
        return stamp(p for module in (layer, *after) for p in module.parameters())

    before = now()

    def compute() -> Tensor:
        if now() != before:
            raise RuntimeError("last_hidden_state was not read before the model's parameters changed; read it first")
        return layer(x, rows)

    return compute


def pre_norm_layers(config: CLIPTextConfig | CLIPVisionConfig | AltCLIPVisionConfig) -> nn.ModuleList:
    """The layers of a CLIP tower, to be initialised by `init_pre_norm_layers`."""
    return nn.ModuleList(
        PreNormLayer(
            config.hidden_size,
            config.num_attention_heads,
            config.intermediate_size,
            config.hidden_act,
            config.layer_norm_eps,
            config.attention_dropout,
        )
        for _ in range(config.num_hidden_layers)
    )


def init_pre_norm_layers(layers: nn.ModuleList, hidden: int, factor: float) -> None:
    """The initialisation of CLIP: residual branches start smaller with depth."""
    inner = hidden**-0.5 * (2 * len(layers)) ** -0.5 * factor
    for layer in layers:
        assert isinstance(layer, PreNormLayer)
        attention, mlp = layer.attention, layer.mlp
        for linear in (attention.query, attention.key, attention.value):
            normal_(linear.weight, inner)
        normal_(attention.output.weight, hidden**-0.5 * factor)
        normal_(mlp.fc1.weight, (2 * hidden) ** -0.5 * factor)
        normal_(mlp.fc2.weight, inner)
        zeros_(*(p for name, p in layer.named_parameters() if name.endswith("bias")))
