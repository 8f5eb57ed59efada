"""Templates: built-in ones, the user's, their variables, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cg_local.attachments import Attachment
from cg_local.errors import SettingsError
from cg_local.question import Question
from cg_local.templates import BUILT_IN, all_templates, find_template, templates_folder

FILE = Attachment("src/a.py", "x = 1\n")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("CG_LOCAL_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "templates").mkdir()
    assert templates_folder() == tmp_path / "templates"
    return tmp_path / "templates"


def render(folder: Path, text: str, question: Question, **variables: str) -> str:
    (folder / "mine.md").write_text(text)
    return find_template("mine").render(question, variables)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Say: {{input}}", "Say: src/a.py:\n```py\nx = 1\n```\n\npipe\n\nwords"),
        ("{{fenced}}", "src/a.py:\n```py\nx = 1\n```\n\n```\npipe\n```\n\nwords"),
        ("{{words}}/{{ piped }}/{{files}}", "words/pipe\n/src/a.py:\n```py\nx = 1\n```"),
        ("{{file}} is {{language}}: {{words}}", "src/a.py is Python: words"),
        ("{{style|plain}} {{words}}", "plain words"),
        ("{{colour}} {{words}}", "red words"),
        ("{{colour|blue}} {{words}}", "red words"),
        ("{ {x} {{ 1 }} {{words}}", "{ {x} {{ 1 }} words"),
        ("Do it.", "Do it.\n\nsrc/a.py:\n```py\nx = 1\n```\n\n```\npipe\n```\n\nwords"),
    ],
)
def test_variables(folder: Path, text: str, expected: str) -> None:
    assert render(folder, text, Question("words", "pipe\n", (FILE,)), colour="red") == expected


def test_input_is_not_read_for_variables(folder: Path) -> None:
    question = Question("{{piped}} {{nothing}}", "{{words}}")
    assert render(folder, "{{words}} | {{piped}}", question) == "{{piped}} {{nothing}} | {{words}}"


def test_variable_without_a_value_is_an_error(folder: Path) -> None:
    with pytest.raises(SettingsError, match="template mine: colour has no value; give --var colour=TEXT"):
        render(folder, "{{colour}} {{input}}", Question("x"))


def test_language_that_is_not_known_takes_the_default(folder: Path) -> None:
    assert render(folder, "{{language|code}}: {{words}}", Question("x")) == "code: x"


def test_head_holds_system_text_and_description(folder: Path) -> None:
    (folder / "mine.txt").write_bytes(
        b'\xef\xbb\xbf+++\r\ndescription = "d"\r\nsystem = "s"\r\nextract = true\r\n+++\r\nDo {{input}}\r\n'
    )
    found = find_template("mine")
    assert (found.text, found.description, found.system, found.extract) == ("Do {{input}}\n", "d", "s", True)
    assert found.needs_input


def test_users_template_comes_before_the_built_in_one(folder: Path) -> None:
    (folder / "explain.md").write_text("mine")
    assert find_template("explain").text == "mine"
    assert [template.name for template in all_templates()] == sorted(BUILT_IN)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no text; write what to ask"),
        (b"+++\n+++\n \n", "no text; write what to ask"),
        (b"\xff", "byte 0 is no UTF-8"),
        (b"+++\nx = \n+++\nhi", "its head is not TOML"),
        (b"+++\nmodel = 'x'\n+++\nhi", "unknown key 'model' in its head; known are description, system, extract"),
        (b"+++\nextract = 1\n+++\nhi", "extract in its head is 1; give true or false"),
        (b"+++\nsystem = 1\n+++\nhi", "system in its head is 1; give a text in quotes"),
        (b"x" * ((1 << 20) + 1), "more than 1,048,576 bytes"),
    ],
)
def test_wrong_template_is_one_line_with_its_file(folder: Path, content: bytes, message: str) -> None:
    (folder / "mine.md").write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        find_template("mine")
    assert str(caught.value).startswith(f"{folder / 'mine.md'}: {message}")
    assert "\n" not in str(caught.value)
    assert {template.name: template.description for template in all_templates()}["mine"] == str(caught.value)


@pytest.mark.parametrize("name", ["nothing", "../config", "", "a/b", ".hidden"])
def test_unknown_template_lists_the_known_ones(name: str) -> None:
    with pytest.raises(SettingsError, match="commit, docstring, explain, review, test"):
        find_template(name)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_templates_render_what_was_given(name: str) -> None:
    template = BUILT_IN[name]
    text = template.render(Question("words", "the pipe", (FILE,)), {})
    assert template.needs_input
    for part in ("words", "the pipe", "x = 1"):
        assert text.count(part) == 1
    assert "{{" not in text
    assert template.description


@pytest.mark.parametrize(("name", "variable"), [("test", "framework"), ("docstring", "style")])
def test_built_in_templates_take_their_variable(name: str, variable: str) -> None:
    assert "unheard-of" in BUILT_IN[name].render(Question("x"), {variable: "unheard-of"})
