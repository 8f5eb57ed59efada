"""Options of `cg-local fill` that do nothing together: the table of all pairs, and how they are refused."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import command_line
import pytest
from command_line import Inside

from cg_local.cli.fill import fill
from cg_local.cli.fill_conflicts import conflict, spelled

# What is done and shown. Row and column: "." both have an effect, "x" refused, "j" refused without --json.
TABLE = """
              undo write diff json min_prob candidates all untrimmed explain
show_prompt    x    x     x    .      x         x       x      x        x
explain        x    j     j    .      .         .       x      j
untrimmed      x    j     j    .      .         .       .
all            x    x     x    x      .         .
candidates     x    .     .    .      .
min_prob       x    .     .    .
json           .    .     .
diff           .    .
write          x
"""
# How the model answers: of no use where none is asked, and fit for everything else, but for the pair named below.
WAYS = {
    *("path", "mode", "order", "model", "scheme", "max_tokens", "context_tokens", "temperature", "top_k", "top_p"),
    *("min_p", "repetition_penalty", "seed", "threads", "kv_dtype", "speculation", "cache", "kv_cache_size", "context"),
    "max_wait",
}


def table() -> dict[frozenset[str], str]:
    header, *rows = TABLE.strip().splitlines()
    columns = header.split()
    cells = {}
    for row in rows:
        name, *marks = row.split()
        cells |= {frozenset((name, column)): mark for column, mark in zip(columns, marks, strict=False)}
    return cells


ACTIONS = sorted(set().union(*table()))


def test_table_names_every_option_of_the_command_and_every_pair() -> None:
    parameters = set(inspect.signature(fill).parameters) - {"command", "targets", "forget"}  # says what --undo does
    assert parameters == {*ACTIONS, *WAYS}
    assert set(table()) == set(map(frozenset, itertools.combinations(ACTIONS, 2)))


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(ACTIONS, 2)))
def test_pair_is_judged_as_the_table_has_it(one: str, other: str) -> None:
    mark = table()[frozenset((one, other))]
    message = conflict([one, other], num_candidates=3)
    assert (message is not None) == (mark in "xj")
    assert message is None or (spelled(one) in message and spelled(other) in message)
    if not {"json", "all"} & {one, other}:  # --all and --json are refused already
        assert (conflict([one, other, "json"], num_candidates=3) is not None) == (mark == "x")


@pytest.mark.parametrize(("action", "way"), list(itertools.product(ACTIONS, sorted(WAYS))))
def test_ways_of_answering_fit_every_action_that_asks_a_model(action: str, way: str) -> None:
    assert (conflict([action, way], num_candidates=3) is not None) == (action == "undo")


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(sorted(WAYS), 2)))
def test_ways_of_answering_fit_each_other(one: str, other: str) -> None:
    assert (conflict([one, other], num_candidates=1) is not None) == ({one, other} == {"cache", "kv_cache_size"})


@pytest.fixture
def inside(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(capfdbinary, monkeypatch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--explain", "--diff"), "--explain and --diff do not go together: only one of them can be shown; add --json"),
        (("--all",), "--all needs several candidates: add -n 3"),
        (("-n", "1", "--all"), "--all needs several candidates: add -n 3"),
        (("--show-prompt", "--write"), "--show-prompt and --write do not go together: no model is asked then"),
        (("--write", "--undo"), "--undo takes back what was written and asks no model; leave --write out"),
        (("--forget",), "write --undo --forget [N] [FILE]..."),
        (("--undo", "--forget", "--diff"), "write --undo --forget [N] [FILE]..."),
        (("--undo", "--model", "nano-it"), "leave --model out"),
        (("--no-cache", "--kv-cache-size", "1 GiB"), "--no-cache and --kv-cache-size do not go together"),
    ],
)
def test_refusal_is_one_line_with_status_2(
    inside: Inside, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    done = inside.run("fill", "none.py:11", *options, home=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert done.stderr.decode().startswith("cg-local: error: ")
    assert message in done.stderr.decode()


@pytest.mark.parametrize("options", [("-n", "1", "--show-prompt"), ("--cache", "--kv-cache-size", "1 GiB")])
def test_defaults_that_are_spelled_out_contradict_nothing(
    inside: Inside, tmp_path: Path, options: tuple[str, ...]
) -> None:
    done = inside.run("fill", "none.py:11", *options, home=tmp_path)
    assert (done.returncode, b"none.py: no such file" in done.stderr) == (1, True)


def test_document_holds_explanation_and_difference(tmp_path: Path, toy_folder: Callable[[str, str], Path]) -> None:
    tmp_path.joinpath("a.py").write_text("x = 1\n\ny = 2\n")
    arguments = ("fill", "a.py:2", "--explain", "--diff", "--json", "--max-tokens", "4", "--mode", "block")
    done = command_line.run(*arguments, "--model", str(toy_folder("mqa", "q4")), home=tmp_path)
    document = json.loads(done.stdout)
    assert document["candidates"][0]["tokens"]
    assert "diff" in document
