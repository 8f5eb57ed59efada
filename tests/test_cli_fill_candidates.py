"""`cg-local fill` with several candidates, explained, and with answers that are not sure enough."""

from __future__ import annotations

import difflib
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import command_line
import pytest

import cg_local
from cg_local import SamplingParams
from cg_local.candidates import SPARE_TOKENS
from cg_local.cli.picker import gap_diff

SOURCE = "def f(x):\n    y = 1\n    return y\n"
LIVELY = ("--temperature", "3", "--seed", "11", "--max-tokens", "12", "--mode", "block", "--no-cache")
PARAMS = SamplingParams(max_tokens=12, temperature=3.0, seed=11, top_logprobs=4)


@pytest.fixture(scope="module")
def folder(toy_folder: Callable[[str, str], Path]) -> Path:
    return toy_folder("mqa", "q4")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[cg_local.Infill]:
    model = cg_local.load(folder, spare_tokens=2 * (12 + SPARE_TOKENS))
    prefix, suffix = SOURCE[: SOURCE.index("\n    return")], "\n    return y\n"
    candidates = model.infill_candidates(prefix, suffix, "a.py", params=PARAMS, mode="block")
    candidates.run()
    assert len(candidates.results) == 3
    return candidates.results


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tmp_path.joinpath("a.py").write_text(SOURCE)
    return tmp_path


