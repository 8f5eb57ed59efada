"""Batches of answers in JAX: a row as alone, sampled as by the engine, ended where it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from toy_engines import engine_of, generate, toy_prompt
from toy_jax import compiled

import cg_local
from cg_local.config import SamplingParams
from cg_local.evaluation import EngineBackend
from cg_local.jax_backend.backend import JaxBackend
from cg_local.jax_backend.generate import Generator
from cg_local.jax_backend.model import CompiledModel
from cg_local.models import INFILL_ORDERS
from cg_local.request_file import Request
from cg_local.tokenizer import Tokenizer

PROMPTS = [toy_prompt(length, seed) for seed, length in enumerate((5, 70, 33, 64))]


@pytest.fixture(scope="module")
def folder(toy_folder: Callable[[str, str], Path]) -> Path:
    return toy_folder("mqa", "bf16")


@pytest.fixture(scope="module")
def model(folder: Path) -> CompiledModel:
    return compiled(folder)


def answers(generator: Generator, prompts: list[list[int]], params: list[SamplingParams]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in prompts]

    def keep(row: int, token_id: int, logprob: float) -> bool:
        found[row].append(token_id)
        return True

    generator.run(prompts, params, keep)
    return found


def test_greedy_batch_gives_each_row_its_answer_alone_and_the_engines(folder: Path, model: CompiledModel) -> None:
    params = [SamplingParams(max_tokens=count) for count in (12, 1, 9, 12)]
    together = answers(Generator(model, 4), PROMPTS, params)
    alone = Generator(model, 1)
    engine = engine_of(folder, kv_dtype="float32")
    for prompt, each, found in zip(PROMPTS, params, together, strict=True):
        assert found == answers(alone, [prompt], [each])[0]
        assert found == generate(engine, prompt, max_tokens=each.max_tokens).completion_ids


def test_cache_of_a_batch_before_changes_nothing(model: CompiledModel) -> None:
    params = [SamplingParams(max_tokens=8)] * 2
    used = Generator(model, 2)
    answers(used, PROMPTS[2:], params)
    assert answers(used, PROMPTS[:2], params) == answers(Generator(model, 2), PROMPTS[:2], params)


def test_sampled_rows_are_the_engines_for_the_same_seed(folder: Path, model: CompiledModel) -> None:
    params = [
        SamplingParams(max_tokens=8, temperature=2.0, seed=3),
        SamplingParams(max_tokens=8, temperature=1.0, top_k=5, seed=4, repetition_penalty=1.3),
    ]
    found = answers(Generator(model, 2), PROMPTS[:2], params)
    engine = engine_of(folder, kv_dtype="float32")
    for prompt, each, ids in zip(PROMPTS, params, found, strict=False):
        sequence = engine.add(prompt, each)
        engine.run()
        assert ids == sequence.completion_ids


def test_ids_beyond_the_vocabulary_are_never_chosen(folder: Path) -> None:
    limited = compiled(folder, vocab_size=300)
    found = answers(Generator(limited, 4), PROMPTS, [SamplingParams(max_tokens=6)] * 4)
    assert max(map(max, found)) < 300


def test_row_that_ended_is_not_asked_again(model: CompiledModel) -> None:
    seen: list[int] = []

    def keep(row: int, token_id: int, logprob: float) -> bool:
        seen.append(row)
        return row == 1

    Generator(model, 3).run(PROMPTS[:2], [SamplingParams(max_tokens=3)] * 2, keep)
    assert seen == [0, 1, 1, 1]


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_answers_and_losses_of_texts_are_the_engines(
    folder: Path, model: CompiledModel, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        Request(1, prefix="def add(a, b):\n    return "),
        Request(2, prefix="x = 1\nif x:\n    ", suffix="\nprint(x)\n", path="a.py"),
        Request(3, prefix="import os\n"),
    ]
    loaded = cg_local.load(folder, kv_dtype="float32")
    monkeypatch.setitem(INFILL_ORDERS, loaded.name, order)
    engine = EngineBackend(loaded)
    in_jax = JaxBackend(model, Tokenizer.from_file(folder / "tokenizer.model"), 2, infill_order=engine.infill_order)
    params = SamplingParams(max_tokens=20, temperature=1.5, seed=9)
    for chosen in (SamplingParams(max_tokens=20), params):
        expected = engine.answer(requests, chosen)
        found = [*in_jax.answer(requests[:2], chosen), *in_jax.answer(requests[2:], chosen)]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.document() == {**theirs.document(), "mean_logprob": ours.document()["mean_logprob"]}
            assert ours.mean_logprob == pytest.approx(theirs.mean_logprob, abs=1e-4)
    for ours, theirs in zip(in_jax.losses(PROMPTS[:2]), engine.losses(PROMPTS[:2]), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_batch_size_is_a_multiple_of_one_and_context_the_models(folder: Path, model: CompiledModel) -> None:
    backend = JaxBackend(model, Tokenizer.from_file(folder / "tokenizer.model"), 3, max_context=99999)
    assert (backend.batch_size, backend.max_context) == (3, 1024)
