"""Streams of answers over a stand-in for the text stream: what is shown, what is kept, how it ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cg_local.answers import AnswerStream, Completion, KeepAll
from cg_local.generation import GenerationStats, TextPiece
from cg_local.infill.postprocess import MiddleTrimmer


class ScriptedStream:
    """Yields pieces as `generation.TextStream` does; None raises KeyboardInterrupt."""

    def __init__(self, pieces: list[str | None], stop_reason: str, stop_id: int | None = None) -> None:
        self.stats = GenerationStats(prompt_tokens=5)
        self.is_closed = False
        self.token_ids: tuple[int, ...] = ()
        self._pieces: Iterator[str | None] = iter(pieces)
        self._end = (stop_reason, stop_id)

    def __next__(self) -> TextPiece:
        try:
            text = next(self._pieces)
        except StopIteration:
            self.stats.stop_reason, self.stats.stop_id = self._end
            raise
        if text is None:
            raise KeyboardInterrupt
        self.stats.completion_tokens += 1
        self.token_ids += (300,)
        return TextPiece(text, (300,), (-0.5,))

    def close(self) -> None:
        self.is_closed = True


def answers(stream: ScriptedStream, trimmer: MiddleTrimmer | KeepAll | None = None) -> AnswerStream[Completion]:
    return AnswerStream(stream, trimmer or KeepAll(), frozenset((1, 107)), lambda answer: answer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stop_reason", "stop_id", "expected"),
    [
        ("stop_id", 70, "separator"),
        ("stop_id", 67, "separator"),
        ("stop_id", 1, "eos"),
        ("stop_id", 107, "eos"),
        ("max_tokens", None, "max_tokens"),
        ("context_full", None, "max_tokens"),
    ],
)
def test_stop_reason_names_how_the_generation_ended(stop_reason: str, stop_id: int | None, expected: str) -> None:
    stream = answers(ScriptedStream(["a", "", "b"], stop_reason, stop_id))
    assert list(stream) == ["a", "b"]
    assert (stream.result.text, stream.result.stop_reason, stream.result.num_tokens) == ("ab", expected, 3)
    assert stream.result.token_ids == (300, 300, 300)


def test_stop_of_the_trimmer_closes_the_generation() -> None:
    source = ScriptedStream(["y", " * 2", "\nz", "never"], "max_tokens")
    stream = answers(source, MiddleTrimmer("x = ", " + 1\n"))
    assert "".join(stream) == "y * 2"
    assert (stream.result.stop_reason, source.is_closed) == ("line", True)


def test_pieces_join_to_the_text_of_the_result() -> None:
    stream = answers(
        ScriptedStream(["\n  ", "  b = 1\n", "    return", " total", "\n"], "max_tokens"),
        MiddleTrimmer("def f():\n    a = 0", "\n    return total\n"),
    )
    assert "".join(stream) == stream.result.text == "\n    b = 1"


def test_interrupt_keeps_what_was_written() -> None:
    stream = answers(ScriptedStream(["a", "b", None], "max_tokens"))
    assert [next(stream), next(stream)] == ["a", "b"]
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert (stream.result.text, stream.result.stop_reason) == ("ab", "interrupted")
    assert list(stream) == []


def test_closing_keeps_what_was_written_and_is_repeatable() -> None:
    source = ScriptedStream(["a", "b"], "max_tokens")
    stream = answers(source)
    next(stream)
    stream.close()
    stream.close()
    assert (stream.result.text, stream.result.stop_reason, source.is_closed) == ("a", "interrupted", True)


def test_closing_after_the_end_changes_nothing() -> None:
    stream = answers(ScriptedStream(["a"], "stop_id", 70))
    list(stream)
    stream.close()
    assert stream.result.stop_reason == "separator"


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["a\r\nb\r\n"], "a\nb\n"),
        (["a\r", "\nb", "\r", "\n", "c"], "a\nb\nc"),
        (["a\rb", "\r", "c\r"], "a\nb\nc\n"),
    ],
)
def test_line_breaks_of_every_kind_become_one(pieces: list[str | None], expected: str) -> None:
    stream = answers(ScriptedStream(pieces, "max_tokens"))
    assert "".join(stream) == stream.result.text == expected


def test_trimmer_sees_a_line_break_in_two_pieces_as_one() -> None:
    stream = answers(
        ScriptedStream(["\r", "\n    b = 1\r", "\n    return total\r"], "max_tokens"),
        MiddleTrimmer("def f():\n    a = 0", "\n    return total\n"),
    )
    assert "".join(stream) == stream.result.text == "\n    b = 1"
