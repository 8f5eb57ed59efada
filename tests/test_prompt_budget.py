"""How long a prompt may be: steps that small changes do not cross, and the speeds that runs leave to the next."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_tokenizer import write_toy_tokenizer

from cg_local.prompt_budget import (
    FIRST_PROMPT_TOKENS,
    MIN_PROMPT_TOKENS,
    PrefillSpeeds,
    context_budget,
    context_pays,
    default_prompt_tokens,
    tokens_in,
    trained_tokens,
)
from cg_local.prompts import infill_prompt
from cg_local.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(write_toy_tokenizer(tmp_path_factory.mktemp("toy") / "tokenizer.model"))


def test_nano_gets_no_longer_prompt_unasked_than_it_was_trained_on() -> None:
    assert (trained_tokens("nano", 1024), trained_tokens("./nano", 1024), trained_tokens("x", 8192)) == (
        512,
        1024,
        8192,
    )
    assert (default_prompt_tokens("nano"), default_prompt_tokens("x")) == (448, 2048)


def test_context_pays_in_a_git_work_tree_with_a_model_of_long_texts() -> None:
    assert context_pays(8192, is_git=True)
    assert not context_pays(8192, is_git=False)
    assert not context_pays(1024, is_git=True)


def test_unasked_context_has_a_share_whatever_the_file() -> None:
    assert [context_budget(2048, tokens, fills_prompt=False) for tokens in (1, 500, 9000)] == [512, 512, 512]


def test_context_that_is_asked_for_takes_what_the_file_leaves_in_steps() -> None:
    found = [context_budget(2048, tokens, fills_prompt=True) for tokens in (1, 256, 257, 512, 1536, 1600, 9000)]
    assert found == [1792, 1792, 1536, 1536, 512, 512, 512]


@given(st.integers(64, 9000), st.integers(1, 20_000), st.booleans())
def test_context_and_a_file_that_fits_fill_no_more_than_the_prompt(room: int, file: int, is_asked: bool) -> None:
    budget = context_budget(room, file, fills_prompt=is_asked)
    assert 0 <= budget <= room
    if is_asked and budget > room // 4:
        assert budget + file <= room


def test_time_becomes_tokens_in_coarse_steps() -> None:
    assert tokens_in(3, 50) == 144
    assert {tokens_in(3, speed) for speed in (48.2, 49.0, 51.0, 53.2)} == {144}
    assert tokens_in(0.001, 50) == MIN_PROMPT_TOKENS
    assert tokens_in(3, None) == FIRST_PROMPT_TOKENS


@given(st.floats(0.01, 100), st.floats(1, 5000))
def test_tokens_fit_the_time_and_lose_at_most_an_eighth(seconds: float, speed: float) -> None:
    tokens, exact = tokens_in(seconds, speed), seconds * speed
    assert tokens == MIN_PROMPT_TOKENS or 0.87 * exact - 1 <= tokens <= exact


def test_speeds_are_kept_by_model(tmp_path: Path) -> None:
    speeds = PrefillSpeeds(tmp_path / "new" / "speeds.json")
    assert speeds.find("a") is None
    speeds.remember("a", 500, 10.0)
    speeds.remember("b", 500, 5.0)
    again = PrefillSpeeds(speeds.path)
    assert (again.find("a"), again.find("b")) == (50.0, 100.0)


def test_a_faster_run_counts_more_than_a_slower_one(tmp_path: Path) -> None:
    speeds = PrefillSpeeds(tmp_path / "speeds.json")
    speeds.remember("a", 100, 10.0)  # beside a busy process
    speeds.remember("a", 100, 1.0)
    assert speeds.find("a") == pytest.approx(73.0)
    speeds.remember("a", 100, 10.0)
    assert speeds.find("a") == pytest.approx(54.1)


def test_short_prompts_and_small_changes_are_not_written(tmp_path: Path) -> None:
    speeds = PrefillSpeeds(tmp_path / "speeds.json")
    speeds.remember("a", 63, 1.0)
    assert not speeds.path.exists()
    speeds.remember("a", 1000, 10.0)
    written = speeds.path.stat().st_mtime_ns
    speeds.remember("a", 1030, 10.0)
    assert speeds.path.stat().st_mtime_ns == written


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"a": "fast"}', b'{"a": -1}'])
def test_a_damaged_file_is_no_speed_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    speeds = PrefillSpeeds(tmp_path / "speeds.json")
    speeds.path.write_bytes(content)
    assert speeds.find("a") is None
    speeds.remember("a", 100, 1.0)
    assert speeds.find("a") == 100.0


def test_a_folder_that_cannot_be_made_costs_only_the_memory(tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_text("")
    speeds = PrefillSpeeds(tmp_path / "file" / "speeds.json")
    speeds.remember("a", 100, 1.0)
    assert speeds.find("a") is None


@pytest.mark.parametrize("gap", [0, 40, 400, 799])
def test_context_with_room_of_its_own_stays_where_the_cursor_moves(tokenizer: Tokenizer, gap: int) -> None:
    rows = [f"value_{number} = {number}\n" for number in range(800)]
    context = [("far.py", "".join(rows[:9])), ("near.py", "".join(rows[:6]))]
    prefix, suffix = "".join(rows[:gap]), "".join(rows[gap:])
    prompt = infill_prompt(tokenizer, prefix, suffix, context=context, max_prompt_tokens=600)
    assert [part.name for part in prompt.parts] == ["far.py", "near.py", "prefix", "suffix"]
    alone = infill_prompt(tokenizer, "", "", context=context, max_prompt_tokens=9000)
    size = sum(part.num_tokens + 1 for part in prompt.parts[:2])
    assert prompt.token_ids[: 1 + size] == alone.token_ids[: 1 + size]
    assert 580 < len(prompt.token_ids) <= 600
    share = (size - 1) / 596
    less = infill_prompt(tokenizer, prefix, suffix, context=context, context_share=share, max_prompt_tokens=600)
    assert [part.name for part in less.parts] == ["near.py", "prefix", "suffix"]
