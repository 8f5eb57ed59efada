"""A process that measures this engine, asked over stdin and answering on stdout.

This file owns how the engine is timed. It does not know what is asked for in which order. Invariant: it answers the
same requests as `llama_worker`, timed from and to the same points: from handing over token ids to the greedy choice of
the next one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cg_local.bench.cards import peak_resident_bytes
from cg_local.bench.figures import bytes_per_token
from cg_local.config import EngineConfig, SamplingParams
from cg_local.engine import Engine
from cg_local.errors import BenchmarkError
from cg_local.kernels import instruction_set_name
from cg_local.model import Model
from cg_local.model_folder import ModelFolder, open_model_folder
from cg_local.sequence import Sequence
from cg_local.tokenizer import Tokenizer

SHORT_PROMPT = 16


class Worker:
    """Answers requests by name; holds one model at a time."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._folder: ModelFolder | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks for and return the answer's members.

        Args:
            request: a JSON object; its member `do` names what is asked for, the others are its arguments.

        Raises:
            BenchmarkError: nothing of that name can be done, or no model is loaded.
        """
        arguments = dict(request)
        does: dict[str, Callable[..., dict[str, Any]]] = {
            "load": self._load,
            "prefill": self._prefill,
            "decode": self._decode,
            "batch": self._batch,
            "bytes": self._bytes,
            "memory": self._memory,
        }
        name = str(arguments.pop("do"))
        if name not in does:
            raise BenchmarkError(f"the worker cannot {name}; it can {', '.join(does)}")
        return does[name](**arguments)

    @property
    def _loaded(self) -> Engine:
        if self._engine is None:
            raise BenchmarkError("no model is loaded")
        return self._engine

    def _load(
        self, model: str, num_threads: int | None, max_context: int, num_pages: int | None = None
    ) -> dict[str, Any]:
        self._engine = self._folder = None
        started = time.perf_counter()
        self._folder = open_model_folder(model)
        tokenizer = Tokenizer.from_file(self._folder.tokenizer_path)
        config = EngineConfig(max_context=max_context, num_threads=num_threads, num_pages=num_pages)
        self._engine = Engine(Model(self._folder), config, vocab_size=tokenizer.vocab_size)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "version": {"instruction_set": instruction_set_name()}}

    def _prefill(self, token_ids: list[int]) -> dict[str, Any]:
        started = time.perf_counter()
        sequence = self._loaded.add(token_ids, SamplingParams(max_tokens=1))
        if sequence.num_cached:
            self._loaded.cancel(sequence)
            raise BenchmarkError("the prompt of a prefill begins as an earlier one")
        self._loaded.run()
        return {"seconds": time.perf_counter() - started}

    def _decode(self, token_ids: list[int], new_tokens: int) -> dict[str, Any]:
        sequence = self._start(token_ids, new_tokens)
        return {"seconds": self._timed_steps([sequence], new_tokens)}

    def _batch(self, size: int, new_tokens: int, seed: int) -> dict[str, Any]:
        """Decode `size` sequences with different prompts in the same steps."""
        random = np.random.default_rng(seed)
        vocab_size = self._loaded.vocab_size
        prompts = random.integers(vocab_size // 2, vocab_size, (size, SHORT_PROMPT)).tolist()
        sequences = [self._start(prompt, new_tokens + size) for prompt in prompts]
        seconds = self._timed_steps(sequences, new_tokens)
        for sequence in sequences:
            self._loaded.cancel(sequence)
        return {"seconds": seconds}

    def _start(self, token_ids: list[int], new_tokens: int) -> Sequence:
        """Add a sequence and step until its prompt is computed."""
        sequence = self._loaded.add(token_ids, SamplingParams(max_tokens=new_tokens + 1))
        while sequence.num_computed < len(token_ids):
            self._loaded.step()
        return sequence

    def _timed_steps(self, sequences: list[Sequence], num_steps: int) -> list[float]:
        seconds = []
        for _ in range(num_steps):
            started = time.perf_counter()
            outputs = self._loaded.step()
            seconds.append(time.perf_counter() - started)
            if len(outputs) != len(sequences):
                raise BenchmarkError(f"a step gave {len(outputs)} tokens to {len(sequences)} sequences")
        return seconds

    def _bytes(self, depth: int) -> dict[str, Any]:
        assert self._folder is not None
        dtype = self._loaded.config.kv_dtype_for(self._folder.scheme)
        return {"bytes": bytes_per_token(self._folder, depth, dtype)}

    def _memory(self) -> dict[str, Any]:
        engine = self._loaded
        return {
            "peak_resident_bytes": peak_resident_bytes(),
            "kv_cache_bytes": engine.cache.keys.nbytes + engine.cache.values.nbytes,
            "scratch_bytes": engine.model.scratch_bytes,
        }


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that a library prints may stand between the answers
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:  # the other side tells the person
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
