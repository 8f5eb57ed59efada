"""A question made of parts: their order, and what is left out when it is too long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cg_local.attachments import Attachment
from cg_local.errors import PromptError
from cg_local.question import Question, count_up_to, excerpt, fenced, fit, language_of
from cg_local.tokenizer import Tokenizer

FILE = Attachment("src/a.py", "x = 1\n", 3, 3)


@pytest.fixture(scope="module")
def tokenizer(toy_checkpoint: Callable[[str], Path]) -> Tokenizer:
    return Tokenizer.from_file(toy_checkpoint("mqa") / "tokenizer.model")


def test_order_is_files_then_what_was_piped_then_words() -> None:
    question = Question("why?", "Error: x\n", (FILE, Attachment("b.c", "y;")))
    assert question.text() == "src/a.py:3:\n```py\nx = 1\n```\n\nb.c:\n```c\ny;\n```\n\nError: x\n\nwhy?"
    assert question.text(is_fenced=True).endswith("\n\n```\nError: x\n```\n\nwhy?")


def test_parts_that_are_empty_leave_no_gap() -> None:
    assert Question("why?").text() == "why?"
    assert Question(piped="\nError\n").text() == "Error"
    assert Question(" ", "\n").is_empty
    assert not Question(files=(FILE,)).is_empty


def test_fence_is_longer_than_those_within() -> None:
    assert fenced("a ```` b", "md") == "`````md\na ```` b\n`````"


def test_language_is_that_of_the_first_file() -> None:
    assert language_of(Question(files=(FILE, Attachment("b.c", "")))) == "Python"
    assert language_of(Question(files=(Attachment("Makefile", ""),))) == ""
    assert language_of(Question("x")) == ""


@pytest.mark.parametrize("text", ["", "a b c\n", "word " * 3000, "\n" * 5000])
def test_count_is_exact_up_to_the_limit(tokenizer: Tokenizer, text: str) -> None:
    exact = len(tokenizer.encode(text))
    assert count_up_to(tokenizer, text, exact) == (exact, True)


def test_count_beyond_the_limit_is_above_it_and_near(tokenizer: Tokenizer) -> None:
    text = "def f(x):\n    return x + 1\n" * 20_000
    count, is_exact = count_up_to(tokenizer, text, 1000)
    assert not is_exact
    assert 0.9 < count / len(tokenizer.encode(text)) < 1.1


def test_question_that_fits_is_left_as_it_is(tokenizer: Tokenizer) -> None:
    question = Question("why?", "Error\n" * 10)
    assert fit(tokenizer, question, Question.text, 500, may_cut=True) == (question.text(), None)


def test_question_that_is_too_long_is_refused_with_the_numbers(tokenizer: Tokenizer) -> None:
    question = Question("why?", "Error: x\n" * 200)
    tokens = len(tokenizer.encode(question.text()))
    with pytest.raises(PromptError, match=f"the question has {tokens:,} tokens, 300 fit; name lines with -f FILE:A-B"):
        fit(tokenizer, question, Question.text, 300, may_cut=False)


@pytest.mark.parametrize("part", ["piped", "file", "words"])
def test_cut_question_fits_and_keeps_head_tail_and_the_other_parts(tokenizer: Tokenizer, part: str) -> None:
    long = "".join(f"line {number}\n" for number in range(2000))
    question = {
        "piped": Question("why is that?", long, (FILE,)),
        "file": Question("why is that?", "a pipe", (FILE, Attachment("log.txt", long))),
        "words": Question(long, "a pipe", (FILE,)),
    }[part]

    text, notice = fit(tokenizer, question, Question.text, 600, may_cut=True)

    assert 500 < len(tokenizer.encode(text)) <= 600
    assert "src/a.py:3:\n```py\nx = 1\n```" in text
    assert "line 0\nline 1\n" in text
    assert "line 1998\nline 1999" in text
    if part != "words":
        assert text.endswith("why is that?")
    missing = 2000 - text.count("line ")
    assert f"[... {missing:,} lines left out ...]\n" in text
    assert notice is not None
    assert "600 fit" in notice


def test_line_that_is_too_long_alone_is_cut_inside(tokenizer: Tokenizer) -> None:
    text = excerpt(tokenizer, "start " + "x" * 40_000 + " end", 400)
    assert text.startswith("start xx")
    assert text.endswith("xx end")
    assert "characters left out ...]" in text
    assert len(tokenizer.encode(text)) <= 400


def test_no_room_for_the_text_is_an_error(tokenizer: Tokenizer) -> None:
    question = Question("many words " * 40, "line\n" * 1000)
    with pytest.raises(PromptError, match="ask in fewer words"):
        fit(tokenizer, question, Question.text, 150, may_cut=True)


def test_megabytes_are_judged_without_encoding_them(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, num_characters = Tokenizer.encode, 0

    def counting(self: Tokenizer, text: str) -> list[int]:
        nonlocal num_characters
        num_characters += len(text)
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode", counting)
    question = Question(piped="y\n" * 4_000_000)
    with pytest.raises(PromptError, match="about 8,000,000 tokens, 500 fit"):
        fit(tokenizer, question, Question.text, 500, may_cut=False)
    text, _ = fit(tokenizer, question, Question.text, 500, may_cut=True)
    assert len(tokenizer.encode(text)) <= 500
    assert num_characters < 100_000
