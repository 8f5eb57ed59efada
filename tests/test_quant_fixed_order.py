"""Results that leave no trace of the number of threads: neither of our own nor of BLAS's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import quantize_program
from threadpoolctl import threadpool_info, threadpool_limits
from toy_models import MQA, write_toy_checkpoint, write_toy_texts

from cg_local.checkpoint import open_checkpoint
from cg_local.quant import Options, quantize
from cg_local.quant.calibration import calibrate
from cg_local.quant.corpora import Corpus
from cg_local.quant.corpus_windows import Window
from cg_local.quant.fixed_order import WORK_BYTES, in_order, single_threaded_blas, threads, threads_within


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy of one layer whose products BLAS shares out among two threads."""
    values = {**MQA, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 1}
    return write_toy_checkpoint(tmp_path_factory.mktemp("shallow") / "toy", values, has_tokenizer=True)


def with_threads(number: int, work: Callable[[int], bytes]) -> bytes:
    """Do work with as many threads of our own as BLAS has."""
    with threadpool_limits(number, user_api="blas"):
        return work(number)


def same_for_all_threads(work: Callable[[int], bytes]) -> bool:
    one, *others = (with_threads(number, work) for number in (1, 2, 3))
    return all(other == one for other in others)


def long_windows() -> Corpus:
    random = np.random.default_rng(0)
    ids = [(2, *random.integers(5, 700, 63).tolist()) for _ in range(5)]
    return Corpus(tuple(Window(window, "code", "a.py:1", 1) for window in ids), ())


def test_gptq_gives_the_same_file_for_every_number_of_threads(
    shallow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in quantize_program.OF_A_TOY:
        monkeypatch.setattr(module, name, value)
    how = Options("q4", "gptq", corpus=[write_toy_texts(tmp_path / "texts")], calibration_tokens=256, window_tokens=64)

    def work(num_threads: int) -> bytes:
        quantize(shallow, tmp_path / "model", how, overwrite=True, num_threads=num_threads)
        return (tmp_path / "model" / "model.safetensors").read_bytes()

    assert same_for_all_threads(work)


def test_calibration_gives_the_same_pack_for_every_number_of_threads(shallow: Path, tmp_path: Path) -> None:
    checkpoint, corpus = open_checkpoint(shallow), long_windows()

    def work(num_threads: int) -> bytes:
        calibrate(checkpoint, tmp_path / "pack", corpus, corpus, num_threads=num_threads)
        return (tmp_path / "pack").read_bytes()

    assert same_for_all_threads(work)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(num_threads: int) -> None:
    second_is_done = threading.Event()

    def square(number: int) -> int:
        if number == 0 and num_threads > 1:
            assert second_is_done.wait(10)
        if number == 1:
            second_is_done.set()
        return number * number

    assert list(in_order(square, range(20), num_threads)) == [number * number for number in range(20)]
    assert list(in_order(square, [], num_threads)) == []


def test_no_more_results_wait_than_there_are_threads_and_one() -> None:
    begun = list[int]()

    def items() -> Iterator[int]:
        for number in range(20):
            begun.append(number)
            yield number

    for taken, _ in enumerate(in_order(abs, items(), 3)):
        assert len(begun) <= taken + 4


def test_a_failure_in_a_thread_reaches_the_caller_and_ends_the_work() -> None:
    seen = list[int]()

    def failing(number: int) -> None:
        seen.append(number)
        if number == 2:
            raise ValueError("two")

    with pytest.raises(ValueError, match="two"):
        list(in_order(failing, range(1000), 2))
    assert max(seen) <= 6


def test_errors_of_floating_point_are_treated_as_in_the_callers_thread() -> None:
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        list(in_order(np.exp, [np.float32(1000)], 2))
    with np.errstate(over="ignore"):
        assert list(in_order(np.exp, [np.float32(1000)], 2)) == [np.inf]


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_blas_is_given_back_when_the_last_caller_is_done() -> None:
    with threadpool_limits(2, user_api="blas"):
        before, one = blas_threads(), [1 for _ in blas_threads()]
        first, second = single_threaded_blas(), single_threaded_blas()
        first.__enter__()
        second.__enter__()
        assert blas_threads() == one
        first.__exit__(None, None, None)  # not the last that came
        assert blas_threads() == one
        with threads(1, "test") as pool:
            assert pool.submit(blas_threads).result() == one
        second.__exit__(None, None, None)
        assert blas_threads() == before
        with pytest.raises(KeyError), single_threaded_blas():
            raise KeyError
        assert blas_threads() == before


def test_threads_are_no_more_than_fit_in_memory() -> None:
    assert threads_within(8, WORK_BYTES // 3) == 3
    assert threads_within(8, 2 * WORK_BYTES) == threads_within(1, 0) == 1
    assert threads_within(8, 1) == 8
