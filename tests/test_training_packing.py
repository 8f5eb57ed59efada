"""Packing: rows keep documents apart, cuts keep every line, and the stream is reproducible."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cg_local.training import fim, packing, segments

SOURCE = Path(packing.__file__).read_text()


def encode(text: str) -> list[int]:
    """One id per character, clear of the control ids."""
    return [256 + ord(char) % 1000 for char in text]


def stream(seed: int = 3) -> packing.BatchStream:
    recipe = packing.DataRecipe(fim.FimRecipe(), files_per_block=2, multi_file_rate=0.5)
    files = [segments.outline("own", f"{i}.py", SOURCE, encode, 2000) for i in range(4)]
    return packing.BatchStream(files, encode, recipe, seed)


def packed(size: int) -> packing.Packed:
    return packing.Packed(np.full(size, size, np.int32), np.ones(size, np.float32))


def test_pack_rows_restarts_positions_and_never_lets_a_weight_cross_documents() -> None:
    batch = packing.pack_rows([packed(5), packed(3), packed(4), packed(8)], 8)
    for row in range(len(batch.token_ids)):
        ids, positions, weights = batch.document_ids[row], batch.positions[row], batch.weights[row]
        is_start = np.diff(ids, prepend=0) != 0
        assert (positions[is_start] == 0).all()
        assert (np.diff(positions)[~is_start[1:] & (ids[1:] > 0)] == 1).all()
        is_last = np.diff(ids, append=0) != 0
        assert (weights[is_last | (ids == 0)] == 0).all()
        assert (weights[~is_last & (ids > 0)] == 1).all()
    assert len(batch.token_ids) == 3
    assert (batch.document_ids > 0).sum() == 20


def test_cut_keeps_every_line_and_its_blocks_within_the_limit() -> None:
    file = segments.outline("own", "packing.py", SOURCE, encode, 2000)
    for seed in range(30):
        pieces = list(segments.cut(file, 3000, np.random.default_rng(seed)))
        joined = "".join(piece.text for piece in pieces)
        for line in filter(str.strip, file.lines):
            assert line in joined
        for piece in pieces:
            assert len(piece.text) <= 3000
            num_lines = piece.text.count("\n")
            assert all(0 <= start < end <= num_lines for start, end in piece.blocks)


def test_outline_blocks_are_whole_statements() -> None:
    file = segments.outline(
        "own", "a.py", "import os\n\n\n@cached\ndef f():\n    if x:\n        y()\n    else:\n        z()\n", encode, 99
    )
    spans = {(int(start), int(end)) for start, end in file.blocks}
    assert {(0, 1), (3, 9), (5, 9), (6, 7), (8, 9)} <= spans
    assert file.units == [(0, 3), (3, 9)]


def test_stream_repeats_itself_and_differs_by_seed() -> None:
    first, again, other = (list(stream(seed).batches(1, 2, 1500)) for seed in (3, 3, 4))
    assert len(first) > 1
    assert all(
        (a.token_ids == b.token_ids).all() and (a.weights == b.weights).all() for a, b in zip(first, again, strict=True)
    )
    assert not (first[0].token_ids == other[0].token_ids).all()


def test_prefetch_resumes_at_the_position_it_gave() -> None:
    source = packing.prefetch(stream(), (0, 0), 2, 1500)
    items = [next(source) for _ in range(12)]
    resumed = packing.prefetch(stream(), items[6][0], 2, 1500)
    for expected, found in zip(items[7:], resumed, strict=False):
        assert expected[0] == found[0]
        assert (expected[1].token_ids == found[1].token_ids).all()


def test_multi_file_documents_give_each_file_its_own_sentinels() -> None:
    documents = [d.token_ids.tolist() for d in stream().documents(0, 6000)]
    joined = [ids for ids in documents if ids.count(70) > 1]
    assert joined
    for ids in documents:
        assert ids[0] == 2
        assert ids.count(2) == 1
        assert ids[-1] in (1, 70)
        assert all(part.count(68) <= 1 and part.count(67) == part.count(68) for part in split_at(ids, 70))


def split_at(ids: list[int], mark: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token_id in ids:
        if token_id == mark:
            parts.append([])
        else:
            parts[-1].append(token_id)
    return parts
