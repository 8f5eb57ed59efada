"""The chat as a person has it: a real process in a pseudo-terminal, its keys, its screen, its files."""

from __future__ import annotations

import base64
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("pseudo-terminals of this kind are Unix's", allow_module_level=True)

from pseudo_terminal import ALT_ENTER, CTRL_C, CTRL_D, ENTER, UP, Terminal, masked, scripted_chat

from cg_local.quant import quantize

SCREENS = Path(__file__).parent / "screens"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def running(chat_folder: Path, home: Path) -> Iterator[Terminal]:
    editor = home / "editor.sh"
    editor.write_text('#!/bin/sh\nprintf %s "$(cat "$1")" > draft.txt\ncat edited.txt > "$1"\n')
    editor.chmod(0o700)
    terminal = scripted_chat(chat_folder, home, variables={"VISUAL": str(editor)})
    terminal.wait_for_prompt()
    yield terminal
    terminal.type("x", CTRL_C, CTRL_D)
    assert terminal.wait_for_end() == 0


@pytest.fixture
def chat(running: Terminal) -> Terminal:
    """The running chat with an empty screen and a new conversation."""
    running.type("x", CTRL_C)  # whatever an earlier test left in the line
    running.ask("/clear")
    running.type("\x0c")
    running.wait(lambda: running.screen()[:1] == [">>>"], "an empty screen")
    return running


