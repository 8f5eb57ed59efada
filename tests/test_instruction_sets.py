"""Proves the paths that the host does not take: emulated, in a process without some features, or compiled only.

A host with AVX512-VNNI runs its own path for real in test_kernels_matmul.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any

import numba
import numpy as np
import pytest
from kernel_cases import FORMATS, expected_product, multiply, random_codes, random_matrix
from numba import njit

from cg_local.engine import Engine
from cg_local.kernels import instruction_set, matmul, portable
from cg_local.kernels.instruction_set import Avx2, Avx512Vnni, Emulated512
from cg_local.model import Model
from cg_local.model_folder import open_model_folder
from cg_local.packing import TILE_ROWS

T = matmul.BLOCK_TOKENS
HASWELL = "+64bit,+cmov,+cx8,+sse4.2,+avx,+avx2,+fma,+f16c,+bmi,+bmi2"
ZEN4 = HASWELL + ",+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512vnni"


class Emulated:
    """The products of `matmul.py` with tiles of Emulated512; one tile function per format for 1 and for T tokens."""

    @staticmethod
    def matmul_c4g32(codes: Any, scales: Any, super_scales: Any, codebook: Any, *x_and_out: Any) -> None:
        run = _emulated_c4g32 if x_and_out[0].shape[2] == 1 else _emulated_c4g32_block
        for tile in range(len(codes)):
            run_tile(run, tile, (codes[tile], scales[tile], super_scales[tile], codebook), x_and_out)

    @staticmethod
    def matmul_i8g64(codes: Any, scales: Any, *x_and_out: Any) -> None:
        run = _emulated_i8g64 if x_and_out[0].shape[2] == 1 else _emulated_i8g64_block
        for tile in range(len(codes)):
            run_tile(run, tile, (codes[tile], scales[tile]), x_and_out)

    @staticmethod
    def matmul_bf16(codes: Any, *x_and_out: Any) -> None:
        run = _emulated_bf16 if x_and_out[0].shape[2] == 1 else _emulated_bf16_block
        for tile in range(len(codes)):
            run_tile(run, tile, (codes[tile],), x_and_out)


def run_tile(run: Any, tile: int, weights: tuple[Any, ...], x_and_out: tuple[Any, ...]) -> None:
    """Call a tile function with the addresses of one tile's weights and of each block of activations."""
    *x, out = x_and_out
    num_blocks, steps, tokens = x[0].shape[:3]
    for block in range(num_blocks):
        target = out[block * tokens, tile * TILE_ROWS :]
        arrays = *weights, *(array[block] for array in x), target
        run(*(array.ctypes.data for array in arrays), steps, out.shape[1])


_c4g32, _c4g32_block = matmul.make_c4g32_tile(Emulated512(), 1), matmul.make_c4g32_tile(Emulated512(), T)
_i8g64, _i8g64_block = matmul.make_i8g64_tile(Emulated512(), 1), matmul.make_i8g64_tile(Emulated512(), T)
_bf16, _bf16_block = matmul.make_bf16_tile(Emulated512(), 1), matmul.make_bf16_tile(Emulated512(), T)


@njit
def _emulated_c4g32(codes, scales, super_scales, codebook, x, x_scales, x_sums, out, groups, stride):
    _c4g32(codes, scales, super_scales, codebook, x, x_scales, x_sums, out, groups, stride)


@njit
def _emulated_c4g32_block(codes, scales, super_scales, codebook, x, x_scales, x_sums, out, groups, stride):
    _c4g32_block(codes, scales, super_scales, codebook, x, x_scales, x_sums, out, groups, stride)


@njit
def _emulated_i8g64(codes, scales, x, x_scales, x_sums, out, groups, stride):
    _i8g64(codes, scales, x, x_scales, x_sums, out, groups, stride)


@njit
def _emulated_i8g64_block(codes, scales, x, x_scales, x_sums, out, groups, stride):
    _i8g64_block(codes, scales, x, x_scales, x_sums, out, groups, stride)


