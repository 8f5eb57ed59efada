"""Engines for the tests of `cg_local.bench` that take a known time for everything and remember what they were asked.

This file owns no test. Invariant: a fake's figures follow from its speed alone, so that a test can say them beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cg_local.bench.engines import OWN_NAME, Load, OwnEngine

BYTES_PER_TOKEN = 1000


class FakeEngine:
    """Prefills `speed` tokens a second and decodes a tenth of that."""

    def __init__(self, name: str, speed: float, log: list[tuple[object, ...]], max_tokens: int | None = None) -> None:
        self.name, self.file, self.max_tokens = name, Path(f"{name}.gguf"), max_tokens
        self.speed, self.log = speed, log
        self.loads: list[Load] = []

    def load(self, load: Load) -> dict[str, Any]:
        self.loads.append(load)
        return {"seconds": 0.5 / len(self.loads), "version": {"fake": "1"}}

    def prefill(self, token_ids: Sequence[int]) -> dict[str, Any]:
        self.log.append((self.name, "prefill", tuple(token_ids)))
        return {"tokens": len(token_ids), "seconds": [len(token_ids) / self.speed]}

    def decode(self, token_ids: Sequence[int], new_tokens: int) -> dict[str, Any]:
        self.log.append((self.name, "decode", tuple(token_ids)))
        return {"tokens": new_tokens, "seconds": [10 / self.speed] * new_tokens}

    def memory(self) -> dict[str, Any]:
        return {"peak_resident_bytes": 3 << 20}

    def close(self) -> None:
        self.log.append((self.name, "close"))


class FakeOwnEngine(FakeEngine, OwnEngine):
    """In this engine's place; sequences that decode together are twice as fast as one."""

    def __init__(self, speed: float, log: list[tuple[object, ...]]) -> None:
        FakeEngine.__init__(self, OWN_NAME, speed, log)

    def batch(self, size: int, new_tokens: int, seed: int) -> dict[str, Any]:
        self.log.append((self.name, "batch", size))
        factor = 1 if size == 1 else 2
        return {"tokens": size * new_tokens, "seconds": [10 * size / factor / self.speed] * new_tokens}

    def bytes_per_token(self, depth: int) -> int:
        return BYTES_PER_TOKEN + depth


class FakeRoofline:
    """A machine of 100 kB/s and 10**6 operations a second with two threads."""

    def read_bandwidth(self) -> dict[str, dict[str, float]]:
        return {"1": _exactly(5e-5), "2": _exactly(1e-4)}

    def int8_peak(self) -> dict[str, dict[str, float]]:
        return {"1": _exactly(5e-4), "2": _exactly(1e-3)}


def _exactly(value: float) -> dict[str, float]:
    return {"median": value, "min": value, "max": value}
