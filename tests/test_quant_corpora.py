"""Corpora: two sides that share no text, the same windows each time, and windows as the product prompts."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from cg_local.errors import CorpusError
from cg_local.models import embedded_checkpoint
from cg_local.prompts import infill_prompt
from cg_local.quant.corpora import KINDS, Corpus, calibration_corpus, evaluation_corpus
from cg_local.quant.corpus_files import TextFile, belongs_to_evaluation, list_files, readable_texts
from cg_local.quant.corpus_windows import (
    Excerpt,
    block_end,
    chat_window,
    choose_gap,
    commented_code,
    fim_window,
)
from cg_local.tokenizer import Tokenizer

PYTHON = '''def area_{n}(width, height):
    """Return the area of a rectangle of so many meters, number {n} of its kind.

    Both sides count.
    """
    total = width * height
    if total < {n}:
        raise ValueError("too small")

    return total


class Shape{n}:
    def __init__(self):
        self.name = "shape"
'''
C = """/* Returns the larger one of two numbers, whatever their order is, version {n}. */
static int larger_{n}(int a, int b) {{
    return a < b ? b : a;
}}

int unused_{n};
"""
PROSE = "Chapter {n}. Shapes have an area, and the area of a rectangle is the product of both of its sides.\n" * 6


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Return nano's tokenizer."""
    return Tokenizer.from_file(embedded_checkpoint("nano") / "tokenizer.model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of many small files in three languages."""
    root = tmp_path_factory.mktemp("texts")
    for n in range(60):
        (root / f"shape_{n}.py").write_text(PYTHON.format(n=n), encoding="utf-8")
        (root / f"shape_{n}.c").write_text(C.format(n=n) * 3, encoding="utf-8")
        (root / f"shape_{n}.md").write_text(PROSE.format(n=n), encoding="utf-8")
    return root


def excerpt_of(text: str, language: str = "python", name: str = "a.py") -> Excerpt:
    """Return a text as an excerpt."""
    return Excerpt(TextFile(name, hashlib.sha256(text.encode()).hexdigest(), "MIT", language, len(text)), 1, text)


def both(tokenizer: Tokenizer, paths: list[Path] | None, num_tokens: int = 2000) -> tuple[Corpus, Corpus]:
    """Return the two corpora of the same files."""
    return (
        calibration_corpus(tokenizer, paths, num_tokens=num_tokens, window_tokens=128),
        evaluation_corpus(tokenizer, paths, num_tokens=num_tokens, window_tokens=128),
    )


def test_both_sides_share_no_text(tokenizer: Tokenizer, folder: Path) -> None:
    calibration, evaluation = both(tokenizer, [folder])
    assert not {file.sha256 for file in calibration.files} & {file.sha256 for file in evaluation.files}
    assert not any(belongs_to_evaluation(file.sha256) for file in calibration.files)
    assert all(belongs_to_evaluation(file.sha256) for file in evaluation.files)


def test_copy_under_another_name_stays_on_its_side(tmp_path: Path) -> None:
    for name in ("first.py", "copy.py"):
        (tmp_path / name).write_text(PYTHON.format(n=1), encoding="utf-8")
    (tmp_path / "windows.py").write_bytes(PYTHON.format(n=1).replace("\n", "\r\n").encode())
    sides = [list(readable_texts(list_files([tmp_path]), is_evaluation=side)) for side in (True, False)]
    assert sorted(map(len, sides)) == [0, 1]


def test_share_of_evaluation_is_a_quarter_of_the_digests() -> None:
    digests = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(4000)]
    share = sum(map(belongs_to_evaluation, digests)) / len(digests)
    assert share == pytest.approx(0.25, abs=0.03)  # four standard errors


def test_corpus_is_the_same_each_time_and_whatever_the_order_of_paths(tokenizer: Tokenizer, folder: Path) -> None:
    files = sorted(folder.iterdir())
    first, second = (
        calibration_corpus(tokenizer, paths, num_tokens=1500, window_tokens=128) for paths in (files, files[::-1])
    )
    assert first == second
    assert first.digest == second.digest


