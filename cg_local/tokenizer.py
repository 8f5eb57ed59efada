"""Text to token ids and back, for CodeGemma's SentencePiece model.

Owns the id layout of `tokenizer.model`, the protection of control ids and the streaming decoder. Prompt formats are
`prompts`' work. Invariant: `decode(encode(text)) == text` for every Unicode text, and no id below NUM_CONTROL_IDS ever
comes out of `encode`, whatever the text spells.

The layout (ids):

    0 <pad>   1 <eos>   2 <bos>   3 <unk>   4..105 reserved, of which
    67 <|fim_prefix|>   68 <|fim_middle|>   69 <|fim_suffix|>   70 <|file_separator|>      (middle before suffix!)
    106 <start_of_turn>   107 <end_of_turn>
    108..138 runs of 1..31 newlines   139..168 runs of 2..31 spaces   then HTML tags, 256 byte pieces, learned pieces

Source: google-deepmind/gemma, gm/text/_tokenizer.py (special tokens and reserved ids); huggingface/transformers,
tests/models/gemma/test_tokenization_gemma.py (space runs); added tokens of google/codegemma-2b (FIM ids).
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from cg_local.errors import PromptError, TokenizerError

NUM_CONTROL_IDS = 108
"""Ids 0..107 steer the model and are never text."""

FIM_IDS = {"<|fim_prefix|>": 67, "<|fim_middle|>": 68, "<|fim_suffix|>": 69, "<|file_separator|>": 70}
SPACE = "\u2581"
"""SentencePiece's spelling of a space inside pieces."""

# A normalizer, a dummy prefix, whitespace removal, a missing byte fallback or a live control id would change this text.
PROBE = "<|fim_middle|>x \t  y\r\n\n z\x00 \ufb01\u2460\u00a0\u200b e\u0301 \U0001f9ec\U0010fffd  "
ADVICE = "use the tokenizer.model published with the CodeGemma weights"
CONTROL_TYPE_FIELD = b"\x18\x03"
"""Field 3 (`type`) = 3 (`CONTROL`) of SentencePiece's ModelProto.SentencePiece, in protobuf's wire format."""


