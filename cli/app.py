"""The entry point: `cg-local`, its help and its version, answered without importing anything heavy.

This file owns the list of commands. Everything else is handed to `group`. Invariant: `cg-local --help` imports neither
the parser nor a command, so that it answers at once.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

PROGRAM = "cg-local"
# What a shell sets when it asks for completions; Typer's and Click's convention.
COMPLETE_VARIABLE = "_CG_LOCAL_COMPLETE"

# Exit status after an interrupt, and when nobody reads any more: 128 + the number of the signal, as shells report it.
INTERRUPTED = 130
PIPE_CLOSED = 141

# Python's 700 (or 2,000) new objects between two collections let the imports of a fill pay for hundreds of them, which
# find nothing: modules stay.
_OBJECTS_BETWEEN_COLLECTIONS = 50_000

# Each command is the function of the same name in the module of the same name.
COMMANDS = {
    "chat": "Talk about code, or answer one question.",
    "fill": "Fill the gap at a cursor in a file.",
    "complete": "Continue a text.",
    "sessions": "List, show, search, export and remove conversations.",
    "config": "Show and change what is set.",
    "cache": "Show and clear what is kept to be quick.",
    "quantize": "Turn published weights into a model folder.",
    "calibrate": "Write down what a model's inputs look like, for quantize.",
    "export": "Write published weights as one GGUF file.",
    "info": "Show a model's size and whether it fits in memory.",
    "eval": "Measure loss and exact match on a file of requests.",
    "parity": "Compare the model in JAX with another path.",
    "bench": "Measure speed beside the limits of this machine.",
    "train": "Train a small model with CodeGemma's recipe.",
}

# What stands behind a command that also does without it; "eval quality" is eval_quality in the module of that name.
SUBCOMMANDS = {"eval quality": "Measure how far quantized models are from their published weights."}

HELP = f"""\
Usage: {PROGRAM} [OPTIONS] COMMAND [ARGS]...

  CodeGemma on your own machine: fills gaps in code and answers questions, without a network.

Commands:
{"".join(f"  {name:<10}{summary}{chr(10)}" for name, summary in COMMANDS.items())}
Options:
  --version             Show the version.
  --debug               Show the traceback of an error; may stand anywhere.
  --install-completion  Install completion for the current shell.
  --show-completion     Show the completion script of the current shell.
  -h, --help            Show this message. Every command has its own --help.

Examples:
  {PROGRAM} chat
  {PROGRAM} fill src/parser.py:42
  {PROGRAM} quantize ~/Downloads/codegemma-2b ~/models/codegemma-2b-q4
  {PROGRAM} fill src/parser.py:42 --model ~/models/codegemma-2b-q4
"""


def program() -> NoReturn:
    """Run `main` as a process of its own, which starts and ends quickly."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *gc.get_threshold()[1:])
    try:
        main()
    except SystemExit as ending:
        if isinstance(ending.code, int):
            _leave(ending.code)
        raise
    sys.exit(0)


def main() -> None:
    """Run the command line; never returns a value, exits with the status of the command."""
    arguments = sys.argv[1:]
    if sys.stderr is None:  # what nobody wants to hear must not keep an answer back
        _open_stderr()
    if sys.stdout is None:  # the parent process closed it
        sys.stderr.write(f"{PROGRAM}: error: standard output is closed; send it to a file or a pipe\n")
        sys.exit(1)
    if COMPLETE_VARIABLE not in os.environ:
        if arguments in (["--help"], ["-h"]):
            _write(HELP)
            return
        if arguments == ["--version"]:
            from importlib.metadata import version

            _write(f"{PROGRAM} {version('cg-local')}\n")
            return
        if not arguments:
            sys.stderr.write(HELP)
            sys.exit(2)
    try:
        from cg_local.cli.group import run
        from cg_local.cli.interrupt import handle_interrupts

        handle_interrupts()
        run(arguments)
    except KeyboardInterrupt:  # before a command runs: the imports take a while
        sys.exit(INTERRUPTED)


def _leave(status: int) -> NoReturn:
    """End the process after all that a normal end does for others: exit handlers, buffers, waiting for threads.

    What is left out is taking apart every module and every piece of compiled code: a tenth of a second to several in
    which the answer is already there and the shell waits.
    """
    import atexit
    import threading

    is_alone = all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate())
    run_exit_handlers = getattr(atexit, "_run_exitfuncs", None)
    if not is_alone or run_exit_handlers is None or "numba" not in sys.modules:
        sys.exit(status)
    run_exit_handlers()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):  # the interpreter has its own words for a stream that takes nothing
        sys.exit(status)
    os._exit(status)


def _open_stderr() -> None:
    """Send stderr nowhere, after the parent process closed it; also what libraries write to its descriptor."""
    try:
        os.fstat(2)
    except OSError:  # left free, it would become that of the next file that is opened
        null = os.open(os.devnull, os.O_WRONLY)
        if null != 2:
            os.dup2(null, 2)
            os.close(null)
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for the life of the process


def discard_stdout() -> None:
    """Send what is still buffered for stdout nowhere: it would fail again when the interpreter exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
        sys.exit(PIPE_CLOSED)
    except OSError as error:
        discard_stdout()
        sys.stderr.write(f"{PROGRAM}: error: standard output: {error.strerror}\n")
        sys.exit(1)
