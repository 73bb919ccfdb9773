"""The texts of one call as rows to encode: valid Unicode, one row per text or pair; errors name the row."""

from __future__ import annotations

from typing import Any


def text_rows(text: Any, text_pair: Any, is_split: bool) -> tuple[list[Any], bool]:
    """The rows to encode (a str, a list of words, or a pair of these each), and whether they were given as a batch."""
    if not isinstance(text, (str, list, tuple)) or (is_split and isinstance(text, str)):
        wanted = "a list of words or of such lists" if is_split else "a str, a list of str or a list of (str, str)"
        raise TypeError(f"text must be {wanted}, not {type(text).__name__}")
    batched = not isinstance(text, str) and not (is_split and not (text and isinstance(text[0], (list, tuple))))
    if not batched:
        return [_row(text, text_pair or None, is_split, "")], False
    if text_pair is None:
        return [_row(item, None, is_split, f"[{i}]") for i, item in enumerate(text)], True
    if not isinstance(text_pair, (list, tuple)):
        raise TypeError(f"text_pair must be a list, as text is, not {type(text_pair).__name__}")
    if len(text) != len(text_pair):
        raise ValueError(f"{len(text)} texts and {len(text_pair)} second texts: one per text is needed")
    pairs = enumerate(zip(text, text_pair, strict=True))
    return [_row(item, second, is_split, f"[{i}]") for i, (item, second) in pairs], True


def _row(item: Any, second: Any, is_split: bool, place: str) -> Any:
    is_pair = second is None and isinstance(item, (list, tuple)) and len(item) == 2
    if is_pair and (not is_split or isinstance(item[0], (list, tuple))):
        item, second = item
    if second is None:
        return _text(item, is_split, f"text{place}")
    return _text(item, is_split, f"text{place}"), _text(second, is_split, f"text_pair{place}")


def _text(value: Any, is_split: bool, place: str) -> Any:
    if not is_split:
        return _valid_text(value, place)
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{place} must be a list of words, not {type(value).__name__}")
    return [_valid_text(word, f"{place}[{i}]") for i, word in enumerate(value)]


def _valid_text(text: Any, place: str) -> str:
    """`text` as valid Unicode: surrogate pairs are joined, lone surrogates become U+FFFD."""
    if not isinstance(text, str):
        raise TypeError(f"{place} must be a str, not {type(text).__name__}: {text!r:.80}")
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
