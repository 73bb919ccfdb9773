"""The layers of a transformers encoder as ours, over the very same parameters.

A module of ours takes the `_parameters` dictionary of the module that it stands for. So whatever changes a parameter
of the model (an optimiser, `load_state_dict`, `to`, assigning `p.data`) changes it here, and nothing is copied but
what `layers.Linear` packs. A linear layer that was replaced (LoRA, quantisation) is called as it is. Any other change
of the encoder's modules, and any hook on them, is a refusal: then transformers' code runs.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import activations
from transformers.models.altclip import modeling_altclip as altclip
from transformers.models.clip import modeling_clip as clip
from transformers.utils import output_capturing

from ..models.layers import Linear, PostNormLayer, PreNormLayer
from ..ops.int8 import why_not


class Layout(NamedTuple):
    """How a layer of theirs corresponds to one of ours."""

    layer: type[nn.Module]
    ours: type[PreNormLayer] | type[PostNormLayer]
    options: dict[str, Any]  # of `ours`
    parts: dict[str, str]  # our modules that hold parameters, and theirs
    activation: str
    attention: str
    head_dim: str  # attributes of `attention`
    scale: str
    dropout: str


_PRE_NORM = {
    "norm1": "layer_norm1",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_POST_NORM = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm2": "output.LayerNorm",
}
_PRE_NORM_NAMES = "mlp.activation_fn", "self_attn", "head_dim", "scale", "dropout"
_POST_NORM_NAMES = (
    "intermediate.intermediate_act_fn",
    "attention.self",
    "attention_head_size",
    "scaling",
    "attention_dropout",
)
LAYOUTS: dict[type[nn.Module], Layout] = {
    clip.CLIPEncoder: Layout(clip.CLIPEncoderLayer, PreNormLayer, {}, _PRE_NORM, *_PRE_NORM_NAMES),
    altclip.AltCLIPEncoder: Layout(altclip.AltCLIPEncoderLayer, PreNormLayer, {}, _PRE_NORM, *_PRE_NORM_NAMES),
    altclip.AltRobertaEncoder: Layout(
        altclip.AltRobertaLayer,
        PostNormLayer,
        {"hidden_dropout": 0.0, "chunk_size": 0},
        _POST_NORM,
        *_POST_NORM_NAMES,
    ),
}
ACTIVATIONS: dict[type[nn.Module], str] = {
    activations.QuickGELUActivation: "quick_gelu",
    activations.GELUActivation: "gelu",
    activations.NewGELUActivation: "gelu_new",
    activations.SiLUActivation: "silu",
    nn.SiLU: "silu",
    nn.ReLU: "relu",
    nn.SELU: "selu",
}


RECORDING = output_capturing.__name__  # where the hooks come from by which transformers records outputs


class _Place(NamedTuple):
    """Where a module of theirs was found, and what it was then."""

    siblings: dict[str, nn.Module | None]
    name: str
    module: nn.Module
    was: tuple[type[nn.Module], int, str]

    def unchanged(self) -> bool:
        return self.siblings.get(self.name) is self.module and _nature(self.module) == self.was


class _Setting(NamedTuple):
    """An attribute of a module of theirs, and its value when it was read."""

    module: nn.Module
    name: str
    value: Any

    def unchanged(self) -> bool:
        return self.module.__dict__.get(self.name) == self.value


class _Refusal(Exception):
    """Our layers cannot stand for these; the message says why."""


class Stack:
    """Our layers over the parameters of a transformers encoder, as its modules are now.

    Args:
        encoder: an instance of a class in `LAYOUTS`.
        int8: the packed copies of its linears are of 8-bit numbers.

    Attributes:
        layers: to be called one after the other, always in evaluation mode.
        theirs: the layers that these stand for.
        as_is: linear layers of theirs that are called as they are, by their name in the encoder.
        refusal: why there are no layers, or None.
    """

    def __init__(self, encoder: nn.Module, int8: bool = False) -> None:
        self.layers: list[PreNormLayer | PostNormLayer] = []
        self.theirs: list[nn.Module] = []
        self.as_is: dict[str, nn.Module] = {}
        self.refusal: str | None = None
        self._order: dict[str, Any] = encoder.get_submodule("layers")._modules
        self._count = len(self._order)
        self._places: list[_Place] = []
        self._settings: list[_Setting] = []
        self._owned: list[dict[str, nn.Parameter | None]] = []
        self._linears: list[Linear] = []
        self._dropouts: list[tuple[nn.Module, str]] = []
        layout = LAYOUTS[type(encoder)]
        with torch.device("meta"):
            built = layout.layer(encoder.config)  # as transformers builds it: what differs was replaced
        try:
            for index in self._order:
                found = self._find(index, built)
                self.layers.append(self._over(found, layout, encoder.config))
                self.theirs.append(found[""])
        except _Refusal as reason:
            self.refusal = str(reason)
        self._built_for = self.kind
        self._int8 = int8
        for linear in self._linears:
            linear.packs_int8 = int8

    def fits(self) -> bool:
        """The encoder's modules are still what this was built from, in the same dtype and place."""
        return (
            len(self._order) == self._count
            and all(place.unchanged() for place in self._places)
            and all(setting.unchanged() for setting in self._settings)
            and self.kind == self._built_for
        )

    def why_not(self) -> str | None:
        """Why a call cannot be served now, whatever it asks for; or None."""
        if self.refusal is not None:
            return self.refusal
        if any(module.training and getattr(module, name) > 0 for module, name in self._dropouts):
            return "dropout is active: the model is being trained"
        if any(layer.training and layer.gradient_checkpointing for layer in self.theirs):
            return "activation checkpointing is on"
        kinds = {(p.dtype, p.device) for owned in self._owned for p in owned.values() if p is not None}
        if len(kinds) != 1:
            return "its parameters have several dtypes or devices"
        if self.device.type == "meta":
            return "its parameters are on the meta device"
        if self._int8 and (reason := self.why_not_int8()) is not None:
            return reason
        if torch.is_autocast_enabled(self.device.type):
            return "autocast is on, and chooses the dtypes of transformers' operations"
        return None

    def why_not_int8(self) -> str | None:
        """Why the linears cannot multiply 8-bit numbers here, or None."""
        if self.device.type != "cpu":
            return f"quantization='int8' runs on the CPU, and its parameters are on {self.device}"
        reasons = (why_not(linear.in_features) for linear in self._linears)
        return next((f"quantization='int8' cannot be used: {reason}" for reason in reasons if reason), None)

    @property
    def kind(self) -> tuple[torch.dtype, torch.device] | None:
        """The dtype and the device of the parameters, where `why_not` finds no fault."""
        weight = self._owned[0]["weight"] if self._owned else None
        return None if weight is None else (weight.dtype, weight.device)

    @property
    def device(self) -> torch.device:
        """Of the parameters; meta where there are none."""
        return torch.device("meta") if self.kind is None else self.kind[1]

    def parameters(self) -> list[nn.Parameter]:
        """All parameters of the encoder's layers."""
        own = [p for owned in self._owned for p in owned.values() if p is not None]
        return own + [p for module in self.as_is.values() for p in module.parameters()]

    def release(self) -> None:
        """Drop the packed copies of the weights."""
        for linear in self._linears:
            linear.train()

    def _find(self, index: str, built: nn.Module) -> dict[str, nn.Module]:
        """The modules of one layer of theirs, by name."""
        found: dict[str, nn.Module] = {}
        for name, expected in built.named_modules():
            parent, _, child = name.rpartition(".")
            siblings, key = (found[parent]._modules, child) if name else (self._order, index)
            path = f"layers.{index}.{name}".rstrip(".")
            module = siblings.get(key)
            if module is None:
                raise _Refusal(f"{path} is missing")
            nature = _nature(module)
            self._places.append(_Place(siblings, key, module, nature))
            if nature[-1] == "hooked":
                raise _Refusal(f"{path} has hooks, or a forward of its own")
            if nature != _nature(expected):
                if type(expected) is not nn.Linear:
                    raise _Refusal(f"{path} is not the {type(expected).__name__} that transformers makes")
                self.as_is[path] = module
            found[name] = module
        return found

    def _over(self, found: dict[str, nn.Module], layout: Layout, config: Any) -> PreNormLayer | PostNormLayer:
        """Our layer over these modules."""
        activation = ACTIVATIONS.get(type(found[layout.activation]))
        if activation is None:
            raise _Refusal(f"the activation {type(found[layout.activation]).__name__} is not fused")
        if self._read(found[""], "chunk_size_feed_forward"):
            raise _Refusal("chunk_size_feed_forward is set")
        attention = found[layout.attention]
        if self._read(attention, "is_causal"):
            raise _Refusal("is_causal is set")
        heads = config.hidden_size // self._read(attention, layout.head_dim)
        sizes = config.hidden_size, heads, config.intermediate_size
        with torch.device("meta"):
            ours = layout.ours(*sizes, activation, config.layer_norm_eps, 0.0, **layout.options)
        ours.attention.scale = self._read(attention, layout.scale)
        replaced = set(self.as_is.values())
        for part, name in layout.parts.items():
            mine, theirs = ours.get_submodule(part), found[name]
            if theirs in replaced:
                parent, _, child = part.rpartition(".")
                setattr(ours.get_submodule(parent), child, theirs)
                continue
            mine.__dict__["_parameters"] = theirs._parameters
            self._owned.append(theirs._parameters)
            if isinstance(mine, Linear):
                self._linears.append(mine)
            else:
                mine.eps = self._read(theirs, "eps")
        self._dropouts.append((attention, layout.dropout))
        self._dropouts += [(module, "p") for module in found.values() if isinstance(module, nn.Dropout)]
        return ours

    def _read(self, module: nn.Module, name: str) -> Any:
        """An attribute of a module of theirs, or None; `fits` is over when it changes."""
        setting = _Setting(module, name, module.__dict__.get(name))
        self._settings.append(setting)
        return setting.value


def _nature(module: nn.Module) -> tuple[type[nn.Module], int, str]:
    """Its class, the number of its own parameters and its kind: they may change in place."""
    return type(module), len(module._parameters), kind_of(module)


def kind_of(module: nn.Module) -> str:
    """What decides what a module does.

    Returns:
        "plain": its class and its parameters.
        "hooked": hooks, or a forward of its own.
        "special": parameters of other classes than `nn.Parameter`, such as quantised ones.
    """
    own = module.__dict__.get("forward")  # removing the hooks of other libraries leaves the class's own here, bound
    if has_hooks(module) or (own is not None and own != MethodType(type(module).forward, module)):
        return "hooked"
    for parameter in module._parameters.values():
        if parameter is not None and type(parameter) is not nn.Parameter:
            return "special"
    return "plain"


def has_hooks(module: nn.Module) -> bool:
    """Hooks other than those by which transformers records outputs, which only look on."""
    state = module.__dict__
    if state["_forward_pre_hooks"] or state["_backward_hooks"] or state["_backward_pre_hooks"]:
        return True
    hooks = state["_forward_hooks"]
    return bool(hooks) and any(getattr(hook, "__module__", None) != RECORDING for hook in hooks.values())
