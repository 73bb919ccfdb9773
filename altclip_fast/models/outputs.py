"""What the models return: mappings with attribute, key and index access, whose fields may be computed late.

A field that holds a `Lazy` is computed when it is first read, and then kept. Every way of reading (attribute, key,
index, iteration over values, `to_tuple`, pickle, pytree) gives plain tensors. Absent (None) fields have a None
attribute, and do not count for keys, indices and tuples, as in transformers' ModelOutput.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch.utils import _pytree as pytree

from ..dispatch import forced_backend, use_backend


class Lazy:
    """A value to be computed later, under the grad mode and the forced backend of now."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute = compute
        self._grad = torch.is_grad_enabled()
        self._inference = torch.is_inference_mode_enabled()
        self._forced = forced_backend()

    def __call__(self) -> Any:
        with torch.inference_mode(self._inference), torch.set_grad_enabled(self._grad):
            if self._forced is None:
                return self._compute()
            with use_backend(self._forced):
                return self._compute()


def later(compute: Callable[[], Any]) -> Any:
    """`compute`, to be called when it is needed; at once where the surroundings would be lost until then."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _any_autocast():
        return compute()
    return Lazy(compute)


def then(value: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of a value, late where the value itself is."""
    return Lazy(lambda: function(value())) if isinstance(value, Lazy) else function(value)


def _any_autocast() -> bool:
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


class ModelOutput(dict):
    """Base of the outputs; `fields` gives the names in the order of indices."""

    fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *pairs: Any, **values: Any) -> None:
        values = {**dict(*pairs), **values}
        if unknown := values.keys() - set(self.fields):
            raise TypeError(
                f"{type(self).__name__} has no field {sorted(unknown)[0]!r}; it has {', '.join(self.fields)}"
            )
        super().__init__((name, values[name]) for name in self.fields if values.get(name) is not None)

    def __init_subclass__(cls) -> None:
        pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), tuple(output)),
            lambda values, names: cls(zip(names, values, strict=True)),
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        )

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key] if isinstance(key, slice) else self[list(self)[key]]
        value = super().__getitem__(key)
        if isinstance(value, Lazy):
            value = value()
            super().__setitem__(key, value)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self.fields:
            raise KeyError(f"{type(self).__name__} has no field {key!r}; it has {', '.join(self.fields)}")
        kept = {**{name: dict.__getitem__(self, name) for name in self}, key: value}
        self.clear()
        super().update((name, kept[name]) for name in self.fields if kept.get(name) is not None)

    def __getattr__(self, name: str) -> Any:
        if name in type(self).fields:
            return self.get(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self.keys() else default

    def _refuse(self, *args: Any, **values: Any) -> Any:
        raise TypeError(f"a {type(self).__name__} keeps its fields: set one, or change dict(output)")

    pop = popitem = setdefault = update = _refuse

    def values(self) -> Any:
        return [self[name] for name in self]

    def items(self) -> Any:
        return [(name, self[name]) for name in self]

    def to_tuple(self) -> tuple:
        """The present fields in order; outputs inside become tuples too."""
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())

    def copy(self) -> ModelOutput:
        return type(self)(self.items())

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    def __reduce__(self) -> tuple:
        return type(self), (self.items(),)

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.items())
        return f"{type(self).__name__}({inside})"


class BaseModelOutputWithPooling(ModelOutput):
    """Of a tower.

    last_hidden_state [B, S, H]; pooler_output [B, D]; hidden_states: layers + 1 tensors [B, S, H];
    attentions: one [B, heads, S, S] a layer.
    """

    fields = ("last_hidden_state", "pooler_output", "hidden_states", "attentions")


class BaseModelOutputWithPoolingAndProjection(ModelOutput):
    """Of AltCLIP's text tower; its last_hidden_state is the projected one [B, S, project_dim]."""

    fields = ("last_hidden_state", "pooler_output", "hidden_states", "attentions", "projection_state")


class CLIPTextModelOutput(ModelOutput):
    """text_embeds [B, projection_dim], not normalised; the rest as in BaseModelOutputWithPooling."""

    fields = ("text_embeds", "last_hidden_state", "hidden_states", "attentions")


class CLIPVisionModelOutput(ModelOutput):
    """image_embeds [B, projection_dim], not normalised; the rest as in BaseModelOutputWithPooling."""

    fields = ("image_embeds", "last_hidden_state", "hidden_states", "attentions")


class CLIPOutput(ModelOutput):
    """Of the joint model.

    loss: scalar; logits_per_image [images, texts], logits_per_text [texts, images]; text_embeds, image_embeds
    [B, projection_dim], of length 1; text_model_output, vision_model_output: of the towers.
    """

    fields = (
        "loss",
        "logits_per_image",
        "logits_per_text",
        "text_embeds",
        "image_embeds",
        "text_model_output",
        "vision_model_output",
    )


class AltCLIPOutput(ModelOutput):
    """As CLIPOutput."""

    fields = CLIPOutput.fields


class ImageClassifierOutput(ModelOutput):
    """loss: scalar; logits [B, num_labels]; hidden_states, attentions of the vision tower."""

    fields = ("loss", "logits", "hidden_states", "attentions")
