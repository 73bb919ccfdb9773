"""Reads a sentencepiece model file: its pieces, their scores and kinds, and the precompiled character map.

The file is a protocol buffer, `sentencepiece_model.proto` in https://github.com/google/sentencepiece:
`ModelProto.pieces` = 1 (`piece` = 1, `score` = 2, `type` = 3) and `ModelProto.normalizer_spec` = 3
(`precompiled_charsmap` = 2). The sentencepiece library does not give the map and the kinds of pieces, hence
this reader.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CONTROL, USER_DEFINED = 3, 4  # ModelProto.SentencePiece.Type; 1 is a normal piece

_PIECES, _NORMALIZER_SPEC = 1, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_PRECOMPILED_CHARSMAP = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_float32 = struct.Struct("<f")


@dataclass
class SentencePieceModel:
    """What a tokenizer needs of a sentencepiece model.

    Attributes:
        vocab: (piece, log probability) by sentencepiece id.
        markers: (piece, is control) of control and user-defined pieces, by sentencepiece id.
        charsmap: the normaliser's precompiled character map; empty where the model normalises nothing.
    """

    vocab: list[tuple[str, float]] = field(default_factory=list)
    markers: list[tuple[str, bool]] = field(default_factory=list)
    charsmap: bytes = b""


def read_sentencepiece(path: str | os.PathLike[str]) -> SentencePieceModel:
    """Read the sentencepiece model file at `path`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a sentencepiece model, or it is cut off.
    """
    data = Path(path).read_bytes()
    model = SentencePieceModel()
    try:
        for number, start, end in _fields(data, 0, len(data)):
            if number == _PIECES:
                _add_piece(model, data, start, end)
            elif number == _NORMALIZER_SPEC:
                model.charsmap = _charsmap(data, start, end)
    except (IndexError, UnicodeDecodeError, struct.error, ValueError) as error:
        raise ValueError(f"{path} is not a readable sentencepiece model: {error}") from error
    if not model.vocab:
        raise ValueError(f"{path} is not a sentencepiece model: it holds no pieces")
    return model


def _add_piece(model: SentencePieceModel, data: bytes, start: int, end: int) -> None:
    piece, score, kind = "", 0.0, 1
    for number, begin, stop in _fields(data, start, end):
        if number == _PIECE:
            piece = data[begin:stop].decode("utf-8")
        elif number == _SCORE:
            (score,) = _float32.unpack_from(data, begin)
        elif number == _TYPE:
            kind = data[begin]  # kinds are below 128: one byte
    model.vocab.append((piece, score))
    if kind in (CONTROL, USER_DEFINED):
        model.markers.append((piece, kind == CONTROL))


def _charsmap(data: bytes, start: int, end: int) -> bytes:
    for number, begin, stop in _fields(data, start, end):
        if number == _PRECOMPILED_CHARSMAP:
            return data[begin:stop]
    return b""


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of each value in data[position:end]."""
    while position < end:
        key, position = _varint(data, position)
        kind = key & 7
        if kind == _BYTES:
            length, position = _varint(data, position)
            stop = position + length
        elif kind == _VARINT:
            stop = _varint(data, position)[1]
        elif kind in (_FIXED32, _FIXED64):
            stop = position + (4 if kind == _FIXED32 else 8)
        else:
            raise ValueError(f"unknown wire type {kind} at byte {position}")
        if stop > end:
            raise ValueError(f"the field at byte {position} ends at {stop}, beyond {end}")
        yield key >> 3, position, stop
        position = stop


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"a number at byte {position} has more than 64 bits")
