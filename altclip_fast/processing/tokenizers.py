"""`XLMRobertaTokenizer` (AltCLIP) and `CLIPTokenizer` (CLIP): text to ids, the same ids as the transformers classes.

XLM-RoBERTa: the characters are mapped as the sentencepiece model says (NFKC and a few more), words are split
at whitespace and begin with "▁", and each word is cut into the pieces of highest probability (Unigram; Kudo
2018, https://arxiv.org/abs/1804.10959). Rows are `<s> A </s>` and `<s> A </s></s> B </s>`.

CLIP: NFC, whitespace to one space, lower case, a split into words, single digits and runs of other signs, and
byte-level BPE with `</w>` at the end of words (https://github.com/openai/CLIP). Rows are `<|startoftext|> A
<|endoftext|>`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram

from ..hub import read_json
from .base_tokenizer import BaseTokenizer
from .sentencepiece_model import read_sentencepiece
from .special_tokens import Token, added_token
from .tokenizer_files import Stored, as_merge, read_merges, read_tokenizer_json

_SPACE = "▁"  # U+2581 marks the beginning of a word

_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)

_SPACES_BEFORE_PUNCTUATION = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")

PathLike = str | os.PathLike[str]


class XLMRobertaTokenizer(BaseTokenizer):
    """The multilingual Unigram tokenizer of XLM-RoBERTa and AltCLIP.

    Args:
        vocab: (token, log probability) in the order of ids, or the path of a tokenizer.json or sentencepiece
            model; without any vocabulary there are only the special tokens.
        add_prefix_space: begin the first word with "▁" as every other one.
        bos_token, eos_token, sep_token, cls_token, unk_token, pad_token, mask_token: special tokens; id 3 is
            unknown.
        vocab_file: a sentencepiece model (`sentencepiece.bpe.model`). Ids follow fairseq: `<s>` `<pad>`
            `</s>` `<unk>`, the pieces from the fourth on, `<mask>`.
        tokenizer_file: a tokenizer.json with a Unigram model.
        options: see `BaseTokenizer`.

    Raises:
        OSError: a file that cannot be read.
        ValueError: a vocabulary of the wrong kind or without room for the unknown token.
        TypeError: unknown options.
    """

    vocab_files_names = {"vocab_file": "sentencepiece.bpe.model", "tokenizer_file": "tokenizer.json"}
    required_files = (("tokenizer_file",), ("vocab_file",))
    own_options = BaseTokenizer.own_options | {"add_prefix_space"}

    def __init__(
        self,
        vocab: PathLike | Sequence[tuple[str, float]] | Mapping[str, float] | None = None,
        add_prefix_space: bool = True,
        bos_token: Token = "<s>",
        eos_token: Token = "</s>",
        sep_token: Token = "</s>",
        cls_token: Token = "<s>",
        unk_token: Token = "<unk>",
        pad_token: Token = "<pad>",
        mask_token: Token = "<mask>",
        *,
        vocab_file: PathLike | None = None,
        tokenizer_file: PathLike | None = None,
        **options: Any,
    ) -> None:
        if isinstance(vocab, (str, os.PathLike)):
            is_json = os.fspath(vocab).endswith(".json")
            tokenizer_file, vocab_file = (vocab, vocab_file) if is_json else (tokenizer_file, vocab)
            vocab = None
        tokens = (bos_token, pad_token, eos_token, unk_token, mask_token)
        names = [
            _content(token, name)
            for token, name in zip(tokens, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), strict=True)
        ]
        if vocab is not None:
            items = vocab.items() if isinstance(vocab, Mapping) else vocab
            stored = Stored([(token, score) for token, score in items])
        elif tokenizer_file is not None:
            stored = read_tokenizer_json(tokenizer_file, "Unigram")
        elif vocab_file is not None:
            stored = _from_sentencepiece(vocab_file, names, options)
        else:
            stored = Stored([(name, 0.0) for name in names])
        self.vocab_file = None if vocab_file is None else os.fspath(vocab_file)
        self.add_prefix_space = bool(add_prefix_space)
        named = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "unk_token": unk_token,
            "sep_token": sep_token,
            "pad_token": pad_token,
            "cls_token": cls_token,
            "mask_token": mask_token,
        }
        super().__init__(_unigram(stored, self.add_prefix_space), named, _with_stored(options, stored))
        bos, eos = self._ends()
        self._backend.post_processor = processors.TemplateProcessing(
            single=[bos[0], "$A", eos[0]],
            pair=[bos[0], "$A", eos[0], eos[0], "$B", eos[0]],
            special_tokens=[bos, eos],
        )

    @classmethod
    def _find_vocabulary(cls, find: Callable[[str], Path | None], source: PathLike) -> dict[str, Path]:
        files = super()._find_vocabulary(find, source)
        # for save_vocabulary; from the hub it would be five megabytes that are not needed
        if "vocab_file" not in files and os.path.isdir(source) and (path := find(cls.vocab_files_names["vocab_file"])):
            files["vocab_file"] = path
        return files

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "add_prefix_space": self.add_prefix_space}

    def save_vocabulary(self, save_directory: PathLike, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy the sentencepiece model into an existing folder.

        Raises:
            OSError: no such folder.
            ValueError: the tokenizer was not made from a sentencepiece model; `save_pretrained` writes
                tokenizer.json.
        """
        target = _target(save_directory, filename_prefix, self.vocab_files_names["vocab_file"])
        if self.vocab_file is None:
            raise ValueError("this tokenizer has no sentencepiece model to save: use save_pretrained")
        if not (target.exists() and target.samefile(self.vocab_file)):
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)

    def _finish_decoding(self, text: str, clean_up: bool) -> str:
        if clean_up:
            for spaced in _SPACES_BEFORE_PUNCTUATION:
                text = text.replace(spaced, spaced.strip())
        return text


