"""Proves the tiles of every instruction set, whatever the host is: executed, emulated, or compiled and looked into.

x86 sets that the host lacks are executed in generic operations and compiled to their own instructions; NEON is executed
under qemu's user emulation. A whole process on another instruction set: test_instruction_set_processes.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import NoneType
from typing import Any

import numba
import numpy as np
import pytest
from kernel_cases import expected_product, multiply, random_codes, random_matrix
from tile_programs import (
    CORTEX_A76,
    ArmRunner,
    EmulatedAvx512Vnni,
    EmulatedAvxVnni,
    EmulatedNeonDotprod,
    HostRunner,
    Program,
    Target,
    TileProducts,
    assembly,
    has_arm_emulator,
    part_sizes,
)

from cg_local.kernels import instruction_set, instruction_set_arm, matmul, portable
from cg_local.kernels.instruction_set_arm import NeonDotprod
from cg_local.kernels.instruction_set_x86 import Avx2, Avx512Vnni, AvxVnni
from cg_local.kernels.products import FEW_TOKENS
from cg_local.packing import CODEBOOK_SIZES, FORMATS

T = matmul.BLOCK_TOKENS
LINUX, MACOS, WINDOWS = "x86_64-unknown-linux-gnu", "arm64-apple-darwin", "x86_64-pc-windows-msvc"
PRODUCTS = *FORMATS, "i8g64_int16"
PANELS = [f"{format}-panel" for format in CODEBOOK_SIZES]
EMULATED = EmulatedAvx512Vnni(), EmulatedAvxVnni(), EmulatedNeonDotprod()


@pytest.fixture(scope="module", params=EMULATED, ids=lambda emulated: emulated.name)
def emulated(request: pytest.FixtureRequest) -> TileProducts:
    return TileProducts(HostRunner(request.param))


@pytest.fixture(scope="module")
def neon() -> Iterator[TileProducts]:
    if not has_arm_emulator():
        pytest.skip("needs qemu-aarch64 and AArch64 binutils: apt-get install qemu-user binutils-aarch64-linux-gnu")
    with ArmRunner(NeonDotprod(), CORTEX_A76) as run:
        yield TileProducts(run)


def exact_products(products: Any, product: str, num_tokens: int) -> tuple[Any, Any]:
    """Return the product and the portable one of a matrix and activations whose float sums are exact."""
    random, is_int16 = np.random.default_rng(num_tokens), product.endswith("_int16")
    matrix = random_matrix(product.removesuffix("_int16"), random, (24, 512), is_exact=True)
    x = random_codes(random, num_tokens, 512, is_exact=True, is_int16=is_int16)
    tokens = 1 if num_tokens == 1 else T
    return multiply(products, matrix, x, tokens), multiply(portable, matrix, x, tokens)


def assert_equals_float64(products: Any, product: str) -> None:
    random, is_int16 = np.random.default_rng(7), product.endswith("_int16")
    matrix = random_matrix(product.removesuffix("_int16"), random, (16, 512))
    x = random_codes(random, 5, 512, is_int16=is_int16)
    expected, tolerance = expected_product(matrix, x)
    assert (np.abs(multiply(products, matrix, x, T) - expected) <= tolerance).all()


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_emulated_tiles_equal_the_portable_path_where_sums_are_exact(
    emulated: TileProducts, product: str, num_tokens: int
) -> None:
    np.testing.assert_array_equal(*exact_products(emulated, product, num_tokens))


@pytest.mark.parametrize(("product", "few"), [(product, few) for product in FEW_TOKENS for few in FEW_TOKENS[product]])
@pytest.mark.parametrize("set_", [*EMULATED, Avx2()], ids=lambda set_: set_.name)
def test_tiles_of_part_of_a_block_equal_the_portable_path_where_sums_are_exact(
    set_: Any, product: str, few: int
) -> None:
    if isinstance(set_, Avx2) and not isinstance(matmul.INSTRUCTION_SET, Avx2):
        pytest.skip("needs a processor with AVX2")
    random = np.random.default_rng(few)
    matrix = random_matrix(product, random, (24, 512), is_exact=True)
    x = random_codes(random, few, 512, is_exact=True)

    result = multiply(TileProducts(HostRunner(set_), few), matrix, x, T)

    np.testing.assert_array_equal(result, multiply(portable, matrix, x, T))


@pytest.mark.parametrize("product", PRODUCTS)
def test_emulated_tiles_equal_the_float64_product(emulated: TileProducts, product: str) -> None:
    assert_equals_float64(emulated, product)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_neon_tiles_equal_the_portable_path_where_sums_are_exact(
    neon: TileProducts, product: str, num_tokens: int
) -> None:
    np.testing.assert_array_equal(*exact_products(neon, product, num_tokens))


@pytest.mark.parametrize("product", PRODUCTS)
def test_neon_tiles_equal_the_float64_product(neon: TileProducts, product: str) -> None:
    assert_equals_float64(neon, product)


SETS = [
    # instruction set, target, one dot product in assembly, dot products of a group of 32 columns and 16 rows, lookup
    pytest.param(Avx512Vnni(), Target(LINUX, "znver4"), r"\tvpdpbusd\t.*%zmm", 8, r"vpshufb.*%zmm", id="zen4"),
    pytest.param(Avx512Vnni(), Target(LINUX, "sapphirerapids"), r"\tvpdpbusd\t.*%zmm", 8, r"vpshufb.*%zmm", id="spr"),
    pytest.param(AvxVnni(), Target(LINUX, "alderlake"), r"\{vex\}\tvpdpbusd\t.*%ymm", 16, r"vpshufb.*%ymm", id="adl"),
    pytest.param(AvxVnni(), Target(WINDOWS, "alderlake"), r"\{vex\}\tvpdpbusd\t.*%ymm", 16, r"vpshufb.*%ymm", id="win"),
    pytest.param(Avx2(), Target(LINUX, "haswell"), r"\tvpmaddubsw\t.*%ymm", 16, r"vpshufb.*%ymm", id="haswell"),
    pytest.param(NeonDotprod(), CORTEX_A76, r"\tsdot\tv\d+\.4s", 32, r"\ttbl\t", id="a76"),
    pytest.param(NeonDotprod(), Target(MACOS, "apple-m1"), r"\tsdot\.4s\tv\d+", 32, r"\ttbl\.16b\t", id="m1"),
]
# How often AVX2 runs a loop for one group of several tokens.
LOOP_STEPS = {"i8g64": 4, "i8g64_int16": 4, "i6g32": 2}


@pytest.mark.parametrize(("instruction_set", "target", "dot", "dots_a_group", "lookup"), SETS)
@pytest.mark.parametrize("num_tokens", [1, T])
@pytest.mark.parametrize("product", [*PRODUCTS, *PANELS])
def test_tile_compiles_to_the_instructions_of_its_processor(
    instruction_set: Any, target: Target, dot: str, dots_a_group: int, lookup: str, num_tokens: int, product: str
) -> None:
    program = Program(product, num_tokens, part_sizes(product, num_tokens, columns=256), 8, 16)

    text = assembly(program, instruction_set, target)

    if instruction_set.folds_scales and num_tokens > 1:
        dots_a_group //= LOOP_STEPS.get(product, 1)
    if product == "i8g64_int16":
        # LLVM takes a vpdpwssd apart where that shortens a chain of dependent ones. NEON has none for words.
        words = dot if "sdot" in dot else r"vp(dpwssd|maddwd)\t.*%" + ("zmm" if "zmm" in dot else "ymm")
        assert len(re.findall(words, text)) >= 2 * dots_a_group * num_tokens
    elif product != "bf16":
        assert len(re.findall(dot, text)) >= dots_a_group * num_tokens
    assert bool(re.search(lookup, text)) == (product in CODEBOOK_SIZES or product in PANELS)
    # A widening or a division that the processor lacks would be a call of a function that nobody links. Windows has one
    # for large stack frames, which this test's panel makes.
    if product not in PANELS or target.triple != WINDOWS:
        assert not re.search(r"\t(call|callq|bl)\t", text)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx512f", "avx512bw", "avx512vnni", "avxvnni", "avx2", "fma", "f16c"}, Avx512Vnni),
        ({"avx512f", "avx512bw", "avx2", "fma", "f16c"}, Avx2),
        ({"avxvnni", "avx2", "fma", "f16c"}, AvxVnni),
        ({"avx2", "fma", "f16c"}, Avx2),
        ({"avx2", "fma"}, NoneType),
        ({"avx", "sse4.2"}, NoneType),
        ({"neon", "dotprod"}, NeonDotprod),
        ({"neon"}, NoneType),
        (set(), NoneType),
    ],
    ids=lambda case: "-".join(sorted(case)) or "nothing" if isinstance(case, set) else case.__name__,
)
def test_best_instruction_set_whose_features_are_all_there_is_selected(
    features: set[str], expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instruction_set, "compiled_features", lambda: features)

    assert type(instruction_set.select_instruction_set()) is expected


@pytest.mark.parametrize(
    ("found", "expected"), [("", "+dotprod"), ("+neon,-sve", "+neon,-sve,+dotprod")], ids=["macos", "linux"]
)
def test_dotprod_is_asked_of_numba_where_the_processor_has_it(
    found: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CPU_FEATURES", None)
    monkeypatch.setattr(instruction_set_arm, "has_dotprod", lambda: True)
    monkeypatch.setattr("numba.core.codegen.get_host_cpu_features", lambda: found)

    instruction_set_arm.request_dotprod()

    assert expected == numba.config.CPU_FEATURES


@pytest.mark.parametrize(("named", "has_dotprod"), [("+neon", True), (None, False)])
def test_dotprod_is_not_asked_where_features_are_named_or_the_processor_lacks_it(
    named: str | None, has_dotprod: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CPU_FEATURES", named)
    monkeypatch.setattr(instruction_set_arm, "has_dotprod", lambda: has_dotprod)

    instruction_set_arm.request_dotprod()

    assert named == numba.config.CPU_FEATURES
