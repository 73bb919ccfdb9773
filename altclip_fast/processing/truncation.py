"""How long each text may be: padding and truncation arguments resolved once per call, and the cutting itself.

The Rust tokenizer is never told about truncation or padding: setting them changes a shared object, which
fails ("Already borrowed") or mixes settings up when two threads tokenise at once.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding

STRATEGIES = ("longest_first", "only_first", "only_second")
SIDES = ("left", "right")

# A model_max_length above this means "unknown": tokenizers without one store 1e30.
UNKNOWN_LENGTH = int(1e20)

# An ASCII space between ASCII letters or digits. Both tokenizers normalise such characters one by one, split
# at the space and tokenise the words on each side independently, so the tokens of the text before it are the
# first tokens of the whole text.
_CUT = re.compile(r"(?<=[A-Za-z0-9]) (?=[A-Za-z0-9])")
_CHARACTERS_PER_TOKEN = 16  # generous: a shortened text seldom has fewer tokens than asked for
_CHARACTERS_PER_SHORT_TOKEN = 4  # about that of English text


@dataclass(frozen=True)
class Lengths:
    """The resolved padding and truncation of one call.

    Attributes:
        padding: None, "longest" or "max_length".
        truncation: None or one of `STRATEGIES`.
        max_length: in tokens, special ones included; None where neither padding nor truncation needs it.
        multiple: pad to a multiple of this.
        padding_side, truncation_side: "left" or "right".
        stride: tokens repeated between a truncated row and its overflow.
    """

    padding: str | None
    truncation: str | None
    max_length: int | None
    multiple: int | None
    padding_side: str
    truncation_side: str
    stride: int

    def padded(self, longest: int) -> int:
        """The length to pad rows to, the longest of which has `longest` tokens."""
        length = self.max_length if self.padding == "max_length" and self.max_length else longest
        return length if self.multiple is None else -(-length // self.multiple) * self.multiple

    def check_room(self, special: int) -> None:
        """Raise ValueError where truncated rows with `special` special tokens could hold no text."""
        if self.truncation is None or self.max_length is None:
            return
        if self.max_length <= special:
            raise ValueError(f"max_length={self.max_length} leaves no room beside {special} special tokens")
        if self.stride >= self.max_length - special:
            raise ValueError(
                f"stride={self.stride} must be below the {self.max_length - special} tokens of text per row"
            )


def choice(name: str, value: Any, allowed: tuple[str, ...], *, true: str, off: str) -> str | None:
    """`value` as one of `allowed` or None: True means `true`; False, None and `off` mean None."""
    value = getattr(value, "value", value)
    if value is True:
        return true
    if value is None or value is False or value == off:
        return None
    if value not in allowed:
        raise ValueError(f"{name} must be True, False or one of {[*allowed, off]}, not {value!r}")
    return value


def whole_number(name: str, value: Any, least: int) -> int | None:
    """`value` as an int of at least `least`, None kept."""
    if value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number


def side(name: str, value: Any) -> str:
    """`value` if it is "left" or "right", else ValueError."""
    if value not in SIDES:
        raise ValueError(f"{name} must be 'left' or 'right', not {value!r}")
    return value


def safe_prefix(text: str, max_length: int) -> str:
    """`text`, or its beginning up to a place where cutting cannot change the first tokens (see `_CUT`).

    The beginning may still hold fewer than `max_length` tokens; the caller checks and then takes the whole
    text.
    """
    budget = _CHARACTERS_PER_TOKEN * max_length
    if len(text) <= budget:
        return text
    match = _CUT.search(text, budget)
    return text if match is None else text[: match.start()]


def looks_short(row: Any, max_length: int) -> bool:
    """Whether a row is a single text that probably has at most `max_length` tokens."""
    return isinstance(row, str) and len(row) <= _CHARACTERS_PER_SHORT_TOKEN * max_length


def truncate(
    first: Encoding, second: Encoding | None, room: int, lengths: Lengths, keep_overflow: bool
) -> tuple[Encoding, Encoding | None]:
    """`first` and `second` cut until both have at most `room` tokens together.

    Args:
        keep_overflow: what is cut off stays reachable as `overflowing`.

    Raises:
        ValueError: the strategy names one text only, and that one is too short to give way.
    """
    if second is None and lengths.truncation == "only_second":
        raise ValueError("truncation='only_second' needs a text_pair")
    sizes = len(first), len(second) if second is not None else 0
    targets = _targets(*sizes, room, lengths.truncation)
    if any(
        target < size and (target < 0 or 0 < target <= lengths.stride)
        for size, target in zip(sizes, targets, strict=True)
    ):
        raise ValueError(
            f"truncation={lengths.truncation!r} with stride={lengths.stride} cannot bring texts of "
            f"{sizes[0]} and {sizes[1]} tokens down to max_length={lengths.max_length}"
        )
    first = _cut(first, targets[0], lengths, keep_overflow)
    return first, None if second is None else _cut(second, targets[1], lengths, keep_overflow)


def _cut(encoding: Encoding, target: int, lengths: Lengths, keep_overflow: bool) -> Encoding:
    """The first `target` tokens of `encoding`, or the last ones with truncation_side="left"."""
    size, side = len(encoding), lengths.truncation_side
    if size <= target:
        return encoding
    if not keep_overflow and target == 0:
        return Encoding.merge([])
    if not keep_overflow and size > 2 * target:
        # The tokens wanted are what is left over when cutting at the other end. Cutting at this end would keep the
        # rest in pieces, and a pair of long texts makes a row of every two pieces: gigabytes.
        encoding.truncate(size - target, direction="left" if side == "right" else "right")
        return encoding.overflowing[0]
    encoding.truncate(target, stride=lengths.stride, direction=side)
    return encoding


def _targets(first: int, second: int, room: int, strategy: str | None) -> tuple[int, int]:
    """The lengths that texts of `first` and `second` tokens are cut to; below zero where that is impossible."""
    excess = first + second - room
    if excess <= 0:
        return first, second
    if strategy == "only_first" or (strategy == "longest_first" and second == 0):
        return (first - excess if first > excess else -1), second
    if strategy == "only_second":
        return first, (second - excess if second > excess else -1)
    # longest_first: only the longer one gives way while the shorter one fits in half of the room, else both
    # halves
    short = min(first, second)
    long = room - short
    if long < short:
        short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)
