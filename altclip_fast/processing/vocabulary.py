"""`Vocabulary`: the Rust tokenizer with its special and added tokens; from tokens to ids and back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from .special_tokens import NAMES, SpecialTokens, Token, added_token


class Vocabulary(SpecialTokens):
    """The vocabulary half of a tokenizer.

    Args:
        backend: the Rust tokenizer, without special tokens; this object owns it from now on.
        named: special tokens by name (`bos_token`, ...); None where there is none.
        extra: special tokens without a name, or a mapping of further names.
        added: id -> added token; they go in first, by id.
        split_special_tokens: treat special tokens inside a text as plain text.

    Raises:
        TypeError: a token that is neither str nor AddedToken.
    """

    def __init__(
        self,
        backend: Tokenizer,
        named: Mapping[str, Any],
        extra: Sequence[Any] | Mapping[str, Any],
        added: Mapping[Any, Any],
        split_special_tokens: bool,
    ) -> None:
        self._backend = backend
        self.split_special_tokens = split_special_tokens
        backend.encode_special_tokens = split_special_tokens
        if isinstance(extra, Mapping):
            named, extra = {**named, **extra}, []
        ordered = [added_token(token) for _, token in sorted(added.items(), key=lambda item: int(item[0]))]
        by_content = {str(token): token for token in ordered}
        self._named_tokens = dict.fromkeys(NAMES)
        for name, token in named.items():
            if token is not None:
                token = token if isinstance(token, str) else added_token(token)
                self._named_tokens[name] = by_content.get(str(token), token)
        self._extra_tokens = [token if isinstance(token, str) else added_token(token) for token in extra]
        self._add_all(ordered, by_content)
        self._note_changes()

    def _add_all(self, added: Sequence[AddedToken], known: Iterable[str]) -> None:
        """Make every token known to the backend, in the order that fixes the ids of new ones."""
        names = set(self.special_tokens_map.values())
        tokens: list[Token] = list(added)
        for token in (*self._named_tokens.values(), *self._extra_tokens):
            # one text may come with several flags: the backend keeps the last, so none is left out here
            if token is not None and str(token) not in known and token not in tokens:
                tokens.append(token)
        self._backend.add_tokens([_as_special(token, str(token) in names) for token in tokens])

    def _note_changes(self) -> None:
        """Bring what was derived from the backend up to date."""
        self._other_backend: Tokenizer | None = None
        self._prefix_is_safe = _prefix_is_safe(self._backend)

    def _backend_for(self, split_special_tokens: bool | None) -> Tokenizer:
        """The backend, or a copy that treats special tokens the other way: the setting is never switched."""
        if split_special_tokens is None or bool(split_special_tokens) == self.split_special_tokens:
            return self._backend
        if self._other_backend is None:
            other = copy.deepcopy(self._backend)
            other.encode_special_tokens = not self.split_special_tokens
            self._other_backend = other
        return self._other_backend

    def _ends(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """The beginning and the end token with their ids."""
        if self.bos_token is None or self.eos_token is None:
            raise ValueError(f"{type(self).__name__} needs a bos_token and an eos_token")
        return (self.bos_token, self.bos_token_id), (self.eos_token, self.eos_token_id)

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The `tokenizers.Tokenizer` underneath."""
        return self._backend

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens; `len(tokenizer)` counts them too."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        return self._backend.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> dict[str, int]:
        """The same as `get_vocab()`."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id -> token of special and added tokens."""
        return self._backend.get_added_tokens_decoder()

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Token -> id of special and added tokens, by id."""
        return {str(token): index for index, token in sorted(self.added_tokens_decoder.items())}

    def get_added_vocab(self) -> dict[str, int]:
        """The same as `added_tokens_encoder`."""
        return self.added_tokens_encoder

    def add_tokens(self, new_tokens: Token | Sequence[Token], special_tokens: bool = False) -> int:
        """Add tokens at the end of the vocabulary and return how many were new. Not while another thread encodes."""
        tokens = [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else list(new_tokens or [])
        if not _are_tokens(tokens):
            raise TypeError(f"new tokens must be str or AddedToken, not {tokens!r}")
        add = self._backend.add_special_tokens if special_tokens else self._backend.add_tokens
        count = add(tokens)
        self._note_changes()
        return count

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_extra_special_tokens: bool = True
    ) -> int:
        """Set special tokens by name (`{"pad_token": "[PAD]"}`, `{"extra_special_tokens": [...]}`), adding new ones.

        Returns:
            How many tokens the vocabulary grew by.

        Raises:
            ValueError: a key that names no special token, or a value that is no token.
        """
        names = {*self._named_tokens, "extra_special_tokens"}
        tokens: list[AddedToken] = []
        for key, value in special_tokens_dict.items():
            key = "extra_special_tokens" if key == "additional_special_tokens" else key
            if key not in names:
                raise ValueError(f"{key} is not a special token; these are: {sorted(names)}")
            values = value if key == "extra_special_tokens" else [value]
            if not isinstance(values, (list, tuple)) or not _are_tokens(values):
                raise ValueError(f"{key} must be str or AddedToken, not {value!r}")
            plain = {"normalized": False, "special": True}
            new = [added_token(item, **plain) if isinstance(item, str) else item for item in values]
            if key == "extra_special_tokens":
                kept = [] if replace_extra_special_tokens else self._extra_tokens
                known = {str(token) for token in kept}
                self._extra_tokens = [*kept, *(token for token in new if str(token) not in known)]
            else:
                self._named_tokens[key] = new[0]
            tokens += new
        return self.add_tokens(tokens, special_tokens=True)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of one token, or the ids of several; the unknown token's id for those not in the vocabulary."""
        if isinstance(tokens, str):
            index = self._backend.token_to_id(tokens)
            return index if index is not None else self._unknown_id()
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def _unknown_id(self) -> int | None:
        return self._backend.token_to_id(self.unk_token) if self.unk_token is not None else None

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of one id (None where the vocabulary has none), or the tokens of several."""
        if isinstance(ids, (int, np.integer)):
            return self._id_to_token(int(ids))
        skip = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._id_to_token(int(index)) for index in ids if int(index) not in skip]

    def _id_to_token(self, index: int) -> str | None:
        return self._backend.id_to_token(index) if 0 <= index < 2**32 else None


def is_token(name: str, value: Any) -> bool:
    """Whether an argument or a setting of this name is a special token."""
    return name in NAMES or (name.endswith("_token") and isinstance(value, (str, AddedToken)))


def _are_tokens(values: Iterable[Any]) -> bool:
    return all(isinstance(value, (str, AddedToken)) for value in values)


def _as_special(token: Token, is_named: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    if is_named:
        # in place: a copy would lose whether `normalized` was given, and it follows `special` where it was not
        token.special = True
    return token


def _prefix_is_safe(backend: Tokenizer) -> bool:
    """Whether `safe_prefix` holds: no added token spans a space, and the normaliser keeps one between letters."""

    def normalised(text: str) -> str:
        return backend.normalizer.normalize_str(text) if backend.normalizer is not None else text

    if normalised("a a") != f"{normalised('a')} {normalised('a')}":
        return False
    contents = [token.content for token in backend.get_added_tokens_decoder().values()]
    return not any(c.isspace() for content in contents for c in content + normalised(content))
