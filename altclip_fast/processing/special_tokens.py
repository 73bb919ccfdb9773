"""The special tokens of a tokenizer as attributes: `pad_token`, `pad_token_id`, `all_special_ids`, ..."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from tokenizers import AddedToken

Token: TypeAlias = str | AddedToken

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def added_token(content: Token | Mapping[str, Any], **flags: Any) -> AddedToken:
    """An `AddedToken` from a string or from a mapping as the hub's JSON files hold it; an `AddedToken` is kept.

    Args:
        flags: special, normalized, lstrip, rstrip, single_word; they win over those of a mapping.

    Raises:
        TypeError: `content` is none of these.
    """
    if isinstance(content, AddedToken):
        return content
    if isinstance(content, str):
        return AddedToken(content, **flags)
    if isinstance(content, Mapping) and isinstance(content.get("content"), str):
        known = {key: content[key] for key in _FIELDS if key in content}
        return AddedToken(**{**known, **flags})
    raise TypeError(f"a special token is a str or an AddedToken, not {content!r}")


_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


class _NamedToken:
    """`tokenizer.pad_token`: the token's text, or None; setting None clears it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, tokenizer: SpecialTokens | None, owner: type | None = None) -> Any:
        if tokenizer is None:
            return self
        token = tokenizer._named_tokens.get(self.name)
        return None if token is None else str(token)

    def __set__(self, tokenizer: SpecialTokens, token: Token | None) -> None:
        if token is not None and not isinstance(token, (str, AddedToken)):
            raise ValueError(f"{self.name} must be a str, an AddedToken or None, not {type(token).__name__}")
        tokenizer._named_tokens[self.name] = token


class _NamedTokenId:
    """`tokenizer.pad_token_id`: the token's id, or None where there is no such token."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removesuffix("_id")

    def __get__(self, tokenizer: SpecialTokens | None, owner: type | None = None) -> Any:
        if tokenizer is None:
            return self
        token = tokenizer._named_tokens.get(self.name)
        return None if token is None else tokenizer.convert_tokens_to_ids(str(token))

    def __set__(self, tokenizer: SpecialTokens, token_id: int | None) -> None:
        token = None if token_id is None else tokenizer.convert_ids_to_tokens(token_id)
        setattr(tokenizer, self.name, token)


class SpecialTokens:
    """Named special tokens (beginning, end, padding, ...) and any number of extra ones."""

    _named_tokens: dict[str, Token | None]
    _extra_tokens: list[Token]

    bos_token, bos_token_id = _NamedToken(), _NamedTokenId()
    eos_token, eos_token_id = _NamedToken(), _NamedTokenId()
    unk_token, unk_token_id = _NamedToken(), _NamedTokenId()
    sep_token, sep_token_id = _NamedToken(), _NamedTokenId()
    pad_token, pad_token_id = _NamedToken(), _NamedTokenId()
    cls_token, cls_token_id = _NamedToken(), _NamedTokenId()
    mask_token, mask_token_id = _NamedToken(), _NamedTokenId()

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        raise NotImplementedError

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        """Special tokens under names of their own (`image_token`), as a tokenizer_config.json may define them."""
        named = self.__dict__.get("_named_tokens", {})
        token = named.get(name.removesuffix("_id"))
        if token is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return self.convert_tokens_to_ids(str(token)) if name.endswith("_id") else str(token)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The named special tokens that are set."""
        return {name: str(token) for name, token in self._named_tokens.items() if token is not None}

    @property
    def extra_special_tokens(self) -> list[str]:
        """Special tokens without a name."""
        return [str(token) for token in self._extra_tokens]

    @extra_special_tokens.setter
    def extra_special_tokens(self, tokens: Sequence[Token] | None) -> None:
        self._extra_tokens = list(tokens or [])

    additional_special_tokens = extra_special_tokens

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once: named ones first, then extra ones."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)
