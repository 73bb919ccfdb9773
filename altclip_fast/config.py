"""Configurations: the fields of a model, checked before anything is allocated, and their `config.json`.

Names, fields and defaults are those of transformers' AltCLIP and CLIP pages. Contract:

- Every field is checked when it is set: a wrong type raises `TypeError`, a wrong value `ValueError`, and the
  message names the field, the value and what is allowed. Sizes have generous upper bounds, so that a
  hostile file cannot ask for memory.
- Unknown keys are kept as attributes and written back; those that start with an underscore are not written.
- `save_pretrained` writes what transformers reads, and leaves out common fields that hold their default.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch

from . import hub
from .config_rules import MAX_LABELS, MAX_POSITIONS, RULES, integer, refuse
from .files import staged, write_text
from .notices import warn_once

CONFIG_NAME = "config.json"


class Config:
    """Base of all configurations: the common fields, checks, and reading and writing of `config.json`."""

    model_type: ClassVar[str] = ""
    part_key: ClassVar[str] = ""  # where this configuration lies in a whole model's config.json
    parts: ClassVar[dict[str, type[Config]]] = {}
    _fields: ClassVar[dict[str, Any]] = {}

    output_hidden_states: bool | int | list[int] = False
    output_attentions: bool = False
    return_dict: bool = True
    chunk_size_feed_forward: int = 0
    use_cache: bool = True
    position_embedding_type: str = "absolute"
    id2label: dict[int, str] = None  # type: ignore[assignment]  # None becomes two labels, as in transformers
    label2id: dict[str, int] = None  # type: ignore[assignment]
    problem_type: str | None = None
    dtype: torch.dtype | None = None
    architectures: list[str] | None = None

    def __init_subclass__(cls) -> None:
        inherited = {} if cls.__base__ is None else getattr(cls.__base__, "_fields", {})
        cls._fields = {**inherited, **_fields_of(cls)}

    def __init__(self, /, **values: Any) -> None:
        values = self._prepared(values)
        values.pop("model_type", None)
        torch_dtype, num_labels = values.pop("torch_dtype", None), values.pop("num_labels", None)
        if values.get("dtype") is None:
            values["dtype"] = torch_dtype
        for name, default in self._fields.items():
            setattr(self, name, values.pop(name, default))
        self._set_labels(num_labels)
        for name, value in values.items():
            setattr(self, name, value)
        self.validate()

    @classmethod
    def _prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Hook for a subclass: its constructor's arguments with the forms of other releases made plain."""
        return values

    def __setattr__(self, name: str, value: Any) -> None:
        field = f"{type(self).__name__}.{name}"
        if name in self._fields:
            value = RULES[name](field, value)
        elif name in self.parts:
            value = self._part(name, value)
        elif not _is_settable(type(self), name):
            raise ValueError(f"{field} cannot be set: the name belongs to the class")
        super().__setattr__(name, value)

    @classmethod
    def _part(cls, name: str, value: Any) -> Config:
        part = cls.parts[name]
        if type(value) is part:
            return value
        if isinstance(value, Config) and value._fields.keys() != part._fields.keys():
            refuse(TypeError, f"{cls.__name__}.{name}", value, f"a dict or a {part.__name__}")
        return part(**_as_dict(f"{cls.__name__}.{name}", value))

    def _set_labels(self, num_labels: Any) -> None:
        if self.id2label is None:
            self.num_labels = 2 if num_labels is None else num_labels
        elif num_labels not in (None, len(self.id2label)):
            message = f"num_labels={num_labels} is ignored: id2label has {len(self.id2label)} labels"
            warn_once("config-num-labels", message)
        if self.label2id is None:
            self.label2id = {label: i for i, label in self.id2label.items()}

    def validate(self) -> None:
        """Check the fields against each other. Raises ValueError."""
        if self.problem_type == "single_label_classification" and self.num_labels == 1:
            refuse(
                ValueError,
                f"{type(self).__name__}.problem_type",
                self.problem_type,
                "'regression' for one label, or num_labels at least 2",
            )

    @property
    def num_labels(self) -> int:
        """The number of labels: the length of `id2label`. Setting it names them LABEL_0, LABEL_1, ..."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        integer(0, MAX_LABELS)(f"{type(self).__name__}.num_labels", value)
        if self.id2label is None or len(self.id2label) != value:
            self.id2label = {i: f"LABEL_{i}" for i in range(value)}
            self.label2id = {label: i for i, label in self.id2label.items()}

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The older name of `dtype`."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: torch.dtype | str | None) -> None:
        self.dtype = value  # type: ignore[assignment]  # __setattr__ converts a name

    @property
    def use_return_dict(self) -> bool:
        """Whether a model returns output objects rather than tuples."""
        return self.return_dict

    @property
    def name_or_path(self) -> str:
        """Where the configuration was loaded from; empty when it was made in memory. Not written to files."""
        return str(self.__dict__.get("_name_or_path") or "")

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **overrides: Any,
    ) -> Self:
        """Read `config.json` from a folder, the file itself, or a hub id.

        A text or vision class takes its part of a whole model's file.

        Args:
            path_or_repo: folder, path of the JSON file, or hub id.
            overrides: fields to set on top of the file's; a dict for `text_config` or `vision_config` changes
                only its keys.

        Raises:
            OSError: no such file. ValueError, TypeError: what is in it; the message names the file.
        """
        path = find_config(
            path_or_repo,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        config = cls._from_file(path, overrides)
        config.__dict__["_name_or_path"] = os.fspath(path_or_repo)
        return config

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Self:
        """Read a configuration from one JSON file. Raises as `from_pretrained` does."""
        return cls._from_file(os.fspath(json_file), {})

    @classmethod
    def _from_file(cls, path: str, overrides: dict[str, Any]) -> Self:
        values = read_json(path)
        try:
            return cls.from_dict(values, **overrides)
        except TypeError as error:
            raise TypeError(f"{path}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **overrides: Any) -> Self:
        """Build from what `to_dict` or a `config.json` holds. Raises ValueError for another kind of model."""
        config = cls(**cls._own(dict(config_dict)))
        unknown = [name for name in overrides if not hasattr(config, name)]
        if unknown:
            raise TypeError(f"{cls.__name__} has no field {', '.join(unknown)}")
        if overrides:
            stored_dtype = {k for k in ("dtype", "torch_dtype") if overrides.get(k) == "auto"}
            config.update({k: v for k, v in overrides.items() if k not in stored_dtype})
        return config

    @classmethod
    def _own(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The part of a loaded dict that this class reads."""
        found = cls._whole(values) if values.get("model_type") is None else config_class_for(values)
        if found is cls:
            return values
        source = found.parts.get(cls.part_key, found)
        if cls.parts or source.parts or source._fields.keys() != cls._fields.keys():
            raise ValueError(
                f"model_type is {values['model_type']!r}; {cls.__name__} reads {cls.model_type!r}, "
                f"the class for this file is {found.__name__}"
            )
        return _as_dict(cls.part_key, found._prepared(values).get(cls.part_key)) if found.parts else values

    @classmethod
    def _whole(cls, values: Mapping[str, Any]) -> type[Config]:
        """The class of a dict that does not name its kind: this one, or the whole model it is a part of."""
        nested = cls.part_key in values or f"{cls.part_key}_dict" in values
        wholes = [whole for whole in _CLASSES if nested and whole.parts.get(cls.part_key) is cls]
        return wholes[0] if wholes else cls

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Set many attributes, or none when one is refused. A dict for a part changes only its keys."""
        trial = copy.deepcopy(self)
        trial._assign(config_dict)
        trial.validate()
        self._assign(config_dict)  # in place: a model's towers hold the very parts of its configuration

    def _assign(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if name in self.parts and isinstance(value, Mapping):
                getattr(self, name).update(value)
            elif name != "model_type":
                setattr(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Every field and extra attribute, as plain Python values (a dtype is its name)."""
        values: dict[str, Any] = {"model_type": self.model_type}
        for name, value in vars(self).items():
            if name.startswith("_") or name == "attn_implementation":
                continue
            values[name] = value.to_dict() if isinstance(value, Config) else _plain(copy.deepcopy(value))
        return values

    def to_json_string(self, use_diff: bool = True) -> str:
        """The text of `config.json`; `use_diff=False` writes common fields at their default too."""
        return json_text(self.to_dict(), use_diff)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `config.json` into a folder, made if absent. The file appears whole or not at all."""
        text = self.to_json_string()
        os.makedirs(save_directory, exist_ok=True)
        with staged(save_directory) as path:
            write_text(path(CONFIG_NAME), text)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.to_dict() == other.to_dict()

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


def _fields_of(cls: type) -> dict[str, Any]:
    return {name: value for name, value in vars(cls).items() if name in RULES}


Config._fields = _fields_of(Config)


def json_text(config_dict: Mapping[str, Any], use_diff: bool = True) -> str:
    """The text of `config.json` for a `to_dict()`. Raises ValueError for what JSON cannot hold."""
    values = _without_defaults(config_dict, Config().to_dict()) if use_diff else config_dict
    try:
        return json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n"
    except TypeError as error:
        raise ValueError(f"the configuration cannot be written as JSON: {error}") from error


def _without_defaults(values: Mapping[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    """Without the common fields that hold their default, in the parts too."""
    kept = {name: value for name, value in values.items() if name not in common or value != common[name]}
    parts = {name: kept[name] for name in _Pair.parts if isinstance(kept.get(name), Mapping)}
    return kept | {name: _without_defaults(part, common) for name, part in parts.items()}


def _is_settable(cls: type, name: str) -> bool:
    """A file may set any name but those of methods and class constants: {"to_dict": 1} would hide one."""
    known = getattr(cls, name, None)
    return not hasattr(cls, name) or (isinstance(known, property) and known.fset is not None)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _as_dict(field: str, value: Any) -> dict[str, Any]:
    """A part's values: None, a dict, one of our configurations or any object with `to_dict`."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) and hasattr(value, "to_dict"):
        value = value.to_dict()
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        refuse(TypeError, field, value, "a dict or a configuration")
    return dict(value)


