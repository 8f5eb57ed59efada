"""The order of measurements and the document: who is asked for what, with which tokens, until when."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fake_engines import FakeEngine, FakeOwnEngine, FakeRoofline
from toy_models import MQA

from cg_local.bench import session as session_module
from cg_local.bench.processes import busy_cores
from cg_local.bench.session import Plan, Session
from cg_local.config import ModelConfig
from cg_local.errors import BenchmarkError

PLAN = Plan(
    rounds=2, num_threads=2, prefill=(8, 32), depths=(0, 16, 32), batches=(1, 4), new_tokens=4, has_processes=False
)
CONFIG = ModelConfig.from_dict(MQA, "toy")
CARDS = {"model": {"name": "toy"}, "machine": {}}
Log = list[tuple[object, ...]]


def run(plan: Plan, engines: list[Any], **more: Any) -> dict[str, Any]:
    settings = {"cards": CARDS, "roofline": FakeRoofline(), "say": lambda text: None, **more}
    return Session(plan, CONFIG, engines, **settings).run()


def measured(log: Log, engine: str, kind: str) -> list[Any]:
    return [entry[2] for entry in log if entry[:2] == (engine, kind)][1:]  # the first one warms up


def test_engines_get_the_same_tokens_and_peers_only_what_they_are_for() -> None:
    log: Log = []
    run(PLAN, [FakeOwnEngine(100, log), FakeEngine("peer", 50, log), FakeEngine("short", 50, log, max_tokens=16)])

    own = measured(log, "cg-local", "prefill")
    assert [len(prompt) for prompt in own] == [8, 32, 8, 32]
    assert measured(log, "peer", "prefill") == own
    assert [len(prompt) for prompt in measured(log, "short", "prefill")] == [8, 8]
    assert [len(context) for context in measured(log, "short", "decode")] == [16, 1, 16, 1]


def test_no_prompt_begins_as_another_and_depths_are_beginnings_of_the_longest() -> None:
    log: Log = []
    run(PLAN, [FakeOwnEngine(100, log)])
    prompts, contexts = measured(log, "cg-local", "prefill"), measured(log, "cg-local", "decode")

    assert len({prompt[:4] for prompt in prompts}) == len(prompts)
    assert all(prompt[0] == CONFIG.bos_token_id for prompt in prompts)
    assert [len(context) for context in contexts] == [32, 16, 1] * 2
    assert [context == prompts[1][: len(context)] for context in contexts[:3]] == [True] * 3
    assert [context == prompts[3][: len(context)] for context in contexts[3:]] == [True] * 3


def test_rounds_begin_with_another_engine_each() -> None:
    log: Log = []
    run(replace(PLAN, prefill=(8,), depths=()), [FakeOwnEngine(100, log), FakeEngine("peer", 50, log)])
    order = [entry[0] for entry in log if entry[1] == "prefill"]
    assert order == ["cg-local", "peer", "cg-local", "peer", "peer", "cg-local"]  # the first two warm up


def test_document_holds_every_raw_figure() -> None:
    document = run(PLAN, [FakeOwnEngine(100, []), FakeEngine("peer", 50, [])])

    assert document["plan"]["prefill"] == (8, 32)
    assert document["engines"]["peer"]["load_seconds"] == [0.5, 0.25, 0.5 / 3]
    assert document["engines"]["cg-local"]["memory"] == {"peak_resident_bytes": 3 << 20}
    assert document["bytes_per_token"] == {"0": 1002, "16": 1018, "32": 1034}  # in the middle of the 4 new tokens
    first = document["rounds"][0]
    assert first["peer"]["prefill"]["8"] == {"tokens": 8, "seconds": [8 / 50]}
    assert first["cg-local"]["decode"]["16"] == {"tokens": 4, "seconds": [0.1] * 4}
    assert first["cg-local"]["batch"]["4"]["tokens"] == 16
    assert first["roofline"]["read_gb_per_second"]["2"]["median"] == 1e-4
    assert not document["is_interrupted"]


def interrupting(after: int) -> Callable[[str], None]:
    """Return what raises KeyboardInterrupt when it is told of the so-many-th thing."""
    told: list[str] = []

    def say(text: str) -> None:
        told.append(text)
        if len(told) > after:
            raise KeyboardInterrupt

    return say


def test_interrupt_keeps_what_was_measured() -> None:
    document = run(PLAN, [FakeOwnEngine(100, [])], say=interrupting(4))
    assert document["is_interrupted"]
    assert document["rounds"][0]["cg-local"]["prefill"].keys() == {"8", "32"}
    assert document["rounds"][0]["cg-local"]["decode"] == {}


def test_failure_of_a_peer_hands_over_what_was_measured() -> None:
    class Failing(FakeEngine):
        def decode(self, token_ids: Any, new_tokens: int) -> dict[str, Any]:
            if len(token_ids) == 16:
                raise BenchmarkError("peer: gone")
            return super().decode(token_ids, new_tokens)

    kept: list[dict[str, Any]] = []
    with pytest.raises(BenchmarkError, match="peer: gone"):
        run(PLAN, [FakeOwnEngine(100, []), Failing("peer", 50, [])], on_round=kept.append)
    assert kept[0]["rounds"][0]["peer"]["prefill"]["32"]["tokens"] == 32


def test_plan_leaves_out_what_the_context_does_not_hold() -> None:
    plan = Plan(rounds=1, num_threads=1, prefill=(128, 512, 2048), depths=(0, 990, 1000), batches=(16,), new_tokens=32)
    cut, left_out = plan.within(1024)
    assert (cut.prefill, cut.depths) == ((128, 512), (0, 990))
    assert left_out == ("prompt of 2,048", "32 tokens after 1,000")
    assert cut.max_context == 990 + 32 + 2
    # 16 sequences of 16 + 32 + 16 + 1 tokens: five pages of 16 each.
    assert cut.num_pages == 16 * 5
    assert Plan(1, 1, (8000,), (), (1,), 1).num_pages == 501


def test_plan_names_a_depth_that_a_prompt_of_the_same_length_outlives() -> None:
    plan = Plan(rounds=1, num_threads=1, prefill=(1000,), depths=(1000,), batches=(1, 974, 975), new_tokens=32)
    cut, left_out = plan.within(1024)
    assert (cut.prefill, cut.depths, cut.batches) == ((1000,), (), (1, 974))
    assert left_out == ("32 tokens after 1,000", "975 sequences")
    assert cut.max_context <= 1024


def test_whole_processes_are_timed_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeFill:
        def __init__(self, num_threads: int) -> None: ...

        def __enter__(self) -> FakeFill:
            return self

        def __exit__(self, *error: object) -> None: ...

        def cold(self) -> dict[str, float]:
            return {"seconds": 20.0}

        def warm(self) -> dict[str, float]:
            return {"seconds": 1.0}

    monkeypatch.setattr(session_module, "FillProcess", FakeFill)
    monkeypatch.setattr(session_module, "prompt_lookup", lambda model, num_threads: {"edit": {}})
    document = run(replace(PLAN, has_processes=True, num_threads=1), [FakeOwnEngine(100, [])])
    assert [figures["fill"]["cold"]["seconds"] for figures in document["rounds"]] == [20.0, 20.0]
    assert len(document["rounds"][1]["fill"]["warm"]) == session_module.WARM_FILLS
    assert document["rounds"][0]["cg-local"]["decode_beside_busy_cores"]["tokens"] == 4
    assert document["rounds"][1]["cg-local"]["prompt_lookup"] == {"edit": {}}


def test_busy_cores_end_with_their_context() -> None:
    with pytest.raises(ValueError, match="stop"), busy_cores(2) as process_ids:
        raise ValueError("stop")
    assert len(process_ids) == 2
    for process_id in process_ids:
        with pytest.raises(ProcessLookupError):
            os.kill(process_id, 0)
