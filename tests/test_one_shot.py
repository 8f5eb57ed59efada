"""One answer from the command line: what is asked, what goes to stdout, how it ends; the model answers by a script."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Inside, environment
from scripted_chat import MARKDOWN, ScriptedModel
from toy_models import MQA, write_toy_checkpoint

from cg_local import runtime
from cg_local.cli.one_shot import LineView
from cg_local.conversation import Message
from cg_local.errors import SessionError
from cg_local.quant import quantize
from cg_local.sessions import SavedSession, SessionRecorder, SessionStore

BLOCK = 'def add(a, b):\n    """Add two numbers."""\n    return a + b  # the sum\n'
Answer = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy that says of itself that it is tuned for chat."""
    root = tmp_path_factory.mktemp("one-shot")
    source = write_toy_checkpoint(root / "source", {**MQA, "max_position_embeddings": 1024}, has_tokenizer=True)
    source.joinpath("tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    quantize(source, root / "toy-it", "q4")
    return root / "toy-it"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def answer(
    model: Path, home: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Answer:
    """A function from arguments and standard input to the ended command; runs inside of this process."""
    monkeypatch.setattr(runtime, "Model", ScriptedModel)
    inside = Inside(capfdbinary, monkeypatch)

    def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return inside.run("chat", "--model", str(model), *arguments, home=home)

    return run


def saved(home: Path) -> list[SavedSession]:
    """The saved conversations, the newest first."""
    path = home / "data" / "sessions" / "sessions.db"
    with contextlib.suppress(SessionError), SessionStore(path, is_read_only=True) as store:
        return [store.load(each.session_id) for each in store.summaries()]
    return []


def lines(done: subprocess.CompletedProcess[bytes]) -> tuple[int, str, str]:
    return done.returncode, done.stdout.decode(), done.stderr.decode()


# What is asked


@pytest.mark.parametrize(
    ("arguments", "stdin", "expected"),
    [
        (["say", "two", "words"], b"", "two words\n"),
        (["say two words"], b"", "two words\n"),
        ([], b"say piped\n", "piped\n"),
        (["first"], b"piped\r\nmore\r\n", "the first line is 'piped'\n"),
        (["lines"], b"one\ntwo\n", "4 lines\n"),
        (["first", "-f", "a.py:2"], b"piped\n", "the first line is 'a.py:2:'\n"),
        (["lines", "-f", "a.py", "-f", "b.c"], b"piped\n", "14 lines\n"),
        (["-s", "Be brief.", "first"], b"", "the first line is 'Be brief.'\n"),
    ],
)
def test_files_pipe_and_words_become_one_question(
    answer: Answer, home: Path, arguments: list[str], stdin: bytes, expected: str
) -> None:
    (home / "a.py").write_text("x = 1\ny = 2\n")
    (home / "b.c").write_text("int x;\n")
    assert lines(answer(*arguments, stdin=stdin)) == (0, expected, "")


def test_question_behind_two_dashes_may_begin_with_a_dash(answer: Answer) -> None:
    assert lines(answer("--", "-v", "is what?")) == (0, "You said: -v is what?\n", "")


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([], b"", "nothing was asked; write a question behind the command, pipe a text in, or name a file with -f"),
        ([" "], b" \n", "nothing was asked; "),
        (["-t", "explain"], b"", "template explain has nothing to work on; "),
        (["x", "-f", "none.py"], b"", "none.py: no such file"),
        (["x"], b"a\0b", "standard input: a binary file (NUL at byte 2)"),
        (["x"], b"\xff", "standard input: not UTF-8"),
        (["x", "-t", "none"], b"", "no template 'none'; known are commit,"),
        (["x", "--session", "zz"], b"", "'zz': no such conversation"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_status_1(
    answer: Answer, arguments: list[str], stdin: bytes, message: str
) -> None:
    with SessionStore():  # there is a database, without conversations
        pass
    done = answer(*arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith(f"cg-local: error: {message}") or "no conversation is saved" in str(done)
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--var", "a=b"], "variables are for a template; name one with -t."),
        (["x", "-t", "test", "--var", "a"], "'a' is not NAME=VALUE."),
        (["x", "-t", "test", "--var", "1=2"], "'1=2' is not NAME=VALUE."),
        (["x", "-t", "test", "--var", "framwork=pytest"], "template test has no variable 'framwork'; it has fenced,"),
        (["x", "-c", "--session", "3fa2"], "--continue and --session do not go together: name one conversation"),
        (["x", "--scheme", "q5"], "Invalid value for '--scheme': 'q5' is not one of 'q4', 'q4s', 'q8', 'bf16'. "),
        (["x", "--kv-cache-size", "much"], "'much' is no size; write 4GiB, 500MB, or 0 for none."),
    ],
)
def test_wrong_usage_is_status_2(answer: Answer, arguments: list[str], message: str) -> None:
    done = answer(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert message in " ".join(done.stderr.decode().split())


def test_template_wraps_the_question(answer: Answer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home / "templates"
    folder.mkdir()
    (folder / "mine.md").write_text('+++\nsystem = "As {{x}}."\n+++\nfirst {{who}}\n{{words}}\nlines\n')
    monkeypatch.setenv("CG_LOCAL_CONFIG", str(home / "config.toml"))
    assert lines(answer("-t", "mine", "--var", "who=me", "word")) == (0, "5 lines\n", "")
    (session,) = saved(home)
    assert [message.text for message in session.messages[:2]] == ["As {{x}}.", "first me\nword\nlines"]
    assert answer("-t", "mine", "word").stderr.decode() == (
        "cg-local: error: template mine: who has no value; give --var who=TEXT\n"
    )


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments], cwd=folder, check=True)


def test_commit_template_reads_the_staged_changes(answer: Answer, home: Path) -> None:
    assert "not inside a work tree" in answer("-t", "commit").stderr.decode()
    git(home, "init", "-q")
    assert "no change is staged" in answer("-t", "commit").stderr.decode()
    (home / "a.txt").write_text("hello ```\n")
    git(home, "add", "a.txt")
    assert answer("-t", "commit").returncode == 0
    (session,) = saved(home)
    assert "````\ndiff --git a/a.txt b/a.txt\n" in session.messages[0].text
    assert "+hello ```\n````" in session.messages[0].text


def test_commit_template_prefers_what_is_piped(answer: Answer, home: Path) -> None:
    assert answer("-t", "commit", stdin=b"-a\n+b\n").returncode == 0
    (session,) = saved(home)
    assert "```\n-a\n+b\n```" in session.messages[0].text


def test_too_much_is_refused_with_numbers_or_cut(answer: Answer, home: Path) -> None:
    text = b"y\n" * 500_000
    done = answer("-s", "x", stdin=text)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"the question has about 1,000,000 tokens, 7" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert saved(home) == []

    done = answer("first", "--truncate", stdin=b"alpha\n" + text)
    assert (done.returncode, done.stdout) == (0, b"the first line is 'alpha'\n")
    assert b"the middle of the question was left out: about 1,000,000 tokens, 7" in done.stderr


def test_endless_pipe_is_refused(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cg_local.cli.request.MAX_INPUT_BYTES", 1 << 20)
    done = answer("x", stdin=b"y\n" * (1 << 20))
    assert lines(done) == (
        1, "", "cg-local: error: standard input: more than 1 MiB, far more than a context holds; send less\n"
    )  # fmt: skip


def test_base_model_is_refused_unless_forced(answer: Answer, toy_folder: Callable[[str, str], Path]) -> None:
    base = str(toy_folder("mqa", "q4"))
    done = answer("say hi", "--model", base)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"is a base model, not tuned for chat; `cg-local complete` continues" in done.stderr
    assert lines(answer("say hi", "--model", base, "--force")) == (0, "hi\n", "")


# What goes to stdout


def test_markdown_goes_through_a_pipe_as_it_was_written(answer: Answer) -> None:
    done = answer("markdown")
    assert done.stdout.decode() == MARKDOWN
    assert b"\x1b" not in done.stdout + done.stderr


def test_extract_writes_the_first_block_alone_and_stops_there(answer: Answer, home: Path) -> None:
    assert lines(answer("-x", "markdown")) == (0, BLOCK, "")
    (session,) = saved(home)
    text = session.messages[1].text
    assert session.messages[1].is_cut
    assert MARKDOWN.startswith(text)
    assert len(text) < len(MARKDOWN) - 40


def test_extract_without_a_block_is_status_1_and_a_line(answer: Answer) -> None:
    assert lines(answer("-x", "say nothing of the kind")) == (
        1, "", "cg-local: the answer has no code block; without --extract it is shown whole\n"
    )  # fmt: skip


def test_document_holds_answer_blocks_and_figures(answer: Answer, home: Path, model: Path) -> None:
    done = answer("--json", "markdown")
    assert done.stdout.count(b"\n") == 1
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["text"] == MARKDOWN
    assert document["code_blocks"] == [{"language": "python", "text": BLOCK}]
    assert document["session"] == saved(home)[0].session_id
    assert (document["model"], document["scheme"], document["stop_reason"]) == (str(model), "q4", "eos")
    assert document["truncated"] is False
    assert document["prompt_tokens"] > 0
    assert document["timings"]["prefill_ms"] > 0


def test_answer_that_max_tokens_cut_says_so(answer: Answer, home: Path) -> None:
    done = answer("count", "--max-tokens", "5")
    assert done.returncode == 0
    assert done.stderr == b"cg-local: the answer is cut: --max-tokens, or the context, is reached\n"
    assert saved(home)[0].messages[1].is_cut


def test_verbose_tells_on_stderr_what_the_answer_took(answer: Answer) -> None:
    status, out, err = lines(answer("say hello", "--verbose"))
    assert (status, out) == (0, "hello\n")
    assert re.fullmatch(r"cg-local: \d+ tokens at [0-9.]+ tokens/s; prompt \d+ tokens, .* computed in [0-9.]+ s\n", err)


def test_pipe_gets_whole_lines_as_soon_as_they_are_there(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    view = LineView()
    seen = []
    for piece in ("one", " line\ntwo", "\n\nthr", "ee"):
        view.push(piece)
        seen.append(capfdbinary.readouterr().out)
    view.finish()
    assert seen == [b"", b"one line\n", b"two\n\n", b""]
    assert capfdbinary.readouterr().out == b"three\n"


# What is kept


def test_answer_is_saved_under_its_question(answer: Answer, home: Path, model: Path) -> None:
    (home / "a.py").write_text("x\n")
    answer("say hello", "-f", "a.py")
    (session,) = saved(home)
    assert (session.title, session.model) == ("say hello", str(model))
    assert session.messages[1].text == "hello"
    assert session.messages[1].token_ids


@pytest.mark.parametrize(
    ("arguments", "title"),
    [(["-t", "explain", "-f", "a.py"], "explain: a.py"), (["-t", "test", "say x", "-f", "a.py"], "test: say x")],
)
def test_title_of_a_template_is_its_name_and_what_it_is_about(
    answer: Answer, home: Path, arguments: list[str], title: str
) -> None:
    (home / "a.py").write_text("x\n")
    answer(*arguments)
    assert saved(home)[0].title == title


def test_no_save_keeps_nothing(answer: Answer, home: Path) -> None:
    answer("say hello " * 20, "--no-save")
    assert not (home / "data").exists()
    assert not (home / "cache" / "kv").exists()


def test_settings_are_the_options_defaults(answer: Answer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CG_LOCAL_CONFIG", str(home / "config.toml"))
    (home / "config.toml").write_text('[chat]\nsave = false\nsystem = "mine"\n')
    assert lines(answer("first")) == (0, "the first line is 'mine'\n", "")
    assert saved(home) == []
    assert lines(answer("first", "--save", "-s", "other")) == (0, "the first line is 'other'\n", "")
    assert len(saved(home)) == 1
    (home / "config.toml").write_text("[chat]\nsave = 0\n")
    assert lines(answer("first"))[2] == (
        f"cg-local: error: {home / 'config.toml'}:2: chat.save is 0; give true or false\n"
    )


def test_continued_conversation_finds_its_k_and_v_on_the_disk(answer: Answer, home: Path) -> None:
    first = json.loads(answer("--json", "say " + "word " * 60).stdout)
    second = json.loads(answer("--json", "-c", "turns").stdout)
    assert (first["cached_tokens"], second["text"]) == (0, "2 turns before")
    computed = first["prompt_tokens"] + first["num_tokens"]
    assert second["cached_tokens"] >= computed - 16
    (session,) = saved(home)
    assert session.num_messages == 4

    without = json.loads(answer("--json", "--session", session.session_id[:5], "turns", "--kv-cache-size", "0").stdout)
    assert (without["cached_tokens"], without["text"]) == (0, "4 turns before")


def test_question_that_was_never_answered_is_asked_with_the_next(answer: Answer, home: Path) -> None:
    recorder = SessionRecorder(print, path=home / "data" / "sessions" / "sessions.db")
    recorder.save([Message("user", "alpha")])
    recorder.close()
    assert lines(answer("-c", "first")) == (0, "the first line is 'alpha'\n", "")
    assert saved(home)[0].messages[0].text == "alpha\n\nfirst"


# How it ends


def process(model: Path, home: Path, *arguments: str, stdout: Any = subprocess.PIPE) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("scripted_chat.py")
    command = [sys.executable, str(script), "chat", "--model", str(model), *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, env=environment(home), cwd=home
    )


def test_closed_pipe_ends_quietly_and_keeps_what_was_written(model: Path, home: Path) -> None:
    # Lines enough to fill the pipe's buffer would take long; the first line is read, then nobody reads any more.
    running = process(model, home, "markdown")
    assert running.stdout is not None
    assert running.stderr is not None
    assert running.stdout.readline() == b"# Adding two numbers\n"
    running.stdout.close()
    errors = running.stderr.read()
    running.stderr.close()
    assert (running.wait(60), errors) == (141, b"")
    (session,) = saved(home)
    assert session.messages[1].text.startswith("# Adding two numbers\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this platform")
@pytest.mark.parametrize("arguments", [["markdown"], ["--json", "markdown"], ["-x", "markdown"]])
def test_full_disk_is_one_line_and_the_answer_is_saved(model: Path, home: Path, arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        running = process(model, home, *arguments, stdout=full)
        _, errors = running.communicate(timeout=60)
    assert errors == b"cg-local: error: standard output: No space left on device\n"
    assert running.returncode == 1
    assert saved(home)[0].messages[1].text


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
@pytest.mark.parametrize(("sent", "status"), [("SIGINT", 130), ("SIGKILL", -9)])
def test_interrupted_and_killed_answers_are_kept(model: Path, home: Path, sent: str, status: int) -> None:
    running = process(model, home, "count")
    for _ in range(400):  # until there is something to be kept
        try:
            running.wait(0.05)
        except subprocess.TimeoutExpired:
            if any(len(session.messages) > 1 and len(session.messages[1].text) > 20 for session in saved(home)):
                break
    os.kill(running.pid, getattr(signal, sent))
    out, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (status, b"")

    (session,) = saved(home)
    kept = session.messages[1]
    assert kept.is_cut
    assert " ".join(map(str, range(1, 400))).startswith(kept.text.strip())
    if sent == "SIGINT":
        assert out.decode().strip() == kept.text.strip()
