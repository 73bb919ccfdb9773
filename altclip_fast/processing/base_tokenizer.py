"""`BaseTokenizer`: what `XLMRobertaTokenizer` and `CLIPTokenizer` share, over the `tokenizers` library.

Text in, `BatchEncoding` of `input_ids` and `attention_mask` out, with the ids of the transformers classes of the same
name. Differences on purpose: lone surrogates become U+FFFD, a text that is not a str is a TypeError that names its index,
unknown keywords are TypeErrors, and encoding never changes the tokenizer, so that threads may share one.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from tokenizers import AddedToken, Encoding, Tokenizer

from ..hub import resolve_file
from ..notices import warn_once
from . import truncation as lengths_of
from .encoding import BatchEncoding
from .special_tokens import NAMES, SpecialTokens, Token, added_token
from .text_rows import text_rows
from .tokenizer_files import read_settings, write_json
from .truncation import Lengths

_UNSET_LENGTH = int(1e30)  # the hub's value for "no limit known"

_OPTIONS = frozenset(
    ("model_max_length", "max_len", "padding_side", "truncation_side", "model_input_names", "name_or_path")
    + ("clean_up_tokenization_spaces", "split_special_tokens", "processor_class", "chat_template", "verbose")
    + ("extra_special_tokens", "additional_special_tokens", "added_tokens_decoder", "init_kwargs")
)
_CONFIGURABLE = _OPTIONS | {"add_prefix_space", "legacy_added_tokens"}  # what the files in a folder may set


class BaseTokenizer(SpecialTokens):
    """Encoding, decoding, padding, special tokens, loading and saving. Not used on its own.

    Args:
        backend: the Rust tokenizer, without special tokens; this object owns it from now on.
        named_tokens: special tokens by name (`bos_token`, ...); None where there is none.
        options: `model_max_length`, `padding_side`, `truncation_side` ("right" or "left"), `model_input_names`,
            `extra_special_tokens`, `split_special_tokens`, `clean_up_tokenization_spaces`, `name_or_path`,
            `processor_class`, `added_tokens_decoder` (id -> token), and special tokens under further names (`*_token`).

    Raises:
        TypeError: an unknown option, or a special token that is neither str nor AddedToken.
        ValueError: a side that is neither "left" nor "right".
    """

    vocab_files_names: ClassVar[dict[str, str]] = {}
    required_files: ClassVar[tuple[tuple[str, ...], ...]] = ()  # alternatives, by constructor argument
    padding_side: str = "right"
    truncation_side: str = "right"
    is_fast = True
    pad_token_type_id = 0

    def __init__(self, backend: Tokenizer, named_tokens: Mapping[str, Any], options: dict[str, Any]) -> None:
        self._backend = backend
        self._other_backend: Tokenizer | None = None
        further = {name: options.pop(name) for name in list(options) if _is_token(name, options[name])}
        unknown = sorted(set(options) - _OPTIONS)
        if unknown:
            raise TypeError(f"{type(self).__name__} got unknown arguments: {', '.join(unknown)}")
        self._set_options(options)
        self._set_tokens({**named_tokens, **further}, options)
        backend.encode_special_tokens = self.split_special_tokens
        self._prefix_is_safe = _prefix_is_safe(backend)

    def _set_options(self, options: Mapping[str, Any]) -> None:
        max_length = options.get("model_max_length", options.get("max_len"))
        self.model_max_length: int = _UNSET_LENGTH if max_length is None else max_length
        self.padding_side = lengths_of.side("padding_side", options.get("padding_side", self.padding_side))
        self.truncation_side = lengths_of.side(
            "truncation_side", options.get("truncation_side", self.truncation_side)
        )
        names = options.get("model_input_names") or ("input_ids", "attention_mask")
        self.model_input_names = list(names)
        self.clean_up_tokenization_spaces = bool(options.get("clean_up_tokenization_spaces", False))
        self.split_special_tokens = bool(options.get("split_special_tokens", False))
        self.name_or_path = str(options.get("name_or_path", ""))
        self.processor_class = options.get("processor_class")
        self.chat_template = options.get("chat_template")
        self.init_kwargs: dict[str, Any] = dict(options.get("init_kwargs") or {})

    def _set_tokens(self, named: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Make every special and added token known to the backend, in the order that fixes their ids."""
        given = options.get("added_tokens_decoder") or {}
        added = [added_token(token) for _, token in sorted(given.items(), key=lambda item: int(item[0]))]
        by_content = {str(token): token for token in added}
        extra = options.get("extra_special_tokens") or options.get("additional_special_tokens") or []
        if isinstance(extra, Mapping):
            named, extra = {**named, **extra}, []
        self._named_tokens = dict.fromkeys(NAMES)
        for name, token in named.items():
            if token is not None:
                token = token if isinstance(token, str) else added_token(token)
                self._named_tokens[name] = by_content.get(str(token), token)
        self._extra_tokens = [token if isinstance(token, str) else added_token(token) for token in extra]
        names = {str(token) for token in self._named_tokens.values() if token is not None}
        tokens: dict[str, Token] = dict(by_content)
        for token in (*self._named_tokens.values(), *self._extra_tokens):
            if token is not None:
                tokens.setdefault(str(token), token)
        self._backend.add_tokens([_as_special(token, str(token) in names) for token in tokens.values()])

    def _ends(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """The beginning and the end token with their ids."""
        if self.bos_token is None or self.eos_token is None:
            raise ValueError(f"{type(self).__name__} needs a bos_token and an eos_token")
        return (self.bos_token, self.bos_token_id), (self.eos_token, self.eos_token_id)

    # -- loading and saving

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        use_fast: bool = True,
        **overrides: Any,
    ) -> Self:
        """Load a tokenizer from a folder or a hub id.

        Args:
            pretrained_model_name_or_path: the folder or hub id; `tokenizer.json` is preferred, other vocabulary files
                are read where it is absent.
            revision, cache_dir, local_files_only, token: which commit, where to keep it, no network, credentials.
            use_fast: accepted for compatibility; there is one implementation.
            overrides: constructor arguments that win over the files.

        Raises:
            OSError: no vocabulary file there, or one that cannot be read; the message names the files looked for.
            TypeError: an unknown override.
        """

        def find(name: str) -> Path | None:
            found = resolve_file(
                pretrained_model_name_or_path,
                name,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                token=token,
            )
            return None if found is None else Path(found)

        settings = read_settings(find, overrides)
        arguments = {**cls._find_vocabulary(find, pretrained_model_name_or_path), **overrides}
        for name in list(settings):
            if name in _CONFIGURABLE or _is_token(name, settings[name]):
                arguments.setdefault(name, settings.pop(name))
        arguments.setdefault("name_or_path", str(pretrained_model_name_or_path))
        return cls(**arguments, init_kwargs=settings)

    @classmethod
    def _find_vocabulary(cls, find: Any, source: Any) -> dict[str, Path]:
        for alternative in cls.required_files:
            files = {name: find(cls.vocab_files_names[name]) for name in alternative}
            if all(files.values()):
                return files
        wanted = " or ".join(
            " + ".join(cls.vocab_files_names[name] for name in names) for names in cls.required_files
        )
        raise OSError(f"{source} holds no {cls.__name__}: looked for {wanted}")

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None, **kwargs: Any
    ) -> tuple[str, ...]:
        """Write tokenizer.json and tokenizer_config.json into a folder (made if missing); transformers loads them.

        Args:
            filename_prefix: put before the file names, with a dash.
            kwargs: accepted for compatibility (`legacy_format`, `push_to_hub=False`).

        Returns:
            The paths written.

        Raises:
            OSError: the folder is a file, or cannot be written.
            ValueError: `push_to_hub=True`; saving is local.
        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("save_pretrained writes to a folder only; upload it with huggingface_hub")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        config, vocabulary = folder / f"{prefix}tokenizer_config.json", folder / f"{prefix}tokenizer.json"
        write_json(config, self._config())
        vocabulary.write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        return str(config), str(vocabulary)

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            **self.init_kwargs,
            **self.special_tokens_map,
            "backend": "tokenizers",
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "model_max_length": self.model_max_length,
            "model_input_names": self.model_input_names,
            "padding_side": self.padding_side,
            "split_special_tokens": self.split_special_tokens,
            "tokenizer_class": type(self).__name__,
            "truncation_side": self.truncation_side,
        }
        for name in ("processor_class", "chat_template"):
            if getattr(self, name) is not None:
                config[name] = getattr(self, name)
        if self._extra_tokens:
            config["extra_special_tokens"] = self.extra_special_tokens
        return config

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write the vocabulary files alone into an existing folder and return their paths."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        clone = object.__new__(type(self))
        memo[id(self)] = clone
        clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return clone

    # -- vocabulary

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
        self._other_backend = None
        self._prefix_is_safe = _prefix_is_safe(self._backend)
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

    # -- encoding

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        split_special_tokens: bool | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Tokenise one text, a list of texts, or pairs of texts.

        Args:
            text: a str, a list of str, or a list of (str, str) pairs; with `is_split_into_words` a list of words, or a
                list of such lists.
            text_pair: the second texts, one per text.
            add_special_tokens: put the beginning and end tokens around.
            padding: False, True or "longest", "max_length".
            truncation: False, True or "longest_first", "only_first", "only_second". None truncates where `max_length`
                is given and padding is not.
            max_length: in tokens, special ones included; `model_max_length` by default.
            stride: with `return_overflowing_tokens`, how many tokens consecutive rows share.
            pad_to_multiple_of, padding_side: as named; the tokenizer's own `padding_side` by default.
            return_tensors: None (lists), "pt" (int64 tensors [B, L]) or "np".
            return_token_type_ids, return_attention_mask: by default what `model_input_names` lists.
            return_overflowing_tokens: give what truncation cut off as further rows.
            return_special_tokens_mask, return_offsets_mapping, return_length: further entries.
            split_special_tokens: treat special tokens inside the text as plain text.
            verbose: warn, once, about rows longer than the model takes.

        Returns:
            `BatchEncoding`; a single text without `return_tensors` gives flat lists.

        Raises:
            TypeError: a text that is not a str (named with its index), or an unknown keyword.
            ValueError: arguments that contradict each other, padding without a padding token, no room for text.
        """
        rows, batched = text_rows(text, text_pair, is_split_into_words)
        lengths = self._lengths(padding, truncation, max_length, pad_to_multiple_of, padding_side, stride)
        encodings = self._encode_rows(
            rows,
            lengths,
            backend=self._backend_for(split_special_tokens),
            add_special_tokens=add_special_tokens,
            is_pretokenized=is_split_into_words,
            shorten=not return_overflowing_tokens,
        )
        samples = list(range(len(encodings)))
        if return_overflowing_tokens:
            parts = [[encoding, *encoding.overflowing] for encoding in encodings]
            samples = [index for index, part in enumerate(parts) for _ in part]
            encodings = [encoding for part in parts for encoding in part]
        if verbose and max_length is None:
            self._warn_of_long_rows(encodings)
        names = self.model_input_names
        types = _given(return_token_type_ids, "token_type_ids" in names)
        masks = _given(return_attention_mask, "attention_mask" in names)
        data: dict[str, list[Any]] = {"input_ids": [encoding.ids for encoding in encodings]}
        if types:
            data["token_type_ids"] = [encoding.type_ids for encoding in encodings]
        if masks:
            data["attention_mask"] = [encoding.attention_mask for encoding in encodings]
        if return_special_tokens_mask:
            data["special_tokens_mask"] = [encoding.special_tokens_mask for encoding in encodings]
        if return_offsets_mapping:
            data["offset_mapping"] = [encoding.offsets for encoding in encodings]
        if return_length:
            data["length"] = [len(encoding) for encoding in encodings]
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = samples
        if not batched and return_tensors is None and not return_overflowing_tokens:
            flat = {name: rows[0] if isinstance(rows[0], list) else rows for name, rows in data.items()}
            return BatchEncoding(flat, encodings)
        return BatchEncoding(data, encodings, return_tensors)

    def encode(self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **kwargs: Any) -> Any:
        """The ids of `text` alone: `tokenizer(text, ...)["input_ids"]`."""
        return self(text, text_pair, add_special_tokens=add_special_tokens, **kwargs)["input_ids"]

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """The tokens of one text as strings, by default without special ones."""
        return self(text, pair, add_special_tokens=add_special_tokens, **kwargs).tokens()

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a text (or a pair of texts) gets."""
        return self._backend.num_special_tokens_to_add(pair)

    @property
    def max_len_single_sentence(self) -> int:
        """How many tokens of one text the model takes beside the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=False)

    @property
    def max_len_sentences_pair(self) -> int:
        """How many tokens of two texts together the model takes beside the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def _backend_for(self, split_special_tokens: bool | None) -> Tokenizer:
        if split_special_tokens is None or bool(split_special_tokens) == self.split_special_tokens:
            return self._backend
        if self._other_backend is None:
            other = copy.deepcopy(self._backend)
            other.encode_special_tokens = not self.split_special_tokens
            self._other_backend = other
        return self._other_backend

    def _lengths(
        self,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        multiple: int | None,
        padding_side: str | None,
        stride: int,
    ) -> Lengths:
        if max_length is not None and padding is False and truncation is None:
            truncation = True
        pad = lengths_of.choice(
            "padding", padding, ("longest", "max_length"), true="longest", off="do_not_pad"
        )
        cut = lengths_of.choice(
            "truncation", truncation, lengths_of.STRATEGIES, true="longest_first", off="do_not_truncate"
        )
        max_length = lengths_of.whole_number("max_length", max_length, 1)
        multiple = lengths_of.whole_number("pad_to_multiple_of", multiple, 1)
        if max_length is None and (cut or pad == "max_length"):
            if self.model_max_length > lengths_of.UNKNOWN_LENGTH:
                cut, pad = None, None if pad == "max_length" else pad
            else:
                max_length = self.model_max_length
        if pad and self.pad_token_id is None:
            raise ValueError("padding needs a pad_token: set tokenizer.pad_token, or pass padding=False")
        if cut and pad and multiple and max_length and max_length % multiple:
            raise ValueError(f"max_length={max_length} is not a multiple of pad_to_multiple_of={multiple}")
        return Lengths(
            padding=pad,
            truncation=cut,
            max_length=max_length,
            multiple=multiple,
            padding_side=lengths_of.side("padding_side", padding_side or self.padding_side),
            truncation_side=lengths_of.side("truncation_side", self.truncation_side),
            stride=lengths_of.whole_number("stride", stride, 0) or 0,
        )

    def _encode_rows(
        self,
        rows: list[Any],
        lengths: Lengths,
        *,
        backend: Tokenizer,
        add_special_tokens: bool,
        is_pretokenized: bool,
        shorten: bool,
    ) -> list[Encoding]:
        """Tokenise, truncate and pad; `shorten` allows leaving out text that cannot matter."""
        how = {"add_special_tokens": add_special_tokens, "is_pretokenized": is_pretokenized}
        special = [0, 0]
        if add_special_tokens:
            special = [backend.num_special_tokens_to_add(is_pair=pair) for pair in (False, True)]
        pairs = [isinstance(row, tuple) for row in rows]
        lengths.check_room(special[any(pairs)])
        read = rows
        limit = lengths.max_length if lengths.truncation else None
        if limit and shorten and self._prefix_is_safe and lengths.truncation_side == "right":
            read = [lengths_of.safe_prefix(row, limit) if isinstance(row, str) else row for row in rows]
        encodings = backend.encode_batch(read, **how) if rows else []
        if limit:
            for i, row in enumerate(rows):
                if read[i] is not row and len(encodings[i]) < limit:
                    read[i] = row
                    encodings[i] = backend.encode(row, **how)
                if len(encodings[i]) > limit:
                    encodings[i] = self._truncated(read[i], limit - special[pairs[i]], lengths, backend, how)
        if lengths.padding and encodings:
            self._pad_encodings(encodings, lengths)
        return encodings

    def _truncated(
        self, row: Any, room: int, lengths: Lengths, backend: Tokenizer, how: Mapping[str, bool]
    ) -> Encoding:
        """One row cut to `room` tokens beside its special ones, which are put around it afterwards."""
        texts = row if isinstance(row, tuple) else (row,)
        plain = {**how, "add_special_tokens": False}
        first, *rest = [backend.encode(text, **plain) for text in texts]
        second = rest[0] if rest else None
        lengths_of.truncate(first, second, room, lengths)
        return backend.post_process(first, second, how["add_special_tokens"])

    def _pad_encodings(self, encodings: list[Encoding], lengths: Lengths) -> None:
        length = lengths.padded(max(len(encoding) for encoding in encodings))
        for encoding in encodings:
            encoding.pad(
                length,
                direction=lengths.padding_side,
                pad_id=self.pad_token_id,
                pad_type_id=self.pad_token_type_id,
                pad_token=self.pad_token,
            )

    def _warn_of_long_rows(self, encodings: Sequence[Encoding]) -> None:
        longest = max((len(encoding) for encoding in encodings), default=0)
        if longest > self.model_max_length:
            warn_once(
                "text-longer-than-model",
                f"a text has {longest} tokens and the model takes {self.model_max_length}: pass truncation=True",
            )

    # -- padding rows made before

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad rows that were tokenised before, for instance in a data loader.

        Args:
            encoded_inputs: one encoding, a batch of them as one mapping, or a list of mappings; lists, arrays or
                tensors. Arrays and tensors come back as such unless `return_tensors` says otherwise.
            padding, max_length, pad_to_multiple_of, padding_side, return_tensors: as in `__call__`.

        Raises:
            ValueError: no `input_ids`, or entries with different numbers of rows.
        """
        if isinstance(encoded_inputs, (list, tuple)):
            names = list(encoded_inputs[0]) if encoded_inputs else []
            encoded_inputs = {name: [row[name] for row in encoded_inputs] for name in names}
        main = self.model_input_names[0]
        if not isinstance(encoded_inputs, Mapping) or main not in encoded_inputs:
            raise ValueError(f"pad needs {main}, got {list(encoded_inputs)}")
        data = {name: _as_lists(value) for name, value in encoded_inputs.items()}
        return_tensors = return_tensors or _tensor_type(encoded_inputs[main])
        masks = _given(return_attention_mask, "attention_mask" in self.model_input_names)
        single = bool(data[main]) and not isinstance(data[main][0], list)
        if single:
            data = {name: [value] for name, value in data.items()}
        sizes = {name: len(value) for name, value in data.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the entries have different numbers of rows: {sizes}")
        if masks and "attention_mask" not in data:
            data["attention_mask"] = [[1] * len(row) for row in data[main]]
        lengths = self._lengths(padding, False, max_length, pad_to_multiple_of, padding_side, 0)
        if lengths.padding and data[main]:
            self._pad_lists(data, lengths.padded(max(len(row) for row in data[main])), lengths.padding_side)
        if single:
            data = {name: value[0] for name, value in data.items()}
        return BatchEncoding(data, tensor_type=return_tensors)

    def _pad_lists(self, data: dict[str, list[Any]], length: int, side: str) -> None:
        fillers = {
            self.model_input_names[0]: self.pad_token_id,
            "attention_mask": 0,
            "token_type_ids": self.pad_token_type_id,
            "special_tokens_mask": 1,
        }
        for name, filler in fillers.items():
            for i, row in enumerate(data.get(name, ())):
                padding = [filler] * (length - len(row))
                data[name][i] = row + padding if side == "right" else padding + row

    # -- special tokens around ids

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`<s> A </s>` for one row of ids, `<s> A </s></s> B </s>` for two."""
        row = [self.bos_token_id, *token_ids_0, self.eos_token_id]
        return row if token_ids_1 is None else [*row, self.eos_token_id, *token_ids_1, self.eos_token_id]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Zeros: these models do not tell two texts apart by type."""
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def get_special_tokens_mask(
        self, token_ids_0: Any, token_ids_1: Any = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for each special token, 0 for each token of text.

        Args:
            token_ids_0, token_ids_1: the ids, without special tokens unless `already_has_special_tokens`.
            already_has_special_tokens: the ids came from `__call__`; `token_ids_1` must then be None.

        Raises:
            ValueError: `token_ids_1` given together with `already_has_special_tokens`.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise ValueError("token_ids_1 must be None where the ids already hold special tokens")
            special = set(self.all_special_ids)
            return [int(int(index) in special) for index in token_ids_0]
        mask = [1, *[0] * len(token_ids_0), 1]
        return mask if token_ids_1 is None else [*mask, 1, *[0] * len(token_ids_1), 1]

    # -- decoding

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """The text of a row of ids (list, array, tensor or one int), or a list of texts for several rows.

        Args:
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: remove spaces before punctuation, in tokenizers that put them there.

        Raises:
            ValueError: a negative id.
        """
        if isinstance(token_ids, Mapping):
            token_ids = token_ids["input_ids"]
        ids = _as_lists(token_ids)
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        row = ids if isinstance(ids, list) else [ids]
        try:
            text = self._backend.decode(row, skip_special_tokens=skip_special_tokens)
        except OverflowError:
            raise ValueError(f"token ids must be between 0 and 2**32: {token_ids!r}") from None
        return self._finish_decoding(
            text, _given(clean_up_tokenization_spaces, self.clean_up_tokenization_spaces)
        )

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """`decode` of several rows; always a list."""
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts

    def _finish_decoding(self, text: str, clean_up: bool) -> str:
        return text

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens into text."""
        return self._backend.decoder.decode(tokens)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length}, padding_side={self.padding_side!r}, "
            f"truncation_side={self.truncation_side!r}, special_tokens={json.dumps(self.special_tokens_map)})"
        )


def _is_token(name: str, value: Any) -> bool:
    return name in NAMES or (name.endswith("_token") and isinstance(value, (str, AddedToken)))


def _are_tokens(values: Iterable[Any]) -> bool:
    return all(isinstance(value, (str, AddedToken)) for value in values)


def _as_special(token: Token, is_named: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    return added_token(token, special=True) if is_named else token


def _prefix_is_safe(backend: Tokenizer) -> bool:
    """Whether `safe_prefix` holds: no added token spans a space, and the normaliser keeps one between letters."""

    def normalised(text: str) -> str:
        return backend.normalizer.normalize_str(text) if backend.normalizer is not None else text

    if normalised("a a") != f"{normalised('a')} {normalised('a')}":
        return False
    contents = [token.content for token in backend.get_added_tokens_decoder().values()]
    return not any(c.isspace() for content in contents for c in content + normalised(content))


def _given(value: bool | None, default: bool) -> bool:
    return default if value is None else bool(value)


def _as_lists(value: Any) -> Any:
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_as_lists(item) if not isinstance(item, int) else item for item in value]
    return value


def _tensor_type(value: Any) -> str | None:
    """The `return_tensors` that gives back what `value` is made of."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    if isinstance(value, torch.Tensor):
        return "pt"
    return "np" if isinstance(value, (np.ndarray, np.generic)) else None
