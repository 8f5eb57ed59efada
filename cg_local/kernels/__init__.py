"""One name per operation on the host's best path.

Importing this package chooses the instruction set and prepares Numba's threads; it computes nothing. Invariant: the
names below have the same meaning on every machine.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numba

# Threads that wait by spinning starve when another process holds a core: with a compiler running beside it a decode
# kernel fell from 153 to 8 billion operations/s on 2 cores, and kept 172 with OpenMP and a passive wait.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

# Numba's cache looks at the jitted function's own file only and would serve stale code when a file it calls into
# changes. So the kernels are cached under a digest of all their sources. An unwritable folder falls back to the user's.
_sources = sorted(Path(__file__).parent.glob("*.py"))
_digest = hashlib.sha256(b"".join(source.read_bytes() for source in _sources)).hexdigest()[:16]
_users_cache = numba.config.CACHE_DIR
if not _users_cache:
    numba.config.CACHE_DIR = str(Path(__file__).parent / "__pycache__" / f"kernels-{_digest}")

from cg_local.kernels import matmul, portable, quick_load  # noqa: E402  (after the cache folder is set)
from cg_local.kernels.activations import block_activations, geglu, quantize_activations, rms_norm, rope  # noqa: E402
from cg_local.kernels.attention import attend_decode, attend_prefill, write_pages  # noqa: E402

numba.config.CACHE_DIR = _users_cache

BLOCK_TOKENS = matmul.BLOCK_TOKENS
_products = portable if matmul.INSTRUCTION_SET is None else matmul
matmul_bf16, matmul_c4g32, matmul_i8g64 = _products.matmul_bf16, _products.matmul_c4g32, _products.matmul_i8g64

_kernels = (
    attend_decode, attend_prefill, block_activations, geglu, matmul_bf16, matmul_c4g32, matmul_i8g64,
    quantize_activations, rms_norm, rope, write_pages,
)  # fmt: skip
for _kernel in _kernels:
    quick_load.load_quickly(_kernel)


def instruction_set_name() -> str:
    """Return the name of the instruction set in use: "avx512vnni", "avx2" or "portable"."""
    return "portable" if matmul.INSTRUCTION_SET is None else matmul.INSTRUCTION_SET.name


__all__ = [
    "BLOCK_TOKENS",
    "attend_decode",
    "attend_prefill",
    "block_activations",
    "geglu",
    "instruction_set_name",
    "matmul_bf16",
    "matmul_c4g32",
    "matmul_i8g64",
    "quantize_activations",
    "rms_norm",
    "rope",
    "write_pages",
]
