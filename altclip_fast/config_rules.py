"""What a configuration's fields may hold: a rule takes a field's name and value, and gives the value or raises."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "relu", "silu", "selu")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

Rule = Callable[[str, Any], Any]

MAX_LABELS = 1_000_000
MAX_POSITIONS = 10_000_000


def refuse(kind: type[Exception], field: str, value: Any, allowed: str) -> NoReturn:
    raise kind(f"{field} is {reprlib.repr(value)}; it must be {allowed}")


def integer(low: int, high: int, *, optional: bool = False) -> Rule:
    allowed = f"an int from {low} to {high}" + (" or None" if optional else "")

    def check(field: str, value: Any) -> Any:
        if value is None and optional:
            return value
        if type(value) is not int:
            refuse(TypeError, field, value, allowed)
        if not low <= value <= high:
            refuse(ValueError, field, value, allowed)
        return value

    return check


def _number(allowed: str, test: Callable[[float], bool]) -> Rule:
    def check(field: str, value: Any) -> Any:
        if type(value) not in (int, float):
            refuse(TypeError, field, value, allowed)
        if abs(value) > 1e300 or not math.isfinite(value) or not test(value):
            refuse(ValueError, field, value, allowed)
        return value

    return check


def _choice(*values: Any) -> Rule:
    def check(field: str, value: Any) -> Any:
        if not any(type(value) is type(known) and value == known for known in values):
            refuse(ValueError, field, value, "one of " + ", ".join(map(repr, values)))
        return value

    return check


def _boolean(field: str, value: Any) -> Any:
    if type(value) is not bool:
        refuse(TypeError, field, value, "True or False")
    return value


def _hidden_states(field: str, value: Any) -> Any:
    layers = value if isinstance(value, list | tuple) else [value]
    if not all(type(layer) in (bool, int) for layer in layers):
        refuse(TypeError, field, value, "a bool, a layer's index or a list of them")
    return value


def _token_ids(field: str, value: Any) -> Any:
    single = integer(-1, MAX_POSITIONS)
    if value is None:
        return value
    if isinstance(value, list | tuple):
        return [single(field, item) for item in value]
    return single(field, value)


def _names(field: str, value: Any) -> Any:
    if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        refuse(TypeError, field, value, "a list of strings or None")
    return value


def _id2label(field: str, value: Any) -> Any:
    if value is None:
        return value
    if not isinstance(value, Mapping) or not all(isinstance(label, str) for label in value.values()):
        refuse(TypeError, field, value, "a dict of int -> str")
    try:
        return {int(key): label for key, label in value.items()}
    except (TypeError, ValueError):
        refuse(ValueError, field, value, "a dict of int -> str (JSON: keys that read as ints)")


def _label2id(field: str, value: Any) -> Any:
    if value is None:
        return value
    plain = isinstance(value, Mapping) and all(type(k) is str and type(i) is int for k, i in value.items())
    if not plain:
        refuse(TypeError, field, value, "a dict of str -> int")
    return dict(value)


def parse_dtype(field: str, value: Any) -> torch.dtype | None:
    """`torch.dtype` of a dtype or its name ("float16", "torch.float16"); None and "auto" give None.

    Raises:
        ValueError, TypeError: not a floating dtype that torch knows; the message names `field`.
    """
    if value is None or value == "auto":
        return None
    found = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        kind = ValueError if isinstance(value, str | torch.dtype) else TypeError
        refuse(kind, field, value, 'a floating torch dtype or its name, such as "float32"')
    return found


_width = integer(1, 65_536)
_probability = _number("a number from 0 to 1", lambda x: 0 <= x <= 1)
_spread = _number("a finite number >= 0", lambda x: x >= 0)

# A class attribute whose name is in this table is a field; the same name means the same everywhere.
RULES: dict[str, Rule] = {
    "architectures": _names,
    "attention_dropout": _probability,
    "attention_probs_dropout_prob": _probability,
    "bos_token_id": _token_ids,
    "chunk_size_feed_forward": integer(0, MAX_POSITIONS),
    "dtype": parse_dtype,
    "eos_token_id": _token_ids,
    "hidden_act": _choice(*ACTIVATIONS),
    "hidden_dropout_prob": _probability,
    "hidden_size": _width,
    "id2label": _id2label,
    "image_size": integer(1, 16_384),
    "initializer_factor": _spread,
    "initializer_range": _spread,
    "intermediate_size": integer(1, 1_048_576),
    "label2id": _label2id,
    "layer_norm_eps": _number("a finite number > 0", lambda x: x > 0),
    "logit_scale_init_value": _number("a finite number", lambda x: True),
    "max_position_embeddings": integer(1, MAX_POSITIONS),
    "num_attention_heads": _width,
    "num_channels": integer(1, 1024),
    "num_hidden_layers": integer(1, 1000),
    "output_attentions": _boolean,
    "output_hidden_states": _hidden_states,
    "pad_token_id": integer(-1, MAX_POSITIONS, optional=True),
    "patch_size": integer(1, 16_384),
    "position_embedding_type": _choice("absolute"),
    "problem_type": _choice(None, *PROBLEM_TYPES),
    "project_dim": _width,
    "projection_dim": _width,
    "return_dict": _boolean,
    "type_vocab_size": integer(1, MAX_POSITIONS),
    "use_cache": _boolean,
    "vocab_size": integer(1, 10_000_000),
}
