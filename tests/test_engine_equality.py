"""Proves that every way of computing a token gives the same bits: chunks, decode, cached prefix, fork, batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from toy_engines import engine_of, generate, pages_in_use, result_of, toy_prompt

from cg_local.config import SamplingParams
from cg_local.errors import ConfigError
from cg_local.sampling import logprob_of

FolderMaker = Callable[[str, str], Path]
PROMPT = toy_prompt(300)
MODELS = [("mqa", "q4"), ("mqa", "bf16"), ("mha", "q8")]
pytestmark = pytest.mark.usefixtures("no_page_leaks")


@pytest.fixture
def folder(toy_folder: FolderMaker) -> Path:
    """The model of the tests for which one is as good as another."""
    return toy_folder("mqa", "q4")


@pytest.fixture(scope="module")
def whole_logits(toy_folder: FolderMaker) -> Callable[[str, str], NDArray[np.float32]]:
    """A function from (family, scheme) to the logits of PROMPT prefilled at once."""
    computed: dict[tuple[str, str], NDArray[np.float32]] = {}

    def logits_of(family: str, scheme: str) -> NDArray[np.float32]:
        if (family, scheme) not in computed:
            computed[family, scheme] = engine_of(toy_folder(family, scheme)).logits(PROMPT)
        return computed[family, scheme]

    return logits_of


@pytest.mark.parametrize(("family", "scheme"), MODELS)
@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_prefill_in_chunks_equals_prefill_at_once_bit_for_bit(
    family: str,
    scheme: str,
    chunk: int,
    toy_folder: FolderMaker,
    whole_logits: Callable[[str, str], NDArray[np.float32]],
) -> None:
    found = engine_of(toy_folder(family, scheme), prefill_chunk=chunk).logits(PROMPT)

    np.testing.assert_array_equal(found, whole_logits(family, scheme))


@pytest.mark.parametrize(("family", "scheme"), MODELS)
@pytest.mark.parametrize("kv_dtype", ["float16", "float32"])
def test_decoding_gives_the_logprobs_of_prefilling_the_same_text_bit_for_bit(
    family: str, scheme: str, kv_dtype: str, toy_folder: FolderMaker
) -> None:
    engine = engine_of(toy_folder(family, scheme), kv_dtype=kv_dtype)

    decoded = generate(engine, PROMPT[:250], max_tokens=20, temperature=1.5, seed=1)

    rows = engine.logits(decoded.token_ids)[249:-1]
    expected = [logprob_of(row, token_id) for row, token_id in zip(rows, decoded.completion_ids, strict=True)]
    assert decoded.logprobs == expected


@pytest.mark.parametrize("num_threads", [1, 2])
def test_result_does_not_depend_on_the_number_of_threads(
    num_threads: int, folder: Path, whole_logits: Callable[[str, str], NDArray[np.float32]]
) -> None:
    try:
        engine = engine_of(folder, num_threads=num_threads)
    except ConfigError:
        pytest.skip("the machine has one processor")

    np.testing.assert_array_equal(engine.logits(PROMPT), whole_logits("mqa", "q4"))


@pytest.mark.parametrize(("family", "scheme"), MODELS)
def test_cached_prefix_gives_the_result_of_a_cold_run_bit_for_bit(
    family: str, scheme: str, toy_folder: FolderMaker
) -> None:
    folder = toy_folder(family, scheme)
    other_end = [*PROMPT[:90], *toy_prompt(30, seed=9)[1:]]
    cold = generate(engine_of(folder), other_end, max_tokens=12)
    engine = engine_of(folder)
    generate(engine, PROMPT[:130], max_tokens=3)

    warm = generate(engine, other_end, max_tokens=12)

    assert (cold.num_cached, warm.num_cached) == (0, 80)
    assert result_of(warm) == result_of(cold)


def test_chosen_tokens_are_cached_with_the_prompt(folder: Path) -> None:
    engine = engine_of(folder)
    first = generate(engine, PROMPT[:20], max_tokens=20)

    again = generate(engine, [*first.token_ids, 5, 6], max_tokens=4)

    assert again.num_cached == 32
    assert result_of(again) == result_of(generate(engine_of(folder), [*first.token_ids, 5, 6], max_tokens=4))


def test_prompt_that_is_cached_to_its_end_is_computed_from_its_last_page_on(folder: Path) -> None:
    engine = engine_of(folder)
    first = generate(engine, PROMPT[:64], max_tokens=6)

    again = generate(engine, PROMPT[:64], max_tokens=6)

    assert again.num_cached == 48
    assert result_of(again) == result_of(first)


def test_result_is_right_after_cached_pages_were_taken_by_others(folder: Path) -> None:
    engine = engine_of(folder, num_pages=8)
    first = generate(engine, PROMPT[:100], max_tokens=6)
    generate(engine, toy_prompt(60, seed=5), max_tokens=6)

    again = generate(engine, PROMPT[:100], max_tokens=6)

    assert 0 < again.num_cached < 96
    assert result_of(again) == result_of(first)


@pytest.mark.parametrize("num_before", [0, 1, 9, 16])
def test_forked_sequence_equals_one_of_its_own_bit_for_bit(num_before: int, folder: Path) -> None:
    engine = engine_of(folder)
    first = engine.add(PROMPT[:25], SamplingParams(max_tokens=40, temperature=1.0, seed=1))
    for _ in range(num_before):
        engine.step()
    so_far = list(first.token_ids)

    twin = engine.fork(first, SamplingParams(max_tokens=40, temperature=1.0, seed=2))
    engine.run()

    own = generate(engine_of(folder), so_far, max_tokens=40 - num_before, temperature=1.0, seed=2)
    assert twin.token_ids == own.token_ids
    assert twin.logprobs[num_before:] == own.logprobs


@pytest.mark.parametrize("num_before", [0, 1, 9, 16])
def test_forking_does_not_change_the_first_sequence(num_before: int, folder: Path) -> None:
    params: dict[str, Any] = {"max_tokens": 40, "temperature": 1.0, "seed": 1}
    engine = engine_of(folder)
    first = engine.add(PROMPT[:25], SamplingParams(**params))
    for _ in range(num_before):
        engine.step()

    engine.fork(first, SamplingParams(max_tokens=40, temperature=1.0, seed=2))
    engine.run()

    assert result_of(first) == result_of(generate(engine_of(folder), PROMPT[:25], **params))


def test_fork_shares_pages_until_one_writes(folder: Path) -> None:
    engine = engine_of(folder)
    first = engine.add(PROMPT[:40], SamplingParams(max_tokens=40))
    engine.step()

    engine.fork(first)
    assert pages_in_use(engine) == 3
    engine.step()
    assert pages_in_use(engine) == 4


def test_fork_in_the_middle_of_a_prefill_equals_one_of_its_own(folder: Path) -> None:
    engine = engine_of(folder, prefill_chunk=50)
    first = engine.add(PROMPT, SamplingParams(max_tokens=4, temperature=1.0, seed=1))
    engine.step()

    twin = engine.fork(first, SamplingParams(max_tokens=4, temperature=1.0, seed=2))
    engine.run()

    assert result_of(first) == result_of(generate(engine_of(folder), PROMPT, max_tokens=4, temperature=1.0, seed=1))
    assert result_of(twin) == result_of(generate(engine_of(folder), PROMPT, max_tokens=4, temperature=1.0, seed=2))


REQUESTS: list[tuple[list[int], dict[str, Any]]] = [
    (toy_prompt(3, 1), {"max_tokens": 25}),
    (toy_prompt(130, 2), {"max_tokens": 5, "temperature": 1.0, "seed": 3}),
    (PROMPT, {"max_tokens": 8}),
    (toy_prompt(17, 4), {"max_tokens": 12, "temperature": 0.7, "top_k": 20, "seed": 4}),
    (PROMPT[:290], {"max_tokens": 6, "repetition_penalty": 1.3}),
]


@pytest.mark.parametrize(("family", "scheme"), MODELS)
@pytest.mark.parametrize("chunk", [16, 512])
def test_sequences_in_a_batch_equal_each_alone_bit_for_bit(
    family: str, scheme: str, chunk: int, toy_folder: FolderMaker
) -> None:
    folder = toy_folder(family, scheme)
    engine = engine_of(folder, prefill_chunk=chunk, num_pages=200)

    together = [engine.add(prompt, SamplingParams(**params)) for prompt, params in REQUESTS]
    engine.run()

    alone = [generate(engine_of(folder), prompt, **params) for prompt, params in REQUESTS]
    assert list(map(result_of, together)) == list(map(result_of, alone))
