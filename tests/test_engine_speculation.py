"""Proves that guesses change no token: tokens, log-probabilities and stops are those of one token a step, bit for bit.

Most tests draft with a stand-in that knows the answer and errs now and then, so that drafts of every length are
accepted, cut and rejected; one part uses prompt lookup itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_engines import engine_of, generate, pages_in_use, result_of, toy_prompt

import cg_local.engine
from cg_local.config import SamplingParams
from cg_local.engine import Engine
from cg_local.errors import CapacityError
from cg_local.generation import stream_text
from cg_local.model import Model
from cg_local.sequence import Sequence
from cg_local.speculation import PromptLookup
from cg_local.tokenizer import Tokenizer

FolderMaker = Callable[[str, str], Path]
PROMPT = toy_prompt(300)
DRAFT = 7
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "seed": 1},
    "top_k": {"temperature": 1.0, "top_k": 20, "seed": 2},
    "top_p": {"temperature": 1.5, "top_p": 0.8, "seed": 3},
    "min_p": {"temperature": 2.0, "min_p": 0.05, "seed": 4},
    "penalty": {"repetition_penalty": 1.3},
    "sampled penalty": {"temperature": 1.0, "repetition_penalty": 1.2, "seed": 5},
}
pytestmark = pytest.mark.usefixtures("no_page_leaks")


@pytest.fixture
def folder(toy_folder: FolderMaker) -> Path:
    return toy_folder("mqa", "q4")


@pytest.fixture(autouse=True)
def verify_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify every draft whole, whatever the time of a step."""
    monkeypatch.setattr(cg_local.engine, "best_draft_length", lambda *arguments: DRAFT)


