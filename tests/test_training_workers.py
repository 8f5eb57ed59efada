"""Batches made by processes are those of the stream itself."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from worker_streams import open_and_die, open_stream

from cg_local.errors import TrainingError
from cg_local.training.workers import WorkerStream


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
