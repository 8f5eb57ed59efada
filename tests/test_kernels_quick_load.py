"""Kernels loaded by the shortcut: the same results, and Numba's own way where there is nothing to load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from cg_local.kernels.quick_load import load_quickly

# A fresh process: prints the result, how often Numba compiled, and whether its registries were initialized.
PROGRAM = """
import numpy as np
from numba.core import event
from cg_local import kernels

x = np.linspace(-3, 3, 512, dtype=np.float32).reshape(2, 256)
out = np.empty_like(x)
with event.install_recorder("numba:compile") as recorder:
    kernels.rms_norm(x, np.full(256, 1.5, np.float32), np.float32(1e-6), out)
import sys
print(out.tobytes().hex())
print(len(recorder.buffer))
print("numba.typed.dictimpl" in sys.modules)
"""


def run(cache: Path) -> list[str]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    return subprocess.check_output([sys.executable, "-c", PROGRAM], env=environment, text=True, cwd=cache).split()


def test_cached_kernel_gives_the_same_bits_without_compiling_or_preparing_to(tmp_path: Path) -> None:
    compiled_result, num_compiled, _ = run(tmp_path)
    loaded_result, num_recompiled, is_prepared = run(tmp_path)

    assert int(num_compiled) > 0
    assert (loaded_result, num_recompiled, is_prepared) == (compiled_result, "0", "False")


def test_damaged_cache_is_compiled_again(tmp_path: Path) -> None:
    expected, _, _ = run(tmp_path)
    for kept in tmp_path.rglob("*.nb?"):
        kept.write_bytes(kept.read_bytes()[:40])

    repaired, num_compiled, _ = run(tmp_path)
    loaded, num_recompiled, _ = run(tmp_path)

    assert (repaired, loaded) == (expected, expected)
    assert int(num_compiled) > 0
    assert num_recompiled == "0"


def test_object_without_numbas_internals_is_left_alone() -> None:
    def plain(x: np.ndarray) -> np.ndarray:
        return x

    load_quickly(plain)

    assert not hasattr(plain, "_cache")
