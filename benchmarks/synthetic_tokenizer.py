"""A SentencePiece model of CodeGemma's layout and size, with invented pieces: what random weights can be run with.

This file owns the ids and pieces of that model. It learns nothing from text. Invariant: 256,000 distinct pieces, whose
ids 0..472 are CodeGemma's; every text can be encoded, common Python words as one piece each.

Source of the layout: the official tokenizer as described by transformers (GemmaConverter) and by the model cards:
0..3 control, 67..70 fill-in-the-middle, 106 and 107 turns, 108..138 runs of newlines, 139..168 runs of spaces, 169..216
HTML tags, 217..472 bytes, then BPE pieces, and the single characters from 235248 (the space) on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

VOCAB_SIZE = 256_000
FIRST_CHARACTER_ID = 235_248
SPACE = "\u2581"  # SentencePiece's spelling of a space inside pieces

# Types of pieces in sentencepiece_model.proto.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

FIM_PIECES = {67: "<|fim_prefix|>", 68: "<|fim_middle|>", 69: "<|fim_suffix|>", 70: "<|file_separator|>"}
CODE_WORDS = (
    *("False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def"),
    *("del", "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is"),
    *("lambda", "nonlocal", "not", "or", "pass", "raise", "return", "try", "while", "with", "yield", "self"),
    *("args", "kwargs", "name", "value", "key", "item", "index", "path", "file", "line", "text", "data"),
    *("result", "append", "split", "join", "strip", "read", "write", "count", "node", "left", "right", "print"),
    *("range", "len", "str", "int", "list", "dict", "set", "tuple", "open", "sorted", "enumerate", "zip"),
    *("map", "filter", "sum", "min", "max", "abs", "isinstance", "super", "object", "Exception", "ValueError"),
    *("KeyError", "__init__", "__name__"),
    *("==", "!=", "<=", ">=", "+=", "-=", "->", "**", "//", "()", "[]", "{}", "):", "])", "),", "',", '",', '"""'),
)


def synthetic_tokenizer(vocab_size: int = VOCAB_SIZE) -> bytes:
    """Return the bytes of a tokenizer.model.

    Raises:
        ImportError: the package protobuf is missing (extra `dev`).
    """
    from sentencepiece import sentencepiece_model_pb2

    schema: Any = sentencepiece_model_pb2
    model = schema.ModelProto()
    for piece, kind in fixed_pieces():
        model.pieces.add(piece=piece, type=kind, score=0.0)
    num_fixed = len(model.pieces)
    # A piece's score is minus its rank: BPE merges the pair whose result has the highest score first.
    for rank, piece in enumerate(itertools.islice(learned_pieces(), vocab_size - num_fixed)):
        model.pieces.add(piece=piece, type=NORMAL, score=float(-rank))
    _describe(model, vocab_size)
    return bytes(model.SerializeToString())


def fixed_pieces() -> list[tuple[str, int]]:
    """Return (piece, type) of the ids 0..472."""
    reserved = ["<mask>", "<2mass>", "[@BOS@]", *(f"<unused{number}>" for number in range(99))]
    reserved += ["<start_of_turn>", "<end_of_turn>"]
    reserved += ["\n" * length for length in range(1, 32)] + [SPACE * length for length in range(2, 32)] + html_tags()
    for token_id, piece in FIM_PIECES.items():
        reserved[token_id - 4] = piece
    head = [("<pad>", CONTROL), ("<eos>", CONTROL), ("<bos>", CONTROL), ("<unk>", UNKNOWN)]
    return head + [(piece, USER_DEFINED) for piece in reserved] + [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]


def html_tags() -> list[str]:
    """Return the 48 tags of the ids 169..216."""
    groups = (
        ("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"),
        ("h1", "h2", "h3", "h4", "h5", "h6", "blockquote"),
        ("strong", "em", "b", "i", "u", "s", "sub", "sup", "code"),
    )
    return [f"<{slash}{tag}>" for group in groups for slash in ("", "/") for tag in group]


def learned_pieces() -> Iterator[str]:
    """Yield distinct pieces for the ids from 473 on: words with all their beginnings, invented words, characters."""
    first_id = len(fixed_pieces())
    characters = [SPACE, *(chr(code) for code in range(33, 127)), *(chr(code) for code in range(0xA1, 0x250))]
    # BPE reaches a word only through shorter pieces, so every beginning of a word is a piece that ranks before it.
    beginnings = (word[:length] for word in CODE_WORDS for length in range(1, len(word) + 1))
    spaced = (piece for text in beginnings for piece in (text, SPACE + text))
    before = itertools.chain(spaced, invented_words())
    seen = {*characters, *(piece for piece, _ in fixed_pieces())}
    token_id = first_id
    for piece in before:
        if piece not in seen:
            if token_id == FIRST_CHARACTER_ID:
                break
            seen.add(piece)
            yield piece
            token_id += 1
    yield from characters
    yield from (piece for piece in before if piece not in seen)


def invented_words() -> Iterator[str]:
    """Yield pronounceable words in a fixed order, shortest first: ba, be, ... , baba, ...; each also after a space."""
    syllables = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxz" for vowel in "aeiou"]
    for length in itertools.count(1):
        for parts in itertools.product(syllables, repeat=length):
            yield "".join(parts)
            yield SPACE + "".join(parts)


def _describe(model: Any, vocab_size: int) -> None:
    """Set the specs that SentencePiece reads at run time: BPE, byte fallback, no change to the text."""
    model.trainer_spec.model_type = 2  # BPE
    model.trainer_spec.vocab_size = vocab_size
    model.trainer_spec.model_prefix = "synthetic"
    for option in ("byte_fallback", "split_digits", "allow_whitespace_only_pieces"):
        setattr(model.trainer_spec, option, True)
    for token_id, name in enumerate(("pad", "eos", "bos", "unk")):
        setattr(model.trainer_spec, f"{name}_id", token_id)
        setattr(model.trainer_spec, f"{name}_piece", f"<{name}>")
    model.trainer_spec.user_defined_symbols.extend(p.piece for p in model.pieces if p.type == USER_DEFINED)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
