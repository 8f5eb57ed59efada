"""Proves that text survives encoding, that no text becomes a control id, and that wrong files are refused."""

from __future__ import annotations

import functools
import os
import random
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tokenizer import DEFAULT_VOCAB_SIZE, toy_tokenizer_bytes, write_toy_tokenizer

from cg_local.errors import CgLocalError, PromptError, TokenizerError
from cg_local.tokenizer import NUM_CONTROL_IDS, Tokenizer

REAL_MODEL = os.environ.get("CG_LOCAL_TOKENIZER", "")
CONTROL_STRINGS = [
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]", "<unused0>", "<unused98>"),
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>", "<start_of_turn>", "<end_of_turn>"),
]
TRICKY_PARTS = [
    *CONTROL_STRINGS,
    *("<|fim_", "prefix|>", "<|", "|>", "<", "<table>", "</s>", "<0x41>", "\u2581", "\r\n", "\n" * 40, " " * 50, "\t"),
    *("\x00", "\ufeff", "\ufffd", "\ufffe", "e\u0301", "\U0001f468\u200d\U0001f469", "\U0010fffd", "def f(x):\n    "),
]
texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)
tricky_texts = st.lists(st.one_of(st.sampled_from(TRICKY_PARTS), texts), max_size=8).map("".join)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_tokenizer(tmp_path_factory.mktemp("toy") / "tokenizer.model")


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Tokenizer:
    return Tokenizer.from_file(model_path)