@njit
def _emulated_bf16(codes, x, out, columns, stride):
    _bf16(codes, x, out, columns, stride)


@njit
def _emulated_bf16_block(codes, x, out, columns, stride):
    _bf16_block(codes, x, out, columns, stride)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_512_bit_path_equals_the_portable_path_where_sums_are_exact(format: str, num_tokens: int) -> None:
    random = np.random.default_rng(num_tokens)
    matrix = random_matrix(format, random, (24, 512), is_exact=True)
    x = random_codes(random, num_tokens, 512, is_exact=True)
    tokens = 1 if num_tokens == 1 else T

    emulated, plain = (multiply(path, matrix, x, tokens) for path in (Emulated, portable))

    np.testing.assert_array_equal(emulated, plain)


@pytest.mark.parametrize("format", FORMATS)
def test_512_bit_path_equals_the_float64_product(format: str) -> None:
    random = np.random.default_rng(7)
    matrix, x = random_matrix(format, random, (16, 256)), random_codes(random, 5, 256)
    expected, tolerance = expected_product(matrix, x)

    assert (np.abs(multiply(Emulated, matrix, x, T) - expected) <= tolerance).all()


def run_as(processor: str, script: str, *arguments: Path, **variables: str) -> str:
    """Run a script in a process that compiles for another processor; return what it prints."""
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "NUMBA_CPU_NAME": processor, "PYTHONPATH": paths, **variables}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


AVX512_SCRIPT = """
import re
from numba import types as t
from cg_local import kernels
assert kernels.instruction_set_name() == "avx512vnni", kernels.instruction_set_name()

def array(element, dimensions, mutable=False):
    return t.Array(element, dimensions, "C", readonly=not mutable)

x = array(t.int8, 4, True), array(t.float32, 3, True), array(t.int32, 3, True)
weights = {
    "c4g32": [array(t.uint8, 3), array(t.int8, 3), array(t.uint16, 3), array(t.uint8, 2)],
    "i8g64": [array(t.int8, 3), array(t.uint16, 3)],
    "bf16": [array(t.uint16, 3)],
}
for format, parts in weights.items():
    product = getattr(kernels, "matmul_" + format)
    product.compile((*parts, *((x[1],) if format == "bf16" else x), array(t.float32, 2, True)))
    assembly = "".join(product.inspect_asm().values())
    print(format, len(re.findall(r"vpdpbusd.*zmm", assembly)), len(re.findall(r"vpshufb.*zmm", assembly)),
          len(re.findall(r"vfn?madd.*zmm", assembly)))
"""


@pytest.fixture(scope="module")
def avx512_instructions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """512-bit dot products, byte lookups and multiply-adds in the code of each product, compiled but never run."""
    # Code taken from Numba's cache cannot be inspected, so this process gets an empty one.
    cache = str(tmp_path_factory.mktemp("numba"))
    printed = run_as("znver4", AVX512_SCRIPT, NUMBA_CPU_FEATURES=ZEN4, NUMBA_CACHE_DIR=cache)
    return {line.split()[0]: [int(word) for word in line.split()[1:]] for line in printed.splitlines()}


@pytest.mark.slow
def test_avx512_products_of_integers_compile_to_512_bit_dot_products(avx512_instructions: dict[str, list[int]]) -> None:
    # One group of 32 columns is 8 dot products of 4 columns for each token of the 1-token and the block kernel.
    assert avx512_instructions["c4g32"][0] >= 8 * (1 + T)
    assert avx512_instructions["i8g64"][0] >= 8 * (1 + T)


@pytest.mark.slow
def test_avx512_codebook_lookup_compiles_to_512_bit_shuffles(avx512_instructions: dict[str, list[int]]) -> None:
    assert avx512_instructions["c4g32"][1] >= 2 * 8


@pytest.mark.slow
def test_avx512_product_of_bf16_compiles_to_512_bit_multiply_adds(avx512_instructions: dict[str, list[int]]) -> None:
    assert avx512_instructions["bf16"][2] >= 1 + T


