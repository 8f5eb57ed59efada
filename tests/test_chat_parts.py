"""The parts of the chat that need no terminal: commands, settings, history, clipboard, lines between marks, files."""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from command_line import Inside

from cg_local.attachments import Attachment, read_attachment
from cg_local.cli.external_editor import edit_text, editor_command
from cg_local.cli.repl import clipboard
from cg_local.cli.repl.answering import Interrupts
from cg_local.cli.repl.blocks_of_lines import needs_more_lines, without_marks
from cg_local.cli.repl.clipboard import copy_text
from cg_local.cli.repl.command_table import COMMANDS
from cg_local.cli.repl.history import MAX_FILE_BYTES, QuestionHistory
from cg_local.cli.repl.screen import Screen
from cg_local.cli.repl.settings import SUMMARIES, ChatSettings
from cg_local.code_blocks import CodeBlock, code_blocks
from cg_local.errors import ConfigError, PromptError, SourceFileError


@pytest.mark.parametrize(
    ("line", "name", "argument"),
    [
        ("/help", "/help", ""),
        ("/? read", "/help", "read"),
        ("/BYE", "/exit", ""),
        ("exit", "/exit", ""),
        ("quit", "/exit", ""),
        ("/read  a file.py:3 ", "/read", "a file.py:3"),
        ("/system Two\nlines", "/system", "Two\nlines"),
        ("/system\nTwo lines", "/system", "Two lines"),
        ("/retry 0.9", "/regen", "0.9"),
    ],
)
def test_line_is_the_command_it_names(line: str, name: str, argument: str) -> None:
    found = COMMANDS.parse(line)
    assert found is not None
    assert (found[0].name, found[1]) == (name, argument)


@pytest.mark.parametrize(
    "line", ["what is /help", "/etc/hosts is what?", " /help", "// a comment", "/", "exit now", "/* " + "x" * 300]
)
def test_line_that_only_looks_like_a_command_is_a_question(line: str) -> None:
    assert COMMANDS.parse(line) is None


def test_unknown_command_is_told_with_what_it_could_be() -> None:
    with pytest.raises(PromptError, match=r"/regne is no command; did you mean /regen\?"):
        COMMANDS.parse("/regne")
    with pytest.raises(PromptError, match="is no command"):
        COMMANDS.parse("/" + "z" * 300)
    with pytest.raises(PromptError, match="/zzz is no command; /help lists the commands"):
        COMMANDS.parse("/zzz")


