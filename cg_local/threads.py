"""How many threads the kernels get: by default one for each core, and for decode steps as many as proved fastest.

This file owns the count of the machine's cores and the choice by measurement. It starts no thread and computes nothing:
the engine hands the number to Numba. Invariant: nothing here changes a result, because those of the kernels do not
depend on the number of threads; it changes only how long they take.

Prefill multiplies, so every core helps, a slow one too: the matrix products and attention hand out their work one run
after the other from a common counter, and an efficiency core takes less of it. The rounding of activations has equal
shares, where the slowest core is waited for; it is the smaller part. Decoding waits for memory, which some of
the cores can often keep as busy as all of them; the others then only lengthen the barriers, most of all when they are
slow. How many pay depends on machine, model and neighbours, so it is measured.

What the system does not tell: which threads run on which kind of core (the scheduler decides), and on systems other
than Linux and macOS which processors share a core; there each counts as one.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from statistics import median_low

from cg_local.errors import ConfigError

# Steps with more tokens count as prefill: beyond one block of the matrix products, arithmetic takes the time.
MAX_DECODE_TOKENS = 4
# Steps before the first trial, so that a short answer has none, and from one trial to the next. Where no number of
# threads takes more than twice as long as the fastest, a trial costs at most four steps' time, 0.8 % of those between.
FIRST_TRIAL, NEXT_TRIAL = 32, 512
# Steps of a trial that are timed for each number of threads, after one in which OpenMP may start or end threads.
NUM_TIMED = 5
# A number of threads is given up early if each of its timed steps took more than so many times the best median.
GIVE_UP = 1.25


def default_threads(processors: Collection[int] | None = None, root: Path = Path("/")) -> int:
    """Return how many threads to compute with: one for each core, no more than a container's quota of time.

    Hardware threads of a core share its arithmetic units and its way to memory, so all but one are left to others.

    Args:
        processors: ids of those that may be used; None: those that this process may use.
        root: the folder that holds sys/ and proc/.
    """
    processors = usable_processors() if processors is None else processors
    limits = [num_cores(processors, root)]
    quota = processor_quota(root)
    if quota is not None:
        # Rounded up: the last thread uses a part of a processor, which otherwise nobody would.
        limits.append(math.ceil(quota))
    return max(1, min(limits))


def kernel_threads(asked: int | None, *, available: int) -> int:
    """Return how many threads the kernels get at most.

    Args:
        asked: by the user; None: `default_threads`, of those that are available.
        available: threads that Numba can start.

    Raises:
        ConfigError: more asked for than available.
    """
    if asked is not None and asked > available:
        raise ConfigError(f"num_threads is {asked}; Numba has {available} threads here: ask for at most that")
    return asked or min(default_threads(), available)


def usable_processors() -> Collection[int]:
    """Return the ids of the processors that this process may use; those of the machine where it is not told."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def num_cores(processors: Collection[int], root: Path = Path("/")) -> int:
    """Return how many cores some processors are.

    Args:
        processors: ids.
        root: the folder that holds sys/.

    Source: Documentation/admin-guide/cputopology.rst of Linux, thread_siblings_list; sysctl hw.physicalcpu of macOS.
    """
    if sys.platform == "darwin":
        # macOS lets no process choose its processors, so all cores of the machine are those of the process.
        return _physical_cores_of_macos() or len(processors)
    folder = root / "sys/devices/system/cpu"
    siblings = {_first_line(folder / f"cpu{number}/topology/thread_siblings_list") or number for number in processors}
    return len(siblings)


