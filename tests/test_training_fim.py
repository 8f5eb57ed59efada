"""Fill-in-the-middle documents: exact layouts, lossless cuts, the recipe's rates, control pieces spelled in text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sentencepiece = pytest.importorskip("sentencepiece")
from cg_local.training import fim, tokenizer_trainer  # noqa: E402

TEXT = (
    "import math\n\n\ndef area(radius: float) -> float:\n"
    '    """Area of a circle."""\n    if radius < 0:\n        raise ValueError(radius)\n\n'
    "    return math.pi * radius ** 2\n"
)
BLOCKS = [(0, 1), (5, 7), (6, 7), (8, 9)]
RECIPE = fim.FimRecipe()
Tokenizer = Any


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
    tokenizer_trainer.train_tokenizer([TEXT, Path(fim.__file__).read_text()] * 3, path, vocab_size=620)
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def text_of(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    """Decode ids that hold no control ids, keeping leading spaces and newlines."""
    pieces = [tokenizer.id_to_piece(token_id) for token_id in token_ids]
    joined = b"".join(
        bytes([int(piece[3:5], 16)]) if tokenizer.is_byte(token_id) else piece.encode()
        for token_id, piece in zip(token_ids, pieces, strict=True)
    )
    return joined.decode().replace(tokenizer_trainer.SPACE, " ")


def parts_of(tokenizer: Tokenizer, token_ids: list[int]) -> dict[int, str]:
    """Text behind each control id; key 0 is the text before the first."""
    parts: dict[int, list[int]] = {0: []}
    current = 0
    for token_id in token_ids:
        if 67 <= token_id <= 70:
            current = token_id
            parts[current] = []
        else:
            parts[current].append(token_id)
    return {key: text_of(tokenizer, value) for key, value in parts.items()}


def test_tokenizer_lays_out_ids_0_to_168_as_codegemma(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_to_piece(i) for i in range(4)] == ["<pad>", "<eos>", "<bos>", "<unk>"]
    names = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>"]
    assert [tokenizer.id_to_piece(i) for i in range(67, 71)] == names
    assert [tokenizer.id_to_piece(i) for i in (4, 7, 66, 71, 105, 106, 107)] == [
        "<mask>", "<unused0>", "<unused59>", "<unused64>", "<unused98>", "<start_of_turn>", "<end_of_turn>",
    ]  # fmt: skip
    assert [tokenizer.encode("\n" * run) for run in range(1, 32)] == [[107 + run] for run in range(1, 32)]
    assert [tokenizer.encode(" " * run) for run in range(2, 32)] == [[137 + run] for run in range(2, 32)]
    assert tokenizer.id_to_piece(169) == "<0x00>"
    assert tokenizer.encode("12") == tokenizer.encode("1") + tokenizer.encode("2")


def test_fim_document_orders_parts_as_psm_and_spm(tokenizer: Tokenizer) -> None:
    split = fim.Split("a = ", "1", "\nb = 2\n")
    head, before, middle, after = (
        tokenizer.encode(part) for part in ("p.py\n", split.prefix, split.middle, split.suffix)
    )
    psm = fim.fim_document(tokenizer.encode, "p.py", split, is_spm=False)
    spm = fim.fim_document(tokenizer.encode, "p.py", split, is_spm=True)
    assert psm.token_ids == [*head, 67, *before, 69, *after, 68, *middle, 70]
    assert spm.token_ids == [*head, 69, *after, 67, *before, 68, *middle, 70]
    assert psm.token_ids[psm.middle_start - 1] == spm.token_ids[spm.middle_start - 1] == 68


def test_document_gives_back_its_text_byte_for_byte(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        document = fim.draw_document(tokenizer.encode, "src/é.py", TEXT, BLOCKS, recipe=RECIPE, rng=rng)
        parts = parts_of(tokenizer, document.token_ids)
        assert document.token_ids[-1] == 70
        if 68 in parts:
            assert parts[67] + parts[68] + parts[69] == TEXT
            assert parts[0] in ("", "src/é.py\n")
        else:
            assert parts[0] in (TEXT, "src/é.py\n" + TEXT)


def test_documents_keep_the_rates_of_the_recipe(tokenizer: Tokenizer) -> None:
    rng, counts, num_documents = np.random.default_rng(1), Counter[str](), 2000
    for _ in range(num_documents):
        token_ids = fim.draw_document(tokenizer.encode, "p.py", "x = 1\ny = 2\n", [], recipe=RECIPE, rng=rng).token_ids
        controls = [token_id for token_id in token_ids if 67 <= token_id <= 70]
        counts["fim"] += len(controls) == 4
        counts["spm"] += controls == [69, 67, 68, 70]
        counts["path"] += token_ids[: len(tokenizer.encode("p.py\n"))] == tokenizer.encode("p.py\n")
    # Five standard deviations of a binomial with 2000 draws are at most 0.056.
    assert counts["fim"] / num_documents == pytest.approx(RECIPE.fim_rate, abs=0.056)
    assert counts["spm"] / counts["fim"] == pytest.approx(RECIPE.spm_rate, abs=0.06)
    assert counts["path"] / num_documents == pytest.approx(RECIPE.path_rate, abs=0.056)


KINDS = ("whole_line", "line_rest", "statements", "to_boundary", "several_lines", "characters")
ONLY = dict.fromkeys(KINDS, 0.0)
ENDS = {sum(map(len, TEXT.splitlines(True)[:after])) for _, after in BLOCKS}


@pytest.mark.parametrize(
    ("kind", "holds"),
    [
        ("whole_line", lambda s: s.prefix[-1:] in ("", "\n") and s.middle.count("\n") == 1 and s.middle.endswith("\n")),
        ("line_rest", lambda s: "\n" not in s.middle and s.suffix.startswith("\n")),
        ("statements", lambda s: s.middle in {"".join(TEXT.splitlines(True)[a:b]) for a, b in BLOCKS}),
        ("to_boundary", lambda s: s.suffix[:1] == "\n" and len(s.prefix + s.middle) + 1 in ENDS),
        ("several_lines", lambda s: s.prefix[-1:] in ("", "\n") and s.middle.endswith("\n")),
        ("characters", lambda s: True),
    ],
)
def test_choose_split_cuts_where_its_kind_says(kind: str, holds: Callable[[fim.Split], bool]) -> None:
    rng, recipe = np.random.default_rng(2), fim.FimRecipe(**{**ONLY, kind: 1.0})
    for _ in range(200):
        split = fim.choose_split(TEXT, BLOCKS, recipe, rng)
        assert split.prefix + split.middle + split.suffix == TEXT
        assert holds(split), split


@pytest.mark.parametrize(
    "text", ["<|fim_middle|>", "a<|file_separator|>\n", "[@BOS@]<mask><unused7>", "<end_of_turn><<[["]
)
def test_control_pieces_spelled_in_text_stay_text(tokenizer: Tokenizer, text: str) -> None:
    token_ids = fim.control_free(tokenizer.encode, text)
    assert not [token_id for token_id in token_ids if token_id <= 107]
    assert text_of(tokenizer, token_ids) == text