def test_mixture_follows_the_shares(tokenizer: Tokenizer) -> None:
    corpus = calibration_corpus(tokenizer, None, num_tokens=8000, window_tokens=256)
    counts = {kind: sum(len(w.token_ids) for w in corpus.windows if w.kind == kind) for kind in KINDS}
    shares = {kind: count / corpus.num_tokens for kind, count in counts.items()}
    assert shares == pytest.approx({"code": 0.55, "fim": 0.25, "prose": 0.12, "chat": 0.08}, abs=0.04)
    assert {"python", "c"} <= {file.language for file in corpus.files}
    # A few of its files state another one, such as those of tomllib.
    assert "PSF-2.0" in {file.licence for file in corpus.files}
    assert "not stated" not in {file.licence for file in corpus.files}


def test_one_long_file_does_not_stand_for_its_language(tokenizer: Tokenizer, tmp_path: Path) -> None:
    page = "".join(f"<p>Shapes number {n} have an area, and this is what their area is.</p>\n" for n in range(2000))
    for n in range(40):  # at least one of these is on each side
        (tmp_path / f"page_{n}.html").write_text(page + f"<p>{n}</p>\n", encoding="utf-8")
        (tmp_path / f"shape_{n}.py").write_text(PYTHON.format(n=n) * 40, encoding="utf-8")
    for path in list(tmp_path.glob("*.html"))[1:]:
        path.unlink()
    corpora = both(tokenizer, [tmp_path], num_tokens=3000)
    pages = [window for corpus in corpora for window in corpus.windows if ".html" in window.source]
    assert 0 < len(pages) < 0.3 * sum(len(corpus.windows) for corpus in corpora)


def test_every_window_starts_with_its_only_bos_and_fits(tokenizer: Tokenizer, folder: Path) -> None:
    for window in (window for corpus in both(tokenizer, [folder]) for window in corpus.windows):
        assert window.token_ids[0] == tokenizer.bos_id
        assert tokenizer.bos_id not in window.token_ids[1:]
        assert len(window.token_ids) <= 128
        assert 1 <= window.scored_from < len(window.token_ids)


def test_fim_window_is_the_products_prompt_and_the_middle(tokenizer: Tokenizer) -> None:
    text = PYTHON.format(n=7) * 2
    orders = set()
    for seed in range(40):
        window = fim_window(tokenizer, excerpt_of(text), 512, random.Random(seed))
        start, stop = choose_gap(text, random.Random(seed))
        assert window.token_ids[-1] == tokenizer.file_separator_id
        middle = window.token_ids[window.scored_from : -1]
        assert tokenizer.decode(middle) == text[start:stop]
        prompt = window.token_ids[: window.scored_from]
        candidates = {
            (path, order): infill_prompt(
                tokenizer, text[:start], text[stop:], path=path, order=order, max_prompt_tokens=512
            ).token_ids
            for path in (None, "a.py")
            for order in ("psm", "spm")
        }
        orders.add(next(key for key, ids in candidates.items() if tuple(ids) == prompt))
    assert orders == {(None, "psm"), (None, "spm"), ("a.py", "psm"), ("a.py", "spm")}


def test_long_middle_is_cut_to_half_of_the_window_and_has_no_end(tokenizer: Tokenizer) -> None:
    text = "x = [" + "1, " * 400 + "]\n"
    windows = [fim_window(tokenizer, excerpt_of(text), 64, random.Random(seed)) for seed in range(20)]
    cut = [window for window in windows if window.token_ids[-1] != tokenizer.file_separator_id]
    assert cut
    assert {window.num_scored for window in cut} == {32}


