"""One name per operation on the host's best path.

Importing this package chooses the instruction set and prepares Numba's threads; it computes nothing. Invariant: the
names below have the same meaning on every machine.
"""

from __future__ import annotations

import os
from pathlib import Path

import numba

from cg_local.kernels import cache_folder

# Threads that wait by spinning starve when another process holds a core: with a compiler running beside it a decode
# kernel fell from 153 to 8 billion operations/s on 2 cores, and kept 172 with OpenMP and a passive wait.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

with cache_folder.caching_for(Path(__file__).parent):
    from cg_local.kernels import matmul, portable, quick_load
    from cg_local.kernels.activations import block_activations, geglu, quantize_activations, rms_norm, rope
    from cg_local.kernels.attention import attend, attend_decode, attend_prefill
    from cg_local.kernels.pages import write_pages

BLOCK_TOKENS = matmul.BLOCK_TOKENS
_products = portable if matmul.INSTRUCTION_SET is None else matmul
matmul_bf16, matmul_c4g32, matmul_i8g64 = _products.matmul_bf16, _products.matmul_c4g32, _products.matmul_i8g64

_kernels = (
    attend, block_activations, geglu, matmul_bf16, matmul_c4g32, matmul_i8g64,
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
