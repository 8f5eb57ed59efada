"""Chats that end, are killed, or run where a terminal can do less: each a process of its own."""

from __future__ import annotations

import re
import sqlite3
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("pseudo-terminals of this kind are Unix's", allow_module_level=True)

from pseudo_terminal import CTRL_C, CTRL_D, ENTER, SCRIPTED_CHAT, UP, Terminal, scripted_chat
from scripted_chat import HOSTILE


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def test_answers_go_to_a_file_as_they_are_while_the_terminal_edits(chat_folder: Path, home: Path) -> None:
    command = f"exec {sys.executable} {SCRIPTED_CHAT} chat --no-save --model {chat_folder} > answers.txt"
    terminal = Terminal(["/bin/sh", "-c", command], home)
    terminal.wait_for_prompt()
    terminal.ask("hostile")
    home.joinpath("mine.txt").write_text("mine\n")
    terminal.type("/write mine.txt", ENTER)
    terminal.wait_for("Overwrite it\\? \\[y/N\\]")
    number = terminal.num_prompts + 1
    terminal.type("n", ENTER)
    terminal.wait_for_prompt(number)
    terminal.type(CTRL_D)
    assert terminal.wait_for_end() == 0
    assert home.joinpath("mine.txt").read_text() == "mine\n"
    assert HOSTILE.encode() in home.joinpath("answers.txt").read_bytes()
    assert b"Overwrite" not in home.joinpath("answers.txt").read_bytes()
    assert "red" not in "\n".join(terminal.screen())


def test_killed_chat_is_resumed_with_all_that_was_written(chat_folder: Path, home: Path) -> None:
    first = scripted_chat(chat_folder, home)
    first.wait_for_prompt()
    first.ask("say before the crash")
    first.type("count", ENTER)
    first.wait_for("1 2 3 4 5 6 7 8")
    shown = max(int(word) for line in first.screen() for word in line.split() if word.isdecimal())
    first.kill()

    second = scripted_chat(chat_folder, home, "--continue")
    second.wait_for_prompt()
    text = "\n".join(second.screen())
    assert f" {shown - 2} " in text  # of the newest number and the one before, a digit may not have been saved
    assert "(cut)" in text
    second.ask("turns")
    assert "4 turns before" in second.screen()
    second.type("/bye", ENTER)
    assert second.wait_for_end() == 0


def test_questions_of_a_chat_that_is_not_saved_stay_in_memory(chat_folder: Path, home: Path) -> None:
    terminal = scripted_chat(chat_folder, home, "--no-save")
    terminal.wait_for_prompt()
    terminal.ask("say for nobody else")
    terminal.type(UP)
    terminal.wait_for("^>>> say for nobody else\n\n")
    terminal.type(CTRL_C, CTRL_D)
    assert terminal.wait_for_end() == 0
    kept = [path for path in home.rglob("*") if path.is_file() and b"for nobody else" in path.read_bytes()]
    assert kept == []


def test_no_command_gives_up_the_lock_on_the_saved_conversations(chat_folder: Path, home: Path) -> None:
    terminal = scripted_chat(chat_folder, home)
    terminal.wait_for_prompt()
    terminal.ask("say one")
    for line in (
        "/list",
        "/load last",
        "/save named",
        "/show info",
        "/regen",
        "/undo",
        "/stats",
        "/clear",
        "/load named",
    ):
        terminal.ask(line)
        connection = sqlite3.connect(home / "data" / "sessions" / "sessions.db", timeout=0)
        try:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                connection.execute("PRAGMA journal_mode = DELETE")
        finally:
            connection.close()
    terminal.type("/bye", ENTER)
    assert terminal.wait_for_end() == 0


def test_plain_and_dumb_terminals_get_no_escape_sequences(chat_folder: Path, home: Path) -> None:
    terminal = scripted_chat(chat_folder, home, "--no-save", variables={"TERM": "dumb"})
    terminal.wait_for(">>> $|>>>$")
    terminal.type('"""markdown', ENTER, '"""', ENTER)
    terminal.wait_for("> 数字を足す。")
    terminal.type("/exit", ENTER)
    assert terminal.wait_for_end() == 0
    assert b"\x1b" not in terminal.output
    assert b"`add(1, 2)` is **3**" in terminal.output


def test_no_color_keeps_the_form_and_sets_no_colour(chat_folder: Path, home: Path) -> None:
    terminal = scripted_chat(chat_folder, home, "--no-save", variables={"NO_COLOR": "1"})
    terminal.wait_for_prompt()
    terminal.ask("markdown")
    terminal.type(CTRL_D)
    assert terminal.wait_for_end() == 0
    assert any(line.startswith("── python [1] ") for line in terminal.screen())
    assert re.search(rb"\x1b\[(?:[0-9;]*;)?(?:3[0-7]|9[0-7]|38|48)[;m]", terminal.output) is None
