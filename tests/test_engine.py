"""Proves the life of sequences: what a step computes, how an answer ends, and that no way of ending leaks a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_engines import engine_of, generate, pages_in_use, result_of, toy_prompt

import cg_local.engine
from cg_local.config import SamplingParams
from cg_local.engine import Engine
from cg_local.errors import CapacityError, ConfigError, PromptError
from cg_local.model import Model
from cg_local.sampling import logprob_of
from cg_local.sequence import Sequence

FolderMaker = Callable[[str, str], Path]
PROMPT = toy_prompt(300)
pytestmark = pytest.mark.usefixtures("no_page_leaks")


@pytest.fixture
def folder(toy_folder: FolderMaker) -> Path:
    """The model of the tests for which one is as good as another."""
    return toy_folder("mqa", "q4")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """For each step to come, how many tokens of each sequence it computes."""
    seen: list[list[int]] = []
    forward = Model.forward

    def watch(self: Model, token_ids: Any, given: Any, *rest: Any) -> Any:
        seen.append([span.num_tokens for span in given])
        return forward(self, token_ids, given, *rest)

    monkeypatch.setattr(Model, "forward", watch)
    return seen


def test_step_joins_decode_tokens_with_one_chunk_of_prefill(folder: Path, spans: list[list[int]]) -> None:
    engine = engine_of(folder, prefill_chunk=64)
    engine.add(PROMPT[:5], SamplingParams(max_tokens=9))
    engine.step()
    engine.add(PROMPT, SamplingParams(max_tokens=9))

    for _ in range(6):
        engine.step()

    assert spans == [[5], [1, 64], [1, 64], [1, 64], [1, 64], [1, 44], [1, 1]]


def test_prompts_share_one_chunk_in_the_order_of_their_coming(folder: Path, spans: list[list[int]]) -> None:
    engine = engine_of(folder, prefill_chunk=64)
    for prompt in (toy_prompt(100, 1), toy_prompt(80, 2)):
        engine.add(prompt, SamplingParams(max_tokens=9))

    for _ in range(4):
        engine.step()

    assert spans == [[64], [36, 28], [1, 52], [1, 1]]


def test_forked_sequence_computes_nothing_again(folder: Path, spans: list[list[int]]) -> None:
    engine = engine_of(folder)
    first = engine.add(PROMPT[:40], SamplingParams(max_tokens=9))
    engine.step()

    engine.fork(first)
    engine.step()

    assert spans == [[40], [1, 1]]


# How a sequence ends


def test_answer_ends_after_max_tokens(folder: Path) -> None:
    sequence = generate(engine_of(folder), PROMPT[:10], max_tokens=7)

    assert (len(sequence.completion_ids), sequence.stop_reason) == (7, "max_tokens")


def test_answer_ends_when_the_context_is_full(folder: Path) -> None:
    sequence = generate(engine_of(folder, max_context=64), PROMPT[:60], max_tokens=50)

    assert (len(sequence.completion_ids), sequence.stop_reason) == (4, "context_full")


def test_answer_ends_before_a_stop_id(folder: Path) -> None:
    free = generate(engine_of(folder), PROMPT[:10], max_tokens=9, temperature=1.5, seed=5)
    stop_id = free.completion_ids[5]
    expected = free.completion_ids[: free.completion_ids.index(stop_id)]

    stopped = generate(engine_of(folder), PROMPT[:10], (stop_id,), max_tokens=9, temperature=1.5, seed=5)

    assert (stopped.completion_ids, stopped.stop_reason, stopped.stop_id) == (expected, "stop_id", stop_id)


def test_stop_token_is_reported_with_its_logprob(folder: Path) -> None:
    free = generate(engine_of(folder), PROMPT[:10], max_tokens=1)
    engine, outputs = engine_of(folder), []
    sequence = engine.add(PROMPT[:10], SamplingParams(max_tokens=9), free.completion_ids)

    engine.run(outputs.append)

    assert [(output.token_id, output.logprob) for output in outputs] == [(free.token_ids[-1], free.logprobs[0])]
    assert sequence.logprobs == free.logprobs


def test_each_token_is_reported_as_it_is_chosen(folder: Path) -> None:
    engine, outputs = engine_of(folder), []
    sequence = engine.add(PROMPT[:10], SamplingParams(max_tokens=9))

    engine.run(outputs.append)

    assert [output.token_id for output in outputs] == sequence.completion_ids
    assert [output.logprob for output in outputs] == sequence.logprobs


def test_finished_sequence_gives_back_its_pages(folder: Path) -> None:
    engine = engine_of(folder)

    generate(engine, PROMPT, max_tokens=3)

    assert (pages_in_use(engine), engine.sequences) == (0, [])


def test_cancelling_between_chunks_gives_back_the_pages(folder: Path) -> None:
    engine = engine_of(folder, prefill_chunk=50)
    sequence = engine.add(PROMPT)
    assert engine.step() == []
    assert pages_in_use(engine) > 0

    engine.cancel(sequence)

    assert (pages_in_use(engine), engine.sequences, sequence.stop_reason) == (0, [], "cancelled")


def test_cancelling_between_tokens_keeps_them_and_gives_back_the_pages(folder: Path) -> None:
    engine = engine_of(folder)
    sequence = engine.add(PROMPT[:10])
    engine.step()
    engine.step()

    engine.cancel(sequence)

    assert (pages_in_use(engine), len(sequence.completion_ids)) == (0, 2)


def test_cancelling_leaves_other_sequences_alone(folder: Path) -> None:
    engine = engine_of(folder)
    first = engine.add(PROMPT[:50], SamplingParams(max_tokens=9))
    second = engine.add(PROMPT[:60], SamplingParams(max_tokens=9))
    engine.step()
    engine.step()

    engine.cancel(first)
    engine.run()

    assert result_of(second) == result_of(generate(engine_of(folder), PROMPT[:60], max_tokens=9))


def test_cancelling_a_finished_sequence_changes_nothing(folder: Path) -> None:
    engine = engine_of(folder)
    sequence = generate(engine, PROMPT[:10], max_tokens=2)

    engine.cancel(sequence)

    assert sequence.stop_reason == "max_tokens"


def test_step_without_sequences_chooses_nothing(folder: Path) -> None:
    assert engine_of(folder).step() == []


# Too little room


def test_prompt_that_leaves_no_room_is_refused_with_the_numbers(folder: Path) -> None:
    engine = engine_of(folder, max_context=64)

    with pytest.raises(CapacityError, match=r"prompt has 64 tokens, the context holds 64"):
        engine.add(PROMPT[:64])

    assert (engine.sequences, pages_in_use(engine)) == ([], 0)


def test_logits_without_free_pages_are_refused_and_leave_other_sequences_alone(folder: Path) -> None:
    engine = engine_of(folder, num_pages=4)
    sequence = engine.add(PROMPT[:40], SamplingParams(max_tokens=5))
    engine.step()

    with pytest.raises(CapacityError, match=r"1 of 4 free"):
        engine.logits(PROMPT[:20])
    engine.run()

    assert result_of(sequence) == result_of(generate(engine_of(folder), PROMPT[:40], max_tokens=5))


def test_step_for_which_no_page_is_free_names_the_numbers(folder: Path) -> None:
    engine = engine_of(folder, num_pages=3)
    engine.add(PROMPT[:60])

    with pytest.raises(CapacityError, match=r"sequence of 60 tokens needs 4 more page\(s\) of 16 tokens, 3 of 3 free"):
        engine.step()


def test_step_for_which_no_page_is_free_changes_nothing(folder: Path) -> None:
    engine = engine_of(folder, num_pages=6)
    sequences = [engine.add(toy_prompt(48, seed), SamplingParams(max_tokens=30)) for seed in range(2)]
    engine.step()
    before = [(list(s.token_ids), list(s.block_table), s.num_computed) for s in sequences]

    with pytest.raises(CapacityError):
        engine.step()

    assert [(s.token_ids, s.block_table, s.num_computed) for s in sequences] == before


def test_step_goes_on_once_another_sequence_is_cancelled(folder: Path) -> None:
    engine = engine_of(folder, num_pages=6)
    sequences = [engine.add(toy_prompt(48, seed), SamplingParams(max_tokens=30)) for seed in range(2)]
    engine.step()
    with pytest.raises(CapacityError):
        engine.step()

    engine.cancel(sequences[0])
    engine.run()

    assert result_of(sequences[1]) == result_of(generate(engine_of(folder), toy_prompt(48, 1), max_tokens=30))


def test_waiting_sequences_go_on_when_pages_become_free(folder: Path) -> None:
    engine = engine_of(folder, num_pages=8)
    sequences = [engine.add(toy_prompt(100, seed), SamplingParams(max_tokens=9)) for seed in range(3)]

    engine.run()

    alone = [generate(engine_of(folder), toy_prompt(100, seed), max_tokens=9) for seed in range(3)]
    assert list(map(result_of, sequences)) == list(map(result_of, alone))


@pytest.mark.parametrize(("prompt", "message"), [([], "no token"), ([2, 768], "768 is outside 0..767"), ([-1], "-1")])
def test_prompt_of_wrong_ids_is_refused(prompt: list[int], message: str, folder: Path) -> None:
    engine = engine_of(folder)

    with pytest.raises(PromptError, match=message):
        engine.add(prompt)

    assert engine.sequences == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"page_size": 24}, r"page_size is 24; it must divide 256"),
        ({"max_context": 2000}, r"max_context is 2000; the model was trained for 1024"),
        ({"num_threads": 4096}, r"num_threads is 4096"),
    ],
)
def test_configuration_that_the_engine_cannot_keep_is_refused(
    config: dict[str, int], message: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        engine_of(folder, **config)


# Interruption


def interrupt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the next forward pass end in a KeyboardInterrupt after all pages were prepared."""
    forward = Model.forward

    def interrupted(self: Model, *arguments: Any) -> Any:
        monkeypatch.setattr(Model, "forward", forward)
        forward(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "forward", interrupted)


