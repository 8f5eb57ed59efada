"""What makes the command line start and end quickly, and that it changes nothing but that."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from inspect import isfunction
from typing import Any

import pytest
import typer
from typer.main import get_command

from cg_local.cli.app import COMMANDS
from cg_local.cli.coercion import QuickParameters
from cg_local.cli.group import LazyGroup

TEXTS = (
    *("0", "1", "-3", "007", " 5", "+5", "1_000", "16", "99999999999999999999", "-0"),
    *("0.5", "1.0", "-0.0", ".5", "5.", "1e3", "nan", "inf", "0.12345678901234567890"),
    *("q4", "Q4", "int8", "line", "spm", "true", "", "abc", "\u0663"),
)


def outcome(param: Any, context: Any, value: object) -> tuple[object, ...]:
    """The value and its type, or the message."""
    try:
        found = param.process_value(context, value)
    except Exception as error:
        return type(error).__name__, getattr(error, "message", str(error))
    return type(found), repr(found)


# The others are groups of commands.
FUNCTIONS = [name for name in COMMANDS if isfunction(getattr(import_module(f"cg_local.cli.{name}"), name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_quick_values_are_those_of_typer(name: str) -> None:
    quick = LazyGroup(name="cg-local").get_command(None, name)
    app = typer.Typer(add_completion=False)
    app.command(name)(getattr(import_module(f"cg_local.cli.{name}"), name))
    plain = get_command(app)
    with quick.make_context(name, [], resilient_parsing=True) as context:
        pairs = list(zip(quick.get_params(context), plain.get_params(context), strict=True))
        assert len(pairs) > 2
        for ours, theirs in pairs:
            assert ours.name == theirs.name
            for value in (ours.default, None, *TEXTS):
                if not callable(value):
                    assert outcome(ours, context, value) == outcome(theirs, context, value), (ours.name, value)


def test_parameters_of_another_typer_are_left_alone() -> None:
    class Parameter:
        __slots__ = ()

    class Command:
        def get_params(self, ctx: object) -> list[object]:
            return [parameter]

    class Quick(QuickParameters, Command):
        pass

    parameter = Parameter()
    assert Quick().get_params(None) == [parameter]


def test_a_fill_imports_no_validators() -> None:
    code = (
        "import sys; from cg_local.cli.app import main\n"
        "sys.argv = ['cg-local', 'fill', 'none.py:3', '--max-tokens', '4', '--scheme', 'q4', '--top-p', '0.9']\n"
        "try: main()\n"
        "except SystemExit: print('pydantic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"
    assert "none.py: no such file" in done.stderr


END = """
import atexit, sys, threading, time, types
import cg_local.cli.app as app
sys.modules["numba"] = types.ModuleType("numba")  # what makes leaving slow
atexit.register(lambda: print("handler"))
def main():
    sys.stdout.write("answer ")
    {more}
    sys.exit({status!r})
app.main = main
app.program()
"""


@pytest.mark.parametrize(
    ("status", "more", "returncode", "out", "error"),
    [
        (3, "pass", 3, "answer handler\n", ""),
        (0, "pass", 0, "answer handler\n", ""),
        ("why", "pass", 1, "answer handler\n", "why\n"),
        (None, "pass", 0, "answer handler\n", ""),
        (4, "threading.Timer(0.2, print, ['thread']).start()", 4, "answer thread\nhandler\n", ""),
    ],
)
def test_process_ends_with_its_status_after_buffers_handlers_and_threads(
    status: object, more: str, returncode: int, out: str, error: str
) -> None:
    code = END.format(more=more, status=status)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (returncode, out, error)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_output_that_is_lost_at_the_end_is_no_success() -> None:
    code = END.format(more="pass", status=0)
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode != 0
    assert "No space left on device" in done.stderr