def run(home: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    return command_line.run("fill", "a.py:2", "--model", str(folder), *LIVELY, *options, home=home)


def test_pipe_gets_the_best_alone_or_all_between_nul_characters(
    home: Path, folder: Path, expected: list[cg_local.Infill]
) -> None:
    best = run(home, folder, "-n", "3")
    assert (best.returncode, best.stdout.decode(), best.stderr) == (0, expected[0].text, b"")
    every = run(home, folder, "-n", "3", "--all")
    assert every.stdout.decode().split("\0") == [each.text for each in expected]


def test_document_has_all_candidates_and_their_tokens(
    home: Path, folder: Path, expected: list[cg_local.Infill]
) -> None:
    done = run(home, folder, "-n", "3", "--json", "--explain")
    document = json.loads(done.stdout)
    tokenizer = cg_local.load(folder).tokenizer
    for found, each in zip(document["candidates"], expected, strict=True):
        assert (found["text"], found["num_copies"]) == (each.text, each.num_copies)
        assert found["parses"] is (each.num_parse_errors == 0)
        assert [token["logprob"] for token in found["tokens"]] == [round(value, 4) for value in each.token_logprobs]
        for token, token_id, top in zip(found["tokens"], each.token_ids, each.top_logprobs, strict=False):
            data = tokenizer.token_bytes(token_id)
            assert token["text"] == (data.decode(errors="replace") if data else tokenizer.piece(token_id))
            others = [round(other.logprob, 4) for other in top if other.token_id != token_id][:3]
            assert [other["logprob"] for other in token["alternatives"]] == others
        kept = "".join(token["text"] for token in found["tokens"] if token["is_kept"])
        assert kept.strip().startswith(each.text.strip()) or "\ufffd" in kept
        assert not any(token["is_kept"] for token in found["tokens"] if token["text"].startswith("<unused"))
    assert document["timings"]["prefill_ms"] > 0


def test_explanation_in_a_pipe_is_plain_text_with_figures(home: Path, folder: Path) -> None:
    document = json.loads(run(home, folder, "--json", "--explain").stdout)
    done = run(home, folder, "--explain")
    assert b"\x1b" not in done.stdout
    lines = done.stdout.decode().splitlines()
    tokens = document["candidates"][0]["tokens"]
    assert [line[:4] for line in lines] == [f"{math.exp(token['logprob']):.2f}" for token in tokens]
    assert [line.endswith("(not kept)") for line in lines] == [not token["is_kept"] for token in tokens]


def test_unsure_answers_are_hidden_with_a_status_of_their_own(
    home: Path, folder: Path, expected: list[cg_local.Infill]
) -> None:
    probabilities = [math.exp(each.mean_logprob or -99) for each in expected]
    between = (max(probabilities) + sorted(probabilities)[-2]) / 2
    document = json.loads(run(home, folder, "-n", "3", "--json", "--min-prob", f"{between}").stdout)
    best = expected[probabilities.index(max(probabilities))]
    assert [each["text"] for each in document["candidates"]] == [best.text]
    assert document["num_hidden"] == 2
    none = run(home, folder, "-n", "3", "--min-prob", "1")
    assert (none.returncode, none.stdout) == (3, b"")
    best_hidden = f"{max(probabilities):.2f}"
    assert none.stderr.decode() == (
        f"cg-local: a.py:2:10: no answer with a probability of 1 or more; the best has {best_hidden}\n"
    )
    empty = run(home, folder, "--json", "--min-prob", "1")
    assert (empty.returncode, json.loads(empty.stdout)["candidates"]) == (3, [])


def test_sure_answer_is_shown_as_without(home: Path, folder: Path) -> None:
    assert run(home, folder, "--min-prob", "0.0001").stdout == run(home, folder).stdout


@pytest.mark.parametrize(
    ("before", "replaced", "text", "after"),
    [
        ("a\nb\nc\nd\ne = ", "", "1\nf = 2", "\ng\nh\ni\nj\n"),
        ("a\n", "", "x", ""),
        ("a\n", "b\nc", "B", "\nd\n"),
        ("a = (", "", "1", ")\n"),
        ("a\nb\nc\nd\n", "", "x\n", "e\nf\n"),
        ("a\n", "", "same", "\n"),
    ],
)
def test_preview_is_the_diff_of_the_whole_file(before: str, replaced: str, text: str, after: str) -> None:
    old, new = (f"{before}{middle}{after}".splitlines() for middle in (replaced, text))
    expected = list(difflib.unified_diff(old, new, lineterm="", n=3))[2:]
    found = gap_diff(before, replaced, text, after)
    changes = [line for line in expected if line[:1] in "+-"]
    assert [line for line in found if line[:1] in "+-" and line != "+"] == [line for line in changes if line != "+"]
    assert found[0].split(" +")[0].split(",")[0] == expected[0].split(" +")[0].split(",")[0].replace("-0", "-1")


def test_preview_of_no_change_says_so() -> None:
    assert gap_diff("a\n", "b", "b", "\nc\n") == ["(changes nothing)"]


# The picker

if sys.platform != "win32":
    from pseudo_terminal import ENTER, Terminal

DOWN, UP, ESCAPE = "\x1b[B", "\x1b[A", "\x1b"


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
class TestPicker:
    """A pseudo-terminal as stdin and stdout."""

    def start(self, home: Path, folder: Path, *options: str, **variables: str) -> Terminal:
        command = [*command_line.COMMAND, "fill", "a.py:2", "--model", str(folder), *LIVELY, "-n", "3", *options]
        return Terminal(command, home, variables=dict(variables))

    def start_piped(self, home: Path, folder: Path) -> Terminal:
        """With the file on standard input, and the terminal for everything else."""
        options = ["fill", "-:2", "--path", "a.py", "--model", str(folder), *LIVELY, "-n", "3"]
        words = shlex.join([*command_line.COMMAND, *options])
        return Terminal(["/bin/sh", "-c", f"cat a.py | {words}"], home)

    def left_on_screen(self, terminal: Terminal) -> str:
        return "\n".join(line for line in terminal.screen() if not line.startswith("cg-local:"))

    def test_arrows_choose_and_enter_prints(self, home: Path, folder: Path, expected: list[cg_local.Infill]) -> None:
        terminal = self.start(home, folder)
        terminal.wait_for("^> 1 ")
        assert any(line.startswith("@@ -1,4 +1,") for line in terminal.screen())
        terminal.type(DOWN, DOWN, DOWN, UP)
        terminal.wait_for("^> 3 ")
        terminal.type(UP)
        terminal.wait_for("^> 2 ")
        terminal.type(ENTER)
        assert terminal.wait_for_end() == 0
        shown = self.left_on_screen(terminal)
        assert "Enter takes it" not in shown
        assert shown.split() == cg_visible(expected[1].text).split()
        (figures,) = [line for line in terminal.screen() if " tokens, " in line]
        assert figures.startswith(f"cg-local: {expected[1].num_tokens} tokens")
        assert figures.endswith(f"stopped by {expected[1].stop_reason}")
        assert home.joinpath("a.py").read_text() == SOURCE

    def test_file_on_standard_input_leaves_the_choice_to_the_terminal(
        self, home: Path, folder: Path, expected: list[cg_local.Infill]
    ) -> None:
        terminal = self.start_piped(home, folder)
        terminal.wait_for("^> 1 ")
        terminal.type(DOWN)
        terminal.wait_for("^> 2 ")
        terminal.type(ENTER)
        assert terminal.wait_for_end() == 0
        assert self.left_on_screen(terminal).split() == cg_visible(expected[1].text).split()

    def test_digits_choose_and_a_legend_explains(
        self, home: Path, folder: Path, expected: list[cg_local.Infill]
    ) -> None:
        terminal = self.start(home, folder)
        terminal.wait_for("^> 1 ")
        assert any("mean probability" in line and "adds a syntax error" in line for line in terminal.screen())
        assert any("1-9 choose" in line for line in terminal.screen())
        terminal.type("3")
        terminal.wait_for("^> 3 ")
        terminal.type("9", "2")
        terminal.wait_for("^> 2 ")
        terminal.type(ENTER)
        assert terminal.wait_for_end() == 0
        assert self.left_on_screen(terminal).split() == cg_visible(expected[1].text).split()

    def test_small_terminal_shows_the_choice_the_preview_and_the_keys(
        self, home: Path, folder: Path, expected: list[cg_local.Infill]
    ) -> None:
        command = [*command_line.COMMAND, "fill", "a.py:2", "--model", str(folder), *LIVELY, "-n", "3"]
        terminal = Terminal(command, home, columns=20, rows=5)
        for number in (1, 2, 3):
            terminal.wait_for(f"^> {number} ")
            terminal.wait_for("^@@ -1,4" if expected[number - 1].text else r"^\(changes nothing\)")
            assert terminal.screen()[-1] == "↑↓ Enter Esc"
            terminal.type(DOWN)
        terminal.wait_for("^> 1 ")
        terminal.type(ESCAPE)
        assert terminal.wait_for_end() == 130

    @pytest.mark.parametrize("key", [ESCAPE, "q", "\x03"])
    def test_leaving_prints_nothing(self, home: Path, folder: Path, key: str) -> None:
        terminal = self.start(home, folder)
        terminal.wait_for("^> 1 ")
        terminal.type(key)
        assert terminal.wait_for_end() == 130
        assert terminal.screen() == []

    def test_without_colours_there_are_none(self, home: Path, folder: Path) -> None:
        terminal = self.start(home, folder, NO_COLOR="1")
        terminal.wait_for("^> 1 ")
        assert {cell.fg for row in terminal.cells() for cell in row} == {"default"}
        terminal.type(ESCAPE)
        terminal.wait_for_end()

    def test_colours_show_what_is_added_and_how_sure_a_token_is(self, home: Path, folder: Path) -> None:
        terminal = self.start(home, folder)
        terminal.wait_for("^> 1 ")
        assert "green" in {cell.fg for row in terminal.cells() for cell in row}
        terminal.type(ESCAPE)
        terminal.wait_for_end()
        explained = self.start(home, folder, "--explain")
        assert explained.wait_for_end() == 0
        assert "red" in {cell.fg for row in explained.cells() for cell in row}


def cg_visible(text: str) -> str:
    """What a terminal shows of a text."""
    from cg_local.cli.terminal_text import visible_text

    return visible_text(text)