class CLIPTokenizer(BaseTokenizer):
    """The lower-casing byte-level BPE tokenizer of CLIP.

    Args:
        vocab: token -> id, or the path of a vocab.json.
        merges: pairs of tokens, or strings with a space between the two, or the path of a merges.txt.
        unk_token, bos_token, eos_token, pad_token: special tokens.
        vocab_file, merges_file: the same as paths.
        tokenizer_file: a tokenizer.json with a BPE model.
        options: see `BaseTokenizer`.

    Raises:
        OSError: a file that cannot be read.
        ValueError: a vocabulary of the wrong kind, or merges of tokens that it does not hold.
        TypeError: unknown options.
    """

    vocab_files_names = {
        "vocab_file": "vocab.json",
        "merges_file": "merges.txt",
        "tokenizer_file": "tokenizer.json",
    }
    required_files = (("tokenizer_file",), ("vocab_file", "merges_file"))

    def __init__(
        self,
        vocab: PathLike | Mapping[str, int] | None = None,
        merges: PathLike | Sequence[str | tuple[str, str]] | None = None,
        unk_token: Token = "<|endoftext|>",
        bos_token: Token = "<|startoftext|>",
        eos_token: Token = "<|endoftext|>",
        pad_token: Token = "<|endoftext|>",
        *,
        vocab_file: PathLike | None = None,
        merges_file: PathLike | None = None,
        tokenizer_file: PathLike | None = None,
        **options: Any,
    ) -> None:
        vocab = vocab_file if vocab is None else vocab
        merges = merges_file if merges is None else merges
        if vocab is None and tokenizer_file is not None:
            stored = read_tokenizer_json(tokenizer_file, "BPE")
        else:
            stored = Stored(_bpe_vocab(vocab, (bos_token, eos_token, pad_token)), _bpe_merges(merges))
        named = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "unk_token": unk_token,
            "pad_token": pad_token,
        }
        backend = _byte_level_bpe(stored, None if unk_token is None else _content(unk_token))
        super().__init__(backend, named, _with_stored(options, stored))
        bos, eos = self._ends()
        backend.post_processor = processors.RobertaProcessing(eos, bos, trim_offsets=False, add_prefix_space=False)

    def save_vocabulary(self, save_directory: PathLike, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.json and merges.txt into an existing folder.

        Raises:
            OSError: no such folder, or it cannot be written.
        """
        model = json.loads(self._backend.to_str())["model"]
        vocab = _target(save_directory, filename_prefix, "vocab.json")
        merges = _target(save_directory, filename_prefix, "merges.txt")
        vocab.write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n", encoding="utf-8")
        lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        merges.write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
        return str(vocab), str(merges)

    def _finish_decoding(self, text: str, clean_up: bool) -> str:
        # clean_up would take spaces out of byte-level text that were really there
        return text.replace("</w>", " ").strip()


XLMRobertaTokenizerFast = XLMRobertaTokenizer
CLIPTokenizerFast = CLIPTokenizer


def _unigram(stored: Stored, add_prefix_space: bool) -> Tokenizer:
    try:
        vocab = [(token, float(score)) for token, score in stored.vocab]
        backend = Tokenizer(Unigram(vocab=vocab, unk_id=3, byte_fallback=False))
        if stored.charsmap:
            backend.normalizer = normalizers.Precompiled(stored.charsmap)
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(f"not a Unigram vocabulary: {error}") from error
    scheme = "always" if add_prefix_space else "never"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme),
        ]
    )
    backend.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme=scheme)
    return backend


def _from_sentencepiece(path: PathLike, names: Sequence[str], options: dict[str, Any]) -> Stored:
    """The vocabulary of a sentencepiece model in fairseq's order; its markers become extra special tokens."""
    model = read_sentencepiece(path)
    vocab = [(name, 0.0) for name in names[:4]] + model.vocab[3:] + [(names[4], 0.0)]
    if not {"extra_special_tokens", "additional_special_tokens"} & set(options):
        options["extra_special_tokens"] = [
            added_token(piece, normalized=False, special=is_control) for piece, is_control in model.markers
        ]
    return Stored(vocab, charsmap=model.charsmap)


def _byte_level_bpe(stored: Stored, unk_token: str | None) -> Tokenizer:
    try:
        model = BPE(
            vocab=dict(stored.vocab),
            merges=stored.merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=unk_token,
        )
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(f"not a BPE vocabulary with its merges: {error}") from error
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _bpe_vocab(vocab: PathLike | Mapping[str, int] | None, special: Sequence[Token]) -> dict[str, int]:
    if vocab is None:
        return {_content(token): index for index, token in enumerate(special) if token is not None}
    if isinstance(vocab, (str, os.PathLike)):
        return read_json(vocab)
    return dict(vocab)


def _bpe_merges(merges: PathLike | Sequence[str | tuple[str, str]] | None) -> list[tuple[str, str]]:
    if merges is None:
        return []
    if isinstance(merges, (str, os.PathLike)):
        return read_merges(merges)
    return [as_merge(merge) for merge in merges]


def _with_stored(options: Mapping[str, Any], stored: Stored) -> dict[str, Any]:
    """`options` completed by what a tokenizer.json holds: added tokens, sides, and what its settings imply."""
    merged = dict(options)
    legacy = merged.pop("legacy_added_tokens", None) or {}
    if "added_tokens_decoder" not in merged:
        merged["added_tokens_decoder"] = {**legacy, **stored.added_tokens}
    for name in ("padding_side", "truncation_side"):
        if name in stored.defaults:
            merged.setdefault(name, stored.defaults[name])
    implied = {"max_length", "stride", "pad_to_multiple_of"} & set(stored.defaults)
    merged["init_kwargs"] = {
        **{name: stored.defaults[name] for name in implied},
        **(merged.get("init_kwargs") or {}),
    }
    return merged


def _content(token: Any, default: str | None = None) -> str:
    """The text of a token as the JSON files or a caller give it; `default` in place of None."""
    token = default if token is None else token
    return token if isinstance(token, str) else str(added_token(token))


def _target(folder: PathLike, prefix: str | None, name: str) -> Path:
    if not Path(folder).is_dir():
        raise NotADirectoryError(f"{os.fspath(folder)!r} is not a folder")
    return Path(folder) / (f"{prefix}-{name}" if prefix else name)
