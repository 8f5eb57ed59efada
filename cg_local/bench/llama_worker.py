"""A process that measures llama.cpp through llama-cpp-python, asked over stdin and answering on stdout.

This file is run by the interpreter that has llama-cpp-python (`--peer-python`), which need not have cg-local: it
imports nothing of it. It owns how llama.cpp is called. Invariant: one JSON object a line in, one out, in order; what
llama.cpp prints goes to stderr. `protocol` is the other side; `worker` answers the same requests for cg-local.

llama.cpp runs as its own benchmark runs it: flash attention, K and V in float16, batches of 512 tokens.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import llama_cpp as llama
import numpy as np

BATCH_TOKENS = 512
# File types that llama_model_quantize writes, by the name in the file's name.
FILE_TYPES = {
    "q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_k_s": llama.LLAMA_FTYPE_MOSTLY_Q4_K_S,
    "q4_k_m": llama.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "q5_k_m": llama.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "q6_k": llama.LLAMA_FTYPE_MOSTLY_Q6_K,
    "q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0,
    "iq4_nl": llama.LLAMA_FTYPE_MOSTLY_IQ4_NL,
    "iq4_xs": llama.LLAMA_FTYPE_MOSTLY_IQ4_XS,
}
# Numbers of ggml's types that K and V may have. Source: ggml.h, enum ggml_type.
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
META_BYTES = 1 << 16


class LlamaModel:
    """A loaded GGUF file with one sequence of K and V.

    Args:
        path: of the GGUF file.
        num_threads: for prompts and for single tokens.
        max_context: tokens that K and V have room for.
        is_exact: keep K and V in float32 and leave flash attention off, for comparisons of logits.
        kv_type: otherwise, how K and V are kept, a key of KV_TYPES.
    """

    def __init__(
        self, path: str, num_threads: int, max_context: int, is_exact: bool = False, kv_type: str = "f16"
    ) -> None:
        settings = llama.llama_model_default_params()
        settings.n_gpu_layers = 0
        self._model = llama.llama_model_load_from_file(path.encode(), settings)
        if not self._model:
            raise RuntimeError(f"{path}: llama.cpp cannot load it")
        context = llama.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = max_context, BATCH_TOKENS, BATCH_TOKENS
        context.n_threads = context.n_threads_batch = num_threads
        flash = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED if is_exact else llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
        context.flash_attn_type = flash
        context.type_k = context.type_v = KV_TYPES["f32" if is_exact else kv_type]
        context.no_perf = True
        self._context = llama.llama_init_from_model(self._model, context)
        if not self._context:
            raise RuntimeError(f"{path}: llama.cpp cannot make a context of {max_context} tokens")
        self._memory = llama.llama_get_memory(self._context)
        self.vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._computed: list[int] = []

    def close(self) -> None:
        """Free the model and its context."""
        llama.llama_free(self._context)
        llama.llama_model_free(self._model)

    def metadata(self, key: str) -> str | None:
        """Return a member of the file's metadata as text."""
        buffer = ctypes.create_string_buffer(META_BYTES)
        length = llama.llama_model_meta_val_str(self._model, key.encode(), buffer, META_BYTES)
        return buffer.value.decode("utf-8", "replace") if length >= 0 else None

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, without BOS and with control ids spelled out."""
        data = text.encode()
        tokens = (llama.llama_token * (len(data) + 1))()
        vocab = llama.llama_model_get_vocab(self._model)
        count = llama.llama_tokenize(vocab, data, len(data), tokens, len(tokens), False, False)
        return list(tokens[:count])

    def prefill(self, token_ids: list[int]) -> float:
        """Compute a prompt with nothing cached and choose the next token; return the seconds."""
        self._keep(0)
        started = time.perf_counter()
        self._compute(token_ids)
        self._greedy()
        return time.perf_counter() - started

    def decode(self, token_ids: list[int], new_tokens: int) -> list[float]:
        """Return the seconds of each of `new_tokens` greedy tokens after a context, which is computed if need be."""
        common = 0
        while common < min(len(token_ids), len(self._computed)) and token_ids[common] == self._computed[common]:
            common += 1
        # The last token is computed again: its logits choose the first one.
        self._keep(min(common, len(token_ids) - 1))
        self._compute(token_ids[len(self._computed) :])
        token_id, seconds = self._greedy(), []
        for _ in range(new_tokens):
            started = time.perf_counter()
            self._compute([token_id])
            token_id = self._greedy()
            seconds.append(time.perf_counter() - started)
        return seconds

    def logits(self, token_ids: list[int]) -> np.ndarray:
        """Return the logits after each token, float32 [num_tokens, vocab_size]."""
        self._keep(0)
        rows = []
        for token_id in token_ids:
            self._compute([token_id])
            rows.append(self._last_logits().copy())
        return np.stack(rows)

    def write_logits(self, token_ids: list[int], first: int, destination: str) -> int:
        """Compute a text as one prompt; write the logits after its tokens from `first` on, and return their number."""
        self._keep(0)
        num_rows = 0
        with open(destination, "wb") as file:
            for start in range(0, len(token_ids), BATCH_TOKENS):
                part = token_ids[start : start + BATCH_TOKENS]
                is_wanted = [start + index >= first for index in range(len(part))]
                self._compute_batch(part, start, is_wanted)
                if any(is_wanted):
                    shape = (sum(is_wanted), self.vocab_size)
                    logits = np.ctypeslib.as_array(llama.llama_get_logits(self._context), shape=shape)
                    logits.astype("<f4", copy=False).tofile(file)
                    num_rows += shape[0]
        return num_rows

    def _compute_batch(self, token_ids: list[int], position: int, is_wanted: list[bool]) -> None:
        batch = llama.llama_batch_init(len(token_ids), 0, 1)
        try:
            batch.n_tokens = len(token_ids)
            for index, token_id in enumerate(token_ids):
                batch.token[index], batch.pos[index] = token_id, position + index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = is_wanted[index]
            status = llama.llama_decode(self._context, batch)
            if status != 0:
                raise RuntimeError(f"llama_decode failed with status {status}")
            self._computed += token_ids
        finally:
            llama.llama_batch_free(batch)

    def _keep(self, num_tokens: int) -> None:
        if not llama.llama_memory_seq_rm(self._memory, 0, num_tokens, -1):
            raise RuntimeError("llama.cpp cannot shorten its context")
        del self._computed[num_tokens:]

    def _compute(self, token_ids: list[int]) -> None:
        for start in range(0, len(token_ids), BATCH_TOKENS):
            part = token_ids[start : start + BATCH_TOKENS]
            tokens = (llama.llama_token * len(part))(*part)
            status = llama.llama_decode(self._context, llama.llama_batch_get_one(tokens, len(part)))
            if status != 0:
                raise RuntimeError(f"llama_decode failed with status {status}")
            self._computed += part

    def _last_logits(self) -> np.ndarray:
        pointer = llama.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.vocab_size,))

    def _greedy(self) -> int:
        return int(self._last_logits().argmax())


class Worker:
    """Answers requests by name; holds one model at a time."""

    def __init__(self) -> None:
        self._model: LlamaModel | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks for and return the answer's members."""
        arguments = dict(request)
        does: dict[str, Callable[..., dict[str, Any]]] = {
            "load": self._load,
            "tokenize": self._tokenize,
            "prefill": self._prefill,
            "decode": self._decode,
            "logits": self._logits,
            "batch_logits": self._batch_logits,
            "memory": self._memory,
            "quantize": self._quantize,
        }
        return does[str(arguments.pop("do"))](**arguments)

    @property
    def _loaded(self) -> LlamaModel:
        if self._model is None:
            raise RuntimeError("no model is loaded")
        return self._model

    def _load(
        self, model: str, num_threads: int, max_context: int, is_exact: bool = False, kv_type: str = "f16"
    ) -> dict[str, Any]:
        if self._model is not None:
            self._model.close()
        started = time.perf_counter()
        self._model = LlamaModel(model, num_threads, max_context, is_exact, kv_type)
        seconds = time.perf_counter() - started
        version = {"llama-cpp-python": llama.__version__, "system": llama.llama_print_system_info().decode().strip()}
        return {"seconds": seconds, "version": version, "sources": self._loaded.metadata("cg_local.sources")}

    def _tokenize(self, text: str) -> dict[str, Any]:
        return {"token_ids": self._loaded.tokenize(text)}

    def _prefill(self, token_ids: list[int]) -> dict[str, Any]:
        return {"seconds": self._loaded.prefill(token_ids)}

    def _decode(self, token_ids: list[int], new_tokens: int) -> dict[str, Any]:
        return {"seconds": self._loaded.decode(token_ids, new_tokens)}

    def _logits(self, token_ids: list[int], destination: str) -> dict[str, Any]:
        logits = self._loaded.logits(token_ids)
        logits.astype("<f4").tofile(destination)
        return {"shape": list(logits.shape)}

    def _batch_logits(self, token_ids: list[int], first: int, destination: str) -> dict[str, Any]:
        num_rows = self._loaded.write_logits(token_ids, first, destination)
        return {"shape": [num_rows, self._loaded.vocab_size]}

    def _memory(self) -> dict[str, Any]:
        try:
            import resource
        except ImportError:  # Windows
            return {}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak_resident_bytes": peak if sys.platform == "darwin" else peak * 1024}

    def _quantize(
        self, source: str, destination: str, file_type: str, num_threads: int, importance: str | None = None
    ) -> dict[str, Any]:
        settings = llama.llama_model_quantize_default_params()
        settings.ftype, settings.nthread = FILE_TYPES[file_type], num_threads
        arrays = importance_arrays(importance) if importance is not None else {}
        if arrays:
            settings.imatrix = imatrix(arrays)
        status = llama.llama_model_quantize(source.encode(), destination.encode(), ctypes.byref(settings))
        if status != 0:
            raise RuntimeError(f"{source}: llama.cpp cannot quantize it to {file_type} (status {status})")
        return {}


def importance_arrays(path: str) -> dict[str, np.ndarray]:
    """Read mean squares of the inputs of each matrix, float32 [inputs] by the matrix's name in GGUF, from an .npz."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: np.ascontiguousarray(arrays[name], np.float32) for name in arrays.files}


def imatrix(arrays: dict[str, np.ndarray]) -> Any:
    """Return llama.cpp's importance matrix over arrays that must outlive it; an entry without a name ends it."""
    entries = (llama.llama_model_imatrix_data * (len(arrays) + 1))()
    for entry, (name, values) in zip(entries, arrays.items(), strict=False):
        entry.name, entry.size = name.encode(), len(values)
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    llama.llama_backend_init()
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:  # the other side tells the person
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
