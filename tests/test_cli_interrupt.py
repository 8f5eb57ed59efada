"""The handler of SIGINT: an interrupt within a compiler's callback comes after it, any other at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from cg_local.cli.interrupt import handle_interrupts

# A function that, to the handler, stands in llvmlite's file of callbacks.
CALLBACK = """
def callback(interrupt, events):
    interrupt()
    events.append("callback over")
"""


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    handle_interrupts()
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_interrupt_is_raised_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_interrupt_within_a_callback_is_raised_after_it() -> None:
    names: dict[str, object] = {}
    exec(compile(CALLBACK, "/llvmlite/binding/executionengine.py", "exec"), names)
    callback, events = names["callback"], list[str]()
    assert callable(callback)

    callback(interrupt, events)
    with pytest.raises(KeyboardInterrupt):
        time.sleep(5)

    assert events == ["callback over"]
