"""`BaseTokenizer`: what `XLMRobertaTokenizer` and `CLIPTokenizer` share, over the `tokenizers` library.

Text in, `BatchEncoding` of `input_ids` and `attention_mask` out, with the ids of the transformers classes of
the same name. Differences on purpose: lone surrogates become U+FFFD, a text that is not a str is a TypeError
that names its index, unknown keywords are TypeErrors, and encoding never changes the tokenizer, so that
threads may share one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Self

from tokenizers import Encoding, Tokenizer

from ..hub import resolve_file
from ..notices import warn_once
from . import truncation as lengths_of
from .encoding import BatchEncoding, as_lists, tensor_type_of
from .row_encoding import RowEncoder
from .text_rows import text_rows
from .tokenizer_files import read_settings, write_json
from .truncation import Lengths
from .vocabulary import Vocabulary, is_token

_UNSET_LENGTH = int(1e30)  # the hub's value for "no limit known"

_OPTIONS = frozenset(
    {
        "model_max_length",
        "max_len",
        "padding_side",
        "truncation_side",
        "model_input_names",
        "name_or_path",
        "init_kwargs",
        "verbose",
        "clean_up_tokenization_spaces",
        "split_special_tokens",
        "processor_class",
        "chat_template",
        "extra_special_tokens",
        "additional_special_tokens",
        "added_tokens_decoder",
    }
)

_READ: dict[str, Callable[[Encoding], Any]] = {
    "input_ids": attrgetter("ids"),
    "token_type_ids": attrgetter("type_ids"),
    "attention_mask": attrgetter("attention_mask"),
    "special_tokens_mask": attrgetter("special_tokens_mask"),
    "offset_mapping": attrgetter("offsets"),
    "length": len,
}


class BaseTokenizer(Vocabulary):
    """Encoding, decoding, padding, special tokens, loading and saving. Not used on its own.

    Args:
        backend: the Rust tokenizer, without special tokens; this object owns it from now on.
        named_tokens: special tokens by name (`bos_token`, ...); None where there is none.
        options: `model_max_length`, `padding_side`, `truncation_side` ("right" or "left"),
            `model_input_names`, `extra_special_tokens`, `split_special_tokens`,
            `clean_up_tokenization_spaces`, `name_or_path`, `processor_class`, `added_tokens_decoder` (id ->
            token), and special tokens under further names (`*_token`).

    Raises:
        TypeError: an unknown option, or a special token that is neither str nor AddedToken.
        ValueError: a side that is neither "left" nor "right".
    """

    vocab_files_names: ClassVar[dict[str, str]] = {}
    required_files: ClassVar[tuple[tuple[str, ...], ...]] = ()  # alternatives, by constructor argument
    own_options: ClassVar[frozenset[str]] = frozenset({"legacy_added_tokens"})  # beside `_OPTIONS`
    padding_side: str = "right"
    truncation_side: str = "right"
    is_fast = True
    pad_token_type_id = 0

    def __init__(self, backend: Tokenizer, named_tokens: Mapping[str, Any], options: dict[str, Any]) -> None:
        further = {name: options.pop(name) for name in list(options) if is_token(name, options[name])}
        unknown = sorted(set(options) - _OPTIONS)
        if unknown:
            raise TypeError(f"{type(self).__name__} got unknown arguments: {', '.join(unknown)}")
        self._set_options(options)
        super().__init__(
            backend,
            {**named_tokens, **further},
            options.get("extra_special_tokens") or options.get("additional_special_tokens") or [],
            options.get("added_tokens_decoder") or {},
            bool(options.get("split_special_tokens", False)),
        )

    def _set_options(self, options: Mapping[str, Any]) -> None:
        max_length = options.get("model_max_length", options.get("max_len"))
        if isinstance(max_length, float):  # a JSON file may hold 1e30
            max_length = _UNSET_LENGTH if max_length > lengths_of.UNKNOWN_LENGTH else int(max_length)
        max_length = lengths_of.whole_number("model_max_length", max_length, 1)
        self.model_max_length: int = _UNSET_LENGTH if max_length is None else max_length
        self.padding_side = lengths_of.side("padding_side", options.get("padding_side", self.padding_side))
        self.truncation_side = lengths_of.side("truncation_side", options.get("truncation_side", self.truncation_side))
        names = options.get("model_input_names") or ("input_ids", "attention_mask")
        self.model_input_names = list(names)
        self.clean_up_tokenization_spaces = bool(options.get("clean_up_tokenization_spaces", False))
        self.name_or_path = str(options.get("name_or_path", ""))
        self.processor_class = options.get("processor_class")
        self.chat_template = options.get("chat_template")
        self.init_kwargs: dict[str, Any] = dict(options.get("init_kwargs") or {})

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
            pretrained_model_name_or_path: the folder or hub id; `tokenizer.json` is preferred, other
                vocabulary files are read where it is absent.
            revision, cache_dir, local_files_only, token: which commit, where to keep it, no network,
                credentials.
            use_fast: accepted for compatibility; there is one implementation.
            overrides: constructor arguments that win over the files.

        Raises:
            OSError: no vocabulary file there, or one that cannot be read; the message names the files looked
                for.
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
            if name in _OPTIONS | cls.own_options or is_token(name, settings[name]):
                arguments.setdefault(name, settings.pop(name))
        arguments.setdefault("name_or_path", str(pretrained_model_name_or_path))
        build: Any = cls  # each class has its own signature
        return build(**arguments, init_kwargs=settings)

    @classmethod
    def _find_vocabulary(cls, find: Callable[[str], Path | None], source: str | os.PathLike[str]) -> dict[str, Path]:
        for alternative in cls.required_files:
            found = {name: find(cls.vocab_files_names[name]) for name in alternative}
            files = {name: path for name, path in found.items() if path is not None}
            if len(files) == len(alternative):
                return files
        wanted = " or ".join(" + ".join(cls.vocab_files_names[name] for name in names) for names in cls.required_files)
        raise OSError(f"{source} holds no {cls.__name__}: looked for {wanted}")

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        push_to_hub: bool = False,
    ) -> tuple[str, ...]:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json; transformers loads them.

        Args:
            save_directory: made where it is missing.
            legacy_format: accepted for compatibility.
            filename_prefix: put before the file names, with a dash.

        Returns:
            The paths written.

        Raises:
            OSError: the folder is a file, or cannot be written.
            ValueError: `push_to_hub=True`; saving is local.
        """
        if push_to_hub:
            raise ValueError("save_pretrained writes to a folder only; upload it with huggingface_hub")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        names = ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
        config, tokens, vocabulary = (folder / f"{prefix}{name}" for name in names)
        write_json(config, self._config())
        write_json(tokens, self.special_tokens_map)  # one left over in the folder would win over the config
        vocabulary.write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        return str(config), str(tokens), str(vocabulary)

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
            text: a str, a list of str, or a list of (str, str) pairs; with `is_split_into_words` a list of
                words, or a list of such lists.
            text_pair: the second texts, one per text.
            add_special_tokens: put the beginning and end tokens around.
            padding: False, True or "longest", "max_length".
            truncation: False, True or "longest_first", "only_first", "only_second". None truncates where
                `max_length` is given and padding is not.
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
            ValueError: arguments that contradict each other, padding without a padding token, no room for
                text.
        """
        rows, batched = text_rows(text, text_pair, is_split_into_words)
        lengths = self._lengths(padding, truncation, max_length, pad_to_multiple_of, padding_side, stride)
        encoder = RowEncoder(
            backend=self._backend_for(split_special_tokens),
            lengths=lengths,
            add_special_tokens=add_special_tokens,
            is_pretokenized=is_split_into_words,
            keep_overflow=return_overflowing_tokens,
            prefix_is_safe=self._prefix_is_safe,
        )
        encodings = encoder.encode(rows)
        if lengths.padding and encodings:
            self._pad_encodings(encodings, lengths)
        samples = list(range(len(encodings)))
        if return_overflowing_tokens:
            parts = [[encoding, *encoding.overflowing] for encoding in encodings]
            samples = [index for index, part in enumerate(parts) for _ in part]
            encodings = [encoding for part in parts for encoding in part]
        if verbose and max_length is None:
            self._warn_of_long_rows(encodings)
        wanted = {
            "input_ids": True,
            "token_type_ids": _given(return_token_type_ids, "token_type_ids" in self.model_input_names),
            "attention_mask": _given(return_attention_mask, "attention_mask" in self.model_input_names),
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
            "length": return_length,
        }
        data = {name: [_READ[name](encoding) for encoding in encodings] for name in wanted if wanted[name]}
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = samples
        elif not batched and return_tensors is None:
            data = {name: rows[0] if isinstance(rows[0], list) else rows for name, rows in data.items()}
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
        pad = lengths_of.choice("padding", padding, ("longest", "max_length"), true="longest", off="do_not_pad")
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

    def _pad_encodings(self, encodings: list[Encoding], lengths: Lengths) -> None:
        length = lengths.padded(max(len(encoding) for encoding in encodings))
        filler = {"pad_id": self.pad_token_id, "pad_type_id": self.pad_token_type_id, "pad_token": self.pad_token}
        for encoding in encodings:
            encoding.pad(length, direction=lengths.padding_side, **filler)

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
            encoded_inputs: one encoding, a batch of them as one mapping, or a list of mappings; lists, arrays
                or tensors. Arrays and tensors come back as such unless `return_tensors` says otherwise.
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
        data = {name: as_lists(value) for name, value in encoded_inputs.items()}
        return_tensors = return_tensors or tensor_type_of(encoded_inputs[main])
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
        ids = as_lists(token_ids)
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        row = ids if isinstance(ids, list) else [ids]
        try:
            text = self._backend.decode(row, skip_special_tokens=skip_special_tokens)
        except OverflowError:
            raise ValueError(f"token ids must be between 0 and 2**32: {token_ids!r}") from None
        return self._finish_decoding(text, _given(clean_up_tokenization_spaces, self.clean_up_tokenization_spaces))

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


def _given(value: bool | None, default: bool) -> bool:
    return default if value is None else bool(value)