def test_no_two_commands_share_a_name() -> None:
    names = [name for command in COMMANDS.commands for name in (command.name, *command.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("columns", [40, 80, 0])
def test_help_names_every_command_within_the_width(columns: int) -> None:
    lines = COMMANDS.help(columns).splitlines()
    assert all(any(line.startswith(command.name) for line in lines) for command in COMMANDS.commands)
    assert not columns or max(map(len, lines)) < columns


@pytest.mark.parametrize(
    ("text", "is_open", "inside"),
    [
        ('"""', True, None),
        ('"""a\nb', True, None),
        ('"""a\nb"""', False, "a\nb"),
        ('"""\n  a\n"""', False, "  a"),
        ('"""one line"""', False, "one line"),
        ('say """ x', False, 'say """ x'),
        ("!multi\na", True, None),
        ("!multi\na\n!end", False, "a"),
        ("!multi x\n!end\n!end x", False, "!end"),
        ("!multiple", False, "!multiple"),
    ],
)
def test_marks_of_several_lines(text: str, is_open: bool, inside: str | None) -> None:
    assert needs_more_lines(text) is is_open
    if inside is not None:
        assert without_marks(text) == inside


def test_settings_take_what_is_in_range_and_keep_the_rest() -> None:
    settings = ChatSettings()
    for name, text, value in [
        ("temperature", "0.5", 0.5),
        ("top_k", "40", 40),
        ("seed", "7", 7),
        ("seed", "none", None),
        ("max_tokens", "100", 100),
        ("verbose", "", True),
        ("verbose", "off", False),
    ]:
        settings.set(name, text)
        assert getattr(settings, name) == value
    for name, text, message in [
        ("temperature", "-1", "temperature is '-1'; it must be a number from 0"),
        ("temperature", "nan", "must be a number"),
        ("temperature", "1" + "0" * 400, "must be a number"),
        ("top_p", "1.5", "must be a number from 1e-06 to 1"),
        ("top_k", "1.5", "must be a whole number"),
        ("max_tokens", "0", "max_tokens is '0'; it must be a whole number from 1, or none"),
        ("verbose", "maybe", "must be on or off"),
        ("colour", "red", "'colour' is no setting; there are: temperature"),
    ]:
        before = {each: settings.as_text(each) for each in SUMMARIES}
        with pytest.raises(ConfigError, match=message):
            settings.set(name, text)
        assert before == {each: settings.as_text(each) for each in SUMMARIES}


def test_history_is_kept_in_a_file_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    history = QuestionHistory(path, pytest.fail)
    for text in (
        "first",
        "two\nlines \N{GREEK SMALL LETTER ALPHA}",
        "two\nlines \N{GREEK SMALL LETTER ALPHA}",
        " secret",
    ):
        history.append_string(text)
    history.is_kept = False
    history.append_string("not kept")
    again = QuestionHistory(path, pytest.fail)
    assert list(again.load_history_strings()) == ["two\nlines \N{GREEK SMALL LETTER ALPHA}", "first"]
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600


def test_history_skips_damage_and_is_cut_when_it_is_long(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b'"first"\nnot json\n{"a": 1}\n\xff\n"last"\n')
    assert list(QuestionHistory(path, pytest.fail).load_history_strings()) == ["last", "first"]
    path.write_text("".join(f"{json.dumps('x' * 1000 + str(n))}\n" for n in range(MAX_FILE_BYTES // 1000 + 10)))
    texts = list(QuestionHistory(path, pytest.fail).load_history_strings())
    assert path.stat().st_size <= MAX_FILE_BYTES // 2
    assert texts[0].endswith(str(MAX_FILE_BYTES // 1000 + 9))
    assert all(text.startswith("x" * 1000) for text in texts)


def test_history_that_cannot_be_kept_is_told_once(tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_text("")
    told: list[str] = []
    history = QuestionHistory(tmp_path / "file" / "history", told.append)
    assert list(history.load_history_strings()) == []
    history.append_string("one")
    history.append_string("two")
    assert history.get_strings() == ["one", "two"]
    assert len(told) == 1
    assert "the history cannot be kept" in told[0]


def test_copy_goes_through_the_terminal_where_no_program_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "1")
    monkeypatch.delenv("TMUX", raising=False)
    sent: list[str] = []

    def send(sequence: str) -> bool:
        sent.append(sequence)
        return True

    assert copy_text("text \N{GREEK SMALL LETTER ALPHA}", send) == "the terminal (OSC 52)"
    assert base64.b64decode(sent[0][7:-1]).decode() == "text \N{GREEK SMALL LETTER ALPHA}"
    assert copy_text("x" * 100_000, send) is None
    assert copy_text("text", lambda sequence: False) is None


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a shell script")
def test_copy_prefers_a_program_and_falls_back_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "xclip"
    program.write_text('#!/bin/sh\nwhile read -r line; do printf "%s" "$line"; done > copied.txt\n')
    program.chmod(0o700)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DISPLAY", ":0")
    for name in ("SSH_CONNECTION", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert copy_text("to copy\n", lambda sequence: False) == "xclip"
    assert tmp_path.joinpath("copied.txt").read_text() == "to copy"
    program.write_text("#!/bin/sh\nexit 1\n")
    assert copy_text("to copy", lambda sequence: True) == "the terminal (OSC 52)"
    assert clipboard.MAX_SEQUENCE_BYTES < 100_000


@pytest.mark.skipif(sys.platform == "win32", reason="the editor is a shell script")
def test_editor_gives_the_text_back_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = tmp_path / "my editor"
    editor.write_text('#!/bin/sh\nprintf " and more\\n\\n" >> "$2"\n')
    editor.chmod(0o700)
    monkeypatch.setenv("VISUAL", f'"{editor}" --wait')
    assert editor_command() == [str(editor), "--wait"]
    assert edit_text("a text") == "a text and more"
    editor.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(ConfigError, match="ended with status 3"):
        edit_text("a text")
    monkeypatch.setenv("VISUAL", "/no/such/editor")
    with pytest.raises(ConfigError, match="cannot be started"):
        edit_text("a text")


def test_attachment_is_a_file_or_lines_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.py").write_bytes(b"one\r\ntwo\r\nthree")
    Path("b:2").write_text("named so\n")
    assert read_attachment("a.py") == Attachment("a.py", "one\ntwo\nthree")
    assert read_attachment("a.py:2") == Attachment("a.py", "two\n", 2, 2)
    assert read_attachment("a.py:2-99") == Attachment("a.py", "two\nthree", 2, 3)
    assert read_attachment("a.py:2-") == Attachment("a.py", "two\nthree", 2, 3)
    assert read_attachment("b:2").text == "named so\n"
    assert read_attachment("a.py:2").as_markdown() == "a.py:2:\n```py\ntwo\n```"
    for name, message in [
        ("a.py:3-2", "ends before it begins"),
        ("a.py:0", "has lines 1 to 3"),
        ("a.py:9", "has lines 1 to 3"),
        ("a.py:100-", "has lines 1 to 3"),
        ("a.py:9-2", "has lines 1 to 3"),
        ("~nosuchuser/x", "no such file"),
        ("x" * 300, "File name too long"),
        ("missing.py:1", "no such file"),
    ]:
        with pytest.raises(SourceFileError, match=message):
            read_attachment(name)


def test_lines_of_an_attachment_end_at_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_bytes("one\f\v\x1c\u2028\x85still one\r\ntwo\n".encode())
    assert read_attachment(f"{path}:2").text == "two\n"
    assert read_attachment(str(path)).num_lines == 2


def test_fence_of_an_attachment_cannot_be_ended_from_within() -> None:
    text = "```\ncode\n````\n"
    [block] = code_blocks(Attachment("x.md", text).as_markdown())
    assert block == CodeBlock("md", text)


def test_code_blocks_are_what_stands_between_fences() -> None:
    text = "a\n```Python title\nx\n  y\n```\n~~~\n```\n~~~\n1. item\n   ```\n   z\n   ```\n``` no ` fence\n"
    text += "````sh\nopen\n```\n"
    assert code_blocks(text) == [
        CodeBlock("python", "x\n  y\n"),
        CodeBlock("", "```\n"),
        CodeBlock("", "z\n"),
        CodeBlock("sh", "open\n```\n"),
    ]


def test_interrupt_ends_computing_but_no_showing() -> None:
    interrupts, shown = Interrupts(), list[str]()
    before = signal.getsignal(signal.SIGINT)
    with interrupts.installed():
        with pytest.raises(KeyboardInterrupt), interrupts.computing():
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        shown.append("whole")
        with pytest.raises(KeyboardInterrupt), interrupts.computing():
            shown.append("never")
    assert shown == ["whole"]
    assert signal.getsignal(signal.SIGINT) is before


def test_name_of_a_model_as_question_is_told_where_it_belongs(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = Inside(capfdbinary, monkeypatch).run("chat", "nano", home=tmp_path)
    assert done.returncode == 2
    assert "'nano' is the name of a model: write -m nano" in " ".join(done.stderr.decode().split())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a title of forty columns, and no more, !", "a title of forty columns, and no more,…"),
        ("a title of thirty-nine columns, all in.", "a title of thirty-nine columns, all in."),
        ("日本語" * 20, "日本語" * 6 + "日…"),
        ("a " * 30, "a " * 18 + "a…"),
    ],
)
def test_text_that_is_cut_to_the_terminal_ends_with_an_ellipsis(
    monkeypatch: pytest.MonkeyPatch, text: str, shown: str
) -> None:
    monkeypatch.setattr(Screen, "columns", lambda _: 40)
    assert Screen(is_plain=True).fitted(text) == shown