def interrupted_sequence(engine: Engine, monkeypatch: pytest.MonkeyPatch, num_before: int, **params: Any) -> Sequence:
    sequence = engine.add(PROMPT[:40], SamplingParams(**params))
    for _ in range(num_before):
        engine.step()
    interrupt_once(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    return sequence


@pytest.mark.parametrize("num_before", [0, 1, 9])
def test_interrupted_step_is_repeated_with_the_same_result(
    num_before: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(folder, prefill_chunk=20)
    sequence = interrupted_sequence(engine, monkeypatch, num_before, max_tokens=20)

    engine.run()

    assert result_of(sequence) == result_of(generate(engine_of(folder), PROMPT[:40], max_tokens=20))


def test_step_interrupted_while_a_token_is_drawn_is_repeated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(folder)
    sequences = [engine.add(PROMPT[:length], SamplingParams(max_tokens=5)) for length in (20, 30)]
    draw, calls = cg_local.engine.sample, []

    def interrupt_second(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(cg_local.engine, "sample", interrupt_second)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    for _ in range(9):
        engine.step()

    for sequence, length in zip(sequences, (20, 30), strict=True):
        assert result_of(sequence) == result_of(generate(engine_of(folder), PROMPT[:length], max_tokens=5))


@pytest.mark.parametrize("num_before", [0, 1, 2, 10])
def test_fork_after_an_interrupted_step_equals_one_of_its_own(
    num_before: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The interrupted step has taken pages that it did not fill; both sequences will write into them.
    engine = engine_of(folder, prefill_chunk=20)
    params: dict[str, Any] = {"max_tokens": 20, "temperature": 1.0}
    first = interrupted_sequence(engine, monkeypatch, num_before, **params, seed=1)
    so_far = list(first.token_ids)

    twin = engine.fork(first, SamplingParams(**params, seed=2))
    engine.run()

    own = generate(engine_of(folder), so_far, max_tokens=60 - len(so_far), temperature=1.0, seed=2)
    assert twin.token_ids == own.token_ids
    assert result_of(first) == result_of(generate(engine_of(folder), PROMPT[:40], **params, seed=1))


# Choices


def test_ids_beyond_the_tokenizers_are_never_chosen(folder: Path) -> None:
    engine = engine_of(folder, vocab_size=300)
    answers = [generate(engine, PROMPT[:9], max_tokens=60, temperature=5.0, seed=seed) for seed in range(3)]

    assert max(token_id for answer in answers for token_id in answer.completion_ids) < 300


def test_logprobs_are_those_among_the_ids_that_can_be_chosen(folder: Path) -> None:
    engine = engine_of(folder, vocab_size=300)

    sequence = generate(engine, PROMPT[:9], max_tokens=1)

    row = engine.logits(PROMPT[:9])[-1]
    assert sequence.logprobs == [logprob_of(row[:300], sequence.completion_ids[0])]


def test_greedy_chooses_the_largest_logit_at_every_position(folder: Path) -> None:
    engine = engine_of(folder)

    sequence = generate(engine, PROMPT[:9], max_tokens=30)

    rows = engine.logits(sequence.token_ids)[8:-1]
    assert rows.argmax(axis=1).tolist() == sequence.completion_ids


def test_same_seed_gives_the_same_answer(folder: Path) -> None:
    answers = [generate(engine_of(folder), PROMPT[:9], max_tokens=30, temperature=2.0, seed=7) for _ in range(2)]

    assert result_of(answers[0]) == result_of(answers[1])


def test_other_seeds_give_other_answers(folder: Path) -> None:
    engine = engine_of(folder)

    answers = [generate(engine, PROMPT[:9], max_tokens=30, temperature=2.0, seed=seed) for seed in range(3)]

    assert len({tuple(answer.completion_ids) for answer in answers}) == 3


def test_repetition_penalty_sees_prompt_and_answer(folder: Path) -> None:
    # A penalty of 10**6 makes every seen token the least probable, as long as others have positive logits.
    sequence = generate(engine_of(folder), PROMPT[:9], max_tokens=30, repetition_penalty=1e6)

    assert len(set(sequence.token_ids)) == len(set(PROMPT[:9])) + 30