def test_block_ends_where_the_indentation_returns() -> None:
    lines = ["if a:\n", "    b = [\n", "        1,\n", "    ]\n", "\n", "    c()\n", "d()\n"]
    assert block_end(lines, 0) == 6
    assert block_end(lines, 1) == 4
    assert block_end(lines, 6) == 7


def test_question_is_a_docstring_and_its_function_without_it() -> None:
    found = commented_code(excerpt_of(PYTHON.format(n=3)))
    assert found is not None
    comment, code = found
    assert comment.startswith("Return the area of a rectangle")
    assert code.startswith("def area_3(width, height):\n    total = width * height\n")
    assert code.rstrip().endswith("return total")


def test_question_in_c_is_a_comment_and_the_lines_below() -> None:
    found = commented_code(excerpt_of(C.format(n=3), "c"))
    assert found is not None
    comment, code = found
    assert comment == "Returns the larger one of two numbers, whatever their order is, version 3."
    assert code == "static int larger_3(int a, int b) {\n    return a < b ? b : a;\n}"


def test_chat_window_scores_the_answer_behind_the_opening_of_the_models_turn(tokenizer: Tokenizer) -> None:
    window = chat_window(tokenizer, excerpt_of(C.format(n=3), "c"), 512, random.Random(0))
    assert window is not None
    opening = [tokenizer.start_of_turn_id, *tokenizer.encode("model\n")]
    assert list(window.token_ids[window.scored_from - len(opening) : window.scored_from]) == opening
    assert window.token_ids[-1] == tokenizer.end_of_turn_id


def test_secrets_and_binary_files_never_get_in(tokenizer: Tokenizer, tmp_path: Path) -> None:
    secret = 'KEY = "ghp_' + "a1B2" * 10 + '"\n'
    for n in range(40):
        (tmp_path / f"code_{n}.py").write_text(PYTHON.format(n=n), encoding="utf-8")
        (tmp_path / f"leak_{n}.py").write_text(secret + PYTHON.format(n=n), encoding="utf-8")
        (tmp_path / f"data_{n}.py").write_bytes(b"\0\1\2" * 400)
    (tmp_path / "secrets.json").write_text("{}", encoding="utf-8")
    corpus = calibration_corpus(tokenizer, [tmp_path], num_tokens=1000, window_tokens=128)
    assert {file.name.split("_")[0] for file in corpus.files} == {"code"}


def test_record_has_licences_and_counts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for n in range(30):
        text = "# SPDX-License-Identifier: MIT\n" + PYTHON.format(n=n)
        (tmp_path / f"stated_{n}.py").write_text(text, encoding="utf-8")
    corpus = calibration_corpus(tokenizer, [tmp_path], num_tokens=800, window_tokens=128)
    document = corpus.document()
    assert {file["licence"] for file in document["files"]} == {"MIT"}  # type: ignore[attr-defined]
    assert sum(kind["num_tokens"] for kind in document["kinds"].values()) == corpus.num_tokens  # type: ignore[attr-defined]
    assert document["digest"] == corpus.digest


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("few.py", "print('a')\n", "few.py: the evaluation share of 1 files of code and prose gives 0 tokens, 500 are"),
        ("photo.xyz", "?", "photo.xyz: .xyz is no known language"),
        ("leak.py", 'KEY = "ghp_' + "a1B2" * 10 + '"\n', "leak.py: holds what looks like a GitHub token"),
    ],
)
def test_file_that_cannot_serve_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(CorpusError) as caught:
        evaluation_corpus(tokenizer, [tmp_path / name], num_tokens=500, window_tokens=128)
    assert message in str(caught.value)


def test_missing_path_and_short_window_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="gone: No such file"):
        calibration_corpus(tokenizer, [tmp_path / "gone"], num_tokens=500, window_tokens=128)
    with pytest.raises(CorpusError, match="windows of 16 tokens are too short; take 64 at least"):
        calibration_corpus(tokenizer, None, num_tokens=500, window_tokens=16)