class Tokenizer:
    """Encodes text as token ids and decodes ids as text; made by `Tokenizer.from_file`.

    Attributes:
        vocab_size: number of pieces; a model may have more embedding rows than that, never fewer.
        bos_id, eos_id, pad_id, unk_id: 2, 1, 0, 3.
        fim_prefix_id, fim_middle_id, fim_suffix_id, file_separator_id: the fill-in-the-middle control ids.
        start_of_turn_id, end_of_turn_id: the chat control ids.
        infill_stop_ids: ids that end the middle of an infill: the four FIM ids, eos and end of turn.
        chat_stop_ids: ids that end a chat answer.
        notices: one-line things a user should be told about the file.
    """

    pad_id, eos_id, bos_id, unk_id = 0, 1, 2, 3
    start_of_turn_id, end_of_turn_id = 106, 107

    def __init__(self, processor: SentencePieceProcessor, where: str) -> None:
        """Check the layout of a loaded model; `where` names its file in messages."""
        self._processor, self._where = processor, where
        self.vocab_size = int(processor.vocab_size())
        _check_pieces(processor, where)
        self._byte_ids = _byte_ids(processor, where)
        self._bytes = {token_id: bytes([value]) for value, token_id in enumerate(self._byte_ids)}
        fim_ids, self.notices = _fim_ids(processor, where)
        self.fim_prefix_id, self.fim_middle_id, self.fim_suffix_id, self.file_separator_id = fim_ids
        self.chat_stop_ids = frozenset({self.eos_id, self.end_of_turn_id})
        self.infill_stop_ids = self.chat_stop_ids | frozenset(fim_ids)
        came_back = self.decode(self.encode(PROBE))
        if came_back != PROBE:
            raise TokenizerError(
                f"{where}: text does not survive encoding: {PROBE!r} comes back as {came_back!r}. CodeGemma's file has "
                f"an identity normalizer, no dummy prefix, and byte fallback; {ADVICE}"
            )

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Load a SentencePiece model and check that it is laid out as CodeGemma's.

        Args:
            path: the file, usually `tokenizer.model`.

        Raises:
            TokenizerError: the file is missing, no SentencePiece model, or has another layout.
        """
        where = str(path)
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise TokenizerError(f"{where}: cannot be read ({error.strerror}); {ADVICE}") from None
        return cls.from_bytes(model, where)

    @classmethod
    def from_bytes(cls, model: bytes, where: str) -> Tokenizer:
        """Load a serialized SentencePiece model and check that it is laid out as CodeGemma's.

        Args:
            model: the bytes of a `tokenizer.model`.
            where: names its file in messages.

        Raises:
            TokenizerError: it is no SentencePiece model, or has another layout.
        """
        processor = SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(_with_control_types(model, where))
            return cls(processor, where)
        except (RuntimeError, UnicodeDecodeError):  # the latter for pieces (or messages about them) that are no UTF-8
            raise TokenizerError(f"{where}: SentencePiece finds no model in its {len(model)} bytes; {ADVICE}") from None

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without BOS.

        Control strings in the text ("<|fim_middle|>", "<end_of_turn>", "<bos>" ...) are spelled with ordinary pieces.

        Args:
            text: any Unicode text; "" gives no ids.

        Returns:
            ids in NUM_CONTROL_IDS .. vocab_size - 1, which `decode` turns back into exactly `text`.

        Raises:
            PromptError: the text holds a lone surrogate, which is half a character and has no UTF-8 form.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"text: character {error.start + 1} is the lone surrogate U+{ord(text[error.start]):04X}, which is no "
                "Unicode text; decode the source with its real encoding"
            ) from None
        if SPACE not in text:
            return list(self._processor.encode(text))
        # SentencePiece writes a space as U+2581 inside pieces and cannot tell it from a U+2581 of the text, which would
        # come back as a space. Byte pieces are taken literally, so this one character goes through them.
        literal = [self._byte_ids[value] for value in SPACE.encode()]
        first, *others = (self._processor.encode(part) for part in text.split(SPACE))
        return [*first, *(token_id for part in others for token_id in (*literal, *part))]

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of token ids.

        Args:
            token_ids: any ids >= 0; control ids and rows beyond the vocabulary stand for no text.

        Returns:
            The joined bytes of the ids as UTF-8, with U+FFFD in place of what is no complete character.
        """
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes that one id stands for: b"" for control ids and for rows beyond the vocabulary.

        Raises:
            ValueError: `token_id` is negative.
        """
        known = self._bytes.get(token_id)
        if known is None:
            piece = self.piece(token_id)
            known = piece.replace(SPACE, " ").encode() if token_id >= NUM_CONTROL_IDS else b""
            self._bytes[token_id] = known
        return known

    def piece(self, token_id: int) -> str:
        """Return the piece as the file spells it (a space as U+2581, a byte as <0x0A>); "" beyond the vocabulary.

        Raises:
            ValueError: `token_id` is negative.
            TokenizerError: the piece is no UTF-8; the file is damaged.
        """
        if token_id < 0:
            raise ValueError(f"a token id is at least 0, not {token_id}")
        try:
            return str(self._processor.id_to_piece(int(token_id))) if token_id < self.vocab_size else ""
        except UnicodeDecodeError:
            raise TokenizerError(f"{self._where}: piece {token_id} is no UTF-8; {ADVICE}") from None

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder for ids that arrive one by one."""
        return StreamDecoder(self)

    def check_rows(self, num_rows: int, where: str) -> None:
        """Check that a model has an embedding row for every piece.

        Args:
            num_rows: rows of the model's embedding (`vocab_size` of its config); padding rows beyond the pieces are
                usual (256,128 rows for 256,000 pieces in some distributions).
            where: names the model in the message.

        Raises:
            TokenizerError: the tokenizer has more pieces than the model has rows.
        """
        if self.vocab_size > num_rows:
            raise TokenizerError(
                f"{where}: the tokenizer has {self.vocab_size} pieces, the model rows for {num_rows}; "
                "they are not of one model"
            )


