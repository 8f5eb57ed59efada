"""`cg-local sessions`, `config` and `cache`: what they show, change and remove."""

from __future__ import annotations

import io
import json
import sqlite3
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Inside

from cg_local.conversation import Message
from cg_local.kv_store import KVStore, PageKind
from cg_local.sessions import SessionRecorder
from cg_local.settings import COMMANDS, SETTINGS

Run = Callable[..., tuple[int, str, str]]
TALK = [Message("system", "Be brief."), Message("user", "How do I parse TOML?"), Message("model", "Use `tomllib`.\n")]
HOSTILE = [Message("user", "say \x1b[31mred\u202e"), Message("model", "It is \x1b]0;x\x07", is_cut=True)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def run(home: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function from arguments to status, stdout and stderr."""
    inside = Inside(capfdbinary, monkeypatch)
    monkeypatch.setenv("CG_LOCAL_CONFIG", str(home / "conf" / "config.toml"))

    def run_command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        done = inside.run(*arguments, home=home)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return run_command


@pytest.fixture
def ids(home: Path) -> list[str]:
    """Ids of two saved conversations, the older first."""
    recorder = SessionRecorder(print, model="nano", path=home / "data" / "sessions" / "sessions.db")
    found = []
    for messages in (TALK, HOSTILE):
        recorder.begin()
        recorder.save(messages)
        found.append(str(recorder.session_id))
    recorder.close()
    return found


def test_list_shows_the_newest_first_and_nothing_that_moves_the_terminal(run: Run, ids: list[str]) -> None:
    status, out, err = run("sessions", "list")
    rows = out.splitlines()
    assert (status, err, len(rows)) == (0, "", 2)
    assert rows[0].startswith(ids[1])
    # A title holds no control characters; what reorders the line is shown as what it is.
    assert rows[0].endswith("  2 messages  nano  say [31mred")
    assert not any(character in out for character in "\x1b\u202e\x07")
    assert rows[1].split("  ", 1)[0] == ids[0]
    assert run("sessions", "list", "-n", "1")[1].count("\n") == 1


def test_list_of_nothing_is_empty(run: Run) -> None:
    assert run("sessions", "list") == (0, "", "cg-local: no conversation is saved yet\n")
    assert run("sessions", "list", "--json")[:2] == (0, '{"sessions":[]}\n')


def test_list_as_a_document(run: Run, ids: list[str]) -> None:
    document = json.loads(run("sessions", "list", "--json")[1])
    assert [each["id"] for each in document["sessions"]] == ids[::-1]
    assert set(document["sessions"][0]) == {"id", "title", "model", "created_at", "updated_at", "num_messages"}


def test_show_and_export_as_markdown(run: Run, ids: list[str], home: Path) -> None:
    status, out, _ = run("sessions", "show", ids[0][:6])
    head, _, rest = out.partition("\n\n## ")
    assert status == 0
    assert head.startswith("# How do I parse TOML?\n\nnano, 20")
    assert "## " + rest == ("## System\n\nBe brief.\n\n## You\n\nHow do I parse TOML?\n\n## Model\n\nUse `tomllib`.\n")
    assert run("sessions", "export", ids[0], "-o", "talk.md")[:2] == (0, "")
    assert (home / "talk.md").read_text() == out
    assert "## Model (cut)\n\nIt is \x1b]0;x\x07" in run("sessions", "show")[1]


def test_export_as_json_holds_everything(run: Run, ids: list[str], home: Path) -> None:
    run("sessions", "export", "-o", "talk.json")
    document: dict[str, Any] = json.loads((home / "talk.json").read_text())
    assert document["id"] == ids[1]
    assert document["messages"] == [
        {"role": message.role, "content": message.text, "is_cut": message.is_cut} for message in HOSTILE
    ]
    assert json.loads(run("sessions", "export", "--format", "json")[1]) == document
    assert json.loads(run("sessions", "export", "--json")[1]) == document
    assert run("sessions", "export", "--json", "--format", "markdown") == (
        *(2, "", "cg-local: error: --json and --format markdown do not go together: leave one out\n"),
    )
    assert json.loads(run("sessions", "show", "--json")[1]) == document
    assert run("sessions", "export", "-o", "talk.json", "--format", "markdown")[0] == 0
    assert (home / "talk.json").read_text().startswith("# say")


def test_export_into_a_folder_that_is_a_file_is_an_error(run: Run, ids: list[str], home: Path) -> None:
    (home / "file").write_text("")
    status, out, err = run("sessions", "export", "-o", "file/talk.md")
    assert (status, out) == (1, "")
    assert err.startswith("cg-local: error: file/talk.md: cannot be written (")


def test_search_shows_place_and_line(run: Run, ids: list[str]) -> None:
    status, out, _ = run("sessions", "search", "tomllib")
    assert (status, out.splitlines()[1:]) == (0, ["    model: Use `tomllib`."])
    assert out.startswith(ids[0])
    assert run("sessions", "search", "parse toml", "how")[1].count("user:") == 1
    hits = json.loads(run("sessions", "search", "--json", "toml")[1])["hits"]
    assert [(hit["id"], hit["role"], hit["message"]) for hit in hits] == [(ids[0], "user", 1), (ids[0], "model", 2)]
    assert run("sessions", "search", "toml", "zebra") == (1, "", "cg-local: no saved conversation holds that\n")


def test_rm_asks_and_needs_yes_where_nobody_can_be_asked(run: Run, ids: list[str]) -> None:
    status, out, err = run("sessions", "rm", ids[0])
    assert (status, out) == (2, "")
    assert "nobody can be asked here; give --yes" in " ".join(err.split())
    assert run("sessions", "rm", "--yes", ids[0])[2].startswith("cg-local: 1 conversation removed; ")
    assert run("sessions", "list")[1].startswith(ids[1])
    assert run("sessions", "show", ids[0])[2].endswith("`cg-local sessions list` shows them\n")


def test_rm_says_what_another_process_keeps(
    run: Run, home: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cg_local.sessions.database.BUSY_SECONDS", 0.05)
    other = sqlite3.connect(home / "data" / "sessions" / "sessions.db", isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM messages").fetchall()
    err = run("sessions", "rm", "--yes", ids[0])[2]
    other.close()
    assert err.startswith("cg-local: 1 conversation removed; ")
    assert "the removed bytes stay in the database's log" in err


@pytest.mark.parametrize(("reply", "left"), [("y\n", 0), ("n\n", 2), ("\n", 2)])
def test_rm_does_what_is_answered(
    run: Run, ids: list[str], monkeypatch: pytest.MonkeyPatch, reply: str, left: int
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(io, "StringIO", lambda text: Terminal(reply))
    status, _, err = run("sessions", "rm", "--all")
    monkeypatch.undo()
    assert status == (0 if left == 0 else 1)
    assert "remove 2 for good?" in err
    assert all(each in err for each in ids)


def test_rm_by_age_and_without_a_choice(run: Run, ids: list[str]) -> None:
    assert run("sessions", "rm", "--older-than", "1", "-y")[2].startswith("cg-local: 0 conversations removed; ")
    assert run("sessions", "rm", "--older-than", "0", "-y")[2].startswith("cg-local: 2 conversations removed; ")
    assert run("sessions", "rm", "-y")[0] == 2


def test_unknown_and_ambiguous_names_are_errors(run: Run, ids: list[str]) -> None:
    assert run("sessions", "show", "nothing") == (
        1, "", "cg-local: error: 'nothing': no such conversation; `cg-local sessions list` shows them\n"
    )  # fmt: skip


# Configuration


def test_config_path_and_show_of_nothing(run: Run, home: Path) -> None:
    place = home / "conf" / "config.toml"
    assert run("config", "path") == (0, f"{place}\n", "")
    status, out, _ = run("config", "show", "--json")
    document = json.loads(out)
    assert (status, document["path"], document["exists"]) == (0, str(place), False)
    for command in COMMANDS:
        assert set(document[command]) == {name for name, each in SETTINGS.items() if command in each.commands}
        assert {row["origin"] for row in document[command].values()} == {"built-in"}
    assert document["fill"]["max_tokens"]["value"] == 128
    assert document["chat"]["context_tokens"]["value"] == 8192


def test_config_show_names_every_source(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = home / "conf" / "config.toml"
    place.parent.mkdir()
    place.write_text("temperature = 0.5\n[chat]\ntemperature = 1.5\n")
    monkeypatch.setenv("CG_LOCAL_FILL_TOP_K", "7")
    lines = [" ".join(line.split()) for line in run("config", "show")[1].splitlines()]
    assert lines[0] == str(place)
    assert lines.count(f"temperature = 0.5 # {place}:1") == 2
    assert lines.count(f"temperature = 1.5 # {place}:3") == 1
    assert lines.count("top_k = 7 # CG_LOCAL_FILL_TOP_K") == 1
    assert "[complete]" not in run("config", "show", "fill")[1]
    assert run("config", "show", "quantize")[0] == 2


def test_config_set_keeps_comments_order_and_mode(run: Run, home: Path) -> None:
    place = home / "conf" / "config.toml"
    place.parent.mkdir()
    place.write_text("# mine\ntemperature = 0.5  # warm\n\n[chat]\n# talk\nsave = true\n")
    place.chmod(0o640)
    assert run("config", "set", "temperature", "0.25") == (0, "", "")
    assert run("config", "set", "chat.vi", "yes") == (0, "", "")
    assert run("config", "set", "fill.max_tokens", "64") == (0, "", "")
    assert run("config", "set", "chat.save") == (0, "", "")
    assert place.read_text() == (
        "# mine\ntemperature = 0.25  # warm\n\n[chat]\n# talk\nvi = true\n\n[fill]\nmax_tokens = 64\n"
    )
    assert stat.S_IMODE(place.stat().st_mode) == 0o640
    assert [path.name for path in place.parent.iterdir()] == ["config.toml"]


def test_config_unset_takes_one_setting_out(run: Run, home: Path) -> None:
    place = home / "conf" / "config.toml"
    place.parent.mkdir()
    place.write_text("# mine\ntemperature = 0.5  # warm\n\n[chat]\nsave = true\nvi = true\n")
    assert run("config", "unset", "chat.save") == (0, "", "")
    assert run("config", "unset", "temperature") == (0, "", "")
    assert place.read_text() == "# mine\n\n[chat]\nvi = true\n"
    assert run("config", "unset", "chat.save") == (0, "", "cg-local: chat.save: was not set\n")
    assert run("config", "unset", "chat.sve")[0] == 1


def test_config_set_takes_only_a_model_that_is_there_and_names_it_for_everywhere(run: Run, home: Path) -> None:
    place = home / "conf" / "config.toml"
    status, _, err = run("config", "set", "model", "nope")
    assert (status, err.startswith("cg-local: error: nope: no such model or folder; known names: nano")) == (1, True)
    assert not place.exists()
    Path("mine").mkdir()
    assert run("config", "set", "fill.model", "./mine") == (0, "", "")
    assert run("config", "set", "chat.model", "nano") == (0, "", "")
    here = str(Path("mine").absolute())
    assert place.read_text() == f'[fill]\nmodel = "{here}"\n\n[chat]\nmodel = "nano"\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["temprature", "1"], "temprature: unknown key 'temprature'; did you mean 'temperature'?"),
        (["fill.save", "yes"], "fill.save: unknown key 'fill.save'; known are"),
        (["top_p", "2"], "top_p is '2'; give a number above 0 and at most 1"),
        (["threads", "many"], "threads is 'many'; give a whole number of at least 1"),
    ],
)
def test_config_set_refuses_what_is_wrong_and_writes_nothing(
    run: Run, home: Path, arguments: list[str], message: str
) -> None:
    status, out, err = run("config", "set", *arguments)
    assert (status, out) == (1, "")
    assert err.startswith(f"cg-local: error: {message}")
    assert not (home / "conf").exists()


def test_config_set_leaves_a_file_with_a_fault_alone(run: Run, home: Path) -> None:
    place = home / "conf" / "config.toml"
    place.parent.mkdir()
    place.write_text("x = \n")
    assert run("config", "set", "temperature", "1")[0] == 1
    assert place.read_text() == "x = \n"


def test_config_edit_begins_with_every_setting_and_judges_the_result(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = home / "conf" / "config.toml"
    editor = home / "editor.py"
    monkeypatch.setenv("VISUAL", f"{sys.executable} {editor}")

    def edit(line: str) -> tuple[int, str, str]:
        editor.write_text(f"import sys; open(sys.argv[1], 'a').write({line!r})")
        return run("config", "edit")

    assert edit("top_k = 3\n") == (0, "", f"cg-local: {place}: in order\n")
    text = place.read_text()
    assert all(f"# {name} =" in text for name in SETTINGS)
    assert run("config", "show", "chat")[1].count(f"# {place}:{len(text.splitlines())}") == 1

    status, _, err = edit("nonsense = 3\n")
    assert status == 1
    assert err.startswith(
        f"cg-local: error: {place}:{len(text.splitlines()) + 1}: unknown key 'chat.nonsense'; known are"
    )


def test_config_edit_without_a_terminal_or_a_named_editor_is_refused(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISUAL", "")
    monkeypatch.setenv("EDITOR", "")
    status, _, err = run("config", "edit")
    assert (status, err) == (
        1,
        "cg-local: error: there is no terminal for an editor; run this in one, or name an editor in EDITOR\n",
    )
    assert not (home / "conf").exists()


def test_config_templates_lists_built_in_ones_and_the_users(run: Run, home: Path) -> None:
    folder = home / "conf" / "templates"
    folder.mkdir(parents=True)
    (folder / "explain.md").write_text('+++\ndescription = "in short"\n+++\nShort: {{input}}\n')
    (folder / "broken.md").write_text("")
    status, out, _ = run("config", "templates")
    rows = {row.partition(" ")[0]: row.partition(" ")[2].strip() for row in out.splitlines() if row}
    assert status == 0
    assert rows["explain"] == "in short (yours)"
    assert rows["review"] == "faults and risks of code"
    assert "no text; write what to ask" in rows["broken"]
    assert rows["yours:"] == str(folder)
    document = json.loads(run("config", "templates", "--json")[1])
    paths = {each["name"]: each["path"] for each in document["templates"]}
    assert (paths["explain"], paths["review"]) == (str(folder / "explain.md"), None)


# The cache


def test_cache_shows_and_clears(run: Run, home: Path) -> None:
    assert run("cache")[0] == 0
    store = KVStore(home / "cache" / "kv")
    store.write(PageKind(b"k" * 32, "toy (q4, float16)", 4, 1 << 20), list(range(8)), lambda place, out: None)
    (home / "cache" / "nano-q4").mkdir()
    (home / "cache" / "nano-q4" / "weights").write_bytes(b"x" * 1000)

    document = json.loads(run("cache", "--json")[1])
    (entry,) = document["kv"]["entries"]
    assert (entry["label"], entry["num_files"]) == ("toy (q4, float16)", 1)
    assert document["kv"]["num_bytes"] == entry["num_bytes"] > 2 << 20
    assert [(model["name"], model["num_bytes"]) for model in document["models"]] == [("nano-q4", 1000)]
    assert document["others"] == []
    assert "2.0 MiB" in run("cache")[1]
    for name in ("quality", "peers", "kernels-0123456789abcdef", ".nano-q8.partial"):
        (home / "cache" / name).mkdir()
        (home / "cache" / name / "file").write_bytes(b"x" * 10)
    document = json.loads(run("cache", "--json")[1])
    assert [model["name"] for model in document["models"]] == ["nano-q4"]
    assert {each["name"]: (each["holds"], each["num_bytes"]) for each in document["others"]} == {
        ".nano-q8.partial": ("a copy that is not finished", 10),
        "kernels-0123456789abcdef": ("compiled kernels", 10),
        "peers": ("llama.cpp's files, for `bench --peers`", 10),
        "quality": ("what published weights computed, for `eval quality`", 10),
    }
    shown = run("cache")[1]
    models, others = shown[shown.index("quantized copies of embedded models") :].split("other folders")
    assert ("nano-q4" in models, "quality" in models, "what published weights computed" in others) == (
        True,
        False,
        True,
    )

    status, _, err = run("cache", "--clear")
    assert (status, err) == (0, f"cg-local: {home / 'cache' / 'kv'}: 2.0 MiB freed\n")
    assert json.loads(run("cache", "--json")[1])["kv"]["entries"] == []
    assert (home / "cache" / "nano-q4" / "weights").exists()
