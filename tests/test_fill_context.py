"""`cg-local fill` with a repository's files: when they are put in, what is shown, the time budget, what never is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command_line
import pytest
from command_line import Inside

from cg_local import prompt_budget
from cg_local.cli import fill_places
from cg_local.cli.fill_options import seconds_of
from cg_local.engine import Engine
from cg_local.tokenizer import Tokenizer

CART = "from shop.money import Money\n\n\ndef total(items):\n    money = Money(0)\n    return money\n"
FILES = {
    "shop/money.py": "class Money:\n    def __init__(self, cents):\n        self.cents = cents\n",
    "shop/cart.py": CART,
    "tests/test_cart.py": "from shop.cart import total\n\n\ndef test_total():\n    assert total([])\n",
}
PLAIN = "<bos>shop/cart.py\n<|fim_prefix|>" + CART[: CART.index("\n    return")] + "<|fim_suffix|>"
PROMPT = (
    f"<bos>tests/test_cart.py\n{FILES['tests/test_cart.py']}<|file_separator|>"
    f"shop/money.py\n{FILES['shop/money.py']}<|file_separator|>{PLAIN[5:]}"
)


@pytest.fixture(scope="module")
def folder(toy_folder: Callable[[str, str], Path]) -> Path:
    return toy_folder("mqa", "q4")


@pytest.fixture
def inside(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(capfdbinary, monkeypatch)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for path, text in FILES.items():
        tmp_path.joinpath(path).parent.mkdir(exist_ok=True)
        tmp_path.joinpath(path).write_text(text)
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def shown(home: Path, folder: Path, *options: str, cwd: str = ".", target: str = "shop/cart.py:5") -> dict[str, Any]:
    arguments = ("fill", target, "--model", str(folder), "--show-prompt", "--json", "--max-tokens", "8", *options)
    done = command_line.run(*arguments, home=home, cwd=home / cwd)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_prompt_is_the_files_with_their_paths_and_separators_and_the_nearest_last(home: Path, folder: Path) -> None:
    document = shown(home, folder, "--context", "repo")
    assert document["prompt"] == f"{PROMPT}\n    return money\n<|fim_middle|>"
    assert [(part["name"], part["kind"]) for part in document["parts"]] == [
        ("tests/test_cart.py", "partner"), ("shop/money.py", "import"), ("prefix", "prefix"), ("suffix", "suffix"),
    ]  # fmt: skip
    tokenizer = Tokenizer.from_file(folder / "tokenizer.model")
    text = f"shop/money.py\n{FILES['shop/money.py']}"
    assert document["parts"][1]["num_tokens"] == len(tokenizer.encode(text))
    assert len(document["token_ids"]) == document["prompt_tokens"]


def test_what_is_shown_is_what_the_model_is_asked_with(
    home: Path, folder: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("fill", "shop/cart.py:5", "--model", str(folder), "--context", "repo", "--max-tokens", "8")
    document = json.loads(inside.run(*options, "--show-prompt", "--json", home=home).stdout)
    asked: list[list[int]] = []
    add = Engine.add

    def spy(engine: Engine, token_ids: list[int], *rest: Any) -> Any:
        asked.append(token_ids)
        return add(engine, token_ids, *rest)

    monkeypatch.setattr(Engine, "add", spy)
    assert inside.run(*options, home=home).returncode == 0
    assert asked == [document["token_ids"]]


def test_path_counts_from_the_repository_wherever_one_stands(home: Path, folder: Path) -> None:
    inside = shown(home, folder, "--context", "repo", cwd="shop", target="cart.py:5")
    assert inside["prompt"] == shown(home, folder, "--context", "repo")["prompt"]
    assert shown(home, folder, "--context", "file", cwd="shop", target="cart.py:5")["prompt"].startswith(
        "<bos>cart.py\n"
    )


def test_a_model_of_short_texts_gets_no_context_unasked(home: Path, folder: Path) -> None:
    """The toy was made for 1,024 tokens, as nano was."""
    expected = f"{PLAIN}\n    return money\n<|fim_middle|>"
    assert shown(home, folder)["prompt"] == expected
    assert shown(home, folder, "--context", "file")["prompt"] == expected


def test_a_model_of_long_texts_gets_it_in_a_git_work_tree(
    home: Path, folder: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_budget, "MIN_TRAINED_TOKENS", 1024)
    options = ("fill", "shop/cart.py:5", "--model", str(folder), "--show-prompt")
    assert inside.run(*options, home=home).stdout.decode().startswith(PROMPT)
    shutil.rmtree(home / ".git")
    assert inside.run(*options, home=home).stdout.decode().startswith(PLAIN)


def test_moving_the_cursor_leaves_the_context_where_it_is(home: Path, folder: Path) -> None:
    size = len("".join(PROMPT.partition("<|file_separator|>shop/cart.py")[:2]))
    for line in (2, 4, 6):
        assert shown(home, folder, "--context", "repo", target=f"shop/cart.py:{line}")["prompt"][:size] == PROMPT[:size]


def test_standard_input_has_the_context_of_its_path(home: Path, folder: Path) -> None:
    arguments = ("fill", "-:5", "--path", "shop/cart.py", "--context", "repo", "--show-prompt", "--model", str(folder))
    done = command_line.run(*arguments, home=home, stdin=CART.encode())
    assert done.stdout.decode() == f"{PROMPT}\n    return money\n<|fim_middle|>\n"
    counts = done.stderr.decode().splitlines()
    assert [line.split(": ")[-1] for line in counts[:4]] == [
        "tests/test_cart.py (partner)",
        "shop/money.py (import)",
        "prefix",
        "suffix",
    ]
    total = sum(int(line.split()[1]) for line in counts[:5])
    assert counts[5].startswith(f"cg-local: {total:>6,} tokens in all; ")


def test_secrets_and_ignored_files_are_not_shown(home: Path, folder: Path) -> None:
    key = "AKIA" + "IOSFODNN7EXAMPLE"
    home.joinpath(".gitignore").write_text("money.py\n")
    home.joinpath("tests/test_cart.py").write_text(f'KEY = "{key}"\n')
    document = shown(home, folder, "--context", "repo")
    assert document["prompt"].startswith("<bos>shop/cart.py\n")
    assert document["refused"] == {"tests/test_cart.py": "holds what looks like an AWS key"}


def test_time_limit_shortens_the_prompt_by_the_measured_speed(home: Path, folder: Path) -> None:
    long = CART + "".join(f"value_{number} = {number}\n" for number in range(300))
    home.joinpath("shop/cart.py").write_text(long)
    first = shown(home, folder, "--context", "repo", "--max-wait", "3s")
    assert first["max_prompt_tokens"] == 128  # the speed is not known yet
    for _ in range(2):  # where the first run had to compile, it is not remembered
        arguments = ("fill", "shop/cart.py:5", "--model", str(folder), "--max-tokens", "8", "--no-cache")
        command_line.run(*arguments, home=home)
    speeds = json.loads(home.joinpath("cache/prefill-speeds.json").read_text())
    assert len(speeds) == 1
    home.joinpath("cache/prefill-speeds.json").write_text(json.dumps(dict.fromkeys(speeds, 100.0)))
    second = shown(home, folder, "--context", "repo", "--max-wait", "3s")
    assert second["max_prompt_tokens"] == 288
    assert 240 < second["prompt_tokens"] <= 288
    sizes = [part["num_tokens"] + 1 for part in second["parts"] if part["kind"] in ("import", "partner")]
    assert 0 < sum(sizes) <= 288 // 4


@pytest.mark.parametrize("is_terminal", [False, True])
def test_prompt_that_a_time_limit_shortens_says_so(
    home: Path, folder: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    """Also where all of the file is there and only other files are left out: such a prompt is not `truncated`."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    monkeypatch.setenv("TERM", "dumb")
    options = ("fill", "--model", str(folder), "--max-tokens", "2", "--no-cache", "--json", "--max-wait", "3s")
    told = "cg-local: shop/cart.py:5:21: --max-wait 3s cut the prompt: 128 tokens are allowed (this machine's speed is "
    told += "not known yet), without it 960\n"

    def run(*arguments: str, place: str = "shop/cart.py:5") -> tuple[list[dict[str, Any]], list[str]]:
        home.joinpath("cache/prefill-speeds.json").unlink(missing_ok=True)
        done = inside.run(*options, place, *arguments, home=home)
        assert done.returncode == 0
        documents = [json.loads(line) for line in done.stdout.splitlines()]
        return documents, done.stderr.decode().splitlines(keepends=True)

    (document,), messages = run("--context", "repo", "--context-tokens", "960")
    assert (document["shortened"], document["truncated"], document["max_prompt_tokens"]) == (True, False, 128)
    assert messages[:1] == ([told.replace("shop/cart.py:5:21: ", "")] if is_terminal else [])
    (document, _), messages = run("--context", "repo", "--context-tokens", "960", "shop/money.py:1")
    assert document["shortened"] is True
    assert messages[:1] == ([told] if is_terminal else [])
    (document,), messages = run("--context", "file")
    assert document["shortened"] is False  # all of the file has room
    assert not any("--max-wait" in message for message in messages)