class _Tower(Config):
    hidden_size: int
    num_attention_heads: int

    def validate(self) -> None:
        super().validate()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{type(self).__name__}.hidden_size is {self.hidden_size}; it must be a multiple of "
                f"num_attention_heads, {self.num_attention_heads}"
            )


class AltCLIPTextConfig(_Tower):
    """The XLM-R text tower of AltCLIP; the defaults are those of BAAI/AltCLIP.

    `attention_probs_dropout_prob` is 0.1 as documented; a file written by transformers >= 5 without it
    means 0.0, the default there.
    """

    model_type = "altclip_text_model"
    part_key = "text_config"

    vocab_size: int = 250_002
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    initializer_range: float = 0.02
    initializer_factor: float = 0.02
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    project_dim: int = 768

    @classmethod
    def _prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        if _release(values) >= 5:
            values.setdefault("attention_probs_dropout_prob", 0.0)
        return values

    def validate(self) -> None:
        super().validate()
        rows = min(self.vocab_size, self.max_position_embeddings)
        # Positions are counted from the padding id, which is a row of both embeddings.
        if self.pad_token_id is None or not 0 <= self.pad_token_id < rows:
            allowed = f"an int from 0 to below vocab_size and max_position_embeddings, {rows}"
            refuse(ValueError, f"{type(self).__name__}.pad_token_id", self.pad_token_id, allowed)


