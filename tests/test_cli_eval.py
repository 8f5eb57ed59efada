"""`cg-local eval` and `cg-local complete --input`: files of requests in, results out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Inside

import cg_local
from cg_local import SamplingParams

REQUESTS = [
    {"prompt": "def add(a, b):\n    return ", "id": "one"},
    {"prefix": "x = 1\nif x:\n    ", "suffix": "\nprint(x)\n", "path": "a.py"},
]


@pytest.fixture(scope="module")
def folder(toy_folder: Callable[[str, str], Path]) -> Path:
    return toy_folder("mqa", "q4")


@pytest.fixture
def inside(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(capfdbinary, monkeypatch)


def write(path: Path, documents: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in documents))
    return path


def test_requests_are_answered_in_order_as_one_by_one(inside: Inside, tmp_path: Path, folder: Path) -> None:
    write(tmp_path / "requests.jsonl", REQUESTS)
    arguments = ("complete", "-i", "requests.jsonl", "--model", str(folder), "--max-tokens", "8")
    done = inside.run(*arguments, home=tmp_path)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    model, params = cg_local.load(folder), SamplingParams(max_tokens=8)
    expected = [
        model.complete(REQUESTS[0]["prompt"], params=params).text,
        model.infill(REQUESTS[1]["prefix"], REQUESTS[1]["suffix"], "a.py", params=params).text,
    ]
    assert [each["text"] for each in found] == expected
    assert [(each["line"], each.get("id")) for each in found] == [(1, "one"), (2, None)]
    again = inside.run(*arguments, "--output", "results.jsonl", home=tmp_path)
    assert (again.returncode, again.stdout) == (0, b"")
    assert (tmp_path / "results.jsonl").read_bytes() == done.stdout


def test_run_that_was_cut_off_computes_the_rest_alone(
    inside: Inside, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cg_local.evaluation import EngineBackend

    write(tmp_path / "requests.jsonl", REQUESTS)
    answer, asked = EngineBackend.answer, []

    def cut(self: EngineBackend, requests: list, params: SamplingParams) -> list:  # type: ignore[type-arg]
        asked.extend(request.line for request in requests)
        if asked == [1, 2]:
            raise KeyboardInterrupt
        return answer(self, requests, params)

    monkeypatch.setattr(EngineBackend, "answer", cut)
    arguments = ("complete", "-i", "requests.jsonl", "-o", "out.jsonl", "--model", str(folder), "--max-tokens", "4")
    assert inside.run(*arguments, home=tmp_path).returncode == 130
    assert not (tmp_path / "out.jsonl").exists()
    done = inside.run(*arguments, home=tmp_path)
    assert done.returncode == 0
    assert "1 of 2 results are there from a run before" in done.stderr.decode()
    assert asked == [1, 2, 2]
    assert [json.loads(line)["line"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [1, 2]


def test_run_that_was_cut_off_knows_its_model_by_content_and_not_by_name(
    inside: Inside,
    tmp_path: Path,
    folder: Path,
    toy_folder: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cg_local.evaluation import EngineBackend

    write(tmp_path / "requests.jsonl", REQUESTS)
    answer = EngineBackend.answer

    def cut(self: EngineBackend, requests: list, params: SamplingParams) -> list:  # type: ignore[type-arg]
        if requests[0].line == 2:
            raise KeyboardInterrupt
        return answer(self, requests, params)

    shutil.copytree(toy_folder("mqa", "q8"), tmp_path / "other")
    shutil.copytree(folder, tmp_path / "moved")
    tmp_path.joinpath("model").symlink_to(folder)
    arguments = ("complete", "-i", "requests.jsonl", "-o", "out.jsonl", "--max-tokens", "4", "--model")
    with monkeypatch.context() as patch:
        patch.setattr(EngineBackend, "answer", cut)
        assert inside.run(*arguments, "./model", home=tmp_path).returncode == 130
        tmp_path.joinpath("model").unlink()
        tmp_path.joinpath("model").symlink_to("other")
        another = inside.run(*arguments, "./model", home=tmp_path)  # another model of the same name begins anew
        assert (another.returncode, b"from a run before" in another.stderr) == (130, False)
    done = inside.run(*arguments, "./moved", home=tmp_path)
    assert (done.returncode, b"1 of 2 results are there from a run before" in done.stderr) == (0, True)


def test_evaluation_prints_loss_perplexity_and_exact_match(inside: Inside, tmp_path: Path, folder: Path) -> None:
    text, prompt = "for i in range(3):\n    print(i)\n", "def add(a, b):\n"
    model = cg_local.load(folder)
    answer = model.complete(prompt, params=SamplingParams(max_tokens=8)).text
    write(
        tmp_path / "tasks.jsonl",
        [{"text": text}, {"prompt": prompt, "expected": answer}, {**REQUESTS[1], "expected": "?"}],
    )
    arguments = ("eval", "tasks.jsonl", "--model", str(folder), "--max-tokens", "8", "--output", "results.jsonl")
    done = inside.run(*arguments, "--json", home=tmp_path)
    document = json.loads(done.stdout)
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    ids = [2, *model.tokenizer.encode(text)]
    scores = model.logits(ids)[:-1].astype("float64")
    import numpy as np

    losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(scores)), ids[1:]]
    assert results[0]["nll"] == pytest.approx(losses.mean(), abs=1e-5)
    assert [each.get("is_match") for each in results] == [None, True, False]
    total = sum(each["nll"] * each["num_scored"] for each in results)
    assert document["mean_nll"] == pytest.approx(total / document["num_scored"])
    assert document["perplexity"] == pytest.approx(np.exp(document["mean_nll"]))
    assert (document["exact_match"], document["num_answers"], document["num_requests"]) == (0.5, 2, 3)
    table = inside.run("eval", "tasks.jsonl", "--model", str(folder), "--max-tokens", "8", home=tmp_path)
    assert f"perplexity        {document['perplexity']:,.4f}\n" in table.stdout.decode()


def test_line_that_is_no_request_ends_the_run_before_the_model_is_loaded(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text('{"text": "a"}\n{"text": 1}\n')
    done = inside.run("eval", "tasks.jsonl", "--model", "none", home=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == "cg-local: error: tasks.jsonl: line 2: 'text' is 1; it must be a text\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["complete", "a.py", "--input", "b.jsonl"], "give either a text or --input"),
        (["complete", "--backend", "jax"], "needs a file of requests: add --input FILE.jsonl"),
        (["complete", "-i", "b.jsonl", "--mesh", "2x4"], "Invalid value for --mesh: is for JAX; add --backend jax"),
        (["eval", "b.jsonl", "--backend", "jax", "--threads", "1"], "is for the engine; leave it out"),
    ],
)
def test_options_that_do_not_belong_together_are_wrong_usage(
    inside: Inside, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = inside.run(*arguments, home=tmp_path)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.decode().replace("\u2502", " ").split())


def test_jax_answers_and_evaluates_as_the_engine(
    inside: Inside, tmp_path: Path, toy_folder: Callable[[str, str], Path]
) -> None:
    pytest.importorskip("jax")
    write(tmp_path / "requests.jsonl", REQUESTS)
    write(tmp_path / "tasks.jsonl", [{"text": "print(1)\n"}, {**REQUESTS[0], "expected": "a"}])
    model, sides = str(toy_folder("mqa", "bf16")), (("engine", "--kv-dtype", "float32"), ("jax", "--mesh", "1x1"))
    answers, figures = [], []
    for side in sides:
        common = ("--model", model, "--max-tokens", "6", "--backend", *side)
        done = inside.run("complete", "-i", "requests.jsonl", *common, home=tmp_path)
        answers.append([{**json.loads(line), "mean_logprob": None} for line in done.stdout.splitlines()])
        figures.append(json.loads(inside.run("eval", "tasks.jsonl", "--json", *common, home=tmp_path).stdout))
    assert answers[0] == answers[1]
    assert len(answers[0]) == 2
    assert figures[0]["mean_nll"] == pytest.approx(figures[1]["mean_nll"], abs=1e-5)