class StreamDecoder:
    """Turns ids that arrive one by one into text, never half a character.

    Invariant: the pieces of `push` and the final `flush` together are `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Return the text that this id completes; "" while a character is incomplete."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """Return U+FFFD for a character left incomplete, else "", and start anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _with_control_types(model: bytes, where: str) -> bytes:
    """Give the pieces 0..107 of a serialized model the type CONTROL, which SentencePiece never matches in text.

    The published file types 4..107 as user-defined, so that a source file which spells "<|fim_middle|>" would steer the
    model. Splitting the text at such strings would protect too, but moves piece borders beside them. The pieces are the
    first fields of the file, and of a repeated scalar field protobuf takes the last: two bytes behind each piece do it,
    without the protobuf package and without reading the other 256,000 pieces.
    """
    rewritten, position = bytearray(), 0
    for token_id in range(NUM_CONTROL_IDS):
        if model[position : position + 1] != b"\x0a":  # field 1, `pieces`, length-delimited
            raise TokenizerError(f"{where}: byte {position} is no start of SentencePiece's piece {token_id}; {ADVICE}")
        length, start = _read_varint(model, position + 1)
        position = start + length
        if position > len(model):
            raise TokenizerError(
                f"{where}: piece {token_id} ends at byte {position}, the file at {len(model)}; {ADVICE}"
            )
        suffix = b"" if token_id == Tokenizer.unk_id else CONTROL_TYPE_FIELD
        rewritten += b"\x0a" + _varint(length + len(suffix)) + model[start : start + length] + suffix
    return bytes(rewritten) + model[position:]


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a protobuf varint of up to 35 bits and the position behind it; bytes missing at the end count as 0."""
    value = 0
    for shift in range(0, 35, 7):
        byte = data[position] if position < len(data) else 0
        value, position = value | (byte & 0x7F) << shift, position + 1
        if byte < 0x80:
            break
    return value, position


def _varint(value: int) -> bytes:
    """Return a number as protobuf varint."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _check_pieces(processor: SentencePieceProcessor, where: str) -> None:
    """Raise TokenizerError for the first fixed id whose piece is not CodeGemma's."""
    expected = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 106: "<start_of_turn>", 107: "<end_of_turn>"}
    expected |= {107 + length: "\n" * length for length in range(1, 32)}
    expected |= {137 + length: SPACE * length for length in range(2, 32)}
    num_pieces = processor.vocab_size()
    if num_pieces <= max(expected):
        raise TokenizerError(f"{where}: has {num_pieces} pieces, needs more than {max(expected)}; {ADVICE}")
    for token_id, piece in expected.items():
        found = processor.id_to_piece(token_id)
        if found != piece:
            raise TokenizerError(f"{where}: id {token_id} is {found!r}, CodeGemma has {piece!r} there; {ADVICE}")


def _byte_ids(processor: SentencePieceProcessor, where: str) -> list[int]:
    """Return the ids of the pieces <0x00>..<0xFF>."""
    ids = [int(processor.piece_to_id(f"<0x{value:02X}>")) for value in range(256)]
    missing = [value for value, token_id in enumerate(ids) if not processor.is_byte(token_id)]
    if missing:
        raise TokenizerError(
            f"{where}: {len(missing)} of the 256 byte pieces are missing, the first <0x{missing[0]:02X}>; {ADVICE}"
        )
    return ids


def _fim_ids(processor: SentencePieceProcessor, where: str) -> tuple[tuple[int, int, int, int], tuple[str, ...]]:
    """Return the ids of prefix, middle, suffix and separator, and notices."""
    ids = {name: int(processor.piece_to_id(name)) for name in FIM_IDS}
    missing = [name for name, token_id in ids.items() if not Tokenizer.unk_id < token_id < NUM_CONTROL_IDS]
    notices: tuple[str, ...] = ()
    if missing:
        found = [processor.id_to_piece(token_id) for token_id in FIM_IDS.values()]
        if found != ["<unused60>", "<unused61>", "<unused62>", "<unused63>"]:  # base Gemma's names of these ids
            raise TokenizerError(
                f"{where}: no piece {' '.join(missing)} among ids 4..107, and ids 67..70 are {' '.join(found)}, not "
                f"base Gemma's <unused60>..<unused63> either; {ADVICE}"
            )
        ids = FIM_IDS
        notices = (f"{where}: base Gemma's tokenizer, which does not name the FIM pieces; using ids 67..70 for them",)
    prefix, middle, suffix, separator = (ids[name] for name in FIM_IDS)
    return (prefix, middle, suffix, separator), notices
