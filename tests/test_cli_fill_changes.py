"""`cg-local fill` with --diff, --write and --undo, and with several places, as a person runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command_line
import pytest
from command_line import Inside

import cg_local
from cg_local import SamplingParams
from cg_local.engine import Engine
from cg_local.runtime import LocalModel

SOURCE = "def f(x):\r\n    y = 1\r\n    return y"
LIVELY = ("--temperature", "3", "--seed", "11", "--max-tokens", "12", "--mode", "block")
PARAMS = SamplingParams(max_tokens=12, temperature=3.0, seed=11)
BOM = b"\xef\xbb\xbf"


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
    tmp_path.joinpath("a.py").write_bytes(BOM + SOURCE.encode())
    tmp_path.joinpath("b.py").write_text("x = 1\n# here\ny = 2\n")
    return tmp_path


def answer(model: LocalModel, prefix: str, suffix: str, path: str) -> str:
    return model.infill(prefix, suffix, path, mode="block", params=PARAMS).text


def answer_in_a(model: LocalModel) -> bytes:
    return answer(model, "def f(x):\n    y = 1", "\n    return y", "a.py").replace("\n", "\r\n").encode()


def test_write_changes_the_gap_alone_and_undo_brings_every_byte_back(
    home: Path, folder: Path, model: LocalModel
) -> None:
    file = home / "a.py"
    before = file.read_bytes()
    file.chmod(0o640)
    home.joinpath("link.py").symlink_to("a.py")
    done = command_line.run(
        "fill", "link.py:2", "--path", "a.py", "--write", "--model", str(folder), *LIVELY, home=home
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    gap = len(BOM) + SOURCE.index("\r\n    return")
    assert answer_in_a(model)
    assert file.read_bytes() == before[:gap] + answer_in_a(model) + before[gap:]
    assert (home.joinpath("link.py").is_symlink(), file.stat().st_mode & 0o777) == (True, 0o640)
    dry = command_line.run("fill", "--undo", "--diff", home=home)
    assert (dry.returncode, dry.stdout.startswith(b"--- a/a.py\n+++ b/a.py\n@@ ")) == (0, True)
    done = command_line.run("fill", "--undo", home=home)
    assert (done.returncode, done.stdout, file.read_bytes()) == (0, b"", before)
    assert re.fullmatch(rb"cg-local: a\.py: the write of [-0-9]+ [:0-9]+ is taken back\n", done.stderr)
    done = command_line.run("fill", "--undo", home=home)
    assert (done.returncode, done.stderr.startswith(b"cg-local: error: nothing to take back")) == (1, True)
    done = command_line.run("fill", "--undo", "--json", home=home)
    message = done.stderr.decode().removeprefix("cg-local: error: ").rstrip("\n")
    assert json.loads(done.stdout) == {"file": None, "time": None, "undone": False, "error": message}


def test_difference_is_what_write_does(home: Path, folder: Path) -> None:
    before = {name: home.joinpath(name).read_bytes() for name in ("a.py", "b.py")}
    arguments = ("fill", "a.py:2", "b.py:2:3", "a.py:1", "--model", str(folder), *LIVELY)
    shown = command_line.run(*arguments, "--diff", home=home)
    assert (shown.returncode, {name: home.joinpath(name).read_bytes() for name in before}) == (0, before)
    assert shown.stdout.count(b"\n+++ b/") == 2
    command_line.run(*arguments, "--write", home=home)
    written = {name: home.joinpath(name).read_bytes() for name in before}
    assert all(written[name] != before[name] for name in before)
    undone = command_line.run("fill", "--undo", "--json", home=home)
    assert [json.loads(line)["undone"] for line in undone.stdout.splitlines()] == [True, True]
    assert undone.stderr == b""
    subprocess.run(["patch", "-p1", "-s", "--binary"], input=shown.stdout, cwd=home, check=True)
    assert {name: home.joinpath(name).read_bytes() for name in before} == written


def test_difference_without_a_name_says_so(home: Path, folder: Path) -> None:
    arguments = ("fill", "-:2", "--diff", "--model", str(folder), *LIVELY)
    done = command_line.run(*arguments, home=home, stdin=home.joinpath("a.py").read_bytes())
    assert done.stdout.startswith(b"--- a/-\n")
    assert b"--path FILE names one" in done.stderr
    named = command_line.run(*arguments, "--path", "a.py", home=home, stdin=home.joinpath("a.py").read_bytes())
    assert (named.stdout.startswith(b"--- a/a.py\n"), b"--path" in named.stderr) == (True, False)


def test_place_named_twice_is_filled_once(home: Path, folder: Path) -> None:
    places = ("b.py:2", "./b.py:2:7")
    arguments = ("--write", "--diff", "--json", "--model", str(folder), *LIVELY)
    done = command_line.run("fill", *places, *arguments, home=home)
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert [document.get("written") for document in documents] == [True, True]
    assert documents[0]["diff"] == documents[1]["diff"] != ""
    assert done.stderr.decode() == "cg-local: ./b.py:2:7: named twice; filled once\n"


def test_files_of_one_write_are_taken_back_by_one_undo_and_told(home: Path, folder: Path) -> None:
    before = {name: home.joinpath(name).read_bytes() for name in ("a.py", "b.py")}
    arguments = ("fill", "a.py:2", "b.py:2", "--write", "--model", str(folder), *LIVELY)
    command_line.run(*arguments, home=home)
    assert all(home.joinpath(name).read_bytes() != before[name] for name in before)
    done = command_line.run("fill", "--undo", "99", home=home)
    assert (done.returncode, done.stdout) == (0, b"")
    b, a, count = done.stderr.decode().splitlines()
    assert b.startswith("cg-local: b.py: the write of ")
    assert a.startswith("cg-local: a.py: the write of ")
    assert count == "cg-local: 99 writes were asked for; the journal has 1"
    assert {name: home.joinpath(name).read_bytes() for name in before} == before


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize("is_git", [True, False])
@pytest.mark.parametrize(
    ("place", "files", "applied_in"),
    [
        ("src", ("{home}/src/a.py",), "src"),
        ("src", ("deep/../a.py", "./deep/b.py"), "src"),
        ("src", ("../b.py", "a.py"), "."),
        ("src", ("{home}/src/../lib/c.py",), "lib"),
        ("src", ("link/c.py",), "lib"),
        (".", ("src/a.py", "lib/../b.py"), "."),
    ],
)
def test_difference_of_any_path_is_taken_by_git_and_patch(
    tmp_path: Path, folder: Path, inside: Inside, is_git: bool, place: str, files: tuple[str, ...], applied_in: str
) -> None:
    for name in ("src/a.py", "src/deep/b.py", "b.py", "lib/c.py"):
        tmp_path.joinpath(name).parent.mkdir(exist_ok=True)
        tmp_path.joinpath(name).write_text(f"x = 1\n# {name}\ny = 2\n")
    tmp_path.joinpath("src/link").symlink_to("../lib")
    if is_git:
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
        applied_in = "." if applied_in == "lib" else applied_in
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.py")}
    places = [f"{file.format(home=tmp_path)}:2" for file in files]
    arguments = ("fill", *places, "--model", str(folder), *LIVELY, "--context", "file")
    shown = inside.run(*arguments, "--diff", home=tmp_path / place)
    assert shown.returncode == 0
    assert f"count from {tmp_path.joinpath(applied_in).resolve()}; apply it there" in shown.stderr.decode() or (
        applied_in == place
    )
    changed = {}
    for command in (["git", "apply"], ["patch", "-p1", "-s"]):
        subprocess.run(command, input=shown.stdout, cwd=tmp_path / applied_in, check=True)
        changed = {path: path.read_bytes() for path in before if path.read_bytes() != before[path]}
        assert len(changed) == len(files)
        for path, data in before.items():
            path.write_bytes(data)
    assert inside.run(*arguments, "--write", home=tmp_path / place).returncode == 0
    assert {path: path.read_bytes() for path in changed} == changed


def test_what_was_written_is_told_beside_what_failed(
    home: Path, folder: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changes while the model is asked."""
    add = Engine.add

    def changing(engine: Engine, *rest: Any) -> Any:
        home.joinpath("a.py").write_text("somebody else's\n")
        return add(engine, *rest)

    monkeypatch.setattr(Engine, "add", changing)
    done = inside.run("fill", "b.py:2", "a.py:2", "--write", "--model", str(folder), *LIVELY, home=home)
    assert (done.returncode, done.stdout) == (1, b"")
    told, failed = done.stderr.decode().splitlines()
    assert told.endswith("b.py: written; `cg-local fill --undo` takes it back")
    assert failed.startswith("cg-local: error: a.py: changed since it was read; nothing was written")


