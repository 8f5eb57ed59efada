"""Batches made by processes are those of the stream itself."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from cg_local.errors import TrainingError
from cg_local.training import fim, packing, segments
from cg_local.training.workers import WorkerStream

SOURCE = Path(packing.__file__).read_text()


def encode(text: str) -> list[int]:
    return [256 + ord(char) % 1000 for char in text]


def open_stream(text: str = SOURCE) -> packing.BatchStream:
    recipe = packing.DataRecipe(fim.FimRecipe(), files_per_block=2, multi_file_rate=0.5)
    return packing.BatchStream(
        [segments.outline("own", f"{i}.py", text, encode, 2000) for i in range(4)], encode, recipe, 3
    )


def open_and_die() -> packing.BatchStream:
    raise MemoryError


def test_batches_of_processes_are_the_streams_own() -> None:
    made = WorkerStream(open_stream(), open_stream, 2)
    try:
        for position in ((0, 0), (1, 2)):
            expected, found = (stream.batches_from(position, 2, 1500) for stream in (open_stream(), made))
            for _ in range(8):
                (place, batch), (own_place, own) = next(found), next(expected)
                assert place == own_place
                assert np.array_equal(batch.token_ids, own.token_ids)
                assert np.array_equal(batch.weights, own.weights)
    finally:
        made.close()


def test_process_that_ends_is_reported() -> None:
    made = WorkerStream(open_stream(), open_and_die, 1)
    with pytest.raises(TrainingError, match="smaller workers"):
        next(made.batches_from((0, 0), 2, 1500))
    made.close()


def test_stream_without_a_batch_is_refused() -> None:
    made = WorkerStream(open_stream("x = 1\n"), functools.partial(open_stream, "x = 1\n"), 1)
    with pytest.raises(TrainingError, match="give no batch"):
        next(made.batches_from((0, 0), 2, 1500))
    made.close()
