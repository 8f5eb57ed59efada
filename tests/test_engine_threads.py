"""Proves that each step runs on the number of threads that was chosen for it, and that the choice changes no bit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import numba
import pytest
from toy_engines import engine_of, generate, result_of, toy_prompt

from cg_local import engine as engine_module
from cg_local import threads as threads_module
from cg_local.speculation import StepCosts
from cg_local.threads import NUM_TIMED, DecodeThreads

FolderMaker = Callable[[str, str], Path]
PROMPT = toy_prompt(60)
needs_two_threads = pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="the machine has one processor")
pytestmark = pytest.mark.usefixtures("no_page_leaks")


@pytest.fixture
def folder(toy_folder: FolderMaker) -> Path:
    return toy_folder("mqa", "q4")


@pytest.fixture(autouse=True)
def number_for_other_tests() -> Iterator[None]:
    number = numba.get_num_threads()
    yield
    numba.set_num_threads(number)


@pytest.fixture
def numbers_set(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads that engines ask Numba for from now on; a small machine gives them fewer."""
    numbers: list[int] = []
    set_num_threads = numba.set_num_threads

    def record(number: int) -> None:
        numbers.append(number)
        set_num_threads(min(number, numba.config.NUMBA_NUM_THREADS))

    monkeypatch.setattr(numba, "set_num_threads", record)
    return numbers


@pytest.fixture
def six_cores_soon_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six threads by default, tried after two steps; on a clock that says nothing all of them are as fast."""
    monkeypatch.setattr(threads_module, "default_threads", lambda: 6)
    monkeypatch.setattr(threads_module, "FIRST_TRIAL", 2)
    monkeypatch.setattr(
        engine_module, "kernel_threads", lambda asked, *, available: threads_module.kernel_threads(asked, available=6)
    )

    def threads_of(num_threads: int, *, is_fixed: bool) -> DecodeThreads:
        return DecodeThreads(num_threads, is_fixed=is_fixed, clock=lambda: 0.0)

    monkeypatch.setattr(engine_module, "DecodeThreads", threads_of)


@pytest.mark.usefixtures("six_cores_soon_tried")
def test_prefill_takes_all_threads_and_decoding_tries_fewer(folder: Path, numbers_set: list[int]) -> None:
    turns = 1 + NUM_TIMED
    generate(engine_of(folder, prefill_chunk=32), PROMPT, max_tokens=3 + 3 * turns + 5)

    start, prefill, before, after = [6], [6, 6], [6, 6], [6] * 5
    assert numbers_set == start + prefill + before + [6] * turns + [5] * turns + [3] * turns + after


@pytest.mark.usefixtures("six_cores_soon_tried")
def test_number_that_the_user_gave_is_that_of_every_step(folder: Path, numbers_set: list[int]) -> None:
    engine = engine_of(folder, num_threads=5)
    generate(engine, PROMPT, max_tokens=40)
    engine.logits(PROMPT[:5])

    # The engine's start, 40 steps and the logits.
    assert numbers_set == [5] * 42


@pytest.mark.usefixtures("six_cores_soon_tried", "numbers_set")
def test_costs_of_steps_are_not_learned_from_trials(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    observed: list[int] = []
    monkeypatch.setattr(StepCosts, "observe", lambda self, num_tokens, seconds: observed.append(num_tokens))
    generate(engine_of(folder), PROMPT, max_tokens=41)

    # The first token comes from the prefill; of the other steps those with 5 and 3 threads are left out.
    assert observed == [1] * (40 - 2 * (1 + NUM_TIMED))


@needs_two_threads
@pytest.mark.parametrize(("family", "scheme"), [("mqa", "q4"), ("mqa", "bf16"), ("mha", "q8")])
def test_answer_does_not_depend_on_threads_that_change_between_its_steps(
    family: str, scheme: str, toy_folder: FolderMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toy_folder(family, scheme)
    expected = generate(engine_of(folder, num_threads=1), PROMPT, max_tokens=12, temperature=1.2, seed=3)
    numbers = cycle([2, 1, 1])
    monkeypatch.setattr(DecodeThreads, "begin", lambda self, num_tokens, *, is_decode: next(numbers))

    found = generate(engine_of(folder, prefill_chunk=16), PROMPT, max_tokens=12, temperature=1.2, seed=3)

    assert result_of(found) == result_of(expected)


@needs_two_threads
def test_engines_of_one_process_keep_their_own_number_of_threads(folder: Path) -> None:
    first, second = engine_of(folder, num_threads=1), engine_of(folder, num_threads=2)

    numbers = []
    for engine in (first, second, first):
        engine.logits(PROMPT)
        numbers.append(numba.get_num_threads())

    assert numbers == [1, 2, 1]


@needs_two_threads
def test_engine_that_another_thread_runs_keeps_its_number_of_threads(folder: Path) -> None:
    engine, numbers = engine_of(folder, num_threads=1), list[int]()

    def run() -> None:
        generate(engine, PROMPT, max_tokens=2)
        numbers.append(numba.get_num_threads())

    runner = threading.Thread(target=run)
    runner.start()
    runner.join()

    assert numbers == [1]