def test_file_that_changes_meanwhile_is_not_written(home: Path, folder: Path) -> None:
    from cg_local.cli import fill_changes
    from cg_local.cli.fill_places import read_places

    file = home / "b.py"
    place = read_places([f"{file}:2"], None).good[0]
    changes = fill_changes.changes_of([place], {0: "new"})
    file.write_text("somebody else's\n")
    errors = fill_changes.write_changes(changes)
    assert "b.py: changed since it was read; nothing was written" in errors[0]
    assert file.read_text() == "somebody else's\n"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ((), 2, "name a place, or - to read places from standard input"),
        (("words",), 2, "names no line"),
        (("b.py", "11"), 2, "a colon is missing: write b.py:11"),
        (("a.py:1", "b.py", "1-2"), 2, "a colon is missing: write b.py:1-2"),
        (("-:2", "--write"), 2, "--write needs a file; standard input has none"),
        (("a.py:1", "b.py:1", "--path", "c.py"), 2, "names one file, and 2 are to be filled"),
        (("locked.py:1", "--write"), 1, "locked.py: read-only (mode 444); make it writable (chmod u+w "),
        (("twice.py:1", "--write"), 1, "twice.py: has 2 names (hard links)"),
        (("--undo", "0"), 2, "0 writes cannot be taken back"),
        (("--undo", "b.py"), 1, "nothing to take back: no write in b.py is in the journal"),
        (("--undo", "b.py:2"), 2, "takes whole writes of a file back, not places: --undo b.py"),
        (("--undo", "b.py", "2"), 2, "the number of writes comes first: --undo 2 FILE"),
        (("-",), 1, "standard input: no line of 1 names a place in a file; gone.py does not exist, seen from /"),
        (("none.py:1", "none.py:2"), 1, "none.py: no such file"),
        (("a.py:1", "b.py:1", "-n", "3"), 2, "-n is for one place, whose answers one chooses from; leave it out"),
        (("b.py:2", "-"), 2, "'-' reads a list of places and stands alone"),
        (("-", "-n", "3"), 2, "-n is for one place, whose answers one chooses from; leave it out"),
    ],
)
def test_what_cannot_be_done_is_said_before_a_model_is_loaded(
    home: Path, arguments: tuple[str, ...], status: int, message: str
) -> None:
    home.joinpath("locked.py").write_text("x = 1\n")
    home.joinpath("locked.py").chmod(0o444)
    home.joinpath("twice.py").write_text("x = 1\n")
    os.link(home / "twice.py", home / "other.py")
    model = () if "--undo" in arguments else ("--model", "no-such-model")
    stdin = b"gone.py:3: pass\n" if "-:2" not in arguments else b"a\nb\n"
    done = command_line.run("fill", *arguments, *model, home=home, stdin=stdin)
    error = " ".join(done.stderr.decode().replace("│", " ").split())
    assert (done.returncode, done.stdout, message in error) == (status, b"", True), error


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.timeout(20)
@pytest.mark.parametrize("arguments", [("pipe:1",), ("pipe:1:2 = 3",), ("pipe:1", "--write"), ("pipe:1", "--diff")])
def test_named_pipe_is_refused_and_not_waited_for(home: Path, inside: Inside, arguments: tuple[str, ...]) -> None:
    os.mkfifo(home / "pipe")
    done = inside.run("fill", *arguments, home=home)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (
        1,
        b"",
        "cg-local: error: pipe: this is a named pipe; name a regular file, or send the text in and write -:LINE\n",
    )


