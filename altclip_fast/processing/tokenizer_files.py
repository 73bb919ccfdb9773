"""The files of a tokenizer: tokenizer_config.json, the older special_tokens_map.json and added_tokens.json, and the
vocabulary in tokenizer.json or merges.txt.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..hub import read_json
from .special_tokens import NAMES, added_token

# A tokenizer_config.json must not choose which files are read: only the folder or the caller does.
_NOT_SETTINGS = frozenset(
    {
        "tokenizer_class",
        "tokenizer_file",
        "vocab_file",
        "merges_file",
        "vocab",
        "merges",
        "init_kwargs",
        "name_or_path",
        "auto_map",
        "init_inputs",
        "is_local",
        "local_files_only",
        "backend",
        "add_bos_token",
        "add_eos_token",
        "files_loaded",
        "special_tokens_map_file",
        "legacy_added_tokens",
    }
)


def read_settings(find: Callable[[str], Path | None], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments that the small JSON files around a vocabulary give; `overrides` win.

    Args:
        find: the path of a file by name, or None.

    Raises:
        OSError, ValueError: a file that cannot be read, or is no JSON object.
    """
    path = find("tokenizer_config.json")
    settings = {} if path is None else read_json(path)
    settings = {name: _revive(value) for name, value in settings.items() if name not in _NOT_SETTINGS}
    if "added_tokens_decoder" not in settings:
        _merge_legacy_files(find, settings)
    return {name: value for name, value in settings.items() if name not in overrides}


def _merge_legacy_files(find: Callable[[str], Path | None], settings: dict[str, Any]) -> None:
    """Tokenizers saved before `added_tokens_decoder` existed keep their tokens in two more files."""
    if path := find("special_tokens_map.json"):
        for name, value in read_json(path).items():
            settings[name] = added_token(value, special=True) if isinstance(value, dict) else value
    if path := find("added_tokens.json"):
        special = {str(settings[name]) for name in NAMES if settings.get(name)}
        special |= {str(token) for token in settings.get("extra_special_tokens") or ()}
        settings["legacy_added_tokens"] = {
            index: added_token(token, normalized=token not in special, special=token in special)
            for token, index in read_json(path).items()
        }


def _revive(value: Any) -> Any:
    """JSON objects that stand for an `AddedToken` become one, at any depth."""
    if isinstance(value, dict):
        if value.get("__type") == "AddedToken":
            return added_token(value)
        return {key: _revive(item) for key, item in value.items()}
    return [_revive(item) for item in value] if isinstance(value, list) else value


@dataclass
class Stored:
    """What a tokenizer.json holds beside its pipeline, which each class builds by itself.

    Attributes:
        vocab: the model's vocabulary: [token, score] pairs (Unigram) or token -> id (BPE).
        merges: pairs of tokens, in order (BPE).
        charsmap: the normaliser's precompiled character map, if it has one.
        added_tokens: id -> token.
        defaults: arguments that its baked-in truncation and padding imply.
    """

    vocab: Any
    merges: list[tuple[str, str]] = field(default_factory=list)
    charsmap: bytes = b""
    added_tokens: dict[int, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)


def read_tokenizer_json(path: str | os.PathLike[str], model_type: str) -> Stored:
    """Read a tokenizer.json that holds a `model_type` ("Unigram" or "BPE") model.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such a tokenizer; the message names the file.
    """
    content = read_json(path)
    model = content.get("model")
    shape: type = list if model_type == "Unigram" else dict
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), shape):
        raise ValueError(f"{path} holds no {model_type} tokenizer")
    if model.get("type", model_type) != model_type:
        raise ValueError(f"{path} holds a {model['type']} tokenizer, not a {model_type} one")
    try:
        return Stored(
            vocab=model["vocab"],
            merges=[as_merge(merge) for merge in model.get("merges") or ()],
            charsmap=_charsmap(content.get("normalizer")),
            added_tokens={token["id"]: added_token(token) for token in content.get("added_tokens") or ()},
            defaults=_defaults(content),
        )
    except (TypeError, KeyError, AttributeError, binascii.Error) as error:
        raise ValueError(f"{path} is not a tokenizer of a known form: {error!r}") from error


def as_merge(merge: Any) -> tuple[str, str]:
    """The two tokens of a merge that is a pair, or a string with a space between them; else ValueError."""
    parts = merge.split(" ") if isinstance(merge, str) else list(merge)
    if len(parts) != 2:
        raise ValueError(f"a merge has two tokens, not {merge!r}")
    return parts[0], parts[1]


def _charsmap(normalizer: Any) -> bytes:
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    for step in steps:
        if step.get("type") == "Precompiled":
            return base64.b64decode(step.get("precompiled_charsmap") or "")
    return b""


def _defaults(content: Mapping[str, Any]) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    if truncation := content.get("truncation"):
        defaults |= {
            "truncation_side": truncation["direction"].lower(),
            "max_length": truncation["max_length"],
        }
        defaults["stride"] = truncation["stride"]
    if padding := content.get("padding"):
        defaults |= {"padding_side": padding["direction"].lower(), "pad_token": padding["pad_token"]}
        defaults["pad_to_multiple_of"] = padding["pad_to_multiple_of"]
    return defaults


def read_merges(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """The merges of a merges.txt: two tokens a line, after an optional `#version` line.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line that does not hold two tokens; the message names it.
    """
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#version"):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise ValueError(f"{path}, line {number}: two tokens are needed, not {line!r}")
        merges.append((parts[0], parts[1]))
    return merges


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as the hub's files are written: indented, sorted, UTF-8."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, default=_plain)
    path.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if hasattr(value, "__getstate__") and hasattr(value, "content"):  # an AddedToken
        return {**value.__getstate__(), "__type": "AddedToken"}
    return str(value)
