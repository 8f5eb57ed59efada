"""`cg-local fill` with several places: judged before a model is asked, and printed in their order."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import command_line
import pytest
from command_line import Inside

import cg_local
from cg_local import SamplingParams, answers
from cg_local.cli import fill_places, session
from cg_local.errors import CapacityError
from cg_local.infill.cursor import SourceText
from cg_local.runtime import LocalModel

LIVELY = ("--temperature", "3", "--seed", "11", "--max-tokens", "12", "--mode", "block")
PARAMS = SamplingParams(max_tokens=12, temperature=3.0, seed=11)


@pytest.fixture(scope="module")
def folder(toy_folder: Callable[[str, str], Path]) -> Path:
    return toy_folder("mqa", "q4")


@pytest.fixture(scope="module")
def model(folder: Path) -> LocalModel:
    return cg_local.load(folder)


@pytest.fixture
def inside(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(capfdbinary, monkeypatch)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tmp_path.joinpath("a.py").write_text("def f(x):\n    y = 1\n    return y\n")
    tmp_path.joinpath("b.py").write_text("x = 1\n# here\ny = 2\n")
    return tmp_path


def answer(model: LocalModel, prefix: str, suffix: str, path: str) -> str:
    return model.infill(prefix, suffix, path, mode="block", params=PARAMS).text


def under(name: str, text: str) -> str:
    """One of several texts as it is printed."""
    return f"==> {name} <==\n{text}" + "\n" * (not text.endswith("\n"))


BAD_PLACES = {
    "none.py:4": "none.py: no such file; ",
    "b.py:99": "b.py: line 99 is out of range; ",
    "words": "'words' names no line: ",
    "b.py:1-2:3": "'b.py:1-2:3': a range of lines is rewritten whole and takes no column: write b.py:1-2",
    "locked.py:1": "locked.py: read-only (mode 444); ",
    "b.py:2-3": "b.py:2-3: overlaps b.py:2:7; fill one after the other",
}


@pytest.mark.parametrize("bad", [*([each] for each in BAD_PLACES), list(BAD_PLACES)])
def test_bad_place_among_several_is_told_before_a_model_is_loaded(home: Path, inside: Inside, bad: list[str]) -> None:
    home.joinpath("locked.py").write_text("x = 1\n")
    home.joinpath("locked.py").chmod(0o444)
    before = {path: path.read_bytes() for path in home.glob("*.py")}
    places = ("b.py:2", *bad, "a.py:2: error: y")
    done = inside.run("fill", *places, "--write", "--json", "--model", "no-such-model", home=home)
    is_usage = {"words", "b.py:1-2:3", "b.py:2-3"} & {*bad}
    assert done.returncode == (2 if is_usage else 1)
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert [document["target"] for document in documents] == list(places)
    located = {"b.py:2-3": "b.py:2-3", "locked.py:1": "locked.py:1:6"}
    assert [document["place"] for document in documents] == ["b.py:2:7", *map(located.get, bad), "a.py:2:10"]
    *errors, summary = done.stderr.decode().splitlines()
    assert summary == (
        f"cg-local: error: nothing was filled: {len(bad)} of {len(places)} places cannot be; "
        f"leave {'it' if len(bad) == 1 else 'them'} out"
    )
    for each, error, document in zip(bad, errors, documents[1:-1], strict=True):
        assert error.startswith(f"cg-local: error: {BAD_PLACES[each]}")
        assert f"cg-local: error: {document['error']}" == error
    assert (
        documents[0]["error"] == documents[-1]["error"] == f"not filled: {len(bad)} of {len(places)} places cannot be"
    )
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("words",), 2),
        (("none.py:4",), 1),
        (("b.py:99",), 1),
        (("locked.py:1", "--write"), 1),
        (("b.py:2",), 1),
        (("b.py:2", "--show-prompt"), 1),
        (("-",), 1),
        (("b.py:2", "a.py:2"), 1),
    ],
)
def test_place_that_cannot_be_filled_has_a_document(
    home: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], status: int
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"nothing here\n")))
    home.joinpath("locked.py").write_text("x = 1\n")
    home.joinpath("locked.py").chmod(0o444)
    done = inside.run("fill", *arguments, "--json", "--model", "no-such-model", home=home)
    assert (done.returncode, done.stderr.count(b"\n")) == (status, 1)
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    places = [each for each in arguments if not each.startswith("--")]
    assert [document["target"] for document in documents] == places
    for document in documents:
        assert list(document) == ["target", "place", "error"]
        assert document["place"] == {"b.py:2": "b.py:2:7", "a.py:2": "a.py:2:10"}.get(
            "" if "--write" in arguments else document["target"], "locked.py:1:6" if "--write" in arguments else None
        )
        assert done.stderr.decode() == f"cg-local: error: {document['error']}\n"


def test_places_that_overlap_are_filled_where_nothing_is_changed(
    home: Path, folder: Path, inside: Inside, model: LocalModel
) -> None:
    done = inside.run("fill", "b.py:2", "b.py:2-3", "--model", str(folder), *LIVELY, home=home)
    texts = answer(model, "x = 1\n# here", "\ny = 2\n", "b.py"), answer(model, "x = 1\n", "\n", "b.py")
    assert (done.returncode, done.stdout.decode()) == (0, under("b.py:2:7", texts[0]) + under("b.py:2-3", texts[1]))


def test_unsure_answers_among_several_are_left_out_with_status_3(
    home: Path, folder: Path, inside: Inside, model: LocalModel
) -> None:
    found = {
        "b.py": model.infill("x = 1\n# here", "\ny = 2\n", "b.py", mode="block", params=PARAMS),
        "c.py": model.infill("z = 1\n", "", "c.py", mode="block", params=PARAMS),
    }
    home.joinpath("c.py").write_text("z = 1\n")
    probability = {name: math.exp(each.mean_logprob or -99) for name, each in found.items()}
    unsure, sure = sorted(probability, key=probability.__getitem__)
    assert found[sure].text
    limit = f"{(probability[sure] + probability[unsure]) / 2}"
    places = ("b.py:2", "c.py:2", "--model", str(folder), *LIVELY, "--min-prob", limit)
    name = {"b.py": "b.py:2:7", "c.py": "c.py:2:1"}
    done = inside.run("fill", *places, home=home)
    assert (done.returncode, done.stdout.decode()) == (3, under(name[sure], found[sure].text))
    assert done.stderr.decode() == (
        f"cg-local: {name[unsure]}: no answer with a probability of {float(limit):g} or more; "
        f"the best has {probability[unsure]:.2f}\n"
    )
    before = home.joinpath(unsure).read_text()
    done = inside.run("fill", *places, "--write", "--json", home=home)
    documents = {document["file"]: document for document in map(json.loads, done.stdout.splitlines())}
    assert [(each["target"], each["place"]) for each in documents.values()] == [
        ("b.py:2", name["b.py"]),
        ("c.py:2", name["c.py"]),
    ]
    assert (done.returncode, documents[sure]["written"], documents[unsure]["written"]) == (3, True, False)
    assert (documents[unsure]["candidates"], documents[unsure]["num_hidden"]) == ([], 1)
    assert home.joinpath(unsure).read_text() == before


def test_places_are_told_of_in_their_order_whichever_ends_first(
    home: Path, folder: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_together = answers.read_together
    monkeypatch.setattr(answers, "read_together", lambda *given: reversed(list(read_together(*given))))
    arguments = ("b.py:2", "a.py:2", "b.py:1", "--model", str(folder), *LIVELY, "--min-prob", "1")
    done = inside.run("fill", *arguments, home=home)
    names = [line.partition(": no answer")[0] for line in done.stderr.decode().splitlines()]
    assert (done.returncode, names) == (3, ["cg-local: b.py:2:7", "cg-local: a.py:2:10", "cg-local: b.py:1:6"])


def test_hidden_answer_of_one_place_has_a_document_beside_a_write(home: Path, folder: Path, inside: Inside) -> None:
    arguments = ("b.py:2", "--model", str(folder), *LIVELY, "--min-prob", "1", "--write", "--diff", "--json")
    done = inside.run("fill", *arguments, home=home)
    document = json.loads(done.stdout)
    assert (done.returncode, document["candidates"], document["written"], document["diff"]) == (3, [], False, "")


@pytest.mark.parametrize("option", ["--explain", "--untrimmed", "--show-prompt"])
def test_several_places_show_what_each_would_alone(home: Path, folder: Path, inside: Inside, option: str) -> None:
    home.joinpath("c.py").write_text("z = 1\n")
    arguments = ("--model", str(folder), *LIVELY, option)
    alone = [inside.run("fill", place, *arguments, home=home) for place in ("b.py:2", "c.py:2")]
    done = inside.run("fill", "b.py:2", "c.py:2", *arguments, home=home)
    texts = [each.stdout.decode() for each in alone]
    assert (done.returncode, done.stdout.decode()) == (0, under("b.py:2:7", texts[0]) + under("c.py:2:1", texts[1]))
    told = ["cg-local: b.py:2:7:\n", "cg-local: c.py:2:1:\n"] if option == "--show-prompt" else ["", ""]
    assert done.stderr.decode() == told[0] + alone[0].stderr.decode() + told[1] + alone[1].stderr.decode()
    found = inside.run("fill", "b.py:2", "c.py:2", *arguments, "--json", home=home)
    documents = [json.loads(line) for line in found.stdout.splitlines()]
    assert [(each["target"], each["place"], each["file"]) for each in documents] == [
        ("b.py:2", "b.py:2:7", "b.py"),
        ("c.py:2", "c.py:2:1", "c.py"),
    ]


def test_list_on_standard_input_is_filled(home: Path, folder: Path, model: LocalModel) -> None:
    listed = b'b.py:2:# here\nb.py:2:7\nBinary file x.o matches\n\n  File "a.py", line 2, in f\n'
    done = command_line.run("fill", "-", "--model", str(folder), *LIVELY, home=home, stdin=listed)
    b, a = (
        answer(model, "x = 1\n# here", "\ny = 2\n", "b.py"),
        answer(model, "def f(x):\n    y = 1", "\n    return y\n", "a.py"),
    )
    expected = under("b.py:2:7", b) + under("a.py:2:10", a)
    assert (done.returncode, done.stdout.decode(), b"error" in done.stderr) == (0, expected, False)


@pytest.mark.parametrize("option", ["--json", "--diff", "--write"])
def test_interrupt_keeps_the_answers_that_are_there_and_changes_nothing(
    home: Path, folder: Path, model: LocalModel, inside: Inside, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    read_together = answers.read_together

    def interrupted(*arguments: Any) -> Iterator[Any]:
        yield next(read_together(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(answers, "read_together", interrupted)
    before = home.joinpath("b.py").read_bytes()
    done = inside.run("fill", "b.py:2", "b.py:1", option, "--model", str(folder), *LIVELY, home=home)
    assert (done.returncode, done.stderr, home.joinpath("b.py").read_bytes()) == (130, b"", before)
    documents = [json.loads(line) for line in done.stdout.splitlines()] if option == "--json" else []
    if not documents:
        assert done.stdout == b""
        return
    ended, other = sorted(documents, key=lambda document: "error" in document)
    assert ended["candidates"][0]["stop_reason"] != "interrupted"
    assert other == {"target": other["target"], "place": other["place"], "error": "interrupted"}


def test_interrupt_beside_an_error_exits_with_130(
    home: Path, folder: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> Iterator[Any]:
        yield 0, CapacityError("no room")
        raise KeyboardInterrupt

    monkeypatch.setattr(answers, "read_together", interrupted)
    done = inside.run("fill", "b.py:2", "b.py:1", "--json", "--model", str(folder), *LIVELY, home=home)
    assert (done.returncode, done.stderr) == (130, b"cg-local: error: no room\n")
    assert [json.loads(line)["error"] for line in done.stdout.splitlines()] == ["no room", "interrupted"]


def test_file_is_read_once_however_it_is_named(home: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def read_text(file: str) -> SourceText:
        read.append(file)
        return session.read_text(file)

    monkeypatch.setattr(fill_places, "read_text", read_text)
    names = ["b.py:1", "./b.py:2", str(home / "b.py:3"), "./b.py:99"]
    done = inside.run("fill", *names, home=home)
    assert (done.returncode, read) == (1, ["b.py"])
    assert done.stderr.startswith(b"cg-local: error: ./b.py: line 99 is out of range")
    done = inside.run("fill", *names[:3], "--path", "c.py", "--model", "no-such-model", home=home)
    assert b"no-such-model" in done.stderr


def test_document_names_the_line_of_a_list_as_it_is(
    home: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ['  File "a.py", line 2, in f', "gone.py:3", "b.py:2:# here"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\r\n".join(lines).encode())))
    done = inside.run("fill", "-", "--json", home=home)
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert [document["target"] for document in documents] == lines
    assert [document["place"] for document in documents] == ["a.py:2:10", None, "b.py:2:7"]


def test_empty_list_is_told(home: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    done = inside.run("fill", "-", home=home)
    message = b"standard input: empty, so there is no place to fill; pipe lines that begin with FILE:LINE"
    assert (done.returncode, done.stderr) == (1, b"cg-local: error: " + message + b"\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("option", ["--diff", "--json"])
def test_file_that_is_written_though_nothing_can_be_printed_is_told(home: Path, folder: Path, option: str) -> None:
    before = home.joinpath("b.py").read_bytes()
    command = [*command_line.COMMAND, "fill", "b.py:2", "--write", option, "--model", str(folder), *LIVELY]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, cwd=home, env=command_line.environment(home), stdout=full, stderr=subprocess.PIPE, timeout=240
        )
    assert home.joinpath("b.py").read_bytes() != before
    assert (done.returncode, done.stderr.decode()) == (
        1,
        "cg-local: error: standard output: No space left on device; b.py is written all the same; "
        "`cg-local fill --undo` takes it back\n",
    )
