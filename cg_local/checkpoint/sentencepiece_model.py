"""A SentencePiece vocabulary as pieces: read from a serialized model, and written as one.

This file owns the few fields of SentencePiece's protobuf messages that matter here. It does not judge the layout of the
ids; `Tokenizer` does. Invariant: reading what was written gives the same pieces.

Source of field numbers and values: google/sentencepiece, src/sentencepiece_model.proto. Written by hand because the
messages need three fields, and the package protobuf would be a dependency for them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

# ModelProto.SentencePiece.Type, and the same numbers in GGUF (gguf-py/gguf/constants.py, TokenType).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BPE = 2  # TrainerSpec.ModelType


@dataclass(frozen=True)
class Piece:
    """One entry of a SentencePiece vocabulary.

    Attributes:
        text: UTF-8, spaces spelled as U+2581.
        score: a merge's logarithmic probability, or minus its rank.
        kind: NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED or BYTE.
    """

    text: bytes
    score: float
    kind: int


def sentencepiece_pieces(model: bytes) -> Iterator[Piece]:
    """Yield the vocabulary of a serialized SentencePiece model in the order of its ids.

    Args:
        model: a file that `Tokenizer.from_file` accepts.

    Source: field 1 of ModelProto is a piece, with the fields 1 (piece), 2 (score) and 3 (type, default NORMAL).
    """
    for field, value in _protobuf_fields(model):
        if field == 1 and isinstance(value, bytes):
            members: dict[int, Any] = dict(_protobuf_fields(value))
            score = struct.unpack("<f", members.get(2, bytes(4)))[0]
            yield Piece(members.get(1, b""), score, int(members.get(3, NORMAL)))


def sentencepiece_model(pieces: Iterable[Piece]) -> bytes:
    """Serialize a vocabulary as a BPE model that splits text as CodeGemma's does.

    The normalizer is the identity, without a dummy prefix and without the removal of spaces; what no piece spells falls
    back to bytes. Ids 0 to 3 are <pad>, <eos>, <bos> and <unk>.

    Args:
        pieces: in the order of their ids, with distinct texts.
    """
    entries = b"".join(
        _delimited(1, _delimited(1, piece.text) + _key(2, 5) + struct.pack("<f", piece.score) + _number(3, piece.kind))
        for piece in pieces
    )
    # TrainerSpec: model_type, treat_whitespace_as_suffix, allow_whitespace_only_pieces, split_digits, byte_fallback,
    # then the ids of <unk>, <bos>, <eos> and <pad> and their pieces.
    trainer = _number(3, BPE) + _number(24, 0) + _number(25, 1) + _number(26, 1) + _number(35, 1)
    trainer += _number(40, 3) + _number(41, 2) + _number(42, 1) + _number(43, 0)
    trainer += b"".join(_delimited(45 + i, text) for i, text in enumerate((b"<unk>", b"<bos>", b"<eos>", b"<pad>")))
    # NormalizerSpec: name, add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces.
    normalizer = _delimited(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 1)
    return entries + _delimited(2, trainer) + _delimited(3, normalizer)


def _key(field: int, kind: int) -> bytes:
    return _encoded_varint(field << 3 | kind)


def _number(field: int, value: int) -> bytes:
    return _key(field, 0) + _encoded_varint(value)


def _delimited(field: int, value: bytes) -> bytes:
    return _key(field, 2) + _encoded_varint(len(value)) + value


def _encoded_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _protobuf_fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield (field number, value) of a protobuf message: bytes for fixed and delimited values, int for varints."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        length = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            length, position = _varint(data, position)
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value, position, shift = value | (byte & 0x7F) << shift, position + 1, shift + 7
        if byte < 0x80:
            return value, position
