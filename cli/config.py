"""`cg-local config`: what is set, where it comes from, and changing it."""

from __future__ import annotations

import inspect
import json as json_module
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from cg_local.cli import options
from cg_local.cli.render import notice, print_json, write_stdout

if TYPE_CHECKING:
    from cg_local.templates import Template

BUILT_IN = "built-in"

config = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="""Show and change what is set: the defaults of fill, complete and chat.

    From the strongest to the weakest: an option, CG_LOCAL_FILL_TEMPERATURE, CG_LOCAL_TEMPERATURE, the table [fill] of
    config.toml, a key before its tables, the built-in default. CG_LOCAL_CONFIG names another file.

    \b
    Examples:
      cg-local config show
      cg-local config set model ~/models/codegemma-2b-q4
      cg-local config set chat.temperature 0.4
      cg-local config unset chat.temperature
      cg-local config edit
    """,
)

Command = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(metavar="[COMMAND]", help="Only what holds for fill, complete or chat.", show_default=False),
]


@config.command()
def show(command: Command = None, json: options.Json = False) -> None:
    """Show every setting, its value and where it comes from.

    \b
    Examples:
      cg-local config show
      cg-local config show chat --json
    """
    from cg_local.settings import COMMANDS, Settings

    if command is not None and command not in COMMANDS:
        raise typer.BadParameter(f"{command!r} has no settings; name one of {', '.join(COMMANDS)}.")
    settings = Settings()
    shown = {name: _resolved(settings, name) for name in COMMANDS if command in (None, name)}
    if json:
        print_json({"path": str(settings.path), "exists": settings.path.exists(), **shown})
        return
    write_stdout(_text(settings.path, shown))


@config.command()
def path() -> None:
    """Show where config.toml lies, or would lie."""
    from cg_local.model_store import config_path

    write_stdout(f"{config_path()}\n")


@config.command()
def edit() -> None:
    """Open config.toml in the editor that VISUAL or EDITOR names; a new one says what can be set."""
    from cg_local.atomic_file import replace_file
    from cg_local.cli.external_editor import edit_file, editor_command
    from cg_local.model_store import config_path
    from cg_local.settings import Settings

    editor_command()  # before anything is written
    place = config_path()
    if not place.exists():
        replace_file(place, _template().encode())
    edit_file(place)
    Settings()  # says what is wrong with it
    notice(f"{place}: in order")


@config.command("set")
def set_value(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its name, or COMMAND.NAME for one command alone.")],
    value: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[VALUE]", help="Without it, the built-in default holds again.", show_default=False),
    ] = None,
) -> None:
    """Write a setting into config.toml; comments and order stay.

    \b
    Examples:
      cg-local config set temperature 0.2
      cg-local config set chat.model ~/models/codegemma-7b-it-q4
      cg-local config set chat.model
    """
    from cg_local.settings import judged_text

    table, name, judged = judged_text(key, value)
    if name == "model" and judged is not None:
        judged = _found_model(str(judged))
    _change(table, name, judged)


@config.command()
def unset(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its name, or COMMAND.NAME for one command alone.")],
) -> None:
    """Take a setting out of config.toml, so that the built-in default holds again; comments and order stay.

    \b
    Examples:
      cg-local config unset temperature
      cg-local config unset chat.model
    """
    from cg_local.settings import judged_text

    table, name, _ = judged_text(key, None)
    if not _change(table, name, None):
        notice(f"{key}: was not set")


