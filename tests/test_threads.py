"""Counts cores in made-up system folders, and lets numbers of threads compete on a clock that the test moves."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cg_local import threads as threads_module
from cg_local.errors import ConfigError
from cg_local.threads import (
    FIRST_TRIAL,
    MAX_DECODE_TOKENS,
    NEXT_TRIAL,
    NUM_TIMED,
    DecodeThreads,
    decode_candidates,
    default_threads,
    kernel_threads,
    num_cores,
    processor_quota,
    usable_processors,
)

# Cores of the machine


@pytest.fixture
def on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def machine(root: Path, siblings: list[str]) -> Path:
    """A root folder whose processor n has the n-th list of siblings."""
    for number, text in enumerate(siblings):
        write(root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list", text + "\n")
    return root


# 2 performance cores with two hardware threads each, 4 efficiency cores with one.
HYBRID = ["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"]
# 4 cores; the second hardware threads are numbered behind the first ones.
FOUR_CORES = ["0,4", "1,5", "2,6", "3,7"] * 2


@pytest.mark.usefixtures("on_linux")
@pytest.mark.parametrize(
    ("siblings", "processors", "expected"),
    [
        (FOUR_CORES, range(8), 4),
        (FOUR_CORES, [0, 1, 5], 2),
        (FOUR_CORES, [4, 6, 7], 3),
        (HYBRID, range(8), 6),
        (HYBRID, [0, 1], 1),
        (["0", "1"], range(2), 2),
    ],
)
def test_hardware_threads_of_one_core_count_once(
    siblings: list[str], processors: list[int], expected: int, tmp_path: Path
) -> None:
    assert num_cores(processors, machine(tmp_path, siblings)) == expected


@pytest.mark.usefixtures("on_linux")
def test_processors_whose_siblings_are_not_told_count_each_as_a_core(tmp_path: Path) -> None:
    machine(tmp_path, ["0,2", "", "0,2"])
    assert num_cores([0, 1, 2, 9], tmp_path) == 3


class FakeSystem:
    """The system library of macOS, as far as it is asked: the physical cores, or -1 where it does not know the name."""

    def __init__(self, cores: int | None) -> None:
        self._cores = cores

    def sysctlbyname(self, name: bytes, value: Any, size: Any, *new: Any) -> int:
        assert (name, size._obj.value, new[0]) == (b"hw.physicalcpu", 4, None)
        if self._cores is None:
            return -1
        value._obj.value = self._cores
        return 0


@pytest.mark.parametrize(("told", "expected"), [(10, 10), (None, 12), (0, 12)])
def test_macos_is_asked_for_its_physical_cores(
    told: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeSystem(told))
    assert num_cores(range(12)) == expected


def test_macos_without_that_function_counts_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert num_cores(range(3)) == 3


def test_usable_processors_are_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 3}, raising=False)
    assert usable_processors() == {1, 3}


@pytest.mark.parametrize(("count", "expected"), [(6, 6), (None, 1)])
def test_processors_of_a_system_without_affinity_are_those_of_the_machine(
    count: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert list(usable_processors()) == list(range(expected))


# Quota of a container


@pytest.mark.parametrize(
    ("text", "expected"),
    [("150000 100000", 1.5), ("max 100000", None), ("", None), ("200000", None), ("100 0", None), ("-1 100000", None)],
)
def test_quota_is_that_of_the_control_group(text: str, expected: float | None, tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    write(tmp_path / "sys/fs/cgroup/cpu.max", text)
    assert processor_quota(tmp_path) == expected


def test_quota_is_the_smallest_of_a_group_and_those_above_it(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "1:cpu:/old\n0::/user.slice/app.scope\n")
    write(tmp_path / "sys/fs/cgroup/user.slice/cpu.max", "300000 100000\n")
    write(tmp_path / "sys/fs/cgroup/user.slice/app.scope/cpu.max", "400000 100000\n")
    write(tmp_path / "cpu.max", "1 100000\n")  # outside of the folder of control groups
    assert processor_quota(tmp_path) == 3.0


def test_quota_is_none_where_the_system_has_no_control_groups(tmp_path: Path) -> None:
    assert processor_quota(tmp_path) is None


@pytest.mark.usefixtures("on_linux")
@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 4), ("800000 100000", 4), ("250000 100000", 3), ("200000 100000", 2), ("10000 100000", 1)],
)
def test_default_is_a_thread_for_each_core_within_the_quota(quota: str, expected: int, tmp_path: Path) -> None:
    write(tmp_path / "sys/fs/cgroup/cpu.max", quota)
    assert default_threads(range(8), machine(tmp_path, FOUR_CORES)) == expected


def test_default_of_this_machine_is_between_one_and_its_processors() -> None:
    assert 1 <= default_threads() <= len(usable_processors())


@pytest.mark.parametrize(("asked", "expected"), [(None, 6), (1, 1), (8, 8)])
def test_user_may_ask_for_any_number_that_is_available(
    asked: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_module, "default_threads", lambda: 6)
    assert kernel_threads(asked, available=8) == expected


def test_default_is_no_more_than_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "default_threads", lambda: 6)
    assert kernel_threads(None, available=3) == 3


def test_more_threads_than_available_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^num_threads is 9; Numba has 8 threads here: ask for at most that$"):
        kernel_threads(9, available=8)


# Threads of decode steps


class Generation:
    """Steps on a clock that each moves by the seconds that `cost` gives for its number of threads."""

    def __init__(self, num_threads: int, cost: Callable[[int], float], *, is_fixed: bool = False) -> None:
        self._now = 0.0
        self.cost = cost
        self.threads = DecodeThreads(num_threads, is_fixed=is_fixed, clock=lambda: self._now)
        self.num_trials = 0

    def step(self, num_tokens: int = 1, *, is_decode: bool = True, delay: float = 0.0) -> int:
        """Take one step; return its number of threads."""
        num_threads = self.threads.begin(num_tokens, is_decode=is_decode)
        self.num_trials += self.threads.is_trial
        self._now += self.cost(num_threads) + delay
        self.threads.end()
        return num_threads

    def steps(self, count: int, num_tokens: int = 1) -> list[int]:
        """Take steps; return the number of threads of each."""
        return [self.step(num_tokens) for _ in range(count)]


def times_of(**seconds: float) -> Callable[[int], float]:
    """Costs by number of threads: `times_of(t8=3, t4=2)`."""
    return lambda num_threads: seconds[f"t{num_threads}"]


@pytest.mark.parametrize(
    ("num_threads", "expected"),
    [
        (1, (1,)), (2, (2,)), (3, (3, 2)), (4, (4, 3, 2)), (5, (5, 4, 3)), (6, (6, 5, 3)), (8, (8, 6, 4)),
        (16, (16, 12, 8)), (24, (24, 18, 12)),
    ],
)  # fmt: skip
def test_all_three_quarters_and_half_of_the_threads_are_tried(num_threads: int, expected: tuple[int, ...]) -> None:
    assert decode_candidates(num_threads) == expected


@pytest.mark.parametrize(("num_threads", "is_fixed"), [(1, False), (2, False), (8, True)])
def test_nothing_is_tried_with_two_threads_or_a_number_that_the_user_gave(num_threads: int, is_fixed: bool) -> None:
    generation = Generation(num_threads, cost=lambda count: 1.0, is_fixed=is_fixed)

    assert set(generation.steps(2 * NEXT_TRIAL)) == {num_threads}
    assert generation.num_trials == 0


def test_trial_times_each_candidate_and_the_fastest_stays() -> None:
    generation = Generation(8, times_of(t8=1.0, t6=0.8, t4=0.9))
    turns = 1 + NUM_TIMED

    found = generation.steps(FIRST_TRIAL + 3 * turns + NEXT_TRIAL)

    assert found == [8] * FIRST_TRIAL + [8] * turns + [6] * turns + [4] * turns + [6] * NEXT_TRIAL
    assert generation.num_trials == 2 * turns


def test_choice_is_made_again_after_some_hundred_steps() -> None:
    generation = Generation(8, times_of(t8=1.0, t6=0.8, t4=0.9))
    turns = 1 + NUM_TIMED
    generation.steps(FIRST_TRIAL + 3 * turns + NEXT_TRIAL)
    generation.cost = times_of(t8=1.0, t6=1.2, t4=1.1)

    found = generation.steps(3 * turns + NEXT_TRIAL)

    assert found == [6] * turns + [8] * turns + [4] * turns + [8] * NEXT_TRIAL
    # The steps with 6 threads, the choice until the end of the second trial, are not counted in it.
    assert generation.num_trials == 4 * turns


def test_candidate_that_is_much_slower_is_given_up_after_its_first_timed_step() -> None:
    generation = Generation(8, times_of(t8=1.0, t6=1.3, t4=2.0))
    generation.steps(FIRST_TRIAL + 1 + NUM_TIMED)

    assert generation.steps(4 + NEXT_TRIAL) == [6, 6, 4, 4] + [8] * NEXT_TRIAL


def test_choice_that_others_equal_stays() -> None:
    generation = Generation(8, lambda num_threads: 1.0)
    turns = 1 + NUM_TIMED
    generation.steps(FIRST_TRIAL + 3 * turns)
    assert generation.step() == 8
    generation.cost = times_of(t8=1.0, t6=0.8, t4=0.9)
    generation.steps(NEXT_TRIAL - 1 + 3 * turns)
    assert generation.step() == 6

    generation.cost = lambda num_threads: 1.0
    generation.steps(NEXT_TRIAL - 1 + 3 * turns)

    assert generation.step() == 6


def test_number_that_was_chosen_before_is_the_measure_of_those_given_up() -> None:
    generation = Generation(4, times_of(t4=5.0, t3=2.0, t2=1.0))
    turns = 1 + NUM_TIMED
    generation.steps(FIRST_TRIAL + 3 * turns + NEXT_TRIAL)

    assert generation.steps(turns + 5) == [2] * turns + [4, 4, 3, 3, 2]


def test_median_decides_so_that_two_slow_steps_change_nothing() -> None:
    generation = Generation(3, times_of(t3=1.0, t2=0.9))
    generation.steps(FIRST_TRIAL + 1 + NUM_TIMED)
    # The first timed step is as it should be; a delay in it would give the candidate up.
    delays = [9.0, 0.0, 9.0, 0.0, 9.0, 0.0]

    assert [generation.step(delay=delay) for delay in delays] == [2] * 6
    assert generation.step() == 2


def test_first_step_with_another_number_of_threads_is_not_timed() -> None:
    generation = Generation(3, times_of(t3=1.0, t2=0.9))
    generation.steps(FIRST_TRIAL + 1 + NUM_TIMED)
    generation.step(delay=100.0)
    generation.steps(NUM_TIMED)

    assert generation.step() == 2


@pytest.mark.parametrize(
    ("num_tokens", "is_decode"), [(MAX_DECODE_TOKENS + 1, True), (512, True), (512, False), (1, False)]
)
def test_prefill_and_larger_steps_take_all_threads_and_no_part_in_a_trial(num_tokens: int, is_decode: bool) -> None:
    generation = Generation(8, times_of(t8=1.0, t6=0.8, t4=0.5))
    generation.steps(FIRST_TRIAL + 3 * (1 + NUM_TIMED))
    assert generation.step() == 4

    assert generation.step(num_tokens, is_decode=is_decode, delay=99.0) == 8
    assert not generation.threads.is_trial
    assert generation.step() == 4


def test_numbers_of_tokens_are_judged_apart() -> None:
    generation = Generation(8, times_of(t8=1.0, t6=0.8, t4=0.5))
    generation.steps(FIRST_TRIAL + 3 * (1 + NUM_TIMED))

    generation.cost = times_of(t8=1.0, t6=1.0, t4=2.0)
    generation.steps(FIRST_TRIAL + 3 * (1 + NUM_TIMED), num_tokens=4)

    assert (generation.step(1), generation.step(4), generation.step(2)) == (4, 8, 8)


def test_step_that_was_broken_off_is_not_timed() -> None:
    generation = Generation(3, times_of(t3=1.0, t2=0.9))
    generation.steps(FIRST_TRIAL + 1 + NUM_TIMED)
    for _ in range(3):
        assert generation.threads.begin(1, is_decode=True) == 2

    assert generation.steps(NUM_TIMED + 1) == [2] * (NUM_TIMED + 1)
    assert generation.step() == 2
    assert not generation.threads.is_trial
