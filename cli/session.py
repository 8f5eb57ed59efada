"""What a command needs before it can ask a model: the text, how to sample, and the model, its notices and progress."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cg_local.cli.options import KvDtype, Scheme
from cg_local.cli.render import Status, notice
from cg_local.errors import SourceFileError
from cg_local.infill.cursor import (
    MAX_SOURCE_BYTES,
    STANDARD_INPUT,
    STANDARD_INPUT_NAME,
    SourceText,
    decode_source,
    read_source,
)

if TYPE_CHECKING:
    from cg_local.answers import Infill
    from cg_local.config import SamplingParams
    from cg_local.kv_store import KVStore
    from cg_local.runtime import LocalModel

WORTH_TOKENS, WORTH_SECONDS = 256, 0.5
"""What was computed of a prompt is stored if it is so much. A first step takes 0.2 s however short the prompt is."""


def read_text(file: str) -> SourceText:
    """Read and decode a file, or standard input for "-".

    Raises:
        SourceFileError: as `read_source`, or standard input is closed.
    """
    if file != STANDARD_INPUT:
        return read_source(file)
    if sys.stdin is None:  # the parent process closed it
        raise SourceFileError(f"{STANDARD_INPUT_NAME}: closed; pipe a text into it, or name a file")
    if sys.stdin.isatty():
        notice("the text is read from the keyboard; end with Ctrl-D")
    return decode_source(sys.stdin.buffer.read(MAX_SOURCE_BYTES + 1), STANDARD_INPUT_NAME)


def sampling(
    max_tokens: int,
    seed: int | None,
    temperature: float,
    *,
    top_k: int,
    top_p: float,
    min_p: float,
    penalty: float,
) -> SamplingParams:
    """Return the options of a command as the engine takes them.

    Raises:
        ConfigError: a value that the option's own range does not exclude.
    """
    from cg_local.config import SamplingParams

    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
        seed=seed,
    )


def load_model(
    name: str,
    scheme: Scheme | None,
    max_context: int | None,
    num_threads: int | None,
    kv_dtype: KvDtype | None,
    speculation: bool,
    spare_tokens: int = 0,
    num_sequences: int = 1,
) -> LocalModel:
    """Load a model as `cg_local.load` does.

    Args:
        name: embedded name, name in the data folder, or model folder.
        scheme: how to quantize an embedded model.
        max_context: tokens of prompt and answer together; None: as many as the model was trained for.
        num_threads: threads of the kernels; None: one for each core.
        kv_dtype: how K and V are kept; None: as the scheme has it.
        speculation: compute guessed tokens where that saves time.
        spare_tokens: K/V room beside the context's.
        num_sequences: answers under way at the same time.
    """
    status = Status()
    _leave_scipy_out()
    with status.waiting(f"loading {name} ..."):
        from cg_local.runtime import load

        return load(
            name,
            scheme=scheme.value if scheme else None,
            max_context=max_context,
            num_threads=num_threads,
            kv_dtype=kv_dtype.value if kv_dtype else None,
            speculation=speculation,
            spare_tokens=spare_tokens,
            num_sequences=num_sequences,
            on_notice=notice,
            on_progress=status.progress(name),
        )


def kv_store(size: str) -> KVStore:
    """Return the store of K and V in the user's cache folder.

    Args:
        size: what it may take, such as "4 GiB"; "0" for nothing.
    """
    from cg_local.kv_store import KVStore
    from cg_local.model_store import kv_folder
    from cg_local.settings import parsed_size

    return KVStore(kv_folder(), max_bytes=parsed_size(size))


def keep_fill(model: LocalModel, result: Infill) -> None:
    """Store the K and V of a fill's prompt where the next fill of the file would gain by it.

    To be called when the answer has been shown. An interrupted prompt is stored as far as it is computed.
    """
    num_computed = result.prompt_tokens - result.cached_tokens
    is_slow = num_computed >= WORTH_TOKENS or result.prefill_seconds >= WORTH_SECONDS
    if result.stop_reason == "interrupted" or is_slow:
        model.save_prefix()


def _leave_scipy_out() -> None:
    """Keep Numba from importing SciPy into this process, where it happens to be installed.

    Numba does so for linear algebra, which no kernel uses; it takes 0.2 to 0.25 of the 1.4 seconds of processor time
    that a short fill takes.
    """
    sys.modules.setdefault("scipy", None)  # type: ignore[arg-type]
