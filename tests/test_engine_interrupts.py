"""Proves that Ctrl-C, at whatever call while a step's tokens are taken up, costs no token and no page."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_engines import engine_of, pages_in_use, result_of, toy_prompt

import cg_local.engine
from cg_local.block_manager import BlockManager
from cg_local.config import SamplingParams
from cg_local.engine import Engine
from cg_local.interrupts import interrupts_held
from cg_local.sequence import Sequence
from cg_local.speculation import PromptLookup, SpeculationCounts

FolderMaker = Callable[[str, str], Path]
PROMPT = toy_prompt(30)
pytestmark = pytest.mark.usefixtures("no_page_leaks")
MOMENTS = (
    (BlockManager, "truncate"),
    (BlockManager, "register_full_pages"),
    (BlockManager, "release"),
    (PromptLookup, "learn"),
    (SpeculationCounts, "add"),
    (cg_local.engine, "TokenOutput"),
)


@pytest.fixture
def folder(toy_folder: FolderMaker) -> Path:
    return toy_folder("mqa", "q4")


def add_two(engine: Engine) -> list[Sequence]:
    sampled = SamplingParams(max_tokens=20, temperature=1.0, seed=3)
    return [engine.add(PROMPT, SamplingParams(max_tokens=20)), engine.add(toy_prompt(17, 2), sampled)]


@pytest.mark.parametrize(("owner", "name"), MOMENTS)
@pytest.mark.parametrize("is_before", [True, False])
def test_interrupt_while_tokens_are_taken_up_loses_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, is_before: bool
) -> None:
    expected = engine_of(folder)
    alone = add_two(expected)
    expected.run()
    engine = engine_of(folder)
    sequences = add_two(engine)
    function, num_interrupts = getattr(owner, name), 0

    def interrupting(*arguments: Any, **named: Any) -> Any:
        if is_before:
            signal.raise_signal(signal.SIGINT)
        result = function(*arguments, **named)
        if not is_before:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(owner, name, interrupting)
    for _ in range(200):  # a sequence that cannot go on would step for ever
        try:
            engine.step()
        except KeyboardInterrupt:
            num_interrupts += 1

    assert num_interrupts > 0
    assert engine.sequences == []
    assert [result_of(sequence) for sequence in sequences] == [result_of(sequence) for sequence in alone]
    assert [sequence.logprobs for sequence in sequences] == [sequence.logprobs for sequence in alone]
    assert pages_in_use(engine) == 0


def test_cancel_that_is_interrupted_gives_back_the_pages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(folder)
    sequence = engine.add(PROMPT)
    engine.step()
    release = BlockManager.release

    def interrupting(self: BlockManager, table: list[int]) -> None:
        signal.raise_signal(signal.SIGINT)
        release(self, table)

    monkeypatch.setattr(BlockManager, "release", interrupting)
    with pytest.raises(KeyboardInterrupt):
        engine.cancel(sequence)

    assert sequence.stop_reason == "cancelled"
    assert engine.sequences == []
    assert pages_in_use(engine) == 0


def test_held_interrupt_reaches_the_handler_that_was_there_once() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        handler = signal.getsignal(signal.SIGINT)
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            assert seen == []
        assert seen == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_meanwhile_is_what_the_caller_sees() -> None:
    with pytest.raises(ZeroDivisionError), interrupts_held():
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt) as caught, interrupts_held():
        raise [signal.raise_signal(signal.SIGINT), ZeroDivisionError][1]
    assert isinstance(caught.value.__context__, ZeroDivisionError)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_handlers_of_the_system_stay(handler: Any) -> None:
    before = signal.signal(signal.SIGINT, handler)
    try:
        with interrupts_held():
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_are_never_interrupted_and_hold_nothing() -> None:
    handlers: list[Any] = []

    def work() -> None:
        with interrupts_held():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]


if sys.platform == "win32":  # raise_signal ends the process there unless a handler of Python's is installed
    signal.signal(signal.SIGINT, signal.default_int_handler)
