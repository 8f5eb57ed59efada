"""One name per operation on the host's best path.

Importing this package chooses the instruction set and prepares Numba's threads; it computes nothing. Invariant: the
names below have the same meaning on every machine.
"""

from __future__ import annotations

import os
from pathlib import Path

import numba

from cg_local import packing
from cg_local.kernels import cache_folder

# Between two products a thread waits in a loop for about 60 microseconds and then sleeps. Waking it takes 80
# microseconds (2 while it still loops), and a decode step has 91 parallel regions; looping for longer starves the
# engine itself beside another busy process.
# It has no effect where another package has loaded the same OpenMP library before.
ADDED_ENVIRONMENT = {"GOMP_SPINCOUNT": "3000"} if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys() else {}
os.environ.update(ADDED_ENVIRONMENT)
numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

with cache_folder.caching_for(Path(__file__).parent, Path(packing.__file__)):
    from cg_local.kernels import int16_activations, matmul, portable, products, quick_load
    from cg_local.kernels.activations import block_activations, geglu, mix_columns, quantize_activations, rms_norm, rope
    from cg_local.kernels.attention import attend, attend_decode, attend_prefill
    from cg_local.kernels.int16_activations import quantize_activations_int16
    from cg_local.kernels.pages import write_pages
    from cg_local.kernels.products import (
        ADD,
        GATE,
        OUT,
        STORE,
        STRIDE,
        Quantized,
        multiply,
        run_products,
        scratch_floats,
        table_of_jobs,
    )

BLOCK_TOKENS = matmul.BLOCK_TOKENS
# Formats whose products run together in `run_products`, and a function for each format alone.
FUSED_FORMATS = frozenset(products.FORMAT_IDS if matmul.INSTRUCTION_SET is not None else ())
MATMUL = {**portable.MATMUL, **({"bf16": matmul.matmul_bf16} if matmul.INSTRUCTION_SET is not None else {})}
_int16 = int16_activations if matmul.INSTRUCTION_SET is not None else portable
matmul_i8g64_int16 = _int16.matmul_i8g64_int16

_kernels = (
    attend, block_activations, geglu, matmul_i8g64_int16, multiply, quantize_activations, quantize_activations_int16,
    mix_columns, rms_norm, rope, write_pages, *set(MATMUL.values()),
)  # fmt: skip
for _kernel in _kernels:
    quick_load.load_quickly(_kernel)


def instruction_set_name() -> str:
    """Return the name of the one in use: "avx512vnni", "avxvnni", "avx2", "neon-dotprod" or "portable"."""
    return "portable" if matmul.INSTRUCTION_SET is None else matmul.INSTRUCTION_SET.name


__all__ = [
    "ADD",
    "ADDED_ENVIRONMENT",
    "BLOCK_TOKENS",
    "FUSED_FORMATS",
    "GATE",
    "MATMUL",
    "OUT",
    "STORE",
    "STRIDE",
    "Quantized",
    "attend_decode",
    "attend_prefill",
    "block_activations",
    "geglu",
    "instruction_set_name",
    "matmul_i8g64_int16",
    "mix_columns",
    "quantize_activations",
    "quantize_activations_int16",
    "rms_norm",
    "rope",
    "run_products",
    "scratch_floats",
    "table_of_jobs",
    "write_pages",
]
