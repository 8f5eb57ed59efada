"""The chat as a person has it: a real process in a pseudo-terminal, its keys, its screen, its files."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("pseudo-terminals of this kind are Unix's", allow_module_level=True)

from pseudo_terminal import ALT_ENTER, CTRL_C, CTRL_D, ENTER, UP, Terminal, masked, scripted_chat

SCREENS = Path(__file__).parent / "screens"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, toy_checkpoint: Callable[[str], Path]) -> Path:
    """A toy that says of itself that it is tuned for chat."""
    from cg_local.quant import quantize

    root = tmp_path_factory.mktemp("chat")
    source = shutil.copytree(toy_checkpoint("mqa"), root / "source")
    source.joinpath("tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    quantize(source, root / "toy-it", "q4")
    return root / "toy-it"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def running(model: Path, home: Path) -> Iterator[Terminal]:
    terminal = scripted_chat(model, home)
    terminal.wait_for_prompt()
    yield terminal
    terminal.type(CTRL_D)
    assert terminal.wait_for_end() == 0


@pytest.fixture
def chat(running: Terminal) -> Terminal:
    """The running chat with an empty screen and a new conversation."""
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
    chat.type("one", ALT_ENTER, "two", "\x0a", "three\\", ENTER, "lines")
    chat.ask("")
    assert "4 lines" in chat.screen()
