"""`cg-local bench`: a whole short run on a toy model, what it refuses, and what an interrupt keeps."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Inside
from fake_engines import FakeEngine, FakeOwnEngine, FakeRoofline
from toy_models import MQA

from cg_local.bench import setup
from cg_local.bench.session import Plan, Session
from cg_local.bench.setup import Peers
from cg_local.bench.targets import targets
from cg_local.bench.worker import Worker
from cg_local.config import ModelConfig
from cg_local.errors import BenchmarkError


@pytest.fixture
def inside(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Inside:
    monkeypatch.setattr(setup, "Roofline", FakeRoofline)
    monkeypatch.setattr(setup, "llama_bench", lambda: None)
    monkeypatch.setattr(setup, "own_python", lambda: None)
    return Inside(capfdbinary, monkeypatch)


@pytest.fixture
def folder(toy_folder: Callable[[str, str], Path]) -> Path:
    return toy_folder("mqa", "q4")


def test_short_run_prints_the_report_and_writes_the_document(inside: Inside, tmp_path: Path, folder: Path) -> None:
    done = inside.run("bench", str(folder), "--quick", "--new-tokens", "4", "--json", "r.json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "r.json").read_text())

    assert document["model"]["scheme"] == "q4"
    assert document["plan"]["rounds"] == 1
    figures = document["rounds"][0]["cg-local"]
    assert figures["prefill"]["128"]["tokens"] == 128
    assert len(figures["decode"]["0"]["seconds"]) == 4
    assert figures["batch"]["4"]["tokens"] == 16
    assert document["engines"]["cg-local"]["memory"]["peak_resident_bytes"] > 1 << 20
    assert "prompt of 128" in done.stdout.decode()
    assert b"cg-local: round 1 of 1\n" in done.stderr


def test_lengths_beyond_the_models_context_are_left_out_and_named(inside: Inside, tmp_path: Path, folder: Path) -> None:
    options = ("--quick", "--prefill", "16,2048", "--depths", "", "--batch", "", "--new-tokens", "1")
    done = inside.run("bench", str(folder), *options, "--json", "r.json", home=tmp_path)
    assert b"was trained for 1,024 tokens; left out: prompt of 2,048" in done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["plan"]["prefill"] == [16]


def test_interrupt_writes_what_was_measured_and_ends_with_130(
    inside: Inside, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(FakeRoofline):
        def read_bandwidth(self) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setattr(setup, "Roofline", Interrupting)
    done = inside.run("bench", str(folder), "--quick", "--json", "r.json", home=tmp_path)
    assert done.returncode == 130
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["is_interrupted"]
    assert document["rounds"][0]["cg-local"]["prefill"]["128"]["tokens"] == 128
    assert done.stdout.decode().endswith("interrupted: these are the figures until then\n")


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--prefill", "128,x"), 2, "'128,x' is no list of whole numbers"),
        (("--depths", "-1"), 2, "'-1' has a number below 0"),
        (("--peers", "--peer-kinds", "Q9"), 2, "Q9 is none of Q4_0, Q4_K_M, Q8_0"),
        (("--plot", "a.doc"), 1, "a.doc: a plot ends in .png, .svg, .pdf; name it so"),
        (
            ("--peers",),
            1,
            "no peer to measure: there is no llama-bench on the PATH; run `pip install llama-cpp-python`",
        ),
        (("--peers", "--peer-python", sys.executable, "--peer-models", "."), 1, "no GGUF file whose name ends in q4_0"),
    ],
)
def test_refusals_come_before_any_measurement(
    inside: Inside, tmp_path: Path, folder: Path, options: tuple[str, ...], status: int, message: str
) -> None:
    done = inside.run("bench", str(folder), *options, home=tmp_path)
    text = " ".join(done.stderr.decode().replace("\u2502", "").split())
    assert (done.returncode, message in text) == (status, True), text
    assert done.stdout == b""


def test_model_that_does_not_exist_is_one_line(inside: Inside, tmp_path: Path) -> None:
    done = inside.run("bench", "no-such-model", home=tmp_path)
    assert (done.returncode, b"no-such-model: no such model or folder" in done.stderr) == (1, True)


def test_worker_refuses_a_prompt_that_is_cached_and_what_it_cannot_do(folder: Path) -> None:
    worker = Worker()
    with pytest.raises(BenchmarkError, match="no model is loaded"):
        worker.answer({"do": "prefill", "token_ids": [2]})
    worker.answer({"do": "load", "model": str(folder), "num_threads": 1, "max_context": 128, "num_pages": 16})
    prompt = [2, *range(300, 364)]
    assert worker.answer({"do": "prefill", "token_ids": prompt})["seconds"] > 0
    with pytest.raises(BenchmarkError, match="begins as an earlier one"):
        worker.answer({"do": "prefill", "token_ids": prompt})
    with pytest.raises(BenchmarkError, match="cannot dance; it can load, prefill"):
        worker.answer({"do": "dance"})


def test_worker_times_every_sequence_of_a_batch_in_every_step(folder: Path) -> None:
    worker = Worker()
    worker.answer({"do": "load", "model": str(folder), "num_threads": 1, "max_context": 128, "num_pages": 64})
    for size in (1, 3):
        assert len(worker.answer({"do": "batch", "size": size, "new_tokens": 5, "seed": 1})["seconds"]) == 5
    assert len(worker.answer({"do": "decode", "token_ids": [2, 300], "new_tokens": 6})["seconds"]) == 6
    assert worker.answer({"do": "memory"})["kv_cache_bytes"] == 64 * 16 * 2 * 2 * 64 * 2


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_result_that_could_not_be_written_is_refused_before_measuring(
    option: str, inside: Inside, tmp_path: Path, folder: Path
) -> None:
    pytest.importorskip("matplotlib")

    done = inside.run("bench", str(folder), "--quick", option, "no/such/folder/r.svg", home=tmp_path)

    assert done.returncode == 1
    assert b"cannot be written there" in done.stderr
    assert b"round" not in done.stderr


def test_brief_run_has_every_row_of_the_speeds_to_reach(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Plan, Peers]] = []

    def refuse(model: str, scheme: str | None, plan: Plan, peers: Peers, **rest: object) -> None:
        asked.append((plan, peers))
        raise BenchmarkError("seen")

    monkeypatch.setattr("cg_local.bench.setup.prepared", refuse)
    assert inside.run("bench", "--brief", "--peers", home=tmp_path).returncode == 1
    [(plan, peers)] = asked
    assert (plan.rounds, plan.has_processes, peers.kinds) == (1, True, ("Q4_0",))

    peer = FakeEngine("llama.cpp Q4_0", 50, [])
    peer.max_tokens = peers.max_tokens
    cards = {"model": {}, "machine": {"instruction_set": "avx2"}}
    session = Session(
        replace(plan, has_processes=False, num_threads=2),
        ModelConfig.from_dict(MQA, "toy"),
        [FakeOwnEngine(100, []), peer],
        cards=cards,
        roofline=FakeRoofline(),
        say=lambda text: None,
    )
    document = json.loads(json.dumps(session.run()))
    missing = {row.name for row in targets(document) if row.found is None}
    assert missing == {  # of whole processes, which the plan has and the stand-ins have not
        "prompt lookup on edits, against none",
        "decode beside busy cores, against idle",
        "fill with nothing compiled (nano)",
        "fill with all compiled (nano)",
    }
    assert inside.run("bench", "--brief", "--quick", home=tmp_path).returncode == 2
