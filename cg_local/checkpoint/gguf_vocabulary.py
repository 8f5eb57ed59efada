"""The tokens of a GGUF file as the SentencePiece model they were made of.

This file owns what converters did to CodeGemma's vocabulary and how it is undone. Invariant: for every file made of a
tokenizer.model that `Tokenizer` accepts, the rebuilt model gives the same ids, and the same text for every id.

What a file says about tokens is not trusted where CodeGemma's layout fixes it, because converters changed their minds:
reserved ids came out normal, user-defined or control; runs of spaces are spelled with spaces or with U+2581; the key
add_space_prefix is missing in every Gemma file before llama.cpp's change 8248 and its default is wrong for Gemma;
padding rows have names of their own. Source: ggml-org/llama.cpp, changes 8228 and 8248, convert_hf_to_gguf.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from cg_local.checkpoint.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    sentencepiece_model,
)
from cg_local.errors import CheckpointError
from cg_local.safetensors_file import shown
from cg_local.tokenizer import SPACE, Tokenizer

KEY = "tokenizer.ggml."
ADVICE = "convert the original weights again, or use the Hugging Face layout"
# Ids 4..168 are user-defined pieces in every tokenizer of CodeGemma's layout, 169..216 are where they are HTML tags.
LAST_RUN_ID, LAST_TAG_ID = 168, 216
HTML_TAG = re.compile(rb"</?[a-z]+[1-6]?>")
BYTE_PIECE = re.compile(rb"<0x[0-9A-F]{2}>")
# Names that converters give to rows of padding. Source: convert_hf_to_gguf.py and convert.py of llama.cpp.
PADDING = re.compile(rb"\[PAD\d+\]|<dummy\d+>|<pad\d+>|")


def rebuild_tokenizer(metadata: Mapping[str, object], num_rows: int, where: str) -> bytes:
    """Return a serialized SentencePiece model of a GGUF file's tokens.

    Args:
        metadata: of the file; tokens, scores and types of `tokenizer.ggml`.
        num_rows: of the embedding, padding left out; tokens beyond are dropped.
        where: names the file in messages.

    Raises:
        CheckpointError: no tokens, another kind of tokenizer, or lists that do not fit together.
    """
    kind = metadata.get(f"{KEY}model")
    if kind != "llama":
        found = "no tokenizer" if kind is None else f"a tokenizer of the kind {shown(kind)}"
        raise CheckpointError(f"{where}: has {found}; needed is Gemma's (kind llama, SentencePiece): {ADVICE}")
    tokens, scores, kinds = (metadata.get(f"{KEY}{name}") for name in ("tokens", "scores", "token_type"))
    if not isinstance(tokens, list) or not isinstance(scores, np.ndarray) or len(tokens) != len(scores):
        raise CheckpointError(f"{where}: tokenizer.ggml.tokens and .scores are not lists of one length; {ADVICE}")
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        kinds = np.full(len(tokens), NORMAL)  # what is not fixed by the layout is then normal
    pieces = [
        _piece(token_id, text, float(score), int(told))
        for token_id, (text, score, told) in enumerate(zip(tokens[:num_rows], scores, kinds, strict=False))
    ]
    while pieces and PADDING.fullmatch(pieces[-1].text):
        pieces.pop()
    texts = {piece.text for piece in pieces}
    if len(texts) != len(pieces) or b"" in texts:
        raise CheckpointError(f"{where}: tokenizer.ggml.tokens has empty or repeated tokens; {ADVICE}")
    return sentencepiece_model(pieces)


def _piece(token_id: int, text: bytes, score: float, told: int) -> Piece:
    kind = _kind(token_id, text, told)
    return Piece(text.replace(b" ", SPACE.encode()) if kind == USER_DEFINED else text, score, kind)


def _kind(token_id: int, text: bytes, told: int) -> int:
    """Return a token's type: by the layout where it says one, else as told."""
    if token_id <= Tokenizer.unk_id:
        return UNKNOWN if token_id == Tokenizer.unk_id else CONTROL
    if token_id <= LAST_RUN_ID:
        return USER_DEFINED
    if BYTE_PIECE.fullmatch(text):
        return BYTE
    if token_id <= LAST_TAG_ID and HTML_TAG.fullmatch(text):
        return USER_DEFINED
    return told if told in (CONTROL, USER_DEFINED, UNUSED) else NORMAL
