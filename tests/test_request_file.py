"""Files of requests: what a line may say, and what is said of a line that is none; files of results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cg_local.errors import BatchError
from cg_local.request_file import Request, ResultFile, fingerprint, read_requests


def requests_of(folder: Path, *lines: str, is_evaluation: bool = False) -> list[Request]:
    path = folder / "requests.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return read_requests(path, is_evaluation=is_evaluation)


def test_lines_become_requests_in_their_order_with_their_numbers(tmp_path: Path) -> None:
    found = requests_of(
        tmp_path,
        '{"prompt": "a", "id": "first", "more": [1]}',
        "",
        '{"prefix": "b", "suffix": "c", "path": "d.py"}',
        '{"prompt": "e", "suffix": "f", "task_id": 7, "canonical_solution": "g"}',
    )
    assert found == [
        Request(1, prefix="a", request_id="first"),
        Request(3, prefix="b", suffix="c", path="d.py"),
        Request(4, prefix="e", suffix="f", expected="g", request_id=7),
    ]
    assert [request.label for request in found] == [{"line": 1, "id": "first"}, {"line": 3}, {"line": 4, "id": 7}]


def test_evaluation_takes_texts_and_expected_answers(tmp_path: Path) -> None:
    found = requests_of(tmp_path, '{"text": "a"}', '{"prompt": "b", "canonical": ""}', is_evaluation=True)
    assert [(request.text, request.expected) for request in found] == [("a", None), (None, "")]


@pytest.mark.parametrize(
    ("line", "is_evaluation", "message"),
    [
        ("{", False, r"line 2: not JSON \(Expecting property name"),
        ('"text"', False, "line 2: a JSON str, not an object; a request is"),
        ('{"prompt": 3}', False, "line 2: 'prompt' is 3; it must be a text"),
        ('{"question": "a"}', False, "line 2: has the members question; a request is"),
        ('{"prompt": "a", "text": "b"}', False, "line 2: has both 'text' and 'prompt'"),
        ('{"prefix": "a"}', False, "line 2: has a 'prefix' and no 'suffix'"),
        ('{"prompt": "a", "id": ["\\ud800"]}', False, r"line 2: has half a character \(a lone surrogate\)"),
        ('{"prompt": "\\udc00"}', False, r"line 2: has half a character \(a lone surrogate\)"),
        ('{"text": "a"}', False, "line 2: a 'text' is for `cg-local eval`"),
        ('{"prompt": "a"}', True, "line 2: nothing to compare an answer with; add 'expected'"),
    ],
)
def test_line_that_is_no_request_is_named(tmp_path: Path, line: str, is_evaluation: bool, message: str) -> None:
    with pytest.raises(BatchError, match=rf"requests\.jsonl: {message}"):
        requests_of(tmp_path, '{"prompt": "a", "expected": "b"}', line, is_evaluation=is_evaluation)


def test_file_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match=r"none\.jsonl: No such file or directory; give a file of requests"):
        read_requests(tmp_path / "none.jsonl", is_evaluation=False)
    with pytest.raises(BatchError, match="has no line"):
        requests_of(tmp_path, "", "")


def test_results_get_their_name_when_all_are_there(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with ResultFile(path, "mark") as file:
        file.write([{"line": 1}, {"line": 2, "text": "\u00e9\n"}])
        assert not path.exists()
        assert file.read() == [{"line": 1}, {"line": 2, "text": "\u00e9\n"}]
        file.commit()
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][1]["text"] == "\u00e9\n"
    assert [each.name for each in tmp_path.iterdir()] == ["results.jsonl"]


def test_run_that_was_killed_within_a_line_goes_on_behind_the_last_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with ResultFile(path, "mark") as file:
        file.write([{"line": 1}, {"line": 2}])
    partial = tmp_path / ".results.jsonl.mark.partial"
    partial.write_bytes(partial.read_bytes() + b'{"line":3,"te')
    with ResultFile(path, "mark") as file:
        assert file.num_done == 2
        file.write([{"line": 3}])
        file.commit()
    assert path.read_text() == '{"line":1}\n{"line":2}\n{"line":3}\n'


def test_second_run_of_the_same_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with ResultFile(path, "mark") as file:
        file.write([{"line": 1}])
        with pytest.raises(BatchError, match="another process is computing these results now"):
            ResultFile(path, "mark").__enter__()
        assert file.read() == [{"line": 1}]
        file.write([{"line": 2}])
        file.commit()
    assert path.read_text() == '{"line":1}\n{"line":2}\n'


def test_other_settings_or_requests_start_anew(tmp_path: Path) -> None:
    source = tmp_path / "requests.jsonl"
    source.write_text('{"prompt": "a"}\n')
    marks = {fingerprint(source, {"seed": 1}), fingerprint(source, {"seed": 2})}
    source.write_text('{"prompt": "b"}\n')
    marks.add(fingerprint(source, {"seed": 1}))
    assert len(marks) == 3
    for mark in marks:
        with ResultFile(tmp_path / "results.jsonl", mark) as file:
            assert file.num_done == 0
            file.write([{"line": 1}])


def test_file_of_the_users_is_replaced_only_when_asked_and_only_when_done(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("mine\n")
    with pytest.raises(BatchError, match="exists already; choose another name, or add --overwrite"):
        ResultFile(path, "mark")
    with ResultFile(path, "mark", overwrite=True) as file:
        assert path.read_text() == "mine\n"
        file.commit()
    assert path.read_text() == ""


def test_place_that_cannot_be_written_is_refused_and_an_empty_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="cannot be written"), ResultFile(tmp_path / "none" / "results.jsonl", "mark"):
        pass
    with ResultFile(tmp_path / "results.jsonl", "mark"):
        pass
    assert list(tmp_path.iterdir()) == []