HASWELL_SCRIPT = """
import numpy as np
from kernel_cases import FORMATS, expected_product, multiply, random_codes, random_matrix
from cg_local import kernels
print(kernels.instruction_set_name())
for format in FORMATS:
    random = np.random.default_rng(3)
    matrix = random_matrix(format, random, (32, 512), is_exact=True)
    x = random_codes(random, 5, 512, is_exact=True)
    for tokens in (1, kernels.BLOCK_TOKENS):
        np.testing.assert_array_equal(multiply(kernels, matrix, x, tokens), expected_product(matrix, x)[0])
print("equal")
"""


@pytest.mark.skipif(
    not isinstance(matmul.INSTRUCTION_SET, Avx512Vnni), reason="the host takes the AVX2 path itself, or cannot run it"
)
def test_process_without_avx512_takes_the_avx2_path_and_its_exact_sums_equal_the_float64_product() -> None:
    assert run_as("haswell", HASWELL_SCRIPT, NUMBA_CPU_FEATURES=HASWELL).split() == ["avx2", "equal"]


GENERIC_SCRIPT = """
import sys
import numpy as np
from cg_local import kernels
from cg_local.engine import Engine
from cg_local.model import Model
from cg_local.model_folder import open_model_folder
print(kernels.instruction_set_name())
for folder in sys.argv[2:]:
    logits = Engine(Model(open_model_folder(folder))).logits(range(2, 42))
    np.save(sys.argv[1] + "/" + folder.rsplit("/")[-1], logits)
"""


@pytest.fixture(scope="module")
def generic_logits(
    tmp_path_factory: pytest.TempPathFactory, toy_folder: Callable[[str, str], Path]
) -> tuple[str, dict[str, Any]]:
    """The instruction set that a process without known features names, and its logits of toy models by scheme."""
    out = tmp_path_factory.mktemp("logits")
    folders = [toy_folder("mqa", scheme) for scheme in ("bf16", "q4")]
    name = run_as("generic", GENERIC_SCRIPT, out, *folders).strip()
    return name, {folder.name.split("-")[1]: np.load(out / f"{folder.name}.npy") for folder in folders}


@pytest.mark.slow
def test_process_without_known_features_selects_the_portable_path(generic_logits: tuple[str, dict[str, Any]]) -> None:
    assert generic_logits[0] == "portable"


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "tolerance"), [("bf16", 1e-4), ("q4", 2e-3)])
def test_portable_forward_pass_equals_the_hosts(
    scheme: str, tolerance: float, generic_logits: tuple[str, dict[str, Any]], toy_folder: Callable[[str, str], Path]
) -> None:
    # Float32 sums differ by rounding; where a K or V lies next to a tie, its float16 then differs by 2**-11. In q4
    # activation codes next to a tie differ too, see test_model.py.
    host = Engine(Model(open_model_folder(toy_folder("mqa", scheme)))).logits(range(2, 42))

    difference = generic_logits[1][scheme] - host

    assert np.sqrt(np.mean(difference**2)) <= tolerance * np.sqrt(np.mean(host**2))


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx512f", "avx512bw", "avx512vnni", "avx2", "fma", "f16c"}, Avx512Vnni),
        ({"avx512f", "avx512bw", "avx2", "fma", "f16c"}, Avx2),
        ({"avx2", "fma", "f16c"}, Avx2),
        ({"avx2", "fma"}, NoneType),
        ({"avx", "sse4.2"}, NoneType),
        (set(), NoneType),
    ],
    ids=["vnni", "avx512-without-vnni", "avx2", "avx2-without-half-conversion", "avx", "nothing"],
)
def test_best_instruction_set_whose_features_are_all_there_is_selected(
    features: set[str], expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instruction_set, "compiled_features", lambda: features)

    assert type(instruction_set.select_instruction_set()) is expected


def test_features_named_for_numba_replace_those_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "+avx2,-avx512f,+fma")

    assert instruction_set.compiled_features() == {"avx2", "fma"}