@config.command()
def templates(json: options.Json = False) -> None:
    """List the templates of `cg-local chat -t NAME`, and where yours go.

    A template is a text in NAME.md. {{input}} stands for files, pipe and words; {{fenced}} for the same with the pipe
    in a fence; {{words}}, {{piped}}, {{files}}, {{file}} and {{language}} for a part of it; any other {{NAME}} for what
    --var NAME=VALUE gives; {{NAME|text}} has a default. Between two lines +++ at its beginning may stand, in TOML,
    description, system (the system text) and extract (true: only the first code block of the answer).

    \b
    Examples:
      cg-local config templates
      cg-local chat -t review -f src/parser.py
    """
    from cg_local.cli.terminal_text import visible_line
    from cg_local.templates import all_templates, templates_folder

    found = all_templates()
    if json:
        names = ("name", "description", "system", "extract", "text")
        documents = [{**{name: getattr(each, name) for name in names}, "path": _path_of(each)} for each in found]
        print_json({"path": str(templates_folder()), "templates": documents})
        return
    width = max(len(each.name) for each in found)
    for each in found:
        mine = " (yours)" if each.path is not None else ""
        write_stdout(f"{visible_line(each.name):<{width}}  {visible_line(each.description)}{mine}\n")
    write_stdout(f"\nyours: {templates_folder()}\n")


def _change(table: str, name: str, value: object) -> bool:
    """Write a value into config.toml, or take it out (None).

    Returns:
        Whether there was something to do.
    """
    import tomlkit

    from cg_local.atomic_file import replace_file
    from cg_local.settings import Settings

    place = Settings().path  # a file with a fault must be mended by hand
    document: Any = tomlkit.parse(place.read_text(encoding="utf-8-sig") if place.exists() else "")
    if value is None:
        holder = document.get(table, {}) if table else document
        if name not in holder:
            return False
        del holder[name]
    elif table:
        document.setdefault(table, tomlkit.table())[name] = value
    else:
        document[name] = value
    replace_file(place, tomlkit.dumps(document).encode())
    Settings()
    return True


def _found_model(name: str) -> str:
    """Return a model as config.toml names it: a path that counts from here becomes one that counts from anywhere.

    Raises:
        ModelFolderError: there is no such model.
    """
    from cg_local.model_store import find_model

    found = find_model(name)
    is_here = not found.path.is_absolute()
    return str(found.path.absolute()) if is_here else name


def _path_of(template: Template) -> str | None:
    return None if template.path is None else str(template.path)


def _resolved(settings: Any, command: str) -> dict[str, dict[str, Any]]:
    """Return value and origin of every setting of a command."""
    from cg_local.settings import SETTINGS

    found = settings.of_command(command)
    built_in = _built_in(command)
    rows = {}
    for setting in SETTINGS.values():
        if command in setting.commands:
            value = found.get(setting.name)
            is_set = value is not None
            rows[setting.name] = {
                "value": value.value if is_set else built_in.get(setting.name),
                "origin": value.origin if is_set else BUILT_IN,
            }
    return rows


def _built_in(command: str) -> dict[str, Any]:
    """Return the defaults in the command's signature, which are the only place where they stand."""
    function = getattr(import_module(f"cg_local.cli.{command}"), command)
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


def _text(place: Path, shown: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = [f"{place}{'' if place.exists() else ' (not there yet)'}"]
    for command, rows in shown.items():
        lines += ["", f"[{command}]"]
        cells = [
            (name, "" if row["value"] is None else _toml(row["value"]), row["origin"]) for name, row in rows.items()
        ]
        widths = [max(len(cell[column]) for cell in cells) for column in (0, 1)]
        lines += [f"{name:<{widths[0]}} = {value:<{widths[1]}}  # {origin}" for name, value, origin in cells]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    # JSON's spelling of texts, numbers and truth is TOML's too.
    return json_module.dumps(value, ensure_ascii=False)


def _template() -> str:
    """Return a config.toml in which everything is commented out."""
    from cg_local.settings import COMMANDS, SETTINGS

    lines = [
        "# Defaults of cg-local; an option of the command line wins, a CG_LOCAL_* variable too.",
        "# Keys before the first table hold for all commands, those in a table for that command.",
        "",
    ]
    for command in ("", *COMMANDS):
        given = [s for s in SETTINGS.values() if command in s.commands or not command]
        names = [s for s in given if (s.commands == COMMANDS) == (not command)]
        lines += [f"[{command}]"] if command else []
        lines += [f"# {setting.name} =    # {setting.summary}; {setting.expected}" for setting in names]
        lines.append("")
    return os.linesep.join(lines)
