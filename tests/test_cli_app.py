"""Help, version, usage errors, exit statuses: what the command line is before it does anything."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import command_line
import pytest
from command_line import Inside

from cg_local.cli import render
from cg_local.cli.app import COMMANDS, HELP

EXPECTED_HELP = """\
Usage: cg-local [OPTIONS] COMMAND [ARGS]...

  CodeGemma on your own machine: fills gaps in code and answers questions, without a network.

Commands:
  chat      Talk about code, or answer one question.
  fill      Fill the gap at a cursor in a file.
  complete  Continue a text.
  sessions  List, show, search, export and remove conversations.
  config    Show and change what is set.
  cache     Show and clear what is kept to be quick.
  quantize  Turn published weights into a model folder.
  calibrate Write down what a model's inputs look like, for quantize.
  export    Write published weights as one GGUF file.
  info      Show a model's size and whether it fits in memory.
  eval      Measure loss and exact match on a file of requests.
  parity    Compare the model in JAX with another path.
  bench     Measure speed beside the limits of this machine.
  train     Train a small model with CodeGemma's recipe.

Options:
  --version             Show the version.
  --debug               Show the traceback of an error; may stand anywhere.
  --install-completion  Install completion for the current shell.
  --show-completion     Show the completion script of the current shell.
  -h, --help            Show this message. Every command has its own --help.

Examples:
  cg-local chat
  cg-local fill src/parser.py:42
  cg-local quantize ~/Downloads/codegemma-2b ~/models/codegemma-2b-q4
  cg-local fill src/parser.py:42 --model ~/models/codegemma-2b-q4
