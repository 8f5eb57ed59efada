"""A fill in a new process takes up what an earlier one computed of the same file, and answers as without."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command_line
import pytest

import cg_local
from cg_local import SamplingParams
from cg_local.cli.session import keep_fill
from cg_local.kv_store import KVStore
from cg_local.model import Model
from cg_local.prompts import infill_prompt
from cg_local.runtime import LocalModel
from cg_local.tokenizer import Tokenizer

PAGE = 16
HEAD = "".join(f"def area_{number}(width, height):\n    return width * height + {number}\n\n\n" for number in range(6))
TAIL = "".join(f"\nprint(area_{number}(3, 4))\n" for number in range(6))
LONG = "".join(f"value_{number} = {number}\n" for number in range(400))


@pytest.fixture(scope="module")
def folder(toy_folder: Callable[[str, str], Path]) -> Path:
    return toy_folder("mqa", "q4")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return cg_local.load(folder).tokenizer


@pytest.fixture
def store(tmp_path: Path) -> KVStore:
    return KVStore(tmp_path / "kv")


def loaded(folder: Path, store: KVStore | None) -> LocalModel:
    """A model as a new process has it."""
    model = cg_local.load(folder)
    if store is not None:
        model.use_kv_store(store)
    return model


def fill(folder: Path, store: KVStore | None, prefix: str, suffix: str, order: str = "psm") -> cg_local.Infill:
    model = loaded(folder, store)
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=3)
    result = model.infill(prefix, suffix, "a.py", params=params, order=order)
    model.save_prefix()
    return result


def answer(result: cg_local.Infill) -> tuple[str, tuple[int, ...], float | None, str]:
    return result.text, result.token_ids, result.mean_logprob, result.stop_reason


def test_same_fill_again_computes_only_the_last_page(folder: Path, store: KVStore) -> None:
    first = fill(folder, store, HEAD, TAIL)
    second = fill(folder, store, HEAD, TAIL)
    assert (first.cached_tokens, second.cached_tokens) == (0, (first.prompt_tokens - 1) // PAGE * PAGE)
    assert answer(second) == answer(first) == answer(fill(folder, None, HEAD, TAIL))


def test_changed_end_of_the_prefix_keeps_all_pages_before_it(
    folder: Path, store: KVStore, tokenizer: Tokenizer
) -> None:
    """And the next change finds those of both: the pages of the new text go on behind the old ones."""
    fill(folder, store, HEAD, TAIL)
    common = 1 + len(tokenizer.encode("a.py\n")) + 1 + len(tokenizer.encode(HEAD))
    longer = f"{HEAD}def volume(width):\n"
    second = fill(folder, store, longer, TAIL)
    assert second.cached_tokens == common // PAGE * PAGE
    assert answer(second) == answer(fill(folder, None, longer, TAIL))
    for prefix in (HEAD, longer):
        again = fill(folder, store, prefix, TAIL)
        assert again.cached_tokens == (again.prompt_tokens - 1) // PAGE * PAGE


def test_suffix_first_keeps_the_suffix_too(folder: Path, store: KVStore) -> None:
    fill(folder, store, HEAD, TAIL, "spm")
    changed = fill(folder, store, f"{HEAD}x = 1\n", TAIL, "spm")
    assert changed.prompt_tokens - changed.cached_tokens < 3 * PAGE
    assert answer(changed) == answer(fill(folder, None, f"{HEAD}x = 1\n", TAIL, "spm"))


def test_file_longer_than_the_context_keeps_its_pages_while_the_gap_moves_on(folder: Path, store: KVStore) -> None:
    """Without a steady cut every line typed would move the start, and with it every page."""
    fill(folder, store, LONG, TAIL)
    shares = []
    for number in range(8):
        result = fill(folder, store, LONG + "x = 1\n" * (number + 1), TAIL)
        assert result.truncated
        shares.append(result.cached_tokens / result.prompt_tokens)
    assert sorted(shares)[len(shares) // 2] > 0.5


def test_a_cut_prefix_begins_with_the_same_line_while_it_grows(tokenizer: Tokenizer) -> None:
    """Each line is about an eighth of what may be given up, so without this the start would move with each."""
    starts = []
    for num_lines in range(300, 360):
        prompt = infill_prompt(tokenizer, LONG[: LONG.index(f"value_{num_lines} ")], "", max_prompt_tokens=604)
        starts.append(tokenizer.decode(prompt.token_ids[2:-2]).partition("\n")[0])
    assert len(set(starts)) <= 60 / 3
    assert starts == sorted(starts)


def test_a_cut_prefix_begins_outside_of_a_block_where_it_can(tokenizer: Tokenizer) -> None:
    text = "def f(x):\n    return x\n\n" * 99
    prompt = infill_prompt(tokenizer, text, "", max_prompt_tokens=604)
    assert tokenizer.decode(prompt.token_ids[2:-2]).startswith("def f(x):\n")


def test_prompt_that_was_interrupted_goes_on_where_it_was(
    folder: Path, store: KVStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(folder, store)
    forward, num_steps = Model.forward, iter(range(9))

    def interrupted(*arguments: Any) -> object:
        if next(num_steps) == 1:
            raise KeyboardInterrupt
        return forward(*arguments)

    stream = model.infill(LONG, TAIL, "a.py", stream=True)
    with monkeypatch.context() as patch:
        patch.setattr(Model, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    assert stream.result.stop_reason == "interrupted"
    assert model.save_prefix() > 0
    assert loaded(folder, store).infill(LONG, TAIL, "a.py").cached_tokens >= 500


def test_fills_and_conversations_lie_apart(chat_folder: Path, store: KVStore) -> None:
    fill(chat_folder, store, HEAD, TAIL)
    model = loaded(chat_folder, store)
    model.chat([{"role": "user", "content": "what is this? " * 9}], params=SamplingParams(max_tokens=4))
    model.save_prefix()
    sizes = {entry.use: entry.num_bytes for entry in store.entries()}
    assert sorted(sizes) == ["conversations", "fills"]
    assert store.clear("fills") == sizes["fills"]
    assert [entry.use for entry in store.entries()] == ["conversations"]


# The command


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return command_line.run(*arguments, home=home)


def cached_tokens(done: subprocess.CompletedProcess[bytes]) -> int:
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["cached_tokens"])


def test_command_keeps_long_prompts_and_no_cache_neither_reads_nor_writes(tmp_path: Path, folder: Path) -> None:
    tmp_path.joinpath("a.py").write_text(HEAD + TAIL)
    command = ("fill", "a.py:24", "--model", str(folder), "--max-tokens", "4", "--json")
    assert cached_tokens(run(tmp_path, *command, "--no-cache")) == 0
    assert not tmp_path.joinpath("cache", "kv").exists()
    first, second = run(tmp_path, *command), run(tmp_path, *command)
    assert cached_tokens(first) == 0
    assert cached_tokens(second) > 256
    assert json.loads(first.stdout)["candidates"] == json.loads(second.stdout)["candidates"]
    assert cached_tokens(run(tmp_path, *command, "--no-cache")) == 0
    assert cached_tokens(run(tmp_path, *command, "--kv-cache-size", "0")) == 0
    entries = json.loads(run(tmp_path, "cache", "--json").stdout)["kv"]["entries"]
    assert [(entry["use"], entry["num_files"]) for entry in entries] == [("fills", 1)]
    assert b"1 files of fills" in run(tmp_path, "cache").stdout
    run(tmp_path, "cache", "--clear", "--only", "conversations")
    assert cached_tokens(run(tmp_path, *command)) > 256
    run(tmp_path, "cache", "--clear", "--only", "fills")
    assert cached_tokens(run(tmp_path, *command)) == 0


@pytest.mark.parametrize(
    ("prompt_tokens", "cached_tokens", "seconds", "stop_reason", "kept"),
    [
        (200, 0, 0.1, "separator", False),
        (600, 400, 0.1, "separator", False),
        (600, 344, 0.1, "separator", True),
        (200, 0, 0.5, "max_tokens", True),
        (20, 0, 0.1, "interrupted", True),
    ],
)
def test_what_is_computed_at_once_is_not_kept(
    folder: Path,
    store: KVStore,
    prompt_tokens: int,
    cached_tokens: int,
    seconds: float,
    stop_reason: str,
    kept: bool,
) -> None:
    model = loaded(folder, store)
    result = model.infill(HEAD, TAIL, "a.py", params=SamplingParams(max_tokens=1))
    keep_fill(
        model,
        dataclasses.replace(
            result,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            prefill_seconds=seconds,
            stop_reason=stop_reason,
        ),
    )
    assert bool(store.entries()) == kept
