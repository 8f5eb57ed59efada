"""HumanEval infilling: the tasks' reader, the check programs, the figures, and a run on a toy model."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import humaneval_infilling
from infilling_tasks import Task, line_prediction, read_tasks, repeats_suffix, score, wilson_interval
from sandbox import Outcome, Sandbox

TASK = Task(
    task_id="SingleLineInfilling/HumanEval/0/L0",
    entry_point="double",
    prompt="def double(x):\n    y = 2\n",
    suffix="    return z\n",
    canonical_solution="    z = x * y\n",
    test="def check(candidate):\n    assert candidate(3) == 6\n",
)
PASSED, FAILED = Outcome(True, "passed", 0.1), Outcome(False, "AssertionError", 0.1)


def write_tasks(path: Path, *tasks: Task) -> Path:
    """Write tasks as a .jsonl.gz file."""
    path.write_bytes(gzip.compress("".join(json.dumps(vars(task)) + "\n" for task in tasks).encode()))
    return path


def test_reader_takes_the_kind_from_the_ids_and_not_from_the_name(tmp_path: Path) -> None:
    multi = replace(TASK, task_id="MultiLineInfilling/HumanEval/0/L0_L1")
    path = write_tasks(tmp_path / "HumanEval-RandomSpan.jsonl.gz", multi)

    assert read_tasks(path) == [multi]
    assert read_tasks(path)[0].kind == "MultiLineInfilling"


def test_reader_names_the_files_that_are_there(tmp_path: Path) -> None:
    write_tasks(tmp_path / "HumanEval-SingleLineInfilling.jsonl.gz", TASK)

    with pytest.raises(ValueError, match=r"has HumanEval-SingleLineInfilling\.jsonl\.gz"):
        read_tasks(tmp_path / "HumanEval-SingleLine.jsonl.gz")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"{}" * 999)[:-9], "not readable"),
        (b"\x1f\x8bnot gzip", "not readable"),
        (b"\xff\xfe", "not readable"),
        (b"{", "not JSON"),
        (b"[]", "no text task_id"),
        (json.dumps({**vars(TASK), "suffix": None}).encode(), "no text suffix;"),
        (b"\n", "holds no task"),
        (json.dumps({**vars(TASK), "task_id": "HumanEval/0"}).encode(), "tasks of kind HumanEval"),
        (json.dumps(vars(TASK)).encode() + b"\n" + json.dumps(vars(TASK)).encode(), "occurs twice"),
    ],
)
def test_reader_refuses_other_files_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(data)

    with pytest.raises(ValueError, match=message) as caught:
        read_tasks(path)
    assert "\n" not in str(caught.value)


def test_check_program_joins_the_parts_as_the_harness_does() -> None:
    expected = (
        "def double(x):\n    y = 2\n    z = x * y\n    return z\n\n"
        "def check(candidate):\n    assert candidate(3) == 6\n\ncheck(double)\n"
    )

    assert TASK.check_program(TASK.canonical_solution) == expected


def test_only_a_right_completion_passes() -> None:
    sandbox = Sandbox(timeout_seconds=2.0)
    right, wrong = ["    z = x * y\n", "    z = x + x\n"], ["", "    z = x\n", "    import sys; sys.exit(0)\n"]
    # Without its newline a completion is glued to the next line.
    completions = [*right, *wrong, "    z = x * y"]

    outcomes = [sandbox.run(TASK.check_program(text)).passed for text in completions]

    assert outcomes == [True, True, False, False, False, False]


def test_score_equals_hand_computed_values() -> None:
    completions = ["    z = x * y\n", "    z = x * y  ", "    z = x + x\n", ""]

    figures = score([TASK] * 4, completions, [PASSED, FAILED, PASSED, FAILED], [True, True, True, False])

    assert (figures.pass_at_1, figures.exact_match, figures.exact_match_stripped) == (0.5, 0.25, 0.5)
    assert (figures.ended, figures.repeats_suffix) == (0.75, 0.0)
    assert score([TASK], ["    return z\n"], [FAILED]).repeats_suffix == 1.0
    assert figures.outcomes == {"passed": 2, "AssertionError": 2}


def test_wilson_interval_equals_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81/263 and 0/20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_line_prediction_ends_with_one_newline() -> None:
    assert [line_prediction(text) for text in ("", "a", "a\n", "a\n\n")] == ["", "a\n", "a\n", "a\n\n"]


def test_trimmed_completion_is_the_first_line_with_its_newline() -> None:
    options = humaneval_infilling.parse_options(["--data", "x", "--mode", "line"])
    blank_next = replace(TASK, suffix="\n    return z\n")

    for task in (TASK, blank_next, replace(TASK, suffix="")):
        trimmed = humaneval_infilling.trim(task, "    z = x * y\n    return z\n", options, ended=False)
        assert trimmed == ("    z = x * y\n", True)


@pytest.mark.parametrize("ended", [True, False])
def test_trimming_that_finds_no_stop_leaves_open_whether_the_answer_ended(ended: bool) -> None:
    options = humaneval_infilling.parse_options(["--data", "x", "--mode", "line"])
    assert humaneval_infilling.trim(TASK, "    z = x * y", options, ended) == ("    z = x * y\n", ended)


@pytest.mark.parametrize(
    ("completion", "repeats"),
    [
        ("    z = 1\n", False),
        ("", False),
        ("    z = 1\n    return z\n", True),
        ("    z = 1\n\n    return z  \n\n", True),
        ("    return z\n    z = 1\n", False),
        ("    return z\n\nprint(1)\n    z = 1\n", True),
        ("    return z\n", True),
    ],
)
def test_repeated_suffix_is_found(completion: str, repeats: bool) -> None:
    assert repeats_suffix(completion, "    return z\n\nprint(1)\n") is repeats
    assert repeats_suffix(completion, "\n") is False


def test_checks_are_not_run_twice_for_the_same_text() -> None:
    sandbox = Sandbox(timeout_seconds=2.0)
    known = {(TASK.task_id, "x"): PASSED}

    outcomes = humaneval_infilling.run_checks([TASK], ["x"], sandbox, known)

    assert outcomes == [PASSED]


@pytest.mark.parametrize("backend", ["engine", "reference"])
def test_run_on_a_toy_model_reports_everything(
    backend: str, tmp_path: Path, toy_checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_tasks(tmp_path / "tasks.jsonl.gz", TASK, replace(TASK, task_id=TASK.task_id + "0"))
    arguments = ["--data", str(data), "--model", str(toy_checkpoint("mqa")), "--backend", backend, "--scheme", "bf16"]
    written = tmp_path / "completions.jsonl"

    status = humaneval_infilling.main([*arguments, "--max-tokens", "8", "--completions", str(written)])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])

    assert status == 0
    assert result["settings"]["backend"] == backend
    assert result["tasks"] == {"kind": "SingleLineInfilling", "num_tasks": 2, "num_published": 1033}
    assert result["scores"].keys() == {"raw", "trimmed_line"}
    reasons = result["generation"]["stop_reasons"]
    assert result["scores"]["raw"]["ended"] == reasons.get("stop_id", 0) / 2
    assert len(result["model"]["sha256"]) == 64
    assert len(written.read_text().splitlines()) == 2


def test_scorer_check_separates_canonical_from_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_tasks(tmp_path / "tasks.jsonl.gz", TASK)

    assert humaneval_infilling.main(["--data", str(data), "--check-scorer"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]

    assert scores["canonical"]["pass_at_1"] == 1.0
    assert scores["empty"]["pass_at_1"] == 0.0


def test_errors_are_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert humaneval_infilling.main(["--data", str(tmp_path / "none")]) == 1
    output = capsys.readouterr()

    assert output.out == ""
    assert output.err.count("\n") == 1
