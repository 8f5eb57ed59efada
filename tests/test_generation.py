"""Proves that a stream's pieces are the decoded answer, and that however it ends the text stays and no page is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_engines import engine_of, generate, pages_in_use, toy_prompt

from cg_local.config import SamplingParams
from cg_local.engine import Engine
from cg_local.errors import CapacityError, PromptError
from cg_local.generation import GenerationStats, TextStream, stream_text
from cg_local.model import Model
from cg_local.tokenizer import Tokenizer

FolderMaker = Callable[[str, str], Path]
PROMPT = toy_prompt(40)
# At this temperature a toy model chooses among all ids: half of them pieces, a third single bytes, some control ids.
WILD: dict[str, Any] = {"temperature": 9.0, "max_tokens": 80}


@pytest.fixture
def folder(toy_folder: FolderMaker) -> Path:
    return toy_folder("mqa", "q4")


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(folder / "tokenizer.model")


@pytest.fixture
def engine(folder: Path) -> Engine:
    return engine_of(folder)


@pytest.mark.parametrize("seed", range(6))
def test_pieces_joined_are_the_decoded_answer(seed: int, engine: Engine, tokenizer: Tokenizer) -> None:
    answer = generate(engine, PROMPT, **WILD, seed=seed).completion_ids

    stream = stream_text(engine, tokenizer, PROMPT, SamplingParams(**WILD, seed=seed))

    assert "".join(piece.text for piece in stream) == tokenizer.decode(answer) == stream.text


@pytest.mark.parametrize("seed", range(6))
def test_tokens_and_logprobs_of_the_pieces_are_those_of_the_answer(
    seed: int, engine: Engine, tokenizer: Tokenizer
) -> None:
    answer = generate(engine, PROMPT, **WILD, seed=seed)

    pieces = list(stream_text(engine, tokenizer, PROMPT, SamplingParams(**WILD, seed=seed)))

    assert [token_id for piece in pieces for token_id in piece.token_ids] == answer.completion_ids
    assert [logprob for piece in pieces for logprob in piece.logprobs] == answer.logprobs


def test_no_piece_but_the_last_ends_within_a_character(engine: Engine, tokenizer: Tokenizer) -> None:
    class EveryByteOfAnEuroSign:
        """Offers the three bytes of a character as one token each."""

        def stream_decoder(self) -> Any:
            decoder = tokenizer.stream_decoder()
            characters = [tokenizer.encode(letter) for letter in "ab"]
            ids = iter([*characters[0], *(217 + byte for byte in "€".encode()), *characters[1], 217 + 0xE2])
            push = decoder.push
            decoder.push = lambda token_id: push(next(ids))
            return decoder

    stand_in: Any = EveryByteOfAnEuroSign()

    pieces = [piece.text for piece in stream_text(engine, stand_in, PROMPT, SamplingParams(max_tokens=6))]

    assert pieces == ["a", "", "", "€", "b", "", "\ufffd"]


def test_stop_token_is_not_part_of_the_text(engine: Engine, tokenizer: Tokenizer) -> None:
    answer = generate(engine, PROMPT, **WILD, seed=1).completion_ids
    stop_id = answer[10]
    kept = answer[: answer.index(stop_id)]

    stream = stream_text(engine, tokenizer, PROMPT, SamplingParams(**WILD, seed=1), [stop_id])

    assert [token_id for piece in stream for token_id in piece.token_ids] == kept
    assert stream.text == tokenizer.decode(kept)


def test_stats_of_a_stop_token_name_it_and_count_its_logprob(engine: Engine, tokenizer: Tokenizer) -> None:
    answer = generate(engine, PROMPT, max_tokens=1)
    stream = stream_text(engine, tokenizer, PROMPT, SamplingParams(max_tokens=9), answer.completion_ids)

    list(stream)

    stats = stream.stats
    assert (stats.stop_reason, stats.stop_id) == ("stop_id", answer.completion_ids[0])
    assert (stats.completion_tokens, stats.logprobs) == (0, answer.logprobs)


def test_stats_count_prompt_cached_and_chosen_tokens(engine: Engine, tokenizer: Tokenizer) -> None:
    list(stream_text(engine, tokenizer, PROMPT, SamplingParams(max_tokens=2)))
    stream = stream_text(engine, tokenizer, PROMPT, SamplingParams(max_tokens=5))

    list(stream)

    stats = stream.stats
    assert (stats.prompt_tokens, stats.cached_tokens, stats.completion_tokens) == (40, 32, 5)
    assert (stats.stop_reason, len(stats.logprobs)) == ("max_tokens", 5)


def test_stats_name_a_full_context(folder: Path, tokenizer: Tokenizer) -> None:
    stream = stream_text(engine_of(folder, max_context=48), tokenizer, PROMPT, SamplingParams(max_tokens=20))

    list(stream)

    assert (stream.stats.stop_reason, stream.stats.completion_tokens) == ("context_full", 8)


def test_rates_are_tokens_over_seconds() -> None:
    stats = GenerationStats(
        100, cached_tokens=60, prefill_seconds=0.5, decode_seconds=2.0, logprobs=[-1.0, -2.0, -3.0, -2.0, -2.0]
    )

    assert (stats.prefill_tokens_per_second, stats.decode_tokens_per_second, stats.mean_logprob) == (80, 2, -2)


def test_rates_are_none_before_there_is_a_token() -> None:
    stats = GenerationStats(100)

    assert (stats.prefill_tokens_per_second, stats.decode_tokens_per_second, stats.mean_logprob) == (None, None, None)


def test_seconds_are_measured_while_iterating(engine: Engine, tokenizer: Tokenizer) -> None:
    stream = stream_text(engine, tokenizer, PROMPT, SamplingParams(max_tokens=5))

    list(stream)

    assert stream.stats.prefill_seconds > 0
    assert stream.stats.decode_seconds > 0


# Ends


def test_closing_early_keeps_the_text_and_frees_the_pages(engine: Engine, tokenizer: Tokenizer) -> None:
    stream = stream_text(engine, tokenizer, PROMPT, SamplingParams(**WILD, seed=3))
    pieces = [next(stream).text for _ in range(9)]

    stream.close()

    assert stream.text.removesuffix("\ufffd") == "".join(pieces).removesuffix("\ufffd")
    assert (stream.stats.stop_reason, stream.stats.completion_tokens) == ("interrupted", 9)
    assert (pages_in_use(engine), engine.sequences) == (0, [])


def test_closing_before_the_first_piece_frees_the_pages(engine: Engine, tokenizer: Tokenizer) -> None:
    generate(engine, PROMPT, max_tokens=1)  # so that the prompt holds cached pages at once
    stream = stream_text(engine, tokenizer, PROMPT)

    stream.close()

    assert (pages_in_use(engine), engine.sequences, stream.stats.stop_reason) == (0, [], "interrupted")


def test_closed_stream_has_no_further_piece(engine: Engine, tokenizer: Tokenizer) -> None:
    stream = stream_text(engine, tokenizer, PROMPT)
    next(stream)

    stream.close()

    assert list(stream) == []


def test_closing_after_the_last_piece_tells_how_the_answer_ended(engine: Engine, tokenizer: Tokenizer) -> None:
    stream = stream_text(engine, tokenizer, PROMPT, SamplingParams(max_tokens=2))
    next(stream)
    next(stream)

    stream.close()

    assert stream.stats.stop_reason == "max_tokens"


def test_closing_after_the_end_changes_nothing(engine: Engine, tokenizer: Tokenizer) -> None:
    stream = stream_text(engine, tokenizer, PROMPT, SamplingParams(max_tokens=2))
    list(stream)
    text = stream.text

    stream.close()

    assert (stream.text, stream.stats.stop_reason) == (text, "max_tokens")


def raise_in_forward(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(self: Model, *arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(Model, "forward", fail)


@pytest.mark.parametrize("num_pieces", [0, 5])
def test_interrupt_within_a_step_keeps_the_text_and_frees_the_pages(
    num_pieces: int, engine: Engine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = stream_text(engine, tokenizer, PROMPT, SamplingParams(max_tokens=20))
    text = "".join(next(stream).text for _ in range(num_pieces))
    raise_in_forward(monkeypatch, KeyboardInterrupt())

    with pytest.raises(KeyboardInterrupt):
        next(stream)

    assert stream.text.removesuffix("\ufffd") == text.removesuffix("\ufffd")
    assert (stream.stats.stop_reason, stream.stats.completion_tokens) == ("interrupted", num_pieces)
    assert (pages_in_use(engine), engine.sequences) == (0, [])


def test_engine_answers_again_after_an_interrupt(engine: Engine, tokenizer: Tokenizer) -> None:
    expected = generate(engine, PROMPT, max_tokens=6)
    with pytest.MonkeyPatch.context() as patch:
        raise_in_forward(patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            next(stream_text(engine, tokenizer, PROMPT))

    stream = stream_text(engine, tokenizer, PROMPT, SamplingParams(max_tokens=6))

    assert [token_id for piece in stream for token_id in piece.token_ids] == expected.completion_ids


def test_stream_that_runs_out_of_pages_keeps_its_text_and_frees_its_pages(folder: Path, tokenizer: Tokenizer) -> None:
    engine = engine_of(folder, num_pages=3)
    stream = stream_text(engine, tokenizer, PROMPT, SamplingParams(max_tokens=20))

    with pytest.raises(CapacityError, match=r"needs 1 more page\(s\) of 16 tokens, 0 of 3 free"):
        list(stream)

    assert (stream.stats.completion_tokens, len(stream.stats.logprobs)) == (9, 9)
    assert (pages_in_use(engine), engine.sequences) == (0, [])


def test_streams_of_one_engine_may_be_read_in_turns(engine: Engine, tokenizer: Tokenizer) -> None:
    seeds = range(2)
    answers = [generate(engine, PROMPT, **WILD, seed=seed).completion_ids for seed in seeds]
    streams = [stream_text(engine, tokenizer, PROMPT, SamplingParams(**WILD, seed=seed)) for seed in seeds]
    pieces: list[list[str]] = [[], []]

    for _ in range(30):
        for stream, texts in zip(streams, pieces, strict=True):
            texts.append(next(stream).text)
    for stream, texts in zip(streams, pieces, strict=True):
        texts.extend(piece.text for piece in stream)

    assert ["".join(texts) for texts in pieces] == [tokenizer.decode(answer) for answer in answers]


def test_prompt_that_the_engine_refuses_is_refused_before_the_first_piece(engine: Engine, tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError):
        stream_text(engine, tokenizer, [])


def test_stream_is_its_own_iterator(engine: Engine, tokenizer: Tokenizer) -> None:
    stream: TextStream = stream_text(engine, tokenizer, PROMPT, SamplingParams(max_tokens=3))
    first = next(iter(stream))

    rest = list(stream)

    assert "".join(piece.text for piece in [first, *rest]) == stream.text
