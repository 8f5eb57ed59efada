"""How much memory a model needs, and how much the machine has left.

This file owns the estimate and the refusal. It allocates nothing. Invariant: every figure is in bytes until a message
is written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cg_local.config import EngineConfig, ModelConfig
from cg_local.errors import CapacityError
from cg_local.kv_cache import page_bytes

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryNeed:
    """What a loaded model takes at most, in bytes.

    Attributes:
        weights: of the model folder's tensors. They are mapped, so the system may drop and read them again, but the
            machine only keeps its speed while all of them stay in memory.
        kv_cache: pages of K and V for the whole context; taken as the context fills.
        scratch: activations of the largest step.
        kv_dtype: how K and V are kept; None: not known.
    """

    weights: int
    kv_cache: int
    scratch: int
    kv_dtype: str | None = None

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.kv_cache + self.scratch


def memory_need(
    weight_bytes: int, scheme: str, config: ModelConfig, engine: EngineConfig, *, is_fused: bool = True
) -> MemoryNeed:
    """Estimate what a model takes.

    Args:
        weight_bytes: of the tensors.
        scheme: of the weights.
        config: of the model.
        engine: context, page size, K/V type, prefill chunk and length of drafts.
        is_fused: gate, up and the rounding of their product run as one, which keeps neither gate nor up; never so with
            bf16 weights.
    """
    context = min(engine.max_context or config.max_position_embeddings, config.max_position_embeddings)
    num_pages = engine.num_pages or -(-context // engine.page_size)
    # The bytes that a step holds for each token: the input of the down projection (fused: for a group of 32 columns
    # their int8 codes, scale, sum and four corrections, 56 bytes; else gate, up and the layout of their product in
    # float32); the residual stream, its norm and what is added to it; queries and attention outputs. Beside them the
    # logits of one sequence and its draft.
    of_intermediate = 1.75 if is_fused and scheme != "bf16" else 12
    of_token = of_intermediate * config.intermediate_size + 32 * config.hidden_size
    of_token += 16 * config.num_heads * config.head_dim
    logits = 4 * (1 + engine.max_draft_tokens) * config.vocab_size
    kv_dtype = engine.kv_dtype_for(scheme)
    return MemoryNeed(
        weights=weight_bytes,
        kv_cache=num_pages * page_bytes(config, engine.page_size, kv_dtype),
        scratch=int(min(engine.prefill_chunk, context) * of_token) + logits,
        kv_dtype=kv_dtype,
    )


def available_bytes() -> int | None:
    """Return the memory that can be taken without swapping; None where the system does not say."""
    found = [value for value in (_meminfo_available(), _cgroup_available()) if value is not None]
    if found:
        return min(found)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def resident_bytes() -> int | None:
    """Return the memory that this process has resident, mapped weights included; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError, ValueError):
        return None


def check_memory(name: str, need: MemoryNeed, available: int | None) -> None:
    """Refuse what cannot fit.

    Args:
        name: what messages call the model.
        need: from `memory_need`.
        available: from `available_bytes`; None: nothing is refused.

    Raises:
        CapacityError: more is needed than available.
    """
    if available is None or need.total <= available:
        return
    smaller_cache = "" if need.kv_dtype == "int8" else "K and V in int8 (--kv-dtype int8), "
    raise CapacityError(
        f"{name}: needs {readable_size(need.total)} of memory (weights {readable_size(need.weights)}, K/V "
        f"{readable_size(need.kv_cache)}, scratch {readable_size(need.scratch)}), {readable_size(available)} are free; "
        f"use a smaller context, {smaller_cache}or a smaller scheme, or close other programs"
    )


def readable_size(num_bytes: int) -> str:
    """Return a size as a person reads it, in binary units: "1.6 GiB"."""
    if num_bytes >= 1 << 30:
        return f"{num_bytes / (1 << 30):.1f} GiB"
    if num_bytes >= 1 << 20:
        return f"{num_bytes / (1 << 20):.1f} MiB"
    return f"{num_bytes / 1024:.1f} KiB" if num_bytes >= 1024 else f"{num_bytes} bytes"


def _meminfo_available() -> int | None:
    """MemAvailable of Linux: free memory and the page cache that can be given back."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    line = next((line for line in text.splitlines() if line.startswith("MemAvailable:")), None)
    return int(line.split()[1]) * 1024 if line is not None else None


def _cgroup_available() -> int | None:
    """What a container's limit (cgroup version 2) leaves; its file pages can be given back."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        file_lines = (_CGROUP / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    cached = sum(int(line.split()[1]) for line in file_lines if line.split()[0] in ("inactive_file", "active_file"))
    return max(0, int(limit) - used + cached)