class Oracle:
    """Drafts the answers that it was told, with an error in `error_share` of the tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error_share: float = 0.15) -> None:
        self.texts: list[list[int]] = []
        self.random, self.error_share = random.Random(0), error_share
        monkeypatch.setattr(PromptLookup, "propose", lambda lookup, *arguments: self.propose(*arguments))

    def tell(self, *sequences: Sequence) -> None:
        self.texts += [list(sequence.token_ids) for sequence in sequences]

    def propose(self, token_ids: list[int], count: int) -> list[int]:
        known = [text for text in self.texts if text[: len(token_ids)] == token_ids]
        guesses = [*(known[0][len(token_ids) :] if known else []), *self.random.choices(range(768), k=count)][:count]
        return [self.random.randrange(768) if self.random.random() < self.error_share else guess for guess in guesses]


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    return Oracle(monkeypatch)


def speculating(folder: Path, **config: Any) -> Engine:
    return engine_of(folder, max_draft_tokens=DRAFT, **config)


def whole_result(sequence: Sequence) -> tuple[Any, ...]:
    return *result_of(sequence), sequence.stop_id


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("family", "scheme"), [("mqa", "q4"), ("mqa", "bf16"), ("mha", "q8")])
def test_answer_is_the_same_with_and_without_guesses(
    name: str, family: str, scheme: str, toy_folder: FolderMaker, oracle: Oracle
) -> None:
    folder, params = toy_folder(family, scheme), {"max_tokens": 60, **SETTINGS[name]}
    plain = generate(engine_of(folder), PROMPT[:50], **params)
    oracle.tell(plain)

    guessed = generate(speculating(folder), PROMPT[:50], **params)

    assert whole_result(guessed) == whole_result(plain)
    # The stand-in is right often enough that nearly all drafts are accepted in part.
    assert 20 < guessed.speculation.accepted < guessed.speculation.drafted
    assert guessed.speculation.num_steps < 40


@pytest.mark.parametrize("error_share", [0.0, 1.0])
def test_answer_is_the_same_with_all_guesses_right_and_with_none(
    error_share: float, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params: dict[str, Any] = {"max_tokens": 41, "temperature": 1.0, "seed": 6}
    plain = generate(engine_of(folder), PROMPT[:20], **params)
    Oracle(monkeypatch, error_share).tell(plain)

    guessed = generate(speculating(folder), PROMPT[:20], **params)

    assert whole_result(guessed) == whole_result(plain)
    if error_share == 0:
        # 1 token from the prompt, then 8 a step.
        assert guessed.speculation.num_steps == 5
        assert guessed.speculation.accepted == guessed.speculation.drafted == 35


@pytest.mark.parametrize("place", range(1, 14))
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 7}])
def test_stop_token_among_the_guesses_ends_the_answer_there(
    place: int, settings: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = generate(engine_of(folder), PROMPT[:30], max_tokens=30, **settings)
    Oracle(monkeypatch, 0.0).tell(free)
    stop_ids = (free.completion_ids[place],)
    plain = generate(engine_of(folder), PROMPT[:30], stop_ids, max_tokens=30, **settings)

    guessed = generate(speculating(folder), PROMPT[:30], stop_ids, max_tokens=30, **settings)

    assert whole_result(guessed) == whole_result(plain)


@pytest.mark.parametrize("max_tokens", range(1, 20))
def test_max_tokens_within_a_draft_end_the_answer_there(max_tokens: int, folder: Path, oracle: Oracle) -> None:
    oracle.tell(generate(engine_of(folder), PROMPT[:30], max_tokens=40))
    plain = generate(engine_of(folder), PROMPT[:30], max_tokens=max_tokens)

    guessed = generate(speculating(folder), PROMPT[:30], max_tokens=max_tokens)

    assert whole_result(guessed) == whole_result(plain)


@pytest.mark.parametrize("room", range(1, 20))
def test_full_context_within_a_draft_ends_the_answer_there(room: int, folder: Path, oracle: Oracle) -> None:
    oracle.tell(generate(engine_of(folder), PROMPT[:30], max_tokens=40))
    plain = generate(engine_of(folder, max_context=30 + room), PROMPT[:30], max_tokens=40)

    guessed = generate(speculating(folder, max_context=30 + room), PROMPT[:30], max_tokens=40)

    assert whole_result(guessed) == whole_result(plain)
    assert guessed.stop_reason == "context_full"


REQUESTS: list[tuple[list[int], dict[str, Any]]] = [
    (toy_prompt(3, 1), {"max_tokens": 45}),
    (toy_prompt(130, 2), {"max_tokens": 25, "temperature": 1.0, "seed": 3}),
    (PROMPT, {"max_tokens": 28}),
    (toy_prompt(17, 4), {"max_tokens": 32, "temperature": 0.7, "top_k": 20, "seed": 4}),
    (PROMPT[:290], {"max_tokens": 26, "repetition_penalty": 1.3}),
]


@pytest.mark.parametrize("chunk", [16, 512])
@pytest.mark.parametrize("num_pages", [200, 28])
def test_batch_is_the_same_with_and_without_guesses(chunk: int, num_pages: int, folder: Path, oracle: Oracle) -> None:
    # With 28 pages sequences wait for one another, and drafts do not get all they ask for.
    alone = [generate(engine_of(folder), prompt, **params) for prompt, params in REQUESTS]
    oracle.tell(*alone)
    engine = speculating(folder, prefill_chunk=chunk, num_pages=num_pages)

    together = [engine.add(prompt, SamplingParams(**params)) for prompt, params in REQUESTS]
    run_to_the_end(engine)

    assert list(map(whole_result, together)) == list(map(whole_result, alone))
    assert engine.speculation.accepted == sum(sequence.speculation.accepted for sequence in together) > 0


def run_to_the_end(engine: Engine) -> None:
    """Step; after each, the pages in use are those of the tokens computed."""
    while engine.sequences:
        engine.step()
        for sequence in engine.sequences:
            assert len(sequence.block_table) == math.ceil(sequence.num_computed / 16)


def test_draft_shrinks_to_the_free_pages(folder: Path, oracle: Oracle) -> None:
    plain = generate(engine_of(folder), PROMPT[:30], max_tokens=18)
    oracle.tell(plain)
    # 48 tokens, of which the last is not computed, fill 3 pages: no draft may take a fourth.
    engine = speculating(folder, num_pages=3)
    other = engine.add(toy_prompt(10, 9), SamplingParams(max_tokens=6))
    engine.step()

    guessed = engine.add(PROMPT[:30], SamplingParams(max_tokens=18))
    run_to_the_end(engine)

    assert whole_result(guessed) == whole_result(plain)
    assert other.stop_reason == "max_tokens"


def test_step_for_which_no_page_is_free_is_refused_as_without_guesses(folder: Path, oracle: Oracle) -> None:
    oracle.tell(generate(engine_of(folder), PROMPT[:40], max_tokens=20))
    engine = speculating(folder, num_pages=3)
    sequence = engine.add(PROMPT[:40], SamplingParams(max_tokens=20))

    with pytest.raises(CapacityError, match=r"needs 1 more page\(s\) of 16 tokens, 0 of 3 free"):
        engine.run()

    assert len(sequence.completion_ids) == 9
    engine.cancel(sequence)


@pytest.mark.parametrize("num_before", [0, 1, 2, 3, 4])
def test_forked_sequence_equals_one_of_its_own(num_before: int, folder: Path, oracle: Oracle) -> None:
    params: dict[str, Any] = {"max_tokens": 40, "temperature": 1.0}
    plain = generate(engine_of(folder), PROMPT[:25], **params, seed=1)
    oracle.tell(plain)
    engine = speculating(folder)
    first = engine.add(PROMPT[:25], SamplingParams(**params, seed=1))
    for _ in range(num_before):
        engine.step()
    so_far = list(first.token_ids)
    own = generate(engine_of(folder), so_far, max_tokens=65 - len(so_far), temperature=1.0, seed=2)
    oracle.tell(own)

    twin = engine.fork(first, SamplingParams(**params, seed=2))
    run_to_the_end(engine)

    assert twin.token_ids == own.token_ids
    assert twin.logprobs[len(so_far) - 25 :] == own.logprobs
    assert whole_result(first) == whole_result(plain)


def test_cancelling_leaves_other_sequences_alone(folder: Path, oracle: Oracle) -> None:
    plain = generate(engine_of(folder), PROMPT[:60], max_tokens=30)
    oracle.tell(generate(engine_of(folder), PROMPT[:50], max_tokens=30), plain)
    engine = speculating(folder)
    first, second = (engine.add(PROMPT[:length], SamplingParams(max_tokens=30)) for length in (50, 60))
    for _ in range(3):
        engine.step()

    engine.cancel(first)
    run_to_the_end(engine)

    assert whole_result(second) == whole_result(plain)
    assert pages_in_use(engine) == 0


def test_only_accepted_tokens_are_found_in_the_prefix_cache(folder: Path, oracle: Oracle) -> None:
    plain_engine = engine_of(folder)
    plain = generate(plain_engine, PROMPT[:20], max_tokens=30)
    oracle.tell(plain)
    engine = speculating(folder)
    generate(engine, PROMPT[:20], max_tokens=30)

    for prompt in ([*plain.token_ids, 5, 6], [*plain.token_ids[:40], *toy_prompt(30, 8)]):
        again = generate(engine, prompt, max_tokens=9)
        assert again.num_cached == generate(plain_engine, prompt, max_tokens=9).num_cached > 0
        assert whole_result(again) == whole_result(generate(engine_of(folder), prompt, max_tokens=9))


# Interruption


@pytest.mark.parametrize("num_before", [1, 2, 3])
@pytest.mark.parametrize("draws_before", [None, 0, 1, 3])
def test_interrupted_step_is_repeated_with_the_same_random_numbers(
    num_before: int, draws_before: int | None, folder: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle.error_share = 0.0
    params: dict[str, Any] = {"max_tokens": 40, "temperature": 1.0, "seed": 1}
    plain = generate(engine_of(folder), PROMPT[:25], **params)
    oracle.tell(plain)
    engine = speculating(folder)
    sequence = engine.add(PROMPT[:25], SamplingParams(**params))
    for _ in range(num_before):
        engine.step()
    before = result_of(sequence)

    interrupted_step(engine, draws_before)

    assert result_of(sequence) == before
    engine.run()
    assert whole_result(sequence) == whole_result(plain)


def interrupted_step(engine: Engine, draws_before: int | None) -> None:
    """Interrupt the next step after so many draws; None: after the forward pass."""
    forward, draw, calls = Model.forward, cg_local.engine.sample, []

    def interrupted_forward(self: Model, *arguments: Any) -> Any:
        forward(self, *arguments)
        raise KeyboardInterrupt

    def interrupted_draw(*arguments: Any) -> Any:
        if len(calls) == draws_before:
            raise KeyboardInterrupt
        calls.append(1)
        return draw(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        if draws_before is None:
            patch.setattr(Model, "forward", interrupted_forward)
        else:
            patch.setattr(cg_local.engine, "sample", interrupted_draw)
        with pytest.raises(KeyboardInterrupt):
            engine.step()


@pytest.mark.parametrize("num_prompt_tokens", [24, 25, 31, 32])
def test_fork_after_an_interrupted_step_shares_no_page_that_drafts_are_written_to(
    num_prompt_tokens: int, folder: Path, oracle: Oracle
) -> None:
    # The interrupted step has taken pages for a draft; the twins' next drafts differ.
    params: dict[str, Any] = {"max_tokens": 40, "temperature": 1.0}
    plain = generate(engine_of(folder), PROMPT[:num_prompt_tokens], **params, seed=1)
    oracle.tell(plain)
    engine = speculating(folder)
    first = engine.add(PROMPT[:num_prompt_tokens], SamplingParams(**params, seed=1))
    engine.step()
    interrupted_step(engine, None)
    own = generate(engine_of(folder), list(first.token_ids), max_tokens=39, temperature=1.0, seed=2)
    oracle.tell(own)

    twin = engine.fork(first, SamplingParams(**params, seed=2))
    run_to_the_end(engine)

    assert twin.token_ids == own.token_ids
    assert whole_result(first) == whole_result(plain)


# Prompt lookup itself, the choice of the length, and the stream


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.1, "seed": 1}])
def test_prompt_lookup_guesses_what_a_toy_model_repeats(settings: dict[str, Any], folder: Path) -> None:
    # Greedy toy models fall into a loop, which prompt lookup continues.
    plain = generate(engine_of(folder), PROMPT[:50], max_tokens=120, **settings)

    guessed = generate(speculating(folder), PROMPT[:50], max_tokens=120, **settings)

    assert whole_result(guessed) == whole_result(plain)
    assert guessed.speculation.accepted > 20


@pytest.mark.parametrize("length", [0, 3])
def test_no_more_guesses_are_verified_than_pay(length: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cg_local.engine, "best_draft_length", lambda *arguments: length)
    plain = generate(engine_of(folder), PROMPT[:50], max_tokens=120)

    guessed = generate(speculating(folder), PROMPT[:50], max_tokens=120)

    assert whole_result(guessed) == whole_result(plain)
    assert 0 <= guessed.speculation.drafted <= length * guessed.speculation.num_steps
    assert (guessed.speculation.drafted > 0) == (length > 0)


def test_engine_without_drafts_asks_for_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PromptLookup, "propose", None)

    sequence = generate(engine_of(folder), PROMPT[:50], max_tokens=20)

    assert (sequence.speculation.drafted, sequence.speculation.num_steps) == (0, 19)


def test_stream_gives_the_tokens_of_a_step_one_after_the_other(folder: Path, oracle: Oracle) -> None:
    tokenizer = Tokenizer.from_file(folder / "tokenizer.model")
    plain = generate(engine_of(folder), PROMPT[:40], max_tokens=50)
    oracle.tell(plain)

    stream = stream_text(speculating(folder), tokenizer, PROMPT[:40], SamplingParams(max_tokens=50))
    pieces = [piece for piece in stream if piece.token_ids]

    assert [piece.token_ids for piece in pieces] == [(token_id,) for token_id in plain.completion_ids]
    assert [piece.logprobs for piece in pieces] == [(logprob,) for logprob in plain.logprobs]
    assert stream.text == tokenizer.decode(plain.completion_ids)
    assert stream.stats.speculation.accepted > 10


def test_stream_closed_within_a_step_counts_what_was_taken(folder: Path, oracle: Oracle) -> None:
    tokenizer = Tokenizer.from_file(folder / "tokenizer.model")
    oracle.error_share = 0.0
    plain = generate(engine_of(folder), PROMPT[:40], max_tokens=50)
    oracle.tell(plain)
    engine = speculating(folder)
    stream = stream_text(engine, tokenizer, PROMPT[:40], SamplingParams(max_tokens=50))
    for _ in range(4):
        next(stream)

    stream.close()

    assert (stream.stats.completion_tokens, stream.stats.logprobs) == (4, plain.logprobs[:4])
    assert (stream.stats.stop_reason, pages_in_use(engine)) == ("interrupted", 0)