class CLIPTextConfig(_Tower):
    """The text tower of CLIP; the defaults are those of openai/clip-vit-base-patch32."""

    model_type = "clip_text_model"
    part_key = "text_config"

    vocab_size: int = 49_408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 1.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49_406
    eos_token_id: int | list[int] | None = 49_407


class _VisionTower(_Tower):
    part_key = "vision_config"

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 1.0

    def validate(self) -> None:
        super().validate()
        field = f"{type(self).__name__}.patch_size"
        if self.patch_size > self.image_size:
            refuse(ValueError, field, self.patch_size, f"at most image_size, {self.image_size}")
        if (self.image_size // self.patch_size) ** 2 > MAX_POSITIONS:
            allowed = f"large enough for {MAX_POSITIONS} patches at most; image_size is {self.image_size}"
            refuse(ValueError, field, self.patch_size, allowed)


class AltCLIPVisionConfig(_VisionTower):
    """The vision tower of AltCLIP. The defaults are ViT-B/32, as documented; BAAI/AltCLIP is ViT-L/14."""

    model_type = "altclip_vision_model"


class CLIPVisionConfig(_VisionTower):
    """The vision tower of CLIP; the defaults are those of openai/clip-vit-base-patch32."""

    model_type = "clip_vision_model"


class _Pair(Config):
    parts = {"text_config": Config, "vision_config": Config}

    projection_dim: int
    logit_scale_init_value: float = 2.6592
    initializer_factor: float = 1.0

    def __init__(self, /, text_config: Any = None, vision_config: Any = None, **values: Any) -> None:
        super().__init__(text_config=text_config, vision_config=vision_config, **values)

    @classmethod
    def from_text_vision_configs(cls, text_config: Any, vision_config: Any, **kwargs: Any) -> Self:
        """Build from the two parts, each a configuration or a dict."""
        return cls(text_config=text_config, vision_config=vision_config, **kwargs)

    @classmethod
    def _prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Legacy `text_config_dict` and `vision_config_dict`, completed by defaults, override the parts."""
        for name, part in cls.parts.items():
            legacy = values.pop(f"{name}_dict", None)
            if legacy is not None:
                complete = part(**_as_dict(f"{cls.__name__}.{name}_dict", legacy)).to_dict()
                values[name] = _as_dict(f"{cls.__name__}.{name}", values.get(name)) | complete
        return values


class AltCLIPConfig(_Pair):
    """AltCLIP: an XLM-R text tower and a CLIP vision tower, projected to `projection_dim`."""

    model_type = "altclip"
    parts = {"text_config": AltCLIPTextConfig, "vision_config": AltCLIPVisionConfig}

    text_config: AltCLIPTextConfig
    vision_config: AltCLIPVisionConfig
    projection_dim: int = 768

    @classmethod
    def _prepared(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super()._prepared(values)
        text = values.get("text_config")
        if _release(values) >= 5 and isinstance(text, Mapping | None):
            values["text_config"] = {"attention_probs_dropout_prob": 0.0} | dict(text or {})
        return values


class CLIPConfig(_Pair):
    """CLIP: a causal text tower and a vision tower, projected to `projection_dim`."""

    model_type = "clip"
    parts = {"text_config": CLIPTextConfig, "vision_config": CLIPVisionConfig}

    text_config: CLIPTextConfig
    vision_config: CLIPVisionConfig
    projection_dim: int = 512


_CLASSES: tuple[type[Config], ...] = (
    AltCLIPConfig,
    CLIPConfig,
    AltCLIPTextConfig,
    AltCLIPVisionConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
)


def config_class_for(config_dict: Mapping[str, Any]) -> type[Config]:
    """The configuration class for the contents of a `config.json`, by its `model_type`.

    A file that says "clip" and holds an XLM-R text tower (BAAI/AltCLIP-m9) is an `AltCLIPConfig`.

    Raises:
        ValueError: the model type is none of ours; the message lists them.
    """
    kind = config_dict.get("model_type")
    if kind == CLIPConfig.model_type and _has_xlm_roberta_text(config_dict):
        return AltCLIPConfig
    for cls in _CLASSES:
        if cls.model_type == kind:
            return cls
    refuse(ValueError, "model_type", kind, "one of " + ", ".join(cls.model_type for cls in _CLASSES))


def _has_xlm_roberta_text(config_dict: Mapping[str, Any]) -> bool:
    text = config_dict.get("text_config") or config_dict.get("text_config_dict")
    if not isinstance(text, Mapping):
        return False
    vocab = text.get("vocab_size")
    xlm = "type_vocab_size" in text or "project_dim" in text or text.get("max_position_embeddings") == 514
    large = type(vocab) is int and vocab >= 250_000
    return text.get("model_type") == "xlm-roberta" or (large and xlm)


def _release(values: Mapping[str, Any]) -> int:
    """The major release of transformers that wrote the values; 0 when unknown."""
    major = str(values.get("transformers_version")).partition(".")[0]
    return int(major) if major.isascii() and major.isdigit() and len(major) < 10 else 0


def find_config(path_or_repo: str | os.PathLike[str], **where: Any) -> str:
    """The path of `config.json` in a folder or hub repository; a path to a file is itself. Raises OSError."""
    if os.path.isfile(path_or_repo):
        return os.fspath(path_or_repo)
    path = hub.resolve_file(path_or_repo, CONFIG_NAME, **where)
    if path is None:
        raise FileNotFoundError(f"{os.fspath(path_or_repo)}: no {CONFIG_NAME} there")
    return os.fspath(path)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file of finite numbers. Raises ValueError or OSError, which name the file."""
    values = hub.read_json(path)
    if not _is_sane(values, levels=32):
        raise ValueError(f"{os.fspath(path)}: has NaN or infinite numbers, or more than 32 levels")
    return values


def _is_sane(value: Any, levels: int) -> bool:
    """NaN is no JSON, and a deeper file would end in a RecursionError when it is copied or written again."""
    if isinstance(value, float):
        return math.isfinite(value)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_sane(item, levels - 1) for item in items)