def processor_quota(root: Path = Path("/")) -> float | None:
    """Return how many processors' time a container has, as a fraction; None: no limit, or none that is told.

    Args:
        root: the folder that holds sys/ and proc/.

    Source: Documentation/admin-guide/cgroup-v2.rst of Linux, cpu.max: microseconds of quota, or "max", and of the
    period. The limits of all groups above hold too. Version 1 of control groups is not read.
    """
    mount = root / "sys/fs/cgroup"
    groups = [line[3:].strip("/") for line in _lines(root / "proc/self/cgroup") if line.startswith("0::")]
    own = mount / groups[0] if groups else mount
    found = [_quota_of(folder) for folder in (own, *own.parents) if folder.is_relative_to(mount)]
    return min((quota for quota in found if quota is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    words = _first_line(folder / "cpu.max").split()
    if len(words) != 2 or not all(word.isdecimal() for word in words) or int(words[1]) == 0:
        return None
    return int(words[0]) / int(words[1])


def _lines(path: Path) -> list[str]:
    """Return the lines of a file; none where it cannot be read."""
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def _first_line(path: Path) -> str:
    return next(iter(_lines(path)), "").strip()


def _physical_cores_of_macos() -> int | None:
    """Ask macOS; None where it does not answer."""
    value = ctypes.c_int32(0)
    size = ctypes.c_size_t(ctypes.sizeof(value))
    try:
        failed = ctypes.CDLL(None).sysctlbyname(
            b"hw.physicalcpu", ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)
        )
    except (OSError, AttributeError):
        return None
    return None if failed or value.value < 1 else value.value


def decode_candidates(num_threads: int) -> tuple[int, ...]:
    """Return the numbers of threads worth trying in a decode step: all, three quarters, half; of two only both."""
    if num_threads <= 2:
        return (num_threads,)
    candidates = num_threads, math.ceil(num_threads * 3 / 4), math.ceil(num_threads / 2)
    return tuple(sorted(set(candidates), reverse=True))


class DecodeThreads:
    """Says how many threads each step gets, and times the steps that decode to find out what is fastest.

    Steps of different numbers of tokens are judged apart: one token waits for memory, four compute four times as much.

    Args:
        num_threads: of prefill, and the most for decoding.
        is_fixed: decoding takes them all too, and nothing is tried.
        clock: gives seconds.

    Attributes:
        num_threads: as given.
        is_trial: the step that began last runs with another number of threads than the one chosen, so its time says
            nothing of others.
    """

    def __init__(
        self, num_threads: int, *, is_fixed: bool = False, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.num_threads = num_threads
        self._candidates = (num_threads,) if is_fixed else decode_candidates(num_threads)
        self._clock = clock
        self._contests: dict[int, Contest] = {}
        self._current: Contest | None = None
        self._started = 0.0
        self.is_trial = False

    def begin(self, num_tokens: int, *, is_decode: bool) -> int:
        """Return how many threads the step gets that begins now; one that is broken off needs no `end`.

        Args:
            num_tokens: of the step, drafts included.
            is_decode: every token's logits are computed; another step of as many tokens leaves out the output head.
        """
        self._current, self.is_trial = None, False
        if not is_decode or num_tokens > MAX_DECODE_TOKENS or len(self._candidates) == 1:
            return self.num_threads
        self._current = self._contests.setdefault(num_tokens, Contest(self._candidates))
        self.is_trial = self._current.num_threads != self._current.fastest
        self._started = self._clock()
        return self._current.num_threads

    def end(self) -> None:
        """Take the time of the step that began last."""
        if self._current is not None:
            self._current.observe(self._clock() - self._started)
            self._current = None


class Contest:
    """Which number of threads is fastest for steps of one kind, found out again every few hundred steps.

    Args:
        candidates: the numbers; the first one counts as fastest until the first trial.

    Attributes:
        fastest: the number chosen by the last trial; it is tried first in the next one, and of equals it stays.
    """

    def __init__(self, candidates: Sequence[int]) -> None:
        self.fastest = candidates[0]
        self._candidates = candidates
        self._steps_to_trial = FIRST_TRIAL
        # Of the trial that goes on: the medians of the candidates that are through, the times of the next one.
        self._medians: dict[int, float] = {}
        self._times: list[float] = []

    @property
    def num_threads(self) -> int:
        """How many threads the next step takes."""
        return self.fastest if self._steps_to_trial else self._candidates[len(self._medians)]

    def observe(self, seconds: float) -> None:
        """Take the time of a step that ran with `num_threads`."""
        if self._steps_to_trial:
            self._steps_to_trial -= 1
            return
        self._times.append(seconds)
        timed = self._times[1:]
        best = min(self._medians.values(), default=math.inf)
        if len(timed) == NUM_TIMED or (timed and min(timed) > GIVE_UP * best):
            self._medians[self.num_threads] = median_low(timed)
            self._times = []
        if len(self._medians) == len(self._candidates):
            self._decide()

    def _decide(self) -> None:
        self.fastest = fastest = min(self._medians, key=lambda candidate: self._medians[candidate])
        self._candidates = sorted(self._candidates, key=lambda candidate: (candidate != fastest, -candidate))
        self._medians = {}
        self._steps_to_trial = NEXT_TRIAL