"""


@pytest.fixture
def inside(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(capfdbinary, monkeypatch)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--debug", "--help"]])
def test_help_lists_commands_and_examples(inside: Inside, home: Path, arguments: list[str]) -> None:
    done = inside.run(*arguments, home=home)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, EXPECTED_HELP, b"")


def test_no_arguments_show_the_help_as_wrong_usage(inside: Inside, home: Path) -> None:
    done = inside.run(home=home)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", HELP)


def test_version_is_the_packages(inside: Inside, home: Path) -> None:
    done = inside.run("--version", home=home)
    assert (done.returncode, done.stdout.decode()) == (0, f"cg-local {version('cg-local')}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_in_its_help(inside: Inside, home: Path, command: str) -> None:
    done = inside.run(command, "--help", home=home)
    text = done.stdout.decode()
    assert done.returncode == 0
    assert text.startswith(f"Usage: cg-local {command} ")
    assert "\n  Examples:\n" in text
    assert f"\n    cg-local {command}" in text or f"| cg-local {command}" in text
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'."),
        (["fill"], "name a place, or - to read places from standard input."),
        (["fill", "a.py"], "'a.py' names no line: write FILE:LINE, FILE:LINE:COL or FILE:FIRST-LAST"),
        (["fill", "a.py:9-3"], "ends before it begins: write a.py:3-9"),
        (["fill", "a.py:1", "--mode", "word"], "Invalid value for '--mode'"),
        (["fill", "a.py:1", "--max-tokens", "0"], "Invalid value for '--max-tokens'"),
        (["fill", "a.py:1", "--top-p", "2"], "Invalid value for '--top-p'"),
        (["fill", "a.py:1", "--seed", "x"], "Invalid value for '--seed'"),
        (["fill", "a.py:1", "--seed", str(2**64)], "Invalid value for '--seed'"),
        (["fill", "a.py:1", "--top-p", "0"], "Invalid value for '--top-p': 0.0 is not above 0."),
        (["fill", "a.py:1", "--top-p", "nan"], "Invalid value for '--top-p'"),
        (["fill", "a.py:1", "--min-p", "nan"], "Invalid value for '--min-p'"),
        (["fill", "a.py:1", "--temperature", "inf"], "Invalid value for '--temperature'"),
        (["fill", "a.py:1", "--temperature", "nan"], "Invalid value for '--temperature'"),
        (["complete", "--repetition-penalty", "0"], "Invalid value for '--repetition-penalty': 0.0 is not above 0."),
        (["complete", "--repetition-penalty", "inf"], "Invalid value for '--repetition-penalty'"),
        (["complete", "--threads", "99999"], "Invalid value for '--threads': 99999 is more than the"),
        (["quantize", "a"], "Missing argument 'DEST'."),
        (["fill", "-:x"], "No such option: -:"),
        (["complete", "a.py", "--", "b.py"], "unexpected extra argument"),
        (["info", "--nonsense"], "No such option: --nonsense"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(
    inside: Inside, home: Path, arguments: list[str], message: str
) -> None:
    done = inside.run(*arguments, home=home)
    assert (done.returncode, done.stdout) == (2, b"")
    told = done.stderr.decode()
    assert (told.startswith("cg-local: error: "), told.count("\n")) == (True, 1)
    assert message in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fil"], "No such command 'fil'. See `cg-local --help`"),
        (["--nonsense"], "No such option: --nonsense; see `cg-local --help`"),
        (["config", "sho"], "No such command 'sho'. Did you mean 'show'? See `cg-local config --help`"),
        (["config", "set"], "Missing argument 'KEY'. See `cg-local config set --help`"),
        (["eval", "quality"], "Missing argument 'REFERENCE'. See `cg-local eval quality --help`"),
        (
            ["fill", "a.py:1", "--mode", "word"],
            "Invalid value for '--mode': 'word' is not one of 'auto', 'line', 'block'. See `cg-local fill --help`",
        ),
        (
            ["fill"],
            "Invalid value for FILE:LINE[:COL]: name a place, or - to read places from standard input. See `",
        ),
        (
            ["fill", "a.py", "1"],
            "Invalid value for FILE:LINE[:COL]: a colon is missing: write a.py:1; see `cg-local fill",
        ),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_help(
    inside: Inside, home: Path, arguments: list[str], told: str
) -> None:
    home.joinpath("a.py").write_text("x\n")
    done = inside.run(*arguments, home=home)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith(f"cg-local: error: {told}")
    assert done.stderr.endswith(b" --help`\n")
    assert done.stderr.count(b"\n") == 1


def test_group_without_a_command_shows_its_help(inside: Inside, home: Path) -> None:
    done = inside.run("config", home=home)
    assert (done.returncode, (done.stdout + done.stderr).startswith(b"Usage: cg-local config ")) == (2, True)


def test_error_is_one_line_and_debug_shows_the_traceback(home: Path) -> None:
    done = command_line.run("fill", "none.py:3", home=home)
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.decode() == f"cg-local: error: none.py: no such file; check the path, seen from {home}\n"
    for arguments in (["--debug", "fill", "none.py:3"], ["fill", "none.py:3", "--debug"]):
        done = command_line.run(*arguments, home=home)
        assert done.returncode == 1
        assert b"Traceback" in done.stderr


def test_unexpected_error_is_one_line_that_names_debug(home: Path) -> None:
    code = (
        "import sys; import cg_local.cli.fill_places as places; from cg_local.cli.app import main\n"
        "def fail(path): raise ZeroDivisionError('one\\ntwo')\n"
        "places.read_text = fail; sys.argv = ['cg-local', 'fill', 'a.py:1']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    expected = "internal error (ZeroDivisionError: one two); run again with --debug and report it\n"
    assert done.stderr == f"cg-local: error: {expected}"


def test_interrupt_before_an_answer_exits_with_130(home: Path) -> None:
    code = (
        "import sys; import cg_local.cli.fill_places as places; from cg_local.cli.app import main\n"
        "def fail(path): raise KeyboardInterrupt\n"
        "places.read_text = fail; sys.argv = ['cg-local', 'fill', 'a.py:1']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_interrupt_before_a_command_runs_exits_with_130() -> None:
    """The parser takes a tenth of a second to import, long enough for an early Ctrl-C."""
    code = (
        "import sys, types; from cg_local.cli.app import main; group = types.ModuleType('group')\n"
        "def fail(arguments): raise KeyboardInterrupt\n"
        "group.run = fail; sys.modules['cg_local.cli.group'] = group; sys.argv = ['cg-local', 'info']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_long_wait_says_what_is_waited_for_and_leaves_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only compiling makes a wait long: a large model reads a long prompt for half a minute."""

    class SlowTerminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            time.sleep(0.05 if "compiles" in text else 0)
            return super().write(text)

    terminal = SlowTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(render, "_LONG_WAIT_SECONDS", 0.01)
    with render.Status().waiting("reading the prompt ..."):
        time.sleep(0.3)
    shown = terminal.getvalue().split("\r\x1b[K")
    expected = "reading the prompt ... (a first run compiles the kernels: about a minute)"
    assert shown == ["", "reading the prompt ...", expected, ""]