@pytest.mark.parametrize(("text", "why"), [("", "is empty"), ("# here", "is what stands there")])
def test_answer_that_changes_nothing_is_said_also_to_a_pipe(
    home: Path, capfd: pytest.CaptureFixture[str], text: str, why: str
) -> None:
    """The difference is empty then, which `git apply` refuses without --allow-empty."""
    from cg_local.cli.fill_changes import changes_of
    from cg_local.cli.fill_places import read_places

    file = home / "b.py"
    assert changes_of(read_places([f"{file}:2-2"], None).good, {0: text}) == []
    assert capfd.readouterr() == ("", f"cg-local: {file}:2-2: the answer {why}; nothing to change\n")


def test_undo_leaves_writes_elsewhere_alone_and_names_them(
    home: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cg_local.cli.fill_changes import changes_of, tell_written, write_changes
    from cg_local.cli.fill_places import read_places

    file, other = home / "py" / "a.py", home / "go"
    other.mkdir()
    file.parent.mkdir()
    file.write_text("x = 1\n")
    assert write_changes(changes_of(read_places([f"{file}:1"], None).good, {0: " + 2"})) == {}
    done = inside.run("fill", "--undo", home=other)
    assert (done.returncode, file.read_text()) == (1, "x = 1 + 2\n")
    assert f"no write below {other} is in the journal".encode() in done.stderr
    assert f"`cg-local fill --undo {file}` takes back".encode() in done.stderr
    tell_written([str(file)])
    monkeypatch.chdir(home)
    tell_written([str(file)])
    assert inside.run("fill", "--undo", home=home).returncode == 0
    assert file.read_text() == "x = 1\n"


def test_refused_undo_is_said_with_status_1_and_shown(home: Path, inside: Inside) -> None:
    from cg_local.cli.fill_changes import changes_of, write_changes
    from cg_local.cli.fill_places import read_places

    file = home / "b.py"
    changes = changes_of(read_places([f"{file}:2"], None).good, {0: " and there"})
    assert write_changes(changes) == {}
    file.write_text("x = 1\n# here or there\ny = 2\n")
    done = inside.run("fill", "--undo", home=home)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"does not stand there any more, so nothing was taken back" in done.stderr
    assert done.stderr.count(b"\n") == 1
    done = inside.run("fill", "--undo", "--diff", home=home)
    assert (done.returncode, b"\n-# here and there\n+# here\n" in done.stdout) == (1, True)
    assert file.read_text() == "x = 1\n# here or there\ny = 2\n"
    assert f"`cg-local fill --undo --forget {file}`".encode() in done.stderr
    file.unlink()
    done = inside.run("fill", "--undo", home=home)
    assert f"`cg-local fill --undo --forget {file}`".encode() in done.stderr
    done = inside.run("fill", "--undo", "--forget", str(file), home=home)
    assert (done.returncode, b"is forgotten" in done.stderr) == (0, True)
    assert b"nothing to take back" in inside.run("fill", "--undo", home=home).stderr


def test_difference_on_a_terminal_is_coloured_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    from cg_local.cli.fill_changes import show_diff

    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    shown = []
    for environment in ({"TERM": "xterm"}, {"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "dumb"}):
        stream = Terminal(io.BytesIO(), encoding="utf-8")
        with monkeypatch.context() as patch:
            patch.delenv("NO_COLOR", raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdout", stream)
            show_diff("--- a/x\n+++ b/x\n@@ -1 +1 @@\n-old\r\n+new\x1b[2J\n")
        shown.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    assert "\x1b[31m-old␍\x1b[" in shown[0]
    assert "\x1b[32m+new␛[2J\x1b[" in shown[0]
    assert "\x1b[3" not in shown[1]
    assert shown[2] == "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-old␍\n+new␛[2J\n"
