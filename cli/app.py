"""The entry point: `cg-local`, its help and its version, answered without importing anything heavy.

This file owns the list of commands. Everything else is handed to `group`. Invariant: `cg-local --help` imports neither
the parser nor a command, so that it answers at once.
"""

from __future__ import annotations

import os
import sys

PROGRAM = "cg-local"
# What a shell sets when it asks for completions; Typer's and Click's convention.
COMPLETE_VARIABLE = "_CG_LOCAL_COMPLETE"

# Exit status after an interrupt, and when nobody reads any more: 128 + the number of the signal, as shells report it.
INTERRUPTED = 130
PIPE_CLOSED = 141

# Each command is the function of the same name in the module of the same name.
COMMANDS = {
    "fill": "Fill the gap at a cursor in a file.",
    "complete": "Continue a text.",
    "quantize": "Turn published weights into a model folder.",
    "info": "Show a model's size and whether it fits in memory.",
    "bench": "Measure speed beside the limits of this machine.",
    "train": "Train a small model with CodeGemma's recipe.",
}

HELP = f"""\
Usage: {PROGRAM} [OPTIONS] COMMAND [ARGS]...

  CodeGemma on your own machine: fills gaps in code, without a network.

Commands:
{"".join(f"  {name:<10}{summary}{chr(10)}" for name, summary in COMMANDS.items())}
Options:
  --version             Show the version.
  --debug               Show the traceback of an error; may stand anywhere.
  --install-completion  Install completion for the current shell.
  --show-completion     Show the completion script of the current shell.
  -h, --help            Show this message. Every command has its own --help.

Examples:
  {PROGRAM} fill src/parser.py:42
  {PROGRAM} quantize ~/Downloads/codegemma-2b ~/models/codegemma-2b-q4
  {PROGRAM} fill src/parser.py:42 --model ~/models/codegemma-2b-q4
"""


def main() -> None:
    """Run the command line; never returns a value, exits with the status of the command."""
    arguments = sys.argv[1:]
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
