"""`cg-local sessions`: the saved conversations."""

from __future__ import annotations

import sys
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from cg_local.cli import options
from cg_local.cli.render import notice, print_json, write_stdout

if TYPE_CHECKING:
    from cg_local.sessions import SavedSession, SessionStore, SessionSummary

_DAY_SECONDS = 86_400

sessions = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="""List, show, search, export and remove saved conversations.

    Every conversation is saved as it goes, unless `cg-local chat --no-save` keeps it out. An ID may be cut to its first
    digits while they are unambiguous; `last` is the conversation written last, and a whole title will do too.

    \b
    Examples:
      cg-local sessions list
      cg-local sessions search "list comprehension"
      cg-local sessions export last > answer.md
      cg-local chat --session 3fa2
    """,
)


class Format(str, Enum):
    """What a conversation is exported as."""

    markdown = "markdown"
    json = "json"


SessionId = Annotated[str, typer.Argument(metavar="ID", help="First digits of an id, a title, or last.")]


@sessions.command("list")
def list_sessions(
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="So many at most; 0: all.")] = 20,
    json: options.Json = False,
) -> None:
    """List the conversations, the one written last first.

    \b
    Examples:
      cg-local sessions list
      cg-local sessions list -n 0 --json
    """
    from cg_local.cli.session_text import summary_document

    found = _summaries(limit or None)
    if json:
        print_json({"sessions": [summary_document(each) for each in found]})
        return
    write_stdout("".join(_line(each) for each in found))
    if not found:
        notice("no conversation is saved yet")


@sessions.command()
def show(session_id: SessionId = "last", json: options.Json = False) -> None:
    """Show a conversation.

    \b
    Examples:
      cg-local sessions show
      cg-local sessions show 3fa2 --json
    """
    _write(_loaded(session_id), Format.json if json else Format.markdown, is_terminal=sys.stdout.isatty())


@sessions.command()
def search(
    query: Annotated[list[str], typer.Argument(metavar="WORD...", help='All of them; "two words" stay together.')],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="So many places at most.")] = 20,
    json: options.Json = False,
) -> None:
    """Find the questions and answers that hold every word, or part of a word, in any case.

    \b
    Examples:
      cg-local sessions search parse toml
      cg-local sessions search "list comprehension" --json
    """
    from cg_local.cli.session_text import iso_time, local_time
    from cg_local.cli.terminal_text import visible_line

    # A word that holds a space was kept together by the shell.
    text = " ".join(f'"{word}"' if " " in word and '"' not in word else word for word in query)
    with _reader() as store:
        hits = store.search(text, limit)
    if json:
        print_json(
            {
                "hits": [
                    {
                        "id": hit.session_id,
                        "title": hit.title,
                        "updated_at": iso_time(hit.updated_at),
                        "role": hit.role,
                        "message": hit.position if hit.role != "title" else None,
                        "snippet": hit.snippet,
                    }
                    for hit in hits
                ]
            }
        )
        return
    shown = ""
    for hit in hits:
        if hit.session_id != shown:
            write_stdout(f"{hit.session_id}  {local_time(hit.updated_at)}  {visible_line(hit.title)}\n")
            shown = hit.session_id
        write_stdout(f"    {hit.role}: {visible_line(hit.snippet)}\n")
    if not hits:
        notice("no saved conversation holds that")
        raise typer.Exit(1)


@sessions.command()
def export(
    session_id: SessionId = "last",
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", metavar="FILE", help="Write there instead of to stdout.", show_default=False),
    ] = None,
    format: Annotated[
        Optional[Format],  # noqa: UP045
        typer.Option("--format", help="Default: by the file's ending, else markdown.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As --format json.")] = False,
) -> None:
    """Write a conversation as Markdown or as a JSON document.

    \b
    Examples:
      cg-local sessions export last > answer.md
      cg-local sessions export 3fa2 -o talk.json
      cg-local sessions export 3fa2 --json
    """
    if json and format is Format.markdown:
        options.refuse_usage("--json and --format markdown do not go together: leave one out")
    is_json = json or (output is not None and output.suffix.lower() == ".json")
    chosen = format or (Format.json if is_json else Format.markdown)
    session = _loaded(session_id)
    if output is None:
        _write(session, chosen, is_terminal=False)
        return
    from cg_local.atomic_file import replace_file

    replace_file(output, _exported(session, chosen).encode("utf-8", "replace"))


@sessions.command()
def rm(
    session_ids: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[ID...]", help="First digits of ids, titles, or last.", show_default=False),
    ] = None,
    older_than: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--older-than", metavar="DAYS", min=0, help="All that nobody wrote for so long."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All conversations.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove conversations for good; asks first.

    \b
    Examples:
      cg-local sessions rm 3fa2
      cg-local sessions rm --older-than 90 --yes
    """
    from cg_local.sessions import SessionStore

    if not session_ids and older_than is None and not everything:
        raise typer.BadParameter("name conversations, or give --older-than DAYS or --all.", param_hint="ID")
    with SessionStore() as store:
        chosen = _chosen(store, session_ids or [], older_than, everything)
        if chosen and not yes:
            _ask(chosen)
        removed = store.remove([each.session_id for each in chosen])
    count = removed.num_sessions
    notice(f"{count} conversation{'' if count == 1 else 's'} removed; `cg-local cache --clear` removes their K and V")
    if count and not removed.is_overwritten:
        notice("another process is reading: the removed bytes stay in the database's log until the last one closes it")


def _chosen(store: SessionStore, names: list[str], older_than: float | None, everything: bool) -> list[SessionSummary]:
    chosen = {each.session_id: each for each in map(store.find, names)}
    if older_than is not None or everything:
        latest = time.time() - (older_than or 0.0) * _DAY_SECONDS
        chosen |= {each.session_id: each for each in store.summaries() if everything or each.updated_at < latest}
    return list(chosen.values())


def _ask(chosen: list[SessionSummary]) -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody can be asked here; give --yes to remove them.", param_hint="--yes")
    for each in chosen[:10]:
        sys.stderr.write(_line(each))
    if len(chosen) > 10:
        sys.stderr.write(f"... and {len(chosen) - 10} more\n")
    typer.confirm(f"remove {len(chosen)} for good?", abort=True, err=True)


def _reader() -> SessionStore:
    from cg_local.sessions import SessionStore

    return SessionStore(is_read_only=True)


def _summaries(limit: int | None) -> list[SessionSummary]:
    from cg_local.sessions.database import database_path

    if not database_path().exists():
        return []
    with _reader() as store:
        return store.summaries(limit)


def _loaded(name: str) -> SavedSession:
    with _reader() as store:
        return store.load(store.find(name).session_id)


def _write(session: SavedSession, chosen: Format, *, is_terminal: bool) -> None:
    from cg_local.cli.terminal_text import visible_text

    text = _exported(session, chosen)
    write_stdout(visible_text(text) if is_terminal else text)


def _exported(session: SavedSession, chosen: Format) -> str:
    import json

    from cg_local.cli.session_text import as_document, as_markdown

    if chosen is Format.markdown:
        return as_markdown(session)
    return json.dumps(as_document(session), ensure_ascii=False, indent=2) + "\n"


def _line(session: SessionSummary) -> str:
    from cg_local.cli.session_text import local_time
    from cg_local.cli.terminal_text import visible_line

    count = f"{session.num_messages} message{'' if session.num_messages == 1 else 's'}"
    when = local_time(session.updated_at)
    return f"{session.session_id}  {when}  {count:>12}  {visible_line(session.model)}  {visible_line(session.title)}\n"