def test_speed_of_a_run_that_compiled_is_not_remembered(
    home: Path, folder: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.joinpath("shop/cart.py").write_text(CART * 20)
    arguments = ("fill", "shop/cart.py:5", "--model", str(folder), "--max-tokens", "2", "--no-cache")
    inside.run(*arguments, home=home)  # what is not compiled yet is now
    speeds = home / "cache" / "prefill-speeds.json"
    speeds.unlink(missing_ok=True)
    add = Engine.add

    def compiling(engine: Engine, *rest: Any) -> Any:
        import numba

        assert numba.njit(lambda x: x + 1)(1) == 2
        return add(engine, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "add", compiling)
        assert inside.run(*arguments, home=home).returncode == 0
    assert not speeds.exists()
    assert inside.run(*arguments, home=home).returncode == 0
    assert len(json.loads(speeds.read_text())) == 1


@pytest.mark.parametrize(("text", "seconds"), [("3s", 3.0), ("500ms", 0.5), ("2", 2.0), (" .5 s", 0.5)])
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "fast", "0s", "-1", "3m", "1e400"])
def test_what_is_no_time_is_wrong_usage(text: str, home: Path, inside: Inside) -> None:
    done = inside.run("fill", "shop/cart.py:5", f"--max-wait={text}", home=home)
    assert done.returncode == 2
    assert b"is no time" in done.stderr


def test_path_outside_of_the_working_folder_is_its_name(tmp_path: Path) -> None:
    assert fill_places.path_for_model(str(tmp_path / "a.py")) == "a.py"
