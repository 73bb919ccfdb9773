"""The forwards that stand in for those of transformers' modules.

A module is accelerated by a `forward` of its own, the way other libraries put hooks in: its class, parameters and
submodules stay what they are. `FusedEncoder` computes what an encoder computes, all rows of it. `FusedTower`, in a
model that compares images and texts, computes the pooled token, and the other rows when they are read. What they do
not serve goes to the forward that they stand in for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPooling,
    BaseModelOutputWithPoolingAndProjection,
)
from transformers.models.altclip import modeling_altclip as altclip
from transformers.models.clip import modeling_clip as clip
from transformers.utils.generic import can_return_tuple

from ..dispatch import use_backend
from ..models.fused import run_layers
from ..models.outputs import Lazy
from ..models.rows import Rows, packed_rows, whole_rows
from ..models.stamp import stamp
from ..models.text import host_can_read
from .outputs import late
from .stack import LAYOUTS, Stack, has_hooks, kind_of

SAME_RESULT = ("sdpa", "eager", "altclip_fast")  # implementations of attention that differ in rounding only
# Keywords of a call that are served, or that transformers' code for these implementations does not look at.
KNOWN = frozenset({"is_causal", "output_attentions", "output_hidden_states", "return_dict", "use_cache"})


class Fused:
    """Stands in for a method of `module`.

    Args:
        module: whose method it is.
        backend: forced while our own code runs, or None.
    """

    method = "forward"

    def __init__(self, module: Any, backend: str | None) -> None:
        self.module, self.backend = module, backend

    def theirs(self, *args: Any, **kwargs: Any) -> Any:
        """What transformers does."""
        return getattr(type(self.module), self.method)(self.module, *args, **kwargs)

    def ours(self) -> AbstractContextManager[None]:
        """Our own code runs in here."""
        return nullcontext() if self.backend is None else use_backend(self.backend)


class FusedEncoder(Fused):
    """All layers of an encoder, for every row of the batch.

    Args:
        module, backend: as of `Fused`.
        int8: its linears multiply 8-bit numbers, in calls that record no gradients.
    """

    _stack: Stack | None = None

    def __init__(self, module: Any, backend: str | None, int8: bool = False) -> None:
        super().__init__(module, backend)
        self.int8 = int8

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stack": None}

    @property
    def stack(self) -> Stack:
        """Our layers over the encoder as it was when `why_not` was asked last."""
        if self._stack is None:
            self._stack = Stack(self.module, self.int8)
        return self._stack

    def _refresh(self) -> None:
        """Build the layers again where modules have changed; training keeps no packed copies."""
        if not self.stack.fits():
            self._stack = Stack(self.module, self.int8)
        if self.module.training:
            self.stack.release()

    def why_not(self, asked: dict[str, Any]) -> str | None:
        """Why transformers' code runs a call with these keywords, whatever the rows are; or None."""
        config = self.module.config
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
            return "the model is being compiled, exported, traced or transformed"
        if config._attn_implementation not in SAME_RESULT:
            return f"attn_implementation is {config._attn_implementation!r}"
        if asked.get("output_attentions", config.output_attentions):
            return "attention probabilities are asked for"
        if unknown := [name for name, value in asked.items() if name not in KNOWN and value is not None]:
            return f"the call has {', '.join(unknown)}"
        if _has_any_global_hook():
            return "a hook on all modules is set"
        if type(self.module) not in LAYOUTS:
            return f"it has become a {type(self.module).__name__}"
        self._refresh()
        return self.stack.why_not()

    def why_not_rows(self, x: Tensor, mask: Tensor | None = None) -> str | None:
        """Why transformers' code runs a call with these rows, or None.

        Args:
            x: [B, S, hidden].
            mask: broadcast to [B, heads, S, S], or None.
        """
        if type(x) is not Tensor or x.dim() != 3 or (x.dtype, x.device) != self.stack.kind:
            return "the rows are not a plain tensor of the dtype and on the device of the layers"
        if x.numel() == 0:
            return "there are no rows"
        if mask is None:
            return None
        if type(mask) is not Tensor or mask.dtype not in (torch.bool, x.dtype) or mask.device != x.device:
            return "the mask is not a plain tensor of bool or of the dtype of the rows"
        full = x.shape[0], self.module.config.num_attention_heads, x.shape[1], x.shape[1]
        if mask.dim() != 4 or any(n not in (1, f) for n, f in zip(mask.shape, full, strict=True)):
            return f"the mask has shape {list(mask.shape)}"
        if not host_can_read(mask):
            return "the mask cannot be read while a graph is captured"
        blind = ~mask.any(-1) if mask.dtype is torch.bool else mask.amax(-1) <= torch.finfo(mask.dtype).min
        return "a row has nothing to attend to" if blind.any() else None

    def __call__(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if self.why_not(kwargs) is not None or self.why_not_rows(inputs_embeds, attention_mask) is not None:
            return self.theirs(inputs_embeds, attention_mask, **kwargs)
        stack, x, shape = self.stack, inputs_embeds, inputs_embeds.shape
        rows = whole_rows(shape[0], shape[1], x.device, dense=attention_mask is not None)
        rows.mask = attention_mask
        rows.causal = bool(kwargs.get("is_causal")) and self.module.config._attn_implementation != "eager"
        with self.ours():
            if not any(theirs._forward_hooks for theirs in stack.theirs):
                return BaseModelOutput(last_hidden_state=run_layers(stack.layers, x.flatten(0, 1), rows).view(shape))
            for layer, theirs in zip(stack.layers, stack.theirs, strict=True):
                before, x = x, layer(x.flatten(0, 1), rows).view(shape)
                for record in theirs._forward_hooks.values():  # transformers' own: hidden states that are asked for
                    record(theirs, (before,), x)
        return BaseModelOutput(last_hidden_state=x)


class FusedTower(Fused):
    """The pooled token of a tower, and its `last_hidden_state` when that is read."""

    output: type[Any] = BaseModelOutputWithPooling
    # The tower's modules: called on all rows; not called; the encoder, not called either; called on pooled rows.
    before: tuple[str, ...]
    around: tuple[str, ...] = ()
    inner = "encoder"
    after: tuple[str, ...]

    def pool(self, x: Tensor) -> Tensor:
        """What the tower makes of the encoder's pooled rows, [B, hidden]."""
        for name in self.after:
            x = self.module.get_submodule(name)(x)
        return x

    def sequence(self, x: Tensor) -> Tensor:
        """What it makes of all rows, [B, S, hidden]."""
        return self.pool(x)

    def encoder(self, asked: dict[str, Any]) -> FusedEncoder | None:
        """The encoder, if it takes a call with these keywords, and the pooled token is all that is asked for.

        A hook on a module that would not see what it sees in transformers is a reason to compute everything.
        """
        config, encoder = self.module.config, self.module.get_submodule(self.inner)
        fused = encoder.__dict__.get("forward")
        if not isinstance(fused, FusedEncoder) or has_hooks(encoder):
            return None
        if any(kind_of(self.module.get_submodule(name)) == "hooked" for name in (*self.around, *self.after)):
            return None
        if asked.get("output_hidden_states", config.output_hidden_states):
            return None
        if not (config.return_dict and asked.get("return_dict", True)):
            return None
        return fused if fused.why_not(asked) is None else None

    def finish(self, encoder: FusedEncoder, x: Tensor, rows: Rows, again: Callable[[], Any]) -> Any:
        """The output.

        Args:
            x: [B, S, hidden], the embedded rows.
            again: transformers' output, for when `rows` are not all of them.
        """
        stack, shape = encoder.stack, x.shape
        *body, last = stack.layers
        with self.ours():
            x = rows.pack(x)
            x = run_layers(body, x, rows)
            pooled = run_layers([last], x, rows, rows.pooled)
            if rows.index is None:
                rest = Lazy(lambda: self.sequence(last(x, rows).view(shape)))
            else:
                rest = Lazy(lambda: again().last_hidden_state)
        return late(self.output(pooler_output=self.pool(pooled)), self._while_unchanged(stack, rest))

    def _while_unchanged(self, stack: Stack, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        outer = [self.module.get_submodule(name) for name in (*self.before, *self.after)]

        def now() -> tuple:
            return stamp((*stack.parameters(), *(p for module in outer for p in module.parameters())))

        before, device = now(), stack.device.type

        def checked() -> Tensor:
            if not stack.fits() or now() != before:
                raise RuntimeError("last_hidden_state was not read before the model changed; read it first")
            with torch.autocast(device, enabled=False):
                return compute()

        return checked


class FusedVision(FusedTower):
    """Of CLIP and AltCLIP; pooled at the class token."""

    before = ("embeddings", "pre_layrnorm")
    after = ("post_layernorm",)

    def sequence(self, x: Tensor) -> Tensor:
        return x

    def __call__(
        self, pixel_values: Tensor | None = None, interpolate_pos_encoding: bool | None = False, **kwargs: Any
    ) -> Any:
        def again() -> Any:
            return self.theirs(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)

        encoder, module = self.encoder(kwargs), self.module
        if encoder is None:
            return again()
        x = module.pre_layrnorm(module.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding))
        if encoder.why_not_rows(x) is not None:
            return again()
        return self.finish(encoder, x, whole_rows(x.shape[0], x.shape[1], x.device), again)


class FusedText(FusedTower):
    """Of the tokens that the pooled ones depend on."""

    causal: bool

    def pooled_at(self, input_ids: Tensor) -> Tensor:
        """[B], the place of the pooled token."""
        raise NotImplementedError

    def embed(self, input_ids: Tensor, **more: Any) -> Tensor:
        """[B, S, hidden]"""
        return self.module.get_submodule(self.before[0])(input_ids=input_ids, **more)

    def run(self, asked: dict[str, Any], input_ids: Any, attention_mask: Any, **more: Any) -> Any:
        """The output for these tensors, or None, and keywords."""
        encoder = self.encoder(asked)
        rows = None if encoder is None else self._plan(input_ids, attention_mask)
        if encoder is not None and rows is not None:
            x = self.embed(input_ids, **more)
            if encoder.why_not_rows(x) is None:
                given = {"input_ids": input_ids, "attention_mask": attention_mask, **more}
                kept = {name: None if value is None else value.clone() for name, value in given.items()}
                return self.finish(encoder, x, rows, lambda: self.theirs(**kept))
        return self.theirs(input_ids=input_ids, attention_mask=attention_mask, **more, **asked)

    def _plan(self, ids: Any, mask: Any) -> Rows | None:
        """The rows to compute, or None where the pooled tokens are masked out, or the inputs are not plain."""
        if any(type(t) is not Tensor or t.dim() != 2 for t in (ids, *([] if mask is None else [mask]))):
            return None
        if not (ids.numel() and host_can_read(ids)):
            return None
        if mask is not None and (mask.shape != ids.shape or mask.device != ids.device):
            return None
        pooled = self.pooled_at(ids)
        visible = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
        if self.causal:
            visible = visible & (torch.arange(ids.shape[1], device=ids.device) <= pooled[:, None])
        *lengths, shown = torch.cat([visible.sum(1), visible.gather(1, pooled[:, None]).sum(0)]).tolist()
        return packed_rows(visible, pooled, lengths, self.causal, True) if shown == len(pooled) else None


class FusedCLIPText(FusedText):
    """Of CLIP; causal, pooled at the end of the text."""

    before = ("embeddings",)
    after = ("final_layer_norm",)
    causal = True

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        return self.run(kwargs, input_ids, attention_mask, position_ids=position_ids)

    def pooled_at(self, input_ids: Tensor) -> Tensor:
        ids, eos = input_ids.to(torch.int), self.module.eos_token_id
        return (ids if eos == 2 else (ids == eos).int()).argmax(-1)  # as in transformers


class FusedAltCLIPText(FusedText):
    """Of AltCLIP; pooled at the first token."""

    output = BaseModelOutputWithPoolingAndProjection
    before = ("roberta.embeddings",)
    around = ("roberta",)
    inner = "roberta.encoder"
    after = ("pre_LN", "transformation")
    causal = False

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if inputs_embeds is not None:
            kwargs["inputs_embeds"] = inputs_embeds  # not a keyword that the encoder knows
        return self.run(kwargs, input_ids, attention_mask, token_type_ids=token_type_ids, position_ids=position_ids)

    def pooled_at(self, input_ids: Tensor) -> Tensor:
        return torch.zeros_like(input_ids[:, 0], dtype=torch.long)


class FusedTextFeatures(Fused):
    """AltCLIPModel.get_text_features, which reads all of last_hidden_state for its first row: the pooler_output."""

    method = "get_text_features"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _text_features(self.module, *args, **kwargs)


@can_return_tuple
def _text_features(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, "position_ids": position_ids}
    outputs = model.text_model(input_ids=input_ids, **given, **kwargs)
    outputs.pooler_output = model.text_projection(outputs.pooler_output)
    return outputs


class Replicated(Fused):
    """The replicas that `nn.DataParallel` makes: without our attributes, which are bound to the module itself."""

    method = "_replicate_for_data_parallel"

    def __call__(self) -> Any:
        replica = self.theirs()
        for name in METHODS:
            replica.__dict__.pop(name, None)
        return replica


METHODS = ("forward", "get_text_features", Replicated.method)
TOWERS: dict[type[nn.Module], type[FusedTower]] = {
    clip.CLIPVisionModel: FusedVision,
    clip.CLIPTextModel: FusedCLIPText,
    altclip.AltCLIPVisionModel: FusedVision,
    altclip.AltCLIPTextModel: FusedAltCLIPText,
}


def stand_ins(module: nn.Module, backend: str | None, int8: bool) -> Iterator[Fused]:
    """What can stand in for methods of this module, or of its towers where it compares images and texts.

    A forward that somebody else has put in stays.
    """
    found: list[Fused] = []
    if type(module) in LAYOUTS:
        found.append(FusedEncoder(module, backend, int8))
    if isinstance(module, clip.CLIPModel | altclip.AltCLIPModel):
        towers = (module.text_model, module.vision_model)
        found += [TOWERS[type(tower)](tower, backend) for tower in towers if type(tower) in TOWERS]
    if type(module) is altclip.AltCLIPModel:
        found.append(FusedTextFeatures(module, backend))
    for fused in found:
        if isinstance(fused.module.__dict__.get(fused.method, fused), Fused):
            yield fused
            yield Replicated(fused.module, None)
