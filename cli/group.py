"""The group of commands: each one is imported when it is called; errors become one line and an exit status.

This file owns the exit statuses: 0 done, 1 a clear error, 2 wrong usage, 130 interrupted, 141 nobody reads any more
(128 + the number of the signal, as shells report it). Invariant: no traceback reaches a person without `--debug`;
an error is one line.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from cg_local.cli.app import COMMANDS, HELP, INTERRUPTED, PIPE_CLOSED, PROGRAM, SUBCOMMANDS, discard_stdout
from cg_local.cli.coercion import QuickParameters
from cg_local.cli.defaults import configured_defaults
from cg_local.errors import CgLocalError

_STANDARD_INPUT_PLACE = re.compile("-:[0-9]")
# The class of all errors of usage, which is Click's or, in newer versions, Typer's own; both export the subclass.
_UsageError: Any = typer.BadParameter.__base__


class QuickCommand(QuickParameters, TyperCommand):
    """A command whose plain values cost no validators."""


class LazyGroup(QuickParameters, TyperGroup):
    """Knows the commands by name and imports a command's module when that command is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return a command; None where there is none of that name."""
        summary = (COMMANDS | SUBCOMMANDS).get(cmd_name)
        if summary is None:
            return None
        # "eval quality" is the function eval_quality in the module of that name.
        name = cmd_name.replace(" ", "_")
        function = getattr(import_module(f"cg_local.cli.{name}"), name)
        settings: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
        if isinstance(function, typer.Typer):
            function.info.context_settings, function.info.short_help = settings, summary
            return typer.main.get_command(function)
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        settings["default_map"] = configured_defaults(cmd_name)
        app.command(cmd_name, cls=QuickCommand, context_settings=settings, short_help=summary)(function)
        return typer.main.get_command(app)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first words name: two of them for SUBCOMMANDS, else one.

        A file that is called like a second word is reached by a path: `cg-local eval ./quality`.
        """
        both = " ".join(args[:2])
        if both in SUBCOMMANDS:
            return both, self.get_command(ctx, both), args[2:]
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of `app`."""
        formatter.write(HELP)

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        """Parse what stands before the command; an error becomes one line."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except _UsageError as error:
            _refuse(error)

    def invoke(self, ctx: Any) -> Any:
        """Parse and run a command; an error of usage becomes one line, an interrupt and a closed pipe exit statuses."""
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            _refuse(error)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            discard_stdout()
            raise typer.Exit(PIPE_CLOSED) from None


def run(arguments: list[str]) -> NoReturn:
    """Parse and run; exit with the status.

    Args:
        arguments: without the program's name. `--debug` may stand anywhere before `--`.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options, rest = arguments[:end], arguments[end + 1 :]
    is_debug = "--debug" in options
    # A parser takes "-:7" for an option; behind "--" it is what it is, a place in standard input.
    places = [each for each in options if _STANDARD_INPUT_PLACE.match(each)]
    options = [each for each in options if each != "--debug" and each not in places]
    arguments = [*options, "--", *places, *rest] if places or rest else options
    try:
        _command().main(args=arguments, prog_name=PROGRAM)
    except Exception as error:
        if is_debug:
            raise
        sys.stderr.write(f"{PROGRAM}: error: {_one_line(error)}\n")
    sys.exit(1)


def _command() -> Any:
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})(_root)
    return typer.main.get_command(app)


def _refuse(error: Any) -> NoReturn:
    """Tell what is wrong with the command line, and where its help is.

    Raises:
        Exit: with status 2.
        Exception: the error itself, where what it shows is a help.
    """
    if type(error).show is not _UsageError.show:
        raise error
    from cg_local.cli.options import refuse_usage

    # Where a parameter's validator is pydantic's, its words come first.
    error.message = error.message.removeprefix("Value error, ")
    message = error.format_message()
    joint = " See" if message.endswith((".", "?", "!")) else "; see"
    command = error.ctx.command_path if error.ctx is not None else PROGRAM
    refuse_usage(f"{message}{joint} `{command} --help`")


def _root() -> None:
    """What the commands have in common: nothing that a flag of the group would set."""


def _one_line(error: Exception) -> str:
    if isinstance(error, CgLocalError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    elif isinstance(error, MemoryError):
        text = "the machine has not enough memory left for this"
    else:
        text = f"internal error ({type(error).__name__}: {error}); run again with --debug and report it"
    return " ".join(text.split())