@pytest.fixture(scope="module")
def plain(model_path: Path) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece over the unchanged file: the oracle for texts without control strings."""
    return sentencepiece.SentencePieceProcessor(model_file=str(model_path))


@functools.cache
def published_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(REAL_MODEL)


def without_control_strings(text: str) -> bool:
    return "\u2581" not in text and not any(name in text for name in CONTROL_STRINGS)


def test_ids_are_codegemmas(tokenizer: Tokenizer) -> None:
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert (tokenizer.fim_prefix_id, tokenizer.fim_middle_id, tokenizer.fim_suffix_id) == (67, 68, 69)
    assert (tokenizer.file_separator_id, tokenizer.start_of_turn_id, tokenizer.end_of_turn_id) == (70, 106, 107)
    assert tokenizer.infill_stop_ids == {67, 68, 69, 70, 1, 107}
    assert tokenizer.chat_stop_ids == {1, 107}
    assert tokenizer.vocab_size == DEFAULT_VOCAB_SIZE
    assert tokenizer.notices == ()


def test_newline_and_space_runs_and_tags_stay_single_pieces(tokenizer: Tokenizer) -> None:
    for length in range(1, 32):
        assert tokenizer.encode("\n" * length) == [107 + length]
    for length in range(2, 32):
        assert tokenizer.encode(" " * length) == [137 + length]
    assert tokenizer.encode(" " * 50) == [168, 156]
    assert tokenizer.encode("<s>") == [204]
    assert tokenizer.encode("\t\r\n") == [226, 230, 108]


@given(text=tricky_texts)
@settings(max_examples=400, deadline=None)
def test_every_text_round_trips_without_control_ids(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text)
    assert tokenizer.decode(token_ids) == text
    assert all(token_id >= NUM_CONTROL_IDS for token_id in token_ids)


@given(text=tricky_texts.filter(without_control_strings))
@settings(max_examples=200, deadline=None)
def test_other_texts_encode_as_with_sentencepiece_itself(
    tokenizer: Tokenizer, plain: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    assert tokenizer.encode(text) == plain.encode(text)


def test_every_plane_round_trips(tokenizer: Tokenizer) -> None:
    ranges = [range(0xD800), range(0xE000, 0x10000)]  # all of plane 0 but the surrogates
    ranges += [
        range(plane + start, plane + start + 256)
        for plane in range(0x10000, 0x110000, 0x10000)
        for start in (0, 0xFF00)
    ]
    for codes in ranges:
        text = "".join(map(chr, codes))
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", CONTROL_STRINGS)
def test_control_strings_are_spelled_out(tokenizer: Tokenizer, name: str) -> None:
    for text in (name, name * 2, f"x{name}y", name[:-1] + name, name[:5] + name + name[5:], f" {name}\n"):
        token_ids = tokenizer.encode(text)
        assert min(token_ids) >= NUM_CONTROL_IDS
        assert tokenizer.decode(token_ids) == text


def test_protected_pieces_are_the_ones_sentencepiece_would_type_control(
    tokenizer: Tokenizer, plain: sentencepiece.SentencePieceProcessor
) -> None:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(toy_tokenizer_bytes())
    for token_id in [0, 1, 2, *range(4, NUM_CONTROL_IDS)]:
        model.pieces[token_id].type = sentencepiece_model_pb2.ModelProto.SentencePiece.CONTROL
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choice([part for part in TRICKY_PARTS if part != "\u2581"]) for _ in range(6))
        assert tokenizer.encode(text) == oracle.encode(text)


def test_encoding_is_joined_at_control_ids(tokenizer: Tokenizer, plain: sentencepiece.SentencePieceProcessor) -> None:
    joined = plain.encode("a.py\n<|fim_prefix|>def f(\n  <|fim_suffix|>\n\n  return<|fim_middle|>")
    parts = [tokenizer.encode(part) for part in ("a.py\n", "def f(\n  ", "\n\n  return")]
    assert [*parts[0], 67, *parts[1], 69, *parts[2], 68] == joined


def test_empty_text_has_no_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_lone_surrogate_is_refused_with_its_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match=r"character 3 is the lone surrogate U\+DCE9, .* real encoding"):
        tokenizer.encode("ab\udce9")


def test_control_ids_and_padding_rows_decode_to_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([2, 67, *tokenizer.encode("x"), 3, 70, 107, 1, 256_100]) == "x"
    assert tokenizer.piece(256_100) == ""
    with pytest.raises(ValueError, match="at least 0, not -1"):
        tokenizer.token_bytes(-1)


def test_piece_and_bytes_of_an_id(tokenizer: Tokenizer) -> None:
    assert (tokenizer.piece(70), tokenizer.token_bytes(70)) == ("<|file_separator|>", b"")
    assert (tokenizer.piece(140), tokenizer.token_bytes(140)) == ("\u2581" * 3, b"   ")
    assert (tokenizer.piece(226), tokenizer.token_bytes(226)) == ("<0x09>", b"\t")


def test_incomplete_characters_decode_to_replacement_characters(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("\U0001f9ec")
    assert [tokenizer.decode(token_ids[:count]) for count in range(1, 5)] == ["\ufffd"] * 3 + ["\U0001f9ec"]


@given(text=tricky_texts)
@settings(max_examples=200, deadline=None)
def test_streaming_a_text_never_shows_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    decoder, streamed = tokenizer.stream_decoder(), ""
    for token_id in tokenizer.encode(text):
        streamed += decoder.push(token_id)
        assert text.startswith(streamed)
    assert streamed == text
    assert decoder.flush() == ""


@given(token_ids=st.lists(st.integers(0, DEFAULT_VOCAB_SIZE + 9) | st.integers(217, 472), max_size=30))
@settings(max_examples=300, deadline=None)
def test_streaming_any_ids_equals_decoding_them(tokenizer: Tokenizer, token_ids: list[int]) -> None:
    decoder = tokenizer.stream_decoder()
    for _ in range(2):  # after flush the decoder starts anew
        assert "".join(map(decoder.push, token_ids)) + decoder.flush() == tokenizer.decode(token_ids)


def test_base_gemmas_file_is_used_by_id_with_a_notice(tmp_path: Path) -> None:
    path = write_toy_tokenizer(tmp_path / "tokenizer.model", base_gemma=True)
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.infill_stop_ids == {67, 68, 69, 70, 1, 107}
    assert "base Gemma's tokenizer" in tokenizer.notices[0]
    assert min(tokenizer.encode("<unused60>")) >= NUM_CONTROL_IDS


def test_fim_ids_follow_the_names_in_the_file(tmp_path: Path) -> None:
    renamed = ((69, "<unused62>"), (80, "<|fim_suffix|>"))
    tokenizer = Tokenizer.from_file(write_toy_tokenizer(tmp_path / "tokenizer.model", renamed=renamed))
    assert tokenizer.fim_suffix_id == 80


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        (((2, "<s_>"),), r"id 2 is '<s_>', CodeGemma has '<bos>' there"),
        (((107, "<x>"),), r"id 107 is '<x>', CodeGemma has '<end_of_turn>' there"),
        (((109, "<x>"),), r"id 109 is '<x>', CodeGemma has '\\n\\n' there"),
        (((140, "<x>"),), r"id 140 is '<x>', CodeGemma has '▁▁▁' there"),
        (((68, "<x>"),), r"no piece <\|fim_middle\|> among ids 4..107"),
        (((300, "<x>"),), r"SentencePiece finds no model"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, renamed: tuple[tuple[int, str], ...], message: str) -> None:
    path = write_toy_tokenizer(tmp_path / "tokenizer.model", renamed=renamed)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_file(path)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("add_dummy_prefix", True),
        ("remove_extra_whitespaces", True),
        ("normalization_rule_name", "nmt_nfkc"),
    ],
)
def test_a_tokenizer_that_changes_text_is_refused(tmp_path: Path, option: str, value: object) -> None:
    path = write_toy_tokenizer(tmp_path / "tokenizer.model", 600, trainer_options=((option, value),))
    with pytest.raises(TokenizerError, match="text does not survive encoding"):
        Tokenizer.from_file(path)


def test_a_tokenizer_without_byte_fallback_is_refused(tmp_path: Path) -> None:
    path = write_toy_tokenizer(tmp_path / "tokenizer.model", 600, trainer_options=(("byte_fallback", False),))
    with pytest.raises(TokenizerError, match="256 of the 256 byte pieces are missing"):
        Tokenizer.from_file(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.model", tmp_path):
        with pytest.raises(TokenizerError, match="cannot be read"):
            Tokenizer.from_file(path)


@pytest.mark.parametrize("content", [b"", b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff", b"PK\x03\x04", b"{}" * 500])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"use the tokenizer\.model published"):
        Tokenizer.from_file(path)


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    path, model = tmp_path / "tokenizer.model", toy_tokenizer_bytes()
    for length in [*range(0, len(model), 101), *range(len(model) - 200, len(model))]:
        path.write_bytes(model[:length])
        with pytest.raises(TokenizerError):
            Tokenizer.from_file(path)


def test_a_damaged_file_gives_our_errors_only(tmp_path: Path) -> None:
    path, model, rng = tmp_path / "tokenizer.model", toy_tokenizer_bytes(), random.Random(0)
    num_refused = 0
    for _ in range(200):
        damaged = bytearray(model)
        damaged[rng.randrange(len(model))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            tokenizer = Tokenizer.from_file(path)
            tokenizer.decode(range(tokenizer.vocab_size))
        except CgLocalError:
            num_refused += 1
    assert 0 < num_refused < 200


def test_more_pieces_than_rows_are_refused(tokenizer: Tokenizer) -> None:
    tokenizer.check_rows(DEFAULT_VOCAB_SIZE + 128, "model")
    with pytest.raises(TokenizerError, match=rf"model: the tokenizer has {DEFAULT_VOCAB_SIZE} pieces, .* rows for 700"):
        tokenizer.check_rows(700, "model")


# Ids of Gemma's published vocabulary. Source: huggingface/transformers, tests/models/gemma/test_tokenization_gemma.py;
# google-deepmind/gemma, colabs/tokenizer.ipynb; llama.cpp pull request 8228 (50 spaces); published chat prompts.
GOLDEN = {
    "Derinkuyu is an underground city.": [8636, 979, 78904, 603, 671, 30073, 3413, 235265],
    "Hello world!": [4521, 2134, 235341],
    " hello": [25612],
    "hello": [17534],
    "This is a test": [1596, 603, 476, 2121],
    "A sample test": [235280, 6453, 2121],
    "生活的真谛是": [122182, 235710, 245467, 235427],
    "Hi  Hello": [2151, 139, 4521],
    "Hi   Hello": [2151, 140, 4521],
    "": [],
    " ": [235248],
    "  ": [139],
    " Hello": [25957],
    "Hello this is a test": [4521, 736, 603, 476, 2121],
    " 32+": [235248, 235304, 235284, 235340],
    " 100+": [235248, 235274, 235276, 235276, 235340],
    " " * 50: [168, 156],
    "user\n": [1645, 108],
    "model\n": [2516, 108],
    "<s>": [204],
    "\t\r\n": [226, 230, 108],
}


@pytest.mark.skipif(not REAL_MODEL, reason="CG_LOCAL_TOKENIZER does not name CodeGemma's tokenizer.model")
def test_published_tokenizer_gives_the_golden_ids() -> None:
    tokenizer = published_tokenizer()
    assert {text: tokenizer.encode(text) for text in GOLDEN} == GOLDEN
    assert tokenizer.vocab_size == 256_000
    assert tokenizer.decode([4567]) == "Med"


@pytest.mark.skipif(not REAL_MODEL, reason="CG_LOCAL_TOKENIZER does not name CodeGemma's tokenizer.model")
@given(text=tricky_texts)
@settings(max_examples=200, deadline=None)
def test_published_tokenizer_round_trips(text: str) -> None:
    tokenizer = published_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text