def assert_screen(terminal: Terminal, name: str, request: pytest.FixtureRequest) -> None:
    """Compare the screen with the recorded one; --record-screens writes it."""
    path, found = SCREENS / f"{name}.txt", masked(terminal.screen())
    if request.config.getoption("--record-screens"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


def test_answer_is_rendered_as_it_comes(chat: Terminal, request: pytest.FixtureRequest) -> None:
    chat.ask("markdown")
    assert_screen(chat, "markdown", request)


def test_lines_are_broken_by_alt_enter_and_ctrl_j_and_sent_together(chat: Terminal) -> None:
    chat.type("one", ALT_ENTER, "two", "\x0a", "three\\", ENTER)
    chat.ask("lines")
    assert chat.screen()[:5] == [">>> one", "two", "three", "lines", "4 lines"]


def test_marks_of_several_lines_are_taken_off(chat: Terminal) -> None:
    chat.type('"""first', ENTER, "say no", ENTER)
    chat.ask('lines"""')
    assert "3 lines" in chat.screen()
    chat.type("!multi", ENTER, "a line", ENTER, "first", ENTER)
    chat.ask("!end")
    assert "the first line is 'a line'" in chat.screen()


def test_paste_of_500_lines_is_one_question_that_can_be_edited(chat: Terminal) -> None:
    # Short lines, so that the toy's context of 2,048 tokens holds them.
    chat.paste("\r".join(["x"] * 499) + "\rlin")
    chat.wait_for("lin$")
    chat.ask("es")
    assert "500 lines" in chat.screen()


def test_interrupt_while_the_prompt_is_read_gives_the_question_back(chat: Terminal) -> None:
    chat.type("slow", ENTER)
    chat.wait_for("reading [0-9]+ tokens")
    number = chat.num_prompts + 1
    chat.interrupt()
    chat.wait_for_prompt(number)
    assert chat.screen()[:3] == [
        ">>> slow",
        "Stopped before the answer began; the question is back in the editor.",
        ">>> slow",
    ]
    chat.type(CTRL_C)  # empties the line
    chat.ask("turns")
    assert "0 turns before" in chat.screen()


def test_interrupt_keeps_what_was_written_marked_as_cut(chat: Terminal) -> None:
    chat.type("count", ENTER)
    chat.wait_for("1 2 3 4 5")
    number = chat.num_prompts + 1
    chat.interrupt()
    chat.wait_for_prompt(number)
    assert any(line.startswith("(stopped; what was written is kept, marked as cut.") for line in chat.screen())
    chat.ask("turns")
    assert "2 turns before" in chat.screen()
    chat.ask("/show messages")
    assert "model: (cut)" in chat.screen()


def test_what_is_typed_while_an_answer_comes_waits_for_the_next_prompt(chat: Terminal) -> None:
    chat.type("slow", ENTER)
    chat.wait_for("reading")
    number = chat.num_prompts + 1
    chat.type("unseen")
    chat.read(0.3)
    assert b"unseen" not in chat.output
    chat.interrupt()
    chat.wait_for_prompt(number)
    chat.wait_for(">>> slowunseen")
    chat.type(CTRL_C)


def test_line_that_is_sent_while_an_answer_comes_is_asked_next(chat: Terminal) -> None:
    chat.type("count", ENTER)
    chat.wait_for("1 2 3 4 5")
    number = chat.num_prompts + 2
    chat.type("say ahead", ENTER)
    chat.interrupt()
    chat.wait_for_prompt(number)
    assert "ahead" in chat.screen()


def test_interrupt_at_the_prompt_empties_the_line_and_then_tells_how_to_leave(chat: Terminal) -> None:
    chat.type("not sent")
    chat.wait_for("not sent")
    chat.type(CTRL_C)
    chat.wait(lambda: chat.screen()[0] == ">>>", "an empty line")
    number = chat.num_prompts + 1
    chat.type(CTRL_C)
    chat.wait_for_prompt(number)
    assert chat.screen()[1] == "Use Ctrl-D or /bye to leave."


def test_history_comes_back_by_arrows_and_search(chat: Terminal) -> None:
    chat.ask("say an older thing")
    chat.ask("say something else")
    chat.type(UP, UP)
    chat.wait_for("^>>> say an older thing$")
    chat.type(CTRL_C)
    chat.wait_for("^>>>$")
    chat.type("\x12older")
    chat.wait_for("^>>> say an older thing\n\n")
    number = chat.num_prompts + 1
    chat.type(ENTER)  # ends the search
    chat.type(ENTER)
    chat.wait_for_prompt(number)
    assert chat.screen().count("an older thing") == 2


def test_editor_of_the_user_writes_the_question(chat: Terminal, home: Path) -> None:
    home.joinpath("edited.txt").write_text("say written in an editor\n")
    chat.type("draft")
    chat.type("\x07")
    chat.wait_for(">>> say written in an editor")
    chat.ask("")
    assert "written in an editor" in chat.screen()
    assert home.joinpath("draft.txt").read_text() == "draft"
    chat.ask("/editor another draft")
    chat.wait_for(">>> say written in an editor")
    assert home.joinpath("draft.txt").read_text() == "another draft"
    chat.type(CTRL_C)


def test_tab_completes_commands_paths_and_settings(chat: Terminal, home: Path) -> None:
    home.joinpath("folder").mkdir(exist_ok=True)
    home.joinpath("folder", "unusual_name.txt").write_text("text\n")
    chat.type("/reg")
    chat.wait_for("answer again")
    chat.type("\t")
    chat.wait_for(">>> /regen")
    chat.type(CTRL_C, "/read folder/unu")
    chat.wait_for(">>> /read folder/unu$")
    chat.type("\t")
    chat.wait_for(">>> /read folder/unusual_name.txt")
    chat.type(CTRL_C, "/set temp")
    chat.wait_for(">>> /set temp$")
    chat.type("\t")
    chat.wait_for(">>> /set temperature")
    chat.type(CTRL_C)


def test_vi_keys_can_be_chosen(chat: Terminal) -> None:
    chat.ask("/set vi on")
    chat.type("say wrong", "\x1b")
    chat.wait_for("say wrong")
    chat.read(0.6)  # a lone Escape is told from a key sequence by time
    chat.ask("bcwright")
    assert "right" in chat.screen()
    chat.ask("/set vi off")


def test_narrow_and_changing_terminals(chat: Terminal, request: pytest.FixtureRequest) -> None:
    chat.resize(40, 40)
    chat.wait_for("toy-it · 0 of 2,048 tokens \\(0 %\\)$")
    try:
        chat.ask("markdown")
        assert max(map(len, chat.screen())) <= 40
        assert_screen(chat, "narrow", request)
        chat.resize(100, 30)
        chat.wait_for("MiB · /help$")
        chat.ask("say wide again")
    finally:
        chat.resize(80, 40)
    chat.ask("say as before")
    assert "as before" in chat.screen()


def test_control_and_invisible_characters_of_a_model_are_shown_not_sent(
    chat: Terminal, request: pytest.FixtureRequest
) -> None:
    start = len(chat.output)
    chat.ask("hostile")
    sent = chat.output[start:].decode("utf-8")
    for forbidden in ("\x1b[31mtext", "\x1b]0;", "\x07", "\u202e", "\u200b", "\x9b"):
        assert forbidden not in sent
    assert_screen(chat, "hostile", request)


def test_commands_on_turns(chat: Terminal, request: pytest.FixtureRequest) -> None:
    chat.ask("/system Be brief.")
    chat.ask("say one")
    chat.ask("first")
    assert "the first line is 'first'" in chat.screen()
    chat.ask("/undo")
    chat.ask("/undo")
    chat.ask("first")
    chat.ask("/regen")
    chat.ask("/edit")
    chat.ask(" edited")
    chat.ask("/system")
    chat.ask("/system none")
    chat.ask("/undo")
    chat.ask("/undo")
    assert_screen(chat, "turns", request)


def test_new_conversation_tells_that_the_system_text_stays(chat: Terminal) -> None:
    chat.ask("/system Be brief.")
    chat.ask("/new")
    assert "The system text stays; /system none removes it." in " ".join(chat.screen())
    chat.ask("/system none")
    chat.ask("/new")
    assert "The system text stays" not in " ".join(chat.screen()[-4:])


def test_edit_that_is_given_up_keeps_the_turn(chat: Terminal) -> None:
    chat.ask("say one")
    for _ in range(2):
        chat.ask("/edit")
        chat.wait_for("^>>> say one$")
        chat.type(CTRL_C)
        chat.wait_for("^>>>$")
    chat.ask("turns")
    assert "2 turns before" in chat.screen()
    chat.ask("/edit")
    chat.ask(" and more")
    chat.ask("/show messages")
    assert [line for line in chat.screen() if line.startswith("turns")] == ["turns and more"]


def test_commands_on_files(chat: Terminal, home: Path, request: pytest.FixtureRequest) -> None:
    home.joinpath("notes.txt").write_text("alpha\nbeta\ngamma\n")
    home.joinpath("data.bin").write_bytes(b"\x00\x01")
    home.joinpath("out.py").write_text("old\n")
    for line in ("/read notes.txt:2-3", "/read missing.txt", "/glob *.bin", "/glob no*where", "/read", "lines"):
        chat.ask(line)
    chat.ask("markdown")
    chat.type("/write out.py", ENTER)
    chat.wait_for("Overwrite it\\? \\[y/N\\]")
    number = chat.num_prompts + 1
    chat.type("n", ENTER)
    chat.wait_for_prompt(number)
    assert home.joinpath("out.py").read_text() == "old\n"
    chat.ask("/write new.py 1")
    chat.ask("/write new2.py 2")
    chat.ask("/copy 1")
    chat.ask("/fill notes.txt:2")
    assert home.joinpath("new.py").read_text().startswith("def add(a, b):\n")
    assert_screen(chat, "files", request)


def test_copy_sends_the_block_to_the_terminals_clipboard(chat: Terminal) -> None:
    chat.ask("say text to copy")
    chat.ask("/copy")
    code = base64.b64encode(b"text to copy")
    assert b"\x1b]52;c;" + code + b"\x07" in chat.output


def test_commands_on_settings(chat: Terminal, request: pytest.FixtureRequest) -> None:
    for line in (
        "/set temperature 0.5",
        "/set parameter top_k 40",
        "/set temperature warm",
        "/set nonsense 1",
        "/set max_tokens 5",
        "say one two three four five six seven eight nine ten",
        "/set max_tokens none",
        "/set temperature 0",
        "/set top_k 0",
        "/set nowordwrap",
        "/set wordwrap",
        "/show template",
        "/tokens",
        "/tokens a b",
        "/show nothing",
        "/nope",
        "/?  stats",
    ):
        chat.ask(line)
    assert_screen(chat, "settings", request)


def test_earlier_turns_come_from_the_cache(chat: Terminal) -> None:
    chat.ask("say " + "many words " * 20)
    chat.ask("say more")
    chat.ask("/stats")
    found = re.search(r"prompt +([0-9]+) tokens: ([0-9]+) from the cache, ([0-9]+) computed", "\n".join(chat.screen()))
    assert found is not None
    total, cached, computed = map(int, found.groups())
    assert total == cached + computed
    assert computed < 64 < cached


def test_full_context_leaves_the_oldest_turns_out_and_says_so(chat: Terminal) -> None:
    for _ in range(6):
        chat.ask("say " + "many many words " * 24)
    assert "The context is full: prompt cut to 1,536 tokens: left out: the oldest" in " ".join(chat.everything())
    chat.ask("turns")
    assert re.search("^[2-8] turns before$", "\n".join(chat.screen()), re.MULTILINE)


def test_question_that_is_too_long_is_given_back(chat: Terminal) -> None:
    chat.paste("word " * 2000)
    number = chat.num_prompts + 1
    chat.type(ENTER)
    chat.wait_for_prompt(number)
    assert any("the last question needs" in line for line in chat.everything())
    chat.type(CTRL_C)


def test_help_fits_the_terminal(chat: Terminal, request: pytest.FixtureRequest) -> None:
    chat.ask("/help")
    chat.ask("/help keys")
    assert_screen(chat, "help", request)


def test_conversations_are_listed_named_and_loaded(chat: Terminal) -> None:
    chat.ask("say something to find again")
    chat.ask("/save my talk")
    chat.ask("/clear")
    chat.ask("/list")
    assert re.search("my talk$", "\n".join(chat.screen()), re.MULTILINE)
    chat.ask("/load my talk")
    chat.ask("turns")
    assert "2 turns before" in chat.screen()
    chat.ask("/load no such talk")
    assert any("no such conversation; /list shows them" in line for line in chat.screen())


def test_pasted_tabs_are_shown_as_space_and_sent_as_tabs(chat: Terminal) -> None:
    chat.paste("a\tb\rfirst")
    chat.wait_for(r"^>>> a {1,4}b\nfirst$")
    chat.ask("")
    assert r"the first line is 'a\tb'" in chat.screen()


def test_base_model_says_that_it_is_none_for_chat_and_what_it_is_for(
    chat: Terminal, chat_folder: Path, home: Path, request: pytest.FixtureRequest
) -> None:
    source = shutil.copytree(chat_folder.parent / "source", home / "base-source")
    source.joinpath("tokenizer_config.json").unlink()
    quantize(source, home / "data" / "models" / "base", "q4")
    chat.ask("/model base")
    chat.ask("say a question")
    assert [line for line in chat.screen() if line][-2] == ">>> say a question"  # back in the editor
    chat.type(CTRL_C)
    chat.ask("/complete some text")
    chat.ask("/set force")
    chat.ask("say answered all the same")
    chat.ask("/set force off")
    chat.ask(f"/model {chat_folder}")
    chat.ask("/model no-such-model")
    assert_screen(chat, "base", request)