@pytest.mark.parametrize(("is_terminal", "expected"), [(False, ""), (True, "cg-local: loading ... (because)\n")])
def test_long_wait_is_explained_to_a_person_alone(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, expected: str
) -> None:
    """A terminal that cannot take a line back gets one that stays; a pipe or a file gets none."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(render, "_LONG_SILENCE_SECONDS", 0.01)
    with render.Status().waiting("loading ...", "(because)"):
        time.sleep(0.2)
    assert stream.getvalue() == expected


@pytest.mark.skipif(os.name == "nt", reason="pipes break in another way there")
def test_closed_pipe_is_quiet(home: Path) -> None:
    code = (
        "import sys, time; import cg_local.cli.info as info; from cg_local.cli.app import main\n"
        "def write(*arguments):\n"
        "    from cg_local.cli.render import write_stdout\n"
        "    while True: write_stdout('x' * 9999)\n"
        "info.write_stdout = write; info._model_folder = info._checkpoint = lambda *arguments: {}\n"
        "info._text = lambda document: ''; sys.argv = ['cg-local', 'info']; main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 141


def test_completion_script_is_shown_for_the_shell_that_asks(home: Path) -> None:
    environment = {**command_line.environment(home), "_CG_LOCAL_COMPLETE": "source_bash"}
    done = subprocess.run(command_line.COMMAND, capture_output=True, env=environment)
    assert b"_CG_LOCAL_COMPLETE=complete_bash" in done.stdout


def test_help_answers_at_once(home: Path) -> None:
    """The bound is on processor time, which other programs on the machine do not stretch: twice what was measured."""
    started = time.process_time()
    before = os.times()
    command_line.run("--help", home=home)
    after = os.times()
    assert time.process_time() - started < 1
    assert after.children_user - before.children_user < 0.2


@pytest.mark.parametrize("arguments", ["--help", "--version", "info --help", "info"])
@pytest.mark.parametrize(("target", "fault"), [("> /dev/full", "No space left on device"), (">&-", "is closed")])
def test_stdout_that_takes_nothing_is_one_clear_line(home: Path, arguments: str, target: str, fault: str) -> None:
    if sys.platform != "linux":
        pytest.skip("needs /dev/full")
    command = f"{sys.executable} -m cg_local.cli {arguments} {target}"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, env=command_line.environment(home), cwd=home, timeout=240
    )
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1), done.stderr
    assert fault in done.stderr.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="needs sh")
@pytest.mark.parametrize(("place", "status"), [("-:1", 0), ("words", 2)])
def test_closed_standard_error_changes_no_answer(
    home: Path, toy_folder: Callable[[str, str], Path], place: str, status: int
) -> None:
    command = [*command_line.COMMAND, "fill", place, "--json", "--model", str(toy_folder("mqa", "q4"))]
    done = subprocess.run(
        ["sh", "-c", '"$@" 2>&-', "sh", *command],
        input=b"x = 1\n",
        stdout=subprocess.PIPE,
        cwd=home,
        env=command_line.environment(home),
        timeout=240,
    )
    assert (done.returncode, "candidates" in json.loads(done.stdout)) == (status, status == 0)
