"""Proves whole processes on other instruction sets than the host's best: selection, compilation and products.

This file owns what needs Numba to start anew with other settings. Tiles of instruction sets that the host cannot run
are proved in test_instruction_sets.py.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest

from cg_local.engine import Engine
from cg_local.kernels import matmul
from cg_local.model import Model
from cg_local.model_folder import open_model_folder

T = matmul.BLOCK_TOKENS
AVX2 = "+64bit,+cmov,+cx8,+sse4.2,+avx,+avx2,+fma,+f16c,+bmi,+bmi2"
AVX_VNNI = AVX2 + ",+avxvnni"
AVX512_VNNI = AVX2 + ",+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512vnni"
# A Python for AArch64 with NumPy and Numba, which may be an emulated one: "qemu-aarch64 -L ROOT ROOT/usr/bin/python3".
ARM_PYTHON = os.environ.get("CG_LOCAL_ARM_PYTHON")


def run(command: list[str], script: str, *arguments: Path, **variables: str) -> str:
    """Run a script with changed environment variables; return what it prints."""
    environment = {**os.environ, **variables}
    whole = [*command, "-c", script, *map(str, arguments)]
    finished = subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=1200)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def run_as(processor: str, script: str, *arguments: Path, **variables: str) -> str:
    """Run a script in a process that compiles for another processor."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return run([sys.executable], script, *arguments, NUMBA_CPU_NAME=processor, PYTHONPATH=paths, **variables)


PRODUCTS_SCRIPT = """
import numpy as np
from kernel_cases import expected_product, multiply, random_codes, random_matrix
from cg_local import kernels
from cg_local.packing import FORMATS
print(kernels.instruction_set_name())
for format, is_int16 in (*((format, False) for format in FORMATS), ("i8g64", True)):
    for num_tokens, tokens in ((1, 1), (5, 1), (5, kernels.BLOCK_TOKENS)):
        random = np.random.default_rng(3)
        matrix = random_matrix(format, random, (32, 512), is_exact=True)
        x = random_codes(random, num_tokens, 512, is_exact=True, is_int16=is_int16)
        np.testing.assert_array_equal(multiply(kernels, matrix, x, tokens), expected_product(matrix, x)[0])
        matrix = random_matrix(format, random, (32, 512))
        x = random_codes(random, num_tokens, 512, is_int16=is_int16)
        expected, tolerance = expected_product(matrix, x)
        assert (np.abs(multiply(kernels, matrix, x, tokens) - expected) <= tolerance).all()
print("equal")
"""


@pytest.mark.parametrize(
    ("processor", "features", "expected"),
    [("haswell", AVX2, "avx2"), ("alderlake", AVX_VNNI, "avxvnni"), ("znver4", AVX512_VNNI, "avx512vnni")],
)
def test_products_of_a_process_for_another_processor_equal_the_float64_product(
    processor: str, features: str, expected: str
) -> None:
    host = {name for name, present in llvm.get_host_cpu_features().items() if present}
    missing = {feature[1:] for feature in features.split(",")} - host
    if missing:
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))}; test_instruction_sets.py emulates {expected}")

    assert run_as(processor, PRODUCTS_SCRIPT, NUMBA_CPU_FEATURES=features).split() == [expected, "equal"]


@pytest.mark.slow
@pytest.mark.skipif(ARM_PYTHON is None, reason="CG_LOCAL_ARM_PYTHON names no Python for AArch64")
def test_products_of_numba_on_an_arm_processor_equal_the_float64_product() -> None:
    places = [str(Path(__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]

    printed = run(shlex.split(str(ARM_PYTHON)), PRODUCTS_SCRIPT, PYTHONPATH=os.pathsep.join(places))

    assert printed.split() == ["neon-dotprod", "equal"]


NAME_SCRIPT = "from cg_local import kernels; print(kernels.instruction_set_name())"


def test_process_that_forbids_avx_takes_the_portable_path() -> None:
    assert run_as("haswell", NAME_SCRIPT, NUMBA_ENABLE_AVX="0").strip() == "portable"


COMPILED_SCRIPT = """
import re
from cg_local import kernels
from cg_local.packing import FORMATS
from cg_local.kernels import products

print(kernels.instruction_set_name())
products.products_address()
print(len(re.findall(r"vpdpbusd", "".join(products.multiply_units.inspect_asm().values()))))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processor", "features", "expected", "dots_a_group"),
    [("alderlake", AVX_VNNI, "avxvnni", 16), ("znver4", AVX512_VNNI, "avx512vnni", 8)],
)
def test_numba_compiles_the_products_to_dot_products_of_another_processor(
    processor: str, features: str, expected: str, dots_a_group: int, tmp_path: Path
) -> None:
    # Code taken from Numba's cache cannot be inspected, so this process gets an empty one.
    cache = str(tmp_path)
    name, count = run_as(processor, COMPILED_SCRIPT, NUMBA_CPU_FEATURES=features, NUMBA_CACHE_DIR=cache).split()

    assert name == expected
    # One group of each of three formats, for one token and for T.
    assert int(count) >= 3 * dots_a_group * (1 + T)


GENERIC_SCRIPT = """
import sys
import numpy as np
from cg_local import kernels
from cg_local.packing import FORMATS
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
