"""A prefix from the disk gives the tokens and log-probabilities of a cold run, and any fault is only a miss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from toy_engines import engine_of, generate, pages_in_use, result_of, toy_prompt

from cg_local.engine import Engine
from cg_local.kv_store import KVStore
from cg_local.prefix_transfer import PrefixTransfer, page_kind

FolderMaker = Callable[[str, str], Path]
PROMPT = toy_prompt(300)
pytestmark = pytest.mark.usefixtures("no_page_leaks")


@pytest.fixture
def folder(toy_folder: FolderMaker) -> Path:
    return toy_folder("mqa", "q4")


@pytest.fixture
def store(tmp_path: Path) -> KVStore:
    return KVStore(tmp_path / "kv")


def transfer(engine: Engine, store: KVStore) -> PrefixTransfer:
    return PrefixTransfer(engine, store, "toy")


def store_turn(folder: Path, store: KVStore, prompt: list[int], **config: object) -> list[int]:
    """Answer a prompt in an engine of its own and store what it computed; returns all tokens."""
    engine = engine_of(folder, **config)
    sequence = generate(engine, prompt, max_tokens=20, temperature=1.0, seed=3)
    assert transfer(engine, store).save(sequence.token_ids) > 0
    return sequence.token_ids


def segments(store: KVStore) -> list[Path]:
    return sorted(store.folder.glob("*/*.kv"))


@pytest.mark.parametrize(("family", "scheme"), [("mqa", "q4"), ("mqa", "bf16"), ("mha", "q8")])
@pytest.mark.parametrize("kv_dtype", ["float16", "float32", "int8"])
def test_prefix_from_the_disk_gives_the_result_and_logits_of_a_cold_run(
    family: str, scheme: str, kv_dtype: str, toy_folder: FolderMaker, store: KVStore
) -> None:
    folder = toy_folder(family, scheme)
    history = store_turn(folder, store, PROMPT[:130], kv_dtype=kv_dtype)
    question = [*history, *toy_prompt(20, seed=8)[1:]]
    cold = generate(engine_of(folder, kv_dtype=kv_dtype), question, max_tokens=12, temperature=1.0, seed=5)

    engine = engine_of(folder, kv_dtype=kv_dtype)
    num_brought = transfer(engine, store).restore(question)
    warm = generate(engine, question, max_tokens=12, temperature=1.0, seed=5)

    assert (num_brought, warm.num_cached, cold.num_cached) == (144, 144, 0)
    assert result_of(warm) == result_of(cold)


def test_stored_prefix_serves_a_prompt_that_shares_only_its_first_pages(folder: Path, store: KVStore) -> None:
    store_turn(folder, store, PROMPT[:130])
    other = [*PROMPT[:70], *toy_prompt(60, seed=4)[1:]]

    engine = engine_of(folder)
    assert transfer(engine, store).restore(other) == 64
    warm = generate(engine, other, max_tokens=8)

    assert result_of(warm) == result_of(generate(engine_of(folder), other, max_tokens=8))


def test_second_turn_and_a_branch_write_only_their_new_pages(folder: Path, store: KVStore) -> None:
    history = store_turn(folder, store, PROMPT[:130])
    sizes = {path: path.stat().st_size for path in segments(store)}
    page = page_kind(engine_of(folder), "toy").page_bytes

    longer = store_turn(folder, store, [*history, *toy_prompt(40, seed=8)[1:]])
    branch = store_turn(folder, store, [*PROMPT[:100], *toy_prompt(40, seed=9)[1:]])

    new = [path for path in segments(store) if path not in sizes]
    assert all(path.stat().st_size == size for path, size in sizes.items())
    counts = sorted(path.stat().st_size // page for path in new)
    assert counts == sorted([(len(longer) - 1) // 16 - 149 // 16, (len(branch) - 1) // 16 - 96 // 16])
    for tokens in (longer, branch):
        assert transfer(engine_of(folder), store).restore([*tokens, 5]) == (len(tokens) - 1) // 16 * 16


def test_what_is_stored_already_is_not_written_again(folder: Path, store: KVStore) -> None:
    engine = engine_of(folder)
    sequence = generate(engine, PROMPT[:130], max_tokens=4)

    assert transfer(engine, store).save(sequence.token_ids) > 0
    assert transfer(engine, store).save(sequence.token_ids) == 0


def test_pages_that_the_pool_knows_are_not_read(folder: Path, store: KVStore) -> None:
    history = store_turn(folder, store, PROMPT[:130])
    engine = engine_of(folder)
    generate(engine, PROMPT[:70], max_tokens=2)

    assert transfer(engine, store).restore([*history, 5]) == 144 - 64


def test_pool_that_is_in_use_takes_as_many_pages_as_are_free(folder: Path, store: KVStore) -> None:
    history = store_turn(folder, store, PROMPT[:130])
    engine = engine_of(folder, num_pages=14)
    other = engine.add(toy_prompt(140, seed=7))
    engine.step()
    before = pages_in_use(engine)

    assert 0 < transfer(engine, store).restore([*history, 5]) < 144
    assert pages_in_use(engine) == before
    engine.cancel(other)
    warm = generate(engine, [*history, 5], max_tokens=6)
    assert result_of(warm) == result_of(generate(engine_of(folder), [*history, 5], max_tokens=6))


def test_writing_stops_when_asked_and_keeps_what_is_written(folder: Path, store: KVStore) -> None:
    engine = engine_of(folder)
    sequence = generate(engine, PROMPT[:130], max_tokens=4)
    asked: list[bool] = []

    def should_stop() -> bool:
        asked.append(len(asked) == 3)
        return asked[-1]

    assert transfer(engine, store).save(sequence.token_ids, should_stop) > 0
    assert transfer(engine_of(folder), store).restore(PROMPT[:130]) == 48


def misses(folder: Path, store: KVStore, **config: object) -> bool:
    """Whether an engine finds nothing and answers as without a store."""
    engine = engine_of(folder, **config)
    prompt = PROMPT[:130]
    if transfer(engine, store).restore(prompt):
        return False
    warm = generate(engine, prompt, max_tokens=4)
    return result_of(warm) == result_of(generate(engine_of(folder, **config), prompt, max_tokens=4))


@pytest.mark.parametrize("config", [{"kv_dtype": "float32"}, {"kv_dtype": "int8"}, {"page_size": 32}])
def test_pages_of_another_layout_are_a_miss(folder: Path, store: KVStore, config: dict[str, object]) -> None:
    store_turn(folder, store, PROMPT[:130])

    assert misses(folder, store, **config)


def test_pages_of_another_model_are_a_miss(folder: Path, store: KVStore, toy_folder: FolderMaker) -> None:
    store_turn(folder, store, PROMPT[:130])

    assert misses(toy_folder("mqa", "q8"), store)


def test_pages_in_the_place_of_another_models_are_a_miss(folder: Path, store: KVStore, toy_folder: FolderMaker) -> None:
    """Even if a file is moved to where it would be looked for."""
    store_turn(folder, store, PROMPT[:130])
    (path,) = segments(store)
    other = toy_folder("mqa", "q8")
    place = store.folder / page_kind(engine_of(other), "toy").digest.hex()[:32]
    place.mkdir()
    path.rename(place / path.name)

    assert misses(other, store)


def test_segment_of_other_tokens_under_the_right_name_is_a_miss(folder: Path, store: KVStore) -> None:
    store_turn(folder, store, PROMPT[:130])
    (right,) = segments(store)
    right.unlink()
    store_turn(folder, store, toy_prompt(130, seed=5))
    (wrong,) = segments(store)
    wrong.rename(right)

    assert misses(folder, store)


@pytest.mark.parametrize("place", [0, 12, 50, 200, 700])
def test_flipped_bit_in_the_header_is_a_miss(folder: Path, store: KVStore, place: int) -> None:
    store_turn(folder, store, PROMPT[:130])
    (path,) = segments(store)
    flip(path, place)

    assert misses(folder, store)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def test_flipped_bit_in_a_page_ends_the_prefix_before_it_and_is_made_good(folder: Path, store: KVStore) -> None:
    history = store_turn(folder, store, PROMPT[:130])
    (path,) = segments(store)
    flip(path, path.stat().st_size - 5 * page_kind(engine_of(folder), "toy").page_bytes - 1)
    engine = engine_of(folder)

    assert transfer(engine, store).restore([*history, 5]) == 3 * 16
    warm = generate(engine, [*history, 5], max_tokens=6)
    assert result_of(warm) == result_of(generate(engine_of(folder), [*history, 5], max_tokens=6))
    assert not path.exists()
    transfer(engine, store).save(warm.token_ids)
    assert transfer(engine_of(folder), store).restore([*history, 5]) == 144


@pytest.mark.parametrize("size", [0, 10, 100, 2000, -1])
def test_cut_file_is_a_miss(folder: Path, store: KVStore, size: int) -> None:
    store_turn(folder, store, PROMPT[:130])
    (path,) = segments(store)
    path.write_bytes(path.read_bytes()[:size])

    assert misses(folder, store)
    assert not path.exists()


def test_interrupt_while_a_page_is_brought_leaves_no_half_page_findable(
    folder: Path, store: KVStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = store_turn(folder, store, PROMPT[:130])
    engine = engine_of(folder)
    read = KVStore.read
    brought: list[int] = []

    def interrupted(*arguments: object, **keywords: object) -> object:
        for page in read(*arguments, **keywords):  # type: ignore[arg-type]
            brought.append(1)
            if len(brought) == 4:
                raise KeyboardInterrupt
            yield page

    monkeypatch.setattr(KVStore, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transfer(engine, store).restore([*history, 5])
    monkeypatch.undo()

    assert pages_in_use(engine) == 0
    warm = generate(engine, [*history, 5], max_tokens=6)
    assert warm.num_cached == 48
    assert result_of(warm) == result_of(generate(engine_of(folder), [*history, 5], max_tokens=6))
